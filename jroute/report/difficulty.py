"""Gates against the difficulty of problems, as plain numbers."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from jroute.report.report_data import ProblemRow, SplitReport, count_steps
from jroute.routing.gate import gate_numbers

BINS = 6
"""Largest number of groups in a figure."""


@dataclass(frozen=True)
class Measure:
    """One measure of difficulty.

    Attributes:
        name: Part of the figures' names.
        title: What the figures say after "by".
        axis: Label of the horizontal axis.
        value: Measures a problem.
    """

    name: str
    title: str
    axis: str
    value: Callable[[ProblemRow], float]


MEASURES = (
    Measure(
        "answer-length",
        "answer length",
        "tokens of the plain model's answer",
        lambda row: row.cells[row.base].tokens,
    ),
    Measure(
        "prompt-length",
        "prompt length",
        "tokens of the prompt",
        lambda row: row.features.get("prompt_length", 0.0),
    ),
    Measure(
        "steps",
        "steps",
        "steps of the reference solution",
        lambda row: count_steps(row.problem),
    ),
)


@dataclass(frozen=True)
class GateShares:
    """The choices of all seeds in groups of problems.

    Attributes:
        labels: The range of each group.
        gates: Gates chosen at least once, the smallest first.
        colours: Indices of those gates in the report's grid.
        share: Share of each gate in each group, over seeds, problems and gate dims.
        mean: Mean gate of each group.
        mean_by_dim: Mean of each gate dim (band or layer) in each group.
        scale: Smallest and largest gate of the grid.
    """

    labels: list[str]
    gates: list[float]
    colours: list[int]
    share: Float[np.ndarray, "gates groups"]
    mean: Float[np.ndarray, " groups"]
    mean_by_dim: Float[np.ndarray, "gate_dims groups"]
    scale: tuple[float, float]


def measures(split: SplitReport) -> list[Measure]:
    """Return the measures that differ between the problems of a split."""
    return [m for m in MEASURES if len({m.value(row) for row in split.rows}) > 1]


def groups(values: Float[np.ndarray, " items"]) -> tuple[Int[np.ndarray, " items"], list[str]]:
    """Put items into at most ``BINS`` groups of neighbouring values and about equal size.

    Returns:
        The group of every item, and the range of every group.
    """
    distinct = np.unique(values)
    if len(distinct) <= BINS:
        edges = distinct[1:]
    else:
        edges = np.unique(np.quantile(values, np.linspace(0, 1, BINS + 1)[1:-1], method="nearest"))
        # A value that most items share forms its own group.
        edges = np.unique(np.where(edges == distinct[0], distinct[1], edges))
    members = np.searchsorted(edges, values, side="right")
    labels = []
    for group in range(len(edges) + 1):
        inside = values[members == group]
        low, high = f"{inside.min():g}", f"{inside.max():g}"
        labels.append(low if low == high else f"{low}–{high}")
    return members, labels


def by_difficulty(split: SplitReport, measure: Measure) -> GateShares | None:
    """Return the gates in groups of problems; ``None`` if no controller chose any."""
    if not split.gates.size:
        return None
    members, labels = groups(np.array([measure.value(row) for row in split.rows], float))
    grid = sorted(
        {float(gate) for gate in np.unique(split.gates)}
        | {n for row in split.rows for cell in row.cells for n in gate_numbers(cell.gate)}
    )
    chosen = [gate for gate in grid if (split.gates == gate).any()]
    by_group = [split.gates[:, members == group] for group in range(len(labels))]
    return GateShares(
        labels=labels,
        gates=chosen,
        colours=[grid.index(gate) for gate in chosen],
        share=np.array([[(gates == gate).mean() for gates in by_group] for gate in chosen]),
        mean=np.array([gates.mean() for gates in by_group]),
        mean_by_dim=np.stack([gates.mean(axis=(0, 1)) for gates in by_group], axis=1),
        scale=(grid[0], grid[-1]),
    )
