"""Histograms of gates: which arm chose which gate, and for which problems."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float

from jroute.arms.registry import SUBJECT, choosing, parse_arm
from jroute.report.difficulty import GateShares, by_difficulty, measures
from jroute.report.report_data import SplitReport
from jroute.report.svg import Figure, Theme, end_label, hide_bottom, percent_ticks

NARROW = 0.04
"""A gate with a smaller share has no room for a label."""

# Gates of every arm -----------------------------------------------------------------------------


def arm_histogram(results: Mapping[str, Any]) -> Figure:
    """Plot how often each arm that reads the prompt chose each gate, and each seed of RL.

    Args:
        results: ``results.json`` with ``gates_chosen``: counts ``[seeds, gates]`` by arm.
    """
    counts = results["gates_chosen"]
    chosen = {name: np.array(counts[name], float) for name in choosing() if name in counts}
    gates = np.array(results["gates"], float)
    order = np.argsort(gates)
    bars = {
        parse_arm(name).label: (by_seed.sum(axis=0) / by_seed.sum())[order]
        for name, by_seed in chosen.items()
    }
    seeds = chosen.get(SUBJECT, np.zeros((0, len(gates))))
    seeds = seeds[np.argsort(seeds @ gates)]  # seeds with similar choices are adjacent
    seeds = (seeds / np.maximum(seeds.sum(axis=1, keepdims=True), 1))[:, order]
    gates = gates[order]
    descriptions = [
        f"{label}: " + ", ".join(f"{g:g} {v:.0%}" for g, v in zip(gates, shares, strict=True))
        for label, shares in bars.items()
    ]
    return Figure(
        "gates-arms",
        "Gates that every arm chose",
        "; ".join(descriptions),
        partial(_draw_arm_histogram, gates=gates, bars=bars, seeds=seeds),
        height=60 + 22 * len(bars) + (44 if len(seeds) else 0),
        width=520,
    )


def _draw_arm_histogram(
    axes: Any,
    theme: Theme,
    *,
    gates: Float[np.ndarray, " gates"],
    bars: Mapping[str, Float[np.ndarray, " gates"]],
    seeds: Float[np.ndarray, "seeds gates"],
) -> None:
    """Draw a bar for every arm and thin ones for RL's seeds; the first bar labels the gates."""
    for place, shares in enumerate(bars.values()):
        _stack(axes, theme, place, 0.8, shares)
    height = 1.6 / max(len(seeds), 1)
    for i, shares in enumerate(seeds):
        _stack(axes, theme, len(bars) + 0.1 + (i + 0.5) * height - 0.4, height, shares)
    left = 0.0
    for gate, share in zip(gates, next(iter(bars.values()), np.zeros(len(gates))), strict=True):
        if share > NARROW:
            axes.annotate(
                f"{gate:g}",
                (left + share / 2, -0.4),
                xytext=(0, 3),
                textcoords="offset points",
                ha="center",
                va="bottom",
                color=theme.ink,
            )
        left += share
    places, labels = [*map(float, range(len(bars)))], list(bars)
    if len(seeds):
        places, labels = [*places, len(bars) + 0.5], [*labels, "every seed of RL"]
    axes.set_yticks(places, labels)
    axes.tick_params(axis="y", labelcolor=theme.ink)
    axes.invert_yaxis()
    axes.set(xlim=(0, 1))
    percent_ticks(axes.xaxis)
    hide_bottom(axes)


def _stack(
    axes: Any, theme: Theme, place: float, height: float, shares: Float[np.ndarray, " gates"]
) -> None:
    """Draw one horizontal bar, divided among the gates."""
    left = 0.0
    for i, share in enumerate(shares):
        axes.barh(place, share, height, left=left, color=theme.gate(i), linewidth=0)
        left += share


# Gates by difficulty ----------------------------------------------------------------------------


def difficulty_histograms(split: SplitReport) -> list[Figure]:
    """Plot the gates in groups of problems; gates of several numbers also over depth."""
    drawn = []
    for measure in measures(split):
        shares = by_difficulty(split, measure)
        if shares is None:
            continue
        description = "; ".join(
            f"{label}: mean gate {mean:.2f}"
            for label, mean in zip(shares.labels, shares.mean, strict=True)
        )
        drawn.append(
            Figure(
                f"gate-{measure.name}",
                f"Gate by {measure.title}",
                description,
                partial(_draw_shares, shares=shares, axis=measure.axis),
            )
        )
        num_gate_dims = len(shares.mean_by_dim)
        if num_gate_dims > 1:
            drawn.append(
                Figure(
                    f"parts-{measure.name}",
                    f"Mean gate over depth by {measure.title}",
                    description,
                    partial(_draw_gate_dims, shares=shares, axis=measure.axis),
                    height=140 + 8 * num_gate_dims,
                )
            )
    return drawn


def _draw_shares(axes: Any, theme: Theme, *, shares: GateShares, axis: str) -> None:
    """Draw a bar for every group, divided among the gates and labelled at the last one."""
    places = np.arange(len(shares.labels))
    bottom = np.zeros(len(places))
    for colour, share in zip(shares.colours, shares.share, strict=True):
        axes.bar(places, share, 0.86, bottom, color=theme.gate(colour), linewidth=0)
        bottom += share
    last = shares.share[:, -1]
    middles: Sequence[float] = (np.cumsum(last) - last / 2).tolist()
    for gate, share, middle in zip(shares.gates, last, middles, strict=True):
        if share > NARROW:
            end_label(axes, len(places) - 0.57, middle, f"{gate:g}", theme.ink)
    axes.set_xticks(places, shares.labels)
    axes.set(xlabel=axis, ylim=(0, 1), xlim=(-0.5, len(places) - 0.5))
    percent_ticks(axes.yaxis)
    hide_bottom(axes)


def _draw_gate_dims(axes: Any, theme: Theme, *, shares: GateShares, axis: str) -> None:
    """Draw mean gates as shades between the smallest gate's colour and the largest one's."""
    from matplotlib.patches import Rectangle

    # Colours in the page are variables, which cannot be mixed: the colour of the largest gate lies
    # over that of the smallest, the more opaque the larger the mean.
    smallest, largest = theme.gate(0), theme.gate(theme.num_gates - 1)
    low, high = shares.scale
    num_gate_dims, num_groups = shares.mean_by_dim.shape
    for row, column in np.ndindex(num_gate_dims, num_groups):
        mean = float(shares.mean_by_dim[row, column])
        opacity = (mean - low) / max(high - low, 1e-9)
        corner = (column - 0.47, row - 0.47)
        for colour, alpha in ((smallest, 1.0), (largest, opacity)):
            axes.add_patch(
                Rectangle(corner, 0.94, 0.94, facecolor=colour, alpha=alpha, linewidth=0)
            )
        if num_gate_dims <= 8:
            axes.annotate(
                f"{mean:.2f}",
                (column, row),
                ha="center",
                va="center",
                fontsize=9,
                color=theme.paper if opacity > 0.45 else theme.ink,
            )
    axes.set(xlim=(-0.5, num_groups - 0.5), ylim=(num_gate_dims - 0.5, -0.5), xlabel=axis)
    axes.set_ylabel("band or layer")
    axes.set_xticks(range(num_groups), shares.labels)
    axes.yaxis.get_major_locator().set_params(integer=True)
    hide_bottom(axes)
