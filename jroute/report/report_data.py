"""What a report shows, as plain data; ``reading`` takes it from the files of a run folder."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from jroute.routing.gate import Gate
from jroute.tasks import Problem


@dataclass(frozen=True)
class Cell:
    """What one problem gave under one gate; fields as in ``Outcome``."""

    gate: Gate
    completion: str
    tokens: int
    parsed: str
    status: str
    correct: bool
    reward: float
    stop_reason: str


@dataclass(frozen=True)
class ProblemRow:
    """One problem and every answer to it that is known.

    Attributes:
        problem: The problem.
        prompt: The text the model read; empty if its tokenizer is not at hand.
        features: What a controller saw, by name, before standardisation.
        cells: What was generated, one for each gate.
        base: Which cell is the plain model's.
        rl: Which cell the deployed controller chose.
        arms: Gate of every arm that gives each problem one, by name.
    """

    problem: Problem
    prompt: str
    features: Mapping[str, float]
    cells: tuple[Cell, ...]
    base: int
    rl: int
    arms: Mapping[str, Gate] = field(default_factory=dict)


@dataclass(frozen=True)
class SplitReport:
    """One judged split.

    Attributes:
        name: Of the split.
        results: Its part of ``results.json``.
        rows: Its problems, in order.
        gates: What every seed's controller chose.
        absent: Why there are no rows, in one sentence; empty if there are.
    """

    name: str
    results: Mapping[str, Any]
    rows: tuple[ProblemRow, ...] = ()
    gates: Float[np.ndarray, "seeds problems parts"] = field(
        default_factory=lambda: np.zeros((0, 0, 1))
    )
    absent: str = ""

    @property
    def right(self) -> Bool[np.ndarray, "seeds problems"]:
        """Whether each seed's choice solved each problem; a choice without a cell did not."""
        solved = [{cell.gate: cell.correct for cell in row.cells} for row in self.rows]
        return np.array(
            [
                [known.get(tuple(gate), False) for gate, known in zip(seed, solved, strict=True)]
                for seed in self.gates.tolist()
            ],
            bool,
        ).reshape(len(self.gates), len(self.rows))


@dataclass(frozen=True)
class ReportData:
    """Everything a report shows.

    Attributes:
        name: Of the run.
        results: ``results.json``.
        splits: The judged splits, the primary one first.
        curves: Training curves by name, ``[seeds, updates]``.
        banded: Whether the curves are known seed by seed, not as their mean alone.
        batch: Episodes in one update.
        probe: What ``python -m jroute.probe`` wrote, if it was run.
        settings: The experiment's settings, for the end of the page.
        decoding: How completions were generated.
    """

    name: str
    results: Mapping[str, Any]
    splits: tuple[SplitReport, ...]
    curves: Mapping[str, Float[np.ndarray, "seeds updates"]] = field(default_factory=dict)
    banded: bool = False
    batch: int = 1
    probe: Mapping[str, Any] | None = None
    settings: str = ""
    decoding: Mapping[str, Any] = field(default_factory=dict)


def steps(problem: Problem) -> int:
    """Lines of the reference solution, its final ``####`` line aside; 0 if there is none."""
    lines = (line.strip() for line in problem.solution.splitlines())
    return sum(bool(line) and not line.startswith("####") for line in lines)
