"""Ablate routings: preset x streams x sites x guards x gate on one split, as a table and a plot.

    python -m jroute.ablate --config configs/ablation_tiny.yaml [--plan]

Existing cells are not generated again, so an interrupted command resumes where it stopped.
``--plan`` prints what the missing cells would take, and stops.
"""

import shlex
import sys
from collections.abc import Sequence

from jroute.ablate.grid import Ablation
from jroute.utils.cli import PlanOption, command, run_command
from jroute.utils.config import parse
from jroute.utils.paths import folder_path, output_folder


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Parse, measure, print."""
    argv = sys.argv[1:] if argv is None else argv
    grid, options = parse(
        Ablation,
        argv,
        prog="python -m jroute.ablate",
        description=__doc__ or "",
        extra=PlanOption,
    )
    (folder_path if options.plan else output_folder)(grid.run, "run")
    from jroute.ablate.ablation_run import AblationRun, format_table
    from jroute.ablate.files import write_ablation
    from jroute.observe.progress import progress_bar

    ablation = AblationRun(grid)
    for sentence in ablation.impossible:
        print(f"left out: {sentence}")
    if options.plan:
        print(ablation.plan())
        return
    with progress_bar(desc="ablation", unit="cell") as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        count = ablation.fill(progress)
    rows = ablation.rows()
    files = write_ablation(ablation, rows, shlex.join(["python", "-m", "jroute.ablate", *argv]))
    print(f"{format_table(rows)}\n\n{count} cells made now")
    print("\n".join(map(str, files)))


if __name__ == "__main__":
    run_command(main, "give the same command again to continue from here")
