"""The noise floor: how often a cell differs when it is generated again."""

import dataclasses
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from statsmodels.stats.proportion import proportion_confint

from jroute.distributed.processes import is_first_process
from jroute.observe.progress import GenerationBar
from jroute.outcomes.cells import Cell
from jroute.outcomes.generation import CellGenerator
from jroute.outcomes.outcome import Outcome
from jroute.outcomes.table import OutcomeTable
from jroute.utils.keys import Keys, keys, stored


@dataclass(frozen=True)
class Flips:
    """Cells that differ, out of ``n``, with Wilson's 95 % interval of their share."""

    stored_keys: ClassVar[Keys] = keys("n", "flips", "share", "ci95")

    n: int
    flips: int
    share: float
    ci95: tuple[float, float]

    @classmethod
    def count(cls, differs: Iterable[bool]) -> "Flips":
        """Count the cells that differ; there must be at least one cell."""
        flags = list(differs)
        flips, n = sum(flags), len(flags)
        low, high = np.asarray(proportion_confint(flips, n, method="wilson")).tolist()
        return cls(n, flips, flips / n, (low, high))

    def __str__(self) -> str:
        """Return share, interval and counts."""
        low, high = (f"{100 * end:.2f}" for end in self.ci95)
        return f"{100 * self.share:.2f} % [{low}, {high}] ({self.flips} of {self.n})"


@dataclass(frozen=True)
class NoiseFloor:
    """Differences between cells and their replicates, generated in another order and batch width.

    Attributes:
        text: Cells with another completion.
        answer: Cells with another parsed answer.
        correct: Cells that are right in one and wrong in the other.
        logprob: Largest difference of log-probability among cells with the same completion, in
            nats; ``None`` if the engine reported none.
        executions: The execution shapes that were compared.
    """

    stored_keys: ClassVar[Keys] = keys("text", "answer", "correct", "logprob", "executions")

    text: Flips
    answer: Flips
    correct: Flips
    logprob: float | None
    executions: tuple[str, ...]

    @classmethod
    def of(cls, pairs: Iterable[tuple[Outcome, Outcome]]) -> "NoiseFloor | None":
        """Compare cells with their replicates (``OutcomeTable.replicates``).

        Returns:
            The noise floor, or ``None`` if there are no replicates.
        """
        pairs = list(pairs)
        if not pairs:
            return None
        differences = [
            abs(a.logprob - b.logprob)
            for a, b in pairs
            if a.completion == b.completion and a.logprob is not None and b.logprob is not None
        ]
        executions = {cell.made.execution for pair in pairs for cell in pair if cell.made}
        return cls(
            text=Flips.count(a.completion != b.completion for a, b in pairs),
            answer=Flips.count((a.parsed, a.status) != (b.parsed, b.status) for a, b in pairs),
            correct=Flips.count(a.correct != b.correct for a, b in pairs),
            logprob=max(differences, default=None),
            executions=tuple(sorted(executions)),
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the noise floor as ``results.json`` holds it."""
        return stored(self)

    def __str__(self) -> str:
        """Return one line for a report."""
        return (
            f"noise floor: made once more in another order and width, {self.correct} of cells "
            f"change in correctness, {self.answer} in the answer, {self.text} in the text"
        )


def other_width(slots: int, replicas: int) -> int:
    """Return a batch width other than ``slots`` that ``replicas`` divides: half of it, or twice."""
    half = slots // 2 // replicas * replicas
    return half or 2 * slots


def replicate(
    generator: CellGenerator, table: OutcomeTable, cells: Sequence[Cell], count: int
) -> NoiseFloor | None:
    """Generate a random sample of a table's cells again, in another order and batch width.

    Existing replicates count, so an interrupted or repeated command resumes where it stopped.

    Args:
        generator: Generates the cells.
        table: Holds the cells, and takes the replicates.
        cells: The cells to draw from; those that the table lacks are skipped.
        count: Number of replicates among them afterwards.

    Returns:
        How often cells differ, over all replicates of the table.
    """
    table.refresh()
    done = {(cell.problem_id, cell.gate, cell.sample) for cell, _ in table.replicates()}
    available = [cell for cell in cells if cell.key in table]
    drawn = random.Random("replicates").sample(available, min(count, len(available)))
    missing = [cell for cell in drawn if cell.key not in done]
    mesh = generator.lm.mesh
    replicas = 1 if mesh is None else mesh.shape["data"]
    width = other_width(generator.engine.batch, replicas)
    engine = dataclasses.replace(generator.engine, slots=width)
    other = dataclasses.replace(generator, engine=engine)
    with GenerationBar(
        len(missing), "replicates", "cell", quiet=not is_first_process()
    ) as progress:
        other.generate(missing, on_outcomes=table.add_replicates, progress=progress)
    return NoiseFloor.of(table.replicates())
