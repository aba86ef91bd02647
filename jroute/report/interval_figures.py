"""Figures of arms, contrasts and headroom: a dot and a 95 % interval for each.

They are files only: the page shows the same numbers as tables (``jroute.report.interval_table``).
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from jroute.report.report_data import SplitReport
from jroute.report.result_rows import ResultRow, arm_rows, contrast_rows, headroom_rows
from jroute.report.svg import Figure, Theme


def interval_figures(split: SplitReport) -> list[Figure]:
    """Return the figures of one split that have any rows."""
    candidates = (
        ("arms", "Accuracy of every arm, %", arm_rows(split.results), False),
        ("contrasts", "RL minus other arms, points", contrast_rows(split.results), True),
        ("headroom", "Gain over the best fixed gate, points", headroom_rows(split.results), True),
    )
    return [
        Figure(
            f"{name}-{split.name}",
            f"{title} ({split.name}, n = {split.results['n']:,})",
            "; ".join(row.text for row in rows),
            partial(_draw_intervals, rows=rows, differences=differences),
            height=60 + 22 * len(rows),
            width=520,
            in_page=False,
        )
        for name, title, rows, differences in candidates
        if rows
    ]


def _draw_intervals(
    axes: Any, theme: Theme, *, rows: Sequence[ResultRow], differences: bool
) -> None:
    """Draw one line per row: dot, whiskers, and the number at the right."""
    for i, row in enumerate(rows):
        colour = theme.accent if row.bold else theme.ink
        if row.ci95 is not None:
            axes.plot(row.ci95, [i, i], color=colour, linewidth=1.6, solid_capstyle="round")
        axes.plot([row.value], [i], "o", color=colour, markersize=5)
        axes.annotate(
            f"{row.value:+.1f}" if differences else f"{row.value:.1f}",
            (1.02, i),
            xycoords=("axes fraction", "data"),
            va="center",
            color=colour,
        )
    if differences:
        axes.axvline(0, color=theme.muted, linewidth=0.8)
    axes.set_yticks(range(len(rows)), [row.name for row in rows])
    axes.tick_params(axis="y", labelcolor=theme.ink)
    axes.invert_yaxis()
    axes.grid(axis="x", color=theme.faint, linewidth=0.8)
    axes.set_axisbelow(True)
