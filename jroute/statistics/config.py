"""How arms are judged: resampling, folds, and the margin that matters."""

from dataclasses import dataclass
from typing import ClassVar

from jroute.utils.errors import UserError
from jroute.utils.keys import Keys, keys


@dataclass(frozen=True)
class JudgeConfig:
    """How arms are judged.

    Attributes:
        replicates: Bootstrap resamples.
        seed: Seed of the resampling and of the folds.
        delta: Difference of accuracies that matters; declared before outcomes are seen.
        folds: Folds of the learnable headroom's cross-validation.
    """

    stored_keys: ClassVar[Keys] = keys("replicates", "seed", "delta", "folds")

    replicates: int = 10_000
    seed: int = 0
    delta: float = 0.01
    folds: int = 5

    def __post_init__(self) -> None:
        """Refuse values with which nothing can be judged."""
        if self.replicates < 100:
            raise UserError(
                f"judge.replicates is {self.replicates}; an interval needs at least 100"
            )
        if not 0 < self.delta < 1:
            raise UserError(
                f"judge.delta is {self.delta:g}; give a difference of accuracies, 0.01 for a point"
            )
        if self.folds < 2:
            raise UserError(f"judge.folds is {self.folds}; cross-validation needs at least 2")
