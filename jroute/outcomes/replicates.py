"""The noise floor: how often a cell comes out otherwise when it is made once more."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from statsmodels.stats.proportion import proportion_confint

from jroute.outcomes.outcome import Outcome
from jroute.utils.keys import Keys, keys, stored


@dataclass(frozen=True)
class Flips:
    """Cells of which something differs, out of ``n``, with Wilson's 95 % interval of the share."""

    stored_keys: ClassVar[Keys] = keys("n", "flips", "share", "ci95")

    n: int
    flips: int
    share: float
    ci95: tuple[float, float]

    @classmethod
    def count(cls, differs: Iterable[bool]) -> "Flips":
        """Count them; there must be at least one cell."""
        found = list(differs)
        ends = np.asarray(proportion_confint(sum(found), len(found), method="wilson"))
        low, high = ends.tolist()
        return cls(len(found), sum(found), sum(found) / len(found), (low, high))

    def __str__(self) -> str:
        """Share, interval and counts."""
        low, high = (f"{100 * end:.2f}" for end in self.ci95)
        return f"{100 * self.share:.2f} % [{low}, {high}] ({self.flips} of {self.n})"


@dataclass(frozen=True)
class NoiseFloor:
    """What changes between a cell and its replicate, which was made in another order and width.

    Attributes:
        text: Cells with another completion.
        answer: Cells with another parsed answer.
        correct: Cells that are right in one and wrong in the other.
        logprob: Largest difference of log-probability among cells with the same completion, in
            nats; ``None`` if the engine told none.
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
        """Compare cells with their replicates (`OutcomeTable.replicates`); ``None`` of none."""
        pairs = list(pairs)
        if not pairs:
            return None
        moved = [
            abs(a.logprob - b.logprob)
            for a, b in pairs
            if a.completion == b.completion and a.logprob is not None and b.logprob is not None
        ]
        shapes = {one.made.execution for pair in pairs for one in pair if one.made is not None}
        return cls(
            text=Flips.count(a.completion != b.completion for a, b in pairs),
            answer=Flips.count((a.parsed, a.status) != (b.parsed, b.status) for a, b in pairs),
            correct=Flips.count(a.correct != b.correct for a, b in pairs),
            logprob=max(moved, default=None),
            executions=tuple(sorted(shapes)),
        )

    def as_dict(self) -> dict[str, Any]:
        """For ``results.json``."""
        return stored(self)

    def __str__(self) -> str:
        """One line for a report."""
        return (
            f"noise floor: made once more in another order and width, {self.correct} of cells "
            f"change in correctness, {self.answer} in the answer, {self.text} in the text"
        )
