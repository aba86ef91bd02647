"""Cells: the (problem, gate, sample) triples of an outcome table."""

from collections.abc import Sequence
from typing import NamedTuple

from jroute.outcomes.table import OutcomeTable
from jroute.routing.gate import Gate
from jroute.tasks.problem import Problem

Key = tuple[str, Gate, int]


class Cell(NamedTuple):
    """A cell to generate."""

    problem: Problem
    gate: Gate
    sample: int = 0

    @property
    def key(self) -> Key:
        """Return the cell's name in a table: problem id, gate and sample."""
        return self.problem.id, self.gate, self.sample


def select_cells(
    problems: Sequence[Problem],
    gates: Sequence[Gate],
    *,
    samples: int = 1,
    share: tuple[int, int] = (0, 1),
) -> list[Cell]:
    """Return the cells of a part of a table.

    They are ordered gate by gate, so that the rows of a batch end at about the same time.

    Args:
        problems: The problems.
        gates: The gates.
        samples: Samples of every problem and gate.
        share: ``(i, n)`` takes every n-th problem, from the i-th on.
    """
    start, step = share
    return [
        Cell(problem, gate, sample)
        for sample in range(samples)
        for gate in gates
        for problem in problems[start::step]
    ]


def missing_cells(table: OutcomeTable, cells: Sequence[Cell]) -> list[Cell]:
    """Return the cells that a table lacks, after reading what other processes added."""
    table.refresh()
    return [cell for cell in cells if cell.key not in table]
