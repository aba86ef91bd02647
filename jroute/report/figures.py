"""The figures of a report."""

from jroute.report.gate_histograms import arm_histogram, difficulty_histograms
from jroute.report.interval_figures import interval_figures
from jroute.report.report_data import ReportData
from jroute.report.stream_figures import stream_figures
from jroute.report.svg import Figure
from jroute.report.training_figures import training_figures


def figures(data: ReportData) -> list[Figure]:
    """Return every figure that a run has the data for."""
    drawn: list[Figure] = []
    for split in data.splits:
        drawn += interval_figures(split)
    if data.curves:
        drawn += training_figures(data)
    if data.splits and data.splits[0].rows:
        drawn += difficulty_histograms(data.splits[0])
    if data.results.get("gates_chosen"):
        drawn.append(arm_histogram(data.results))
    if data.probe is not None:
        drawn += stream_figures(data.probe)
    return drawn
