"""Ablates routings: preset x streams x sites x guards x gate on one split, in one table and a plot.

    python -m jroute.ablate --config configs/ablation_tiny.yaml [--plan]

Cells that are there are not made again, so an interrupted command goes on where it stopped.
``--plan`` says what the rest would take and stops.
"""

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from jroute.ablate.grid import Ablation, Laboratory, table
from jroute.utils.cli import command, run_command
from jroute.utils.config import parse


@dataclass(frozen=True)
class Options:
    """What the command itself is told.

    Attributes:
        plan: Say what it would take, and stop.
    """

    plan: bool = False


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Parse, measures, prints."""
    argv = sys.argv[1:] if argv is None else argv
    grid, options = parse(
        Ablation, argv, prog="python -m jroute.ablate", description=__doc__ or "", extra=Options
    )
    from jroute.observe.progress import progress_bar
    from jroute.probe.plots import plot_ablation
    from jroute.utils.files import write_text
    from jroute.utils.machine import describe_machine

    laboratory = Laboratory(grid)
    for sentence in laboratory.left_out:
        print(f"left out: {sentence}")
    if options.plan:
        from jroute.experiment.estimate import plan_ablation

        print(plan_ablation(laboratory))
        return
    with progress_bar(desc="ablation", unit="cell") as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        made = laboratory.fill(progress)
    cells, folder = laboratory.cells(), laboratory.run.directory
    content = {
        "command": shlex.join(["python", "-m", "jroute.ablate", *argv]),
        "model": laboratory.run.base.fingerprint,
        "split": grid.split,
        "left_out": laboratory.left_out,
        "machine": describe_machine(),
    }
    lines = ",\n  ".join(json.dumps(cell) for cell in cells)
    head = json.dumps(content, indent=1).removesuffix("\n}")
    write_text(folder / "ablation.json", f'{head},\n "cells": [\n  {lines}\n ]\n}}\n')
    write_text(folder / "ablation.txt", f"{table(cells)}\n")
    plot_ablation(cells, folder / "ablation.png")
    print(f"{table(cells)}\n\n{made} cells made now")
    for name in ("ablation.txt", "ablation.json", "ablation.png"):
        print(folder / name)


if __name__ == "__main__":
    run_command(main, "give the same command again to go on from here")
