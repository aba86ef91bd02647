"""Gates against the difficulty of problems, as plain numbers."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from jroute.report.report_data import ProblemRow, SplitReport, steps

BINS = 6
"""Most groups of problems in a figure."""


@dataclass(frozen=True)
class Measure:
    """One measure of difficulty."""

    short: str
    title: str
    axis: str
    of: Callable[[ProblemRow], float]


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
    Measure("steps", "steps", "steps of the reference solution", lambda row: steps(row.problem)),
)


@dataclass(frozen=True)
class GateShares:
    """What all seeds chose in groups of problems.

    Attributes:
        labels: Ranges of the groups.
        gates: Gates that were chosen at all, the smallest first.
        colours: Their places in the report's grid.
        share: Of each gate in each group, over seeds, problems and parts.
        mean: Mean gate of each group.
        parts: Mean gate of each part (band or layer) in each group.
        scale: Smallest and largest gate of the grid.
    """

    labels: list[str]
    gates: list[float]
    colours: list[int]
    share: Float[np.ndarray, "gates groups"]
    mean: Float[np.ndarray, " groups"]
    parts: Float[np.ndarray, "parts groups"]
    scale: tuple[float, float]


def measures(judged: SplitReport) -> list[Measure]:
    """Measures that tell the problems of a split apart."""
    return [m for m in MEASURES if len({m.of(row) for row in judged.rows}) > 1]


def groups(values: Float[np.ndarray, " items"]) -> tuple[Int[np.ndarray, " items"], list[str]]:
    """Put items into at most ``BINS`` groups of neighbouring values, of about equal size.

    Returns:
        The group of every item, and what values each group has.
    """
    known = np.unique(values)
    if len(known) <= BINS:
        edges = known[1:]
    else:
        edges = np.unique(np.quantile(values, np.linspace(0, 1, BINS + 1)[1:-1], method="nearest"))
        # Where one value is most of them it is a group of its own.
        edges = np.unique(np.where(edges == known[0], known[1], edges))
    placed = np.searchsorted(edges, values, side="right")
    labels = []
    for group in range(len(edges) + 1):
        inside = values[placed == group]
        low, high = f"{inside.min():g}", f"{inside.max():g}"
        labels.append(low if low == high else f"{low}–{high}")
    return placed, labels


def by_difficulty(judged: SplitReport, measure: Measure) -> GateShares | None:
    """Gates in groups of problems; ``None`` without a choice of any controller."""
    if not judged.gates.size:
        return None
    placed, labels = groups(np.array([measure.of(row) for row in judged.rows], float))
    known = sorted(
        {float(g) for g in np.unique(judged.gates)}
        | {part for row in judged.rows for cell in row.cells for part in cell.gate}
    )
    used = [gate for gate in known if (judged.gates == gate).any()]
    inside = [judged.gates[:, placed == group] for group in range(len(labels))]
    return GateShares(
        labels=labels,
        gates=used,
        colours=[known.index(gate) for gate in used],
        share=np.array([[(g == gate).mean() for g in inside] for gate in used]),
        mean=np.array([g.mean() for g in inside]),
        parts=np.stack([g.mean(axis=(0, 1)) for g in inside], axis=1),
        scale=(known[0], known[-1]),
    )
