"""Differences of arms on the same items, with intervals and p-values of the crossed bootstrap."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, nan
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike

from jroute.statistics.bootstrap import (
    REPLICATES,
    ROUNDING,
    as_arm,
    check_same_items,
    crossed_bootstrap,
    degrees_of_freedom,
    percentiles,
    two_sided_p,
)
from jroute.utils.keys import Keys, keys


@dataclass(frozen=True)
class Contrast:
    """Accuracy of arm a minus that of arm b on the same ``n`` items.

    ``p`` is two-sided, and at most 0.05 exactly where ``ci95`` excludes 0 (up to the interpolation
    of percentiles). ``lower95`` and ``upper95`` are one-sided: the true difference lies below
    ``lower95``, or above ``upper95``, in one case of twenty each.
    """

    stored_keys: ClassVar[Keys] = keys("difference", "ci95", "p", "n", "lower95", "upper95")

    difference: float
    ci95: tuple[float, float]
    p: float
    n: int
    lower95: float
    upper95: float


@dataclass(frozen=True)
class Share:
    """The share of one gain that another gain is, (a - base) / (b - base), with a 95 % interval.

    The interval is all numbers where resamples disagree whether ``b`` gains over ``base``.
    """

    stored_keys: ClassVar[Keys] = keys("share", "ci95", "n")

    share: float
    ci95: tuple[float, float]
    n: int


def paired_contrast(
    a: ArrayLike,
    b: ArrayLike,
    *,
    same_seeds: bool = False,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> Contrast:
    """Return the difference of two arms on the same items, by the crossed bootstrap.

    The p-value inverts the interval, see ``jroute.statistics.bootstrap.two_sided_p``; with only two
    seeds it cannot be small.

    Args:
        a: ``[items]`` or ``[seeds, items]``.
        b: The same items in the same order; its seeds, if any, are its own.
        same_seeds: Whether row i of ``a`` and row i of ``b`` come from one seed, so that they are
            resampled together.
        replicates: Number of bootstrap resamples.
        seed: Seed of the resampling.
    """
    first, second = as_arm(a, "a"), as_arm(b, "b")
    check_same_items([first, second])
    if same_seeds:
        if len(first) != len(second):
            raise ValueError(f"arms of the same seeds have {len(first)} and {len(second)} of them")
        return linear_contrast([first - second], [1.0], replicates=replicates, seed=seed)
    return linear_contrast([first, second], [1.0, -1.0], replicates=replicates, seed=seed)


def linear_contrast(
    arms: Sequence[ArrayLike],
    weights: Sequence[float],
    *,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> Contrast:
    """Return a weighted sum of arms on the same items; a difference has weights 1 and -1.

    Where all resamples agree, the interval is widened by the frequency of items that may have gone
    unseen.

    Args:
        arms: ``[items]`` or ``[seeds, items]`` each, every arm with its own seeds.
        weights: Weights of the arms; a difference of two gains is 1, -1, -1, 1.
        replicates: Number of bootstrap resamples.
        seed: Seed of the resampling.
    """
    rows = [as_arm(arm, f"arm {i}") for i, arm in enumerate(arms)]
    check_same_items(rows)
    estimate = sum(w * float(row.mean()) for w, row in zip(weights, rows, strict=True))
    draws = crossed_bootstrap(rows, replicates, seed) @ np.asarray(weights, np.float64)
    freedom = degrees_of_freedom(rows, weights)
    n = rows[0].shape[1]
    low, high = percentiles(draws, freedom)
    lower, upper = percentiles(draws, freedom, 0.05)
    if np.ptp(draws) <= ROUNDING:  # all items are alike; others may be as frequent as unseen ones
        largest = max(sum(w for w in weights if w > 0), -sum(w for w in weights if w < 0))
        wide, narrow = largest * _unseen(n, 0.025), largest * _unseen(n, 0.05)
        low, high = low - wide, high + wide
        lower, upper = lower - narrow, upper + narrow
    p = two_sided_p(draws, freedom)
    return Contrast(estimate, (low, high), p, n, lower95=lower, upper95=upper)


def _unseen(n: int, tail: float) -> float:
    """Return how frequent items may be of which none is among ``n``: near 3 / n at 5 %."""
    return 1.0 - tail ** (1.0 / n)


def share_of_gain(
    a: ArrayLike, b: ArrayLike, base: ArrayLike, *, replicates: int = REPLICATES, seed: int = 0
) -> Share:
    """Return the share of ``b``'s gain over ``base`` that ``a`` reaches, by the crossed bootstrap.

    Args:
        a: ``[items]`` or ``[seeds, items]``.
        b: The arm whose gain counts as 1.
        base: The arm both gains are over.
        replicates: Number of bootstrap resamples.
        seed: Seed of the resampling.
    """
    rows = [as_arm(a, "a"), as_arm(b, "b"), as_arm(base, "base")]
    check_same_items(rows)
    draws = crossed_bootstrap(rows, replicates, seed)
    gain, whole = draws[:, 0] - draws[:, 2], draws[:, 1] - draws[:, 2]
    mean_a, mean_b, mean_base = (float(row.mean()) for row in rows)
    n = rows[0].shape[1]
    share = (mean_a - mean_base) / (mean_b - mean_base) if mean_b != mean_base else nan
    if mean_b <= mean_base or (whole <= ROUNDING).any():
        return Share(share, (-inf, inf), n)
    # Freedom of the linear contrast that the ratio is near its estimate.
    freedom = degrees_of_freedom(rows, [1.0, -share, share - 1.0])
    return Share(share, percentiles(gain / whole, freedom), n)
