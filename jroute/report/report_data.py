"""A report as plain data, which ``jroute.report.run_reader`` reads from a run folder."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from jroute.generate.decoding import Decoding
from jroute.outcomes.outcome import Outcome
from jroute.routing.gate import Gate, gate_numbers
from jroute.tasks import Problem


@dataclass(frozen=True)
class ProblemRow:
    """One problem and every known answer to it.

    Attributes:
        problem: The problem.
        prompt: The text that the model read; empty without its tokenizer.
        features: The features that controllers saw, by name, before standardisation.
        cells: The outcomes of the problem, one per generated gate.
        base: Index of the plain model's cell.
        rl: Index of the cell that the deployed controller chose.
        arms: Gate by arm, for the arms that give one gate to a problem.
    """

    problem: Problem
    prompt: str
    features: Mapping[str, float]
    cells: tuple[Outcome, ...]
    base: int
    rl: int
    arms: Mapping[str, Gate] = field(default_factory=dict)


@dataclass(frozen=True)
class SplitReport:
    """One judged split.

    Attributes:
        name: Name of the split.
        results: Its part of ``results.json``.
        rows: Its problems, in order.
        gates: The choices of every seed's controller.
        missing: Why there are no rows, in one sentence; empty if there are.
    """

    name: str
    results: Mapping[str, Any]
    rows: tuple[ProblemRow, ...] = ()
    gates: Float[np.ndarray, "seeds problems gate_dims"] = field(
        default_factory=lambda: np.zeros((0, 0, 1))
    )
    missing: str = ""

    @property
    def solved(self) -> Bool[np.ndarray, "seeds problems"]:
        """Whether each seed's choice solved each problem; a choice without a cell did not."""
        correct = [
            {gate_numbers(cell.gate): cell.correct for cell in row.cells} for row in self.rows
        ]
        return np.array(
            [
                [
                    by_gate.get(tuple(gate), False)
                    for gate, by_gate in zip(seed, correct, strict=True)
                ]
                for seed in self.gates.tolist()
            ],
            bool,
        ).reshape(len(self.gates), len(self.rows))


@dataclass(frozen=True)
class ReportData:
    """Everything that a report shows.

    Attributes:
        name: Name of the run.
        results: ``results.json``.
        splits: The judged splits, the primary one first.
        curves: Training curves by name.
        curves_by_seed: Whether the curves hold every seed, not only the mean.
        batch: Episodes in one update.
        probe: ``probe.json``, if ``python -m jroute.probe`` wrote it.
        config: ``config.yaml`` as text.
        decoding: The decoding of all completions.
    """

    name: str
    results: Mapping[str, Any]
    splits: tuple[SplitReport, ...]
    curves: Mapping[str, Float[np.ndarray, "seeds updates"]] = field(default_factory=dict)
    curves_by_seed: bool = False
    batch: int = 1
    probe: Mapping[str, Any] | None = None
    config: str = ""
    decoding: Decoding = field(default_factory=Decoding)

    @property
    def grid(self) -> list[float]:
        """All numbers that were tried or chosen as gates, the smallest first."""
        tried = set(map(float, self.results.get("gates", ())))
        chosen = {gate for split in self.splits for gate in np.unique(split.gates).tolist()}
        return sorted(tried | chosen)


def count_steps(problem: Problem) -> int:
    """Count the lines of the reference solution, except its final ``####`` line; 0 without one."""
    lines = (line.strip() for line in problem.solution.splitlines())
    return sum(bool(line) and not line.startswith("####") for line in lines)
