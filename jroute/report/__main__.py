"""Write a run up as one HTML page with its figures, and print the arms.

    python -m jroute.report --run runs/demo
    python -m jroute.report --run runs/demo --traces.format jsonl

The page needs nothing but itself: it opens from disk, without a network. It goes to ``report.html``
in the run folder, its figures as PNG and SVG to ``figures``. Traces (off by default) hold every
judged episode: see ``jroute.observe.traces``.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from jroute.observe.progress import progress_bar
from jroute.observe.traces import TraceConfig
from jroute.utils.cli import command, run_command
from jroute.utils.config import parse
from jroute.utils.errors import UserError
from jroute.utils.paths import check_path, output_folder


@dataclass(frozen=True)
class Report:
    """What to report, and where.

    Attributes:
        run: Run folder.
        out: Folder for the page and its figures; empty is the run folder.
        traces: Where the judged episodes go as spans.
    """

    run: str
    out: str = ""
    traces: TraceConfig = field(default_factory=TraceConfig)


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Parse, read, write, print."""
    options = parse(
        Report, argv, prog="python -m jroute.report", description=__doc__ or "", files=False
    )
    directory = check_path(options.run, "run")
    folder = output_folder(options.out or directory, "out" if options.out else "run")
    if not (directory / "config.yaml").is_file():
        raise UserError(
            f"{directory} is not a run folder, it has no config.yaml; "
            "run python -m jroute.train first"
        )
    from jroute.experiment.run_folder import RunFolder
    from jroute.report import page
    from jroute.report.run_reader import read_run
    from jroute.report.text import print_results
    from jroute.utils.together import settled

    with settled(directory):
        data = read_run(directory)
    print_results(data.results)
    RunFolder(directory, directory).clean()
    if options.traces.on:
        from jroute.report.episodes import export

        for line in export(data, options.traces, folder / "traces"):
            print(line)
    paths = page.write(data, folder, lambda drawn: progress_bar(drawn, "figures", unit="figure"))
    print("\n".join(RunFolder(directory, directory).describe()))
    print(f"{paths[0]}: the report ({paths[0].stat().st_size / 1e6:.1f} MB)")
    print(f"{folder / 'figures'}: its {len(paths[1:]) // 2} figures as PNG and SVG")


if __name__ == "__main__":
    run_command(main, "nothing was changed")
