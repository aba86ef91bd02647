"""Figures of training: curves over updates, and accuracy against the cells that it cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.optimize import isotonic_regression

from jroute.arms.registry import BASELINE, SUBJECT, TRAINED_ON_TABLE, parse_arm
from jroute.observe.scalars import GATE_SHARE
from jroute.report.report_data import ReportData
from jroute.report.svg import Figure, Theme, end_label, percent_ticks

RETURN = "charts/episodic_return"

CURVES = {
    RETURN: ("return", "Return", "Mean reward of the sampled gates"),
    "losses/entropy": ("entropy", "Entropy", "Entropy of the policy given a prompt, nats"),
    "losses/explained_variance": (
        "explained-variance",
        "Explained variance",
        "Share of the rewards' variance that the critic foresees",
    ),
}
"""Name, title and description of the figure of each training curve."""

NARROW = 0.04
"""A gate with a smaller share has no room for a label."""


def training_figures(data: ReportData) -> list[Figure]:
    """Return the curves, the shares of gates over training, and accuracy against cost."""
    drawn = [
        Figure(
            name,
            title,
            f"{description}: {_last_mean(data.curves[curve]):.3f} "
            f"after {data.curves[curve].shape[1]} updates",
            partial(_draw_curve, values=data.curves[curve], name=name),
        )
        for curve, (name, title, description) in CURVES.items()
        if curve in data.curves
    ]
    by_gate = {
        float(name.removeprefix(GATE_SHARE)): values
        for name, values in data.curves.items()
        if name.startswith(GATE_SHARE)
    }
    if by_gate:
        drawn.append(_gate_shares(data, by_gate))
    if RETURN in data.curves:
        drawn.append(_accuracy_against_cells(data))
    return drawn


# Curves -----------------------------------------------------------------------------------------


def _last_mean(values: Float[np.ndarray, "seeds updates"]) -> float:
    return float(np.nanmean(values[:, -1]))


def _draw_curve(
    axes: Any, theme: Theme, *, values: Float[np.ndarray, "seeds updates"], name: str
) -> None:
    """Draw the mean over seeds and the band that holds 90 % of the seeds."""
    updates = np.arange(1, values.shape[1] + 1)
    if np.isnan(values).all():
        axes.text(0.5, 0.5, "does not exist here", ha="center", transform=axes.transAxes)
        return
    mean = np.ma.masked_invalid(values).mean(axis=0).filled(np.nan)
    if len(values) > 1:
        # NumPy warns of percentiles of nothing, so updates where no seed has a value become 0.
        undefined = np.isnan(values).all(axis=0, keepdims=True)
        low, high = np.nanpercentile(np.where(undefined, 0.0, values), [5, 95], axis=0)
        axes.fill_between(updates, low, high, color=theme.accent, alpha=0.22, linewidth=0)
    axes.plot(updates, mean, color=theme.accent, linewidth=1.6)
    if np.isfinite(mean[-1]):
        end_label(axes, float(updates[-1]), float(mean[-1]), f"{mean[-1]:.3g}", theme.accent)
    if name == "explained-variance":
        axes.set_ylim(max(-1.0, float(np.nanmin(mean))), 1.02)
    axes.set(xlabel="update", xlim=(0, updates[-1]))
    axes.margins(y=0.08)
    axes.locator_params(axis="y", nbins=4)
    axes.grid(axis="y", color=theme.faint, linewidth=0.8)


# Gates over training ----------------------------------------------------------------------------


def _gate_shares(
    data: ReportData, by_gate: Mapping[float, Float[np.ndarray, "seeds updates"]]
) -> Figure:
    gates = sorted(by_gate)
    shares = np.stack([np.nanmean(by_gate[gate], axis=0) for gate in gates])
    last = ", ".join(f"{g:g}: {v:.0%}" for g, v in zip(gates, shares[:, -1], strict=True))
    return Figure(
        "gates-training",
        "Gates over training",
        f"Share of decisions for every gate at the end of training: {last}",
        partial(
            _draw_gate_shares,
            gates=gates,
            shares=shares,
            colours=[_nearest(data.grid, gate) for gate in gates],
        ),
    )


def _nearest(grid: Sequence[float], gate: float) -> int:
    """Return the place of a gate in the grid; a curve's name rounds it."""
    return int(np.argmin(np.abs(np.asarray(grid) - gate)))


