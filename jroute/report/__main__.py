"""Writes a run up as one HTML page with its figures, and prints the arms.

    python -m jroute.report --run runs/demo
    python -m jroute.report --run runs/demo --traces.format jsonl

The page needs nothing but itself: it opens from disk, without a network. It goes to ``report.html``
in the run folder, its figures as PNG and SVG to ``figures``. Traces (off by default) hold every
judged episode: see ``jroute.observe.traces``.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from jroute.observe.progress import progress_bar
from jroute.observe.traces import TraceConfig
from jroute.report.text import print_results
from jroute.utils.cli import command, run_command
from jroute.utils.config import parse
from jroute.utils.errors import UserError

if TYPE_CHECKING:
    from jroute.report.report_data import ReportData


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


def export(material: "ReportData", config: TraceConfig, folder: Path) -> None:
    """Write every judged episode as a span."""
    from jroute.observe.traces import Traces
    from jroute.report.episodes import episodes, shared

    for judged in material.splits:
        total = sum(len(row.cells) for row in judged.rows)
        with Traces(config, folder / "traces", judged.name, shared(material)) as traces:
            told = progress_bar(
                episodes(judged, material), f"traces {judged.name}", total, unit="episode"
            )
            traces.write(iter(told))
        for place, lost in traces.lost.items():
            print(f"{place}: {total - lost:,} of {total:,} episodes of {judged.name}")


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Parse, reads, writes, prints."""
    report = parse(
        Report, argv, prog="python -m jroute.report", description=__doc__ or "", files=False
    )
    directory = Path(report.run)
    if not (directory / "config.yaml").is_file():
        raise UserError(
            f"{directory} is no run folder, it has no config.yaml; run python -m jroute.train first"
        )
    from jroute.experiment.pipeline import written
    from jroute.report import page
    from jroute.report.run_reader import read_run

    material = read_run(directory)
    print_results(material.results)
    folder = Path(report.out) if report.out else directory
    if report.traces.on:
        export(material, report.traces, folder)
    files = page.write(
        material, folder, lambda found: progress_bar(found, "figures", unit="figure")
    )
    print("\n".join(written(directory)))
    print(f"{files[0]}: the report ({files[0].stat().st_size / 1e6:.1f} MB)")
    print(f"{folder / 'figures'}: its {len(files[1:]) // 2} figures as PNG and SVG")


if __name__ == "__main__":
    run_command(main, "nothing was changed")
