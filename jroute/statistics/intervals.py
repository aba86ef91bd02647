"""Accuracy of an arm with its 95 % interval: Wilson's, or that of the crossed bootstrap."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike
from statsmodels.stats.proportion import proportion_confint

from jroute.statistics.bootstrap import (
    REPLICATES,
    as_arm,
    crossed_bootstrap,
    degrees_of_freedom,
    percentiles,
)
from jroute.utils.keys import Keys, keys


@dataclass(frozen=True)
class Accuracy:
    """Mean of an arm's item values, with a 95 % interval, over ``n`` items."""

    stored_keys: ClassVar[Keys] = keys("accuracy", "ci95", "n")

    accuracy: float
    ci95: tuple[float, float]
    n: int


def accuracy(values: ArrayLike, *, replicates: int = REPLICATES, seed: int = 0) -> Accuracy:
    """Return the accuracy of an arm with a 95 % interval.

    Wilson's interval for one deterministic arm (``[items]``, all 0 or 1); otherwise the crossed
    bootstrap, see ``jroute.statistics.bootstrap``.

    Args:
        values: ``[items]`` or ``[seeds, items]``.
        replicates: Number of bootstrap resamples.
        seed: Seed of the resampling.
    """
    arm = as_arm(values, "values")
    items = arm.shape[1]
    mean = float(arm.mean())
    if len(arm) == 1 and np.isin(arm, (0.0, 1.0)).all():
        successes = int(arm.sum())
        wilson: Any = proportion_confint(successes, items, alpha=0.05, method="wilson")
        return Accuracy(mean, (float(wilson[0]), float(wilson[1])), items)
    draws = crossed_bootstrap([arm], replicates, seed)[:, 0]
    freedom = degrees_of_freedom([arm], [1.0])
    low, high = np.clip(percentiles(draws, freedom), arm.min(), arm.max())
    return Accuracy(mean, (float(low), float(high)), items)