def _draw_gate_shares(
    axes: Any,
    theme: Theme,
    *,
    gates: Sequence[float],
    shares: Float[np.ndarray, "gates updates"],
    colours: Sequence[int],
) -> None:
    """Stack the shares of all gates, each labelled at the last update."""
    updates = np.arange(1, shares.shape[1] + 1)
    axes.stackplot(updates, shares, colors=[theme.gate(i) for i in colours], linewidth=0)
    tops = np.cumsum(shares[:, -1])
    for gate, share, top in zip(gates, shares[:, -1], tops, strict=True):
        if share > NARROW:
            end_label(axes, float(updates[-1]), top - share / 2, f"{gate:g}", theme.ink)
    axes.set(xlabel="update", xlim=(1, updates[-1]), ylim=(0, 1))
    percent_ticks(axes.yaxis)


# Accuracy against cells -------------------------------------------------------------------------


@dataclass(frozen=True)
class _Cost:
    """The accuracy of an arm and the number of cells that it took to train it."""

    arm: str
    label: str
    cells: float
    accuracy: float


def _accuracy_against_cells(data: ReportData) -> Figure:
    """Plot the learner's own curve and the final arms over the cells that each was paid for."""
    earned = np.nanmean(data.curves[RETURN], axis=0)
    revealed = data.curves.get("charts/cells_revealed")
    if revealed is not None:
        cells, unit = np.nanmean(revealed, axis=0), "different cells generated"
    else:
        cells = data.batch * np.arange(1, len(earned) + 1, dtype=float)
        unit = "rewards asked for by one seed"
    accuracies = {name: arm["accuracy"] for name, arm in data.results.get("arms", {}).items()}
    spent = {SUBJECT: float(cells[-1])}
    if train_cells := data.results.get("train_cells"):
        spent |= dict.fromkeys(TRAINED_ON_TABLE, float(train_cells))
    costs = [
        _Cost(name, parse_arm(name).label, count, accuracies[name])
        for name, count in spent.items()
        if name in accuracies
    ]
    return Figure(
        "consumed",
        "Accuracy against generations",
        f"Mean reward {earned[-1]:.3f} after {cells[-1]:,.0f} {unit}; "
        + "; ".join(f"{cost.label} {cost.accuracy:.3f} from {cost.cells:,.0f}" for cost in costs),
        partial(
            _draw_accuracy_against_cells,
            cells=cells,
            earned=earned,
            costs=costs,
            baseline=accuracies.get(BASELINE),
            unit=unit,
        ),
    )


def _draw_accuracy_against_cells(
    axes: Any,
    theme: Theme,
    *,
    cells: Float[np.ndarray, " updates"],
    earned: Float[np.ndarray, " updates"],
    costs: Sequence[_Cost],
    baseline: float | None,
    unit: str,
) -> None:
    """Draw the curve and a labelled dot per arm on a logarithmic axis of cells."""
    _log_axis(axes, wide=bool(cells[-1] > 100 * cells[0]))
    axes.plot(cells, earned, color=theme.accent, linewidth=1.6, alpha=0.55)
    colours = [theme.accent if cost.arm == SUBJECT else theme.ink for cost in costs]
    for cost, colour in zip(costs, colours, strict=True):
        axes.plot([cost.cells], [cost.accuracy], "o", color=colour, markersize=5)
    axes.margins(x=0.06, y=0.12)
    if baseline:
        axes.axhline(baseline, color=theme.muted, linewidth=0.8, linestyle=(0, (4, 3)))
        axes.annotate(
            parse_arm(BASELINE).label,
            (0, baseline),
            xycoords=("axes fraction", "data"),
            xytext=(2, 2),
            textcoords="offset points",
            va="bottom",
            color=theme.muted,
        )
    low, high = axes.get_ylim()
    heights = spread([cost.accuracy for cost in costs], 0.08 * (high - low))
    for cost, colour, height in zip(costs, colours, heights, strict=True):
        end_label(axes, cost.cells, height, cost.label, colour)
    axes.set(xlabel=unit)
    axes.locator_params(axis="y", nbins=4)
    axes.grid(axis="y", color=theme.faint, linewidth=0.8)


def _log_axis(axes: Any, *, wide: bool) -> None:
    """Make ``x`` logarithmic with plain numbers: powers of ten if it is wide, else 1, 2, 5."""
    from matplotlib.ticker import LogLocator, NullLocator

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.xaxis.set_minor_locator(NullLocator())


def spread(values: Sequence[float], least: float) -> list[float]:
    """Return heights for labels: close to their values, in the same order, not overlapping.

    Args:
        values: Heights that the labels belong to.
        least: Smallest distance between two labels.
    """
    order = np.argsort(values, kind="stable")
    gaps = least * np.arange(len(values))
    heights = np.empty(len(values))
    heights[order] = isotonic_regression(np.asarray(values, float)[order] - gaps).x + gaps
    return heights.tolist()
