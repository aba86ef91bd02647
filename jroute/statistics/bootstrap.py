"""The crossed bootstrap: intervals and tails for arms that are compared on the same items.

A deterministic arm is an array ``[items]`` of 0 and 1; an arm known by its expectation (``random``)
has item values between 0 and 1; an arm of several trained controllers is ``[seeds, items]``, and
its accuracy is the mean over seeds.

The *crossed bootstrap* resamples items, the same ones for all arms, and whole seeds, for each arm
separately, because the controller of one seed answers all items. An arm derived from the same seeds
(their modal gates, say) is compared seed by seed. Three refinements matter when seeds are few:

* deviations of the resampling weights from 1 are scaled by sqrt(n / (n - 1)), so that seeds and
  items each contribute their unbiased variance;
* percentiles are expanded from the normal's to Student's t (Hesterberg 2015, The American
  Statistician 69:371), with the degrees of freedom of Welch and Satterthwaite;
* variation of single (seed, item) cells counts more than once (Owen 2007, Annals of Applied
  Statistics 1:386), which is conservative.

With fewer than five seeds an interval can still be too short where seeds dominate the variance; the
p-value then stays large.

Items with equal values are exchangeable, so they are drawn together, as one multinomial count.
"""

from collections.abc import Sequence
from math import inf, sqrt

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike
from scipy import stats

REPLICATES = 10_000
"""Bootstrap resamples; the smallest p-value they can give is about 2 / 10,000."""

ROUNDING = 1e-12
"""Differences up to this size are rounding errors of equal means."""

_CHUNK = 1_000


def as_arm(values: ArrayLike, name: str) -> Float[np.ndarray, "seeds items"]:
    """Return an arm as ``[seeds, items]`` of float64.

    Args:
        values: ``[items]`` or ``[seeds, items]``.
        name: What error messages call it.

    Raises:
        ValueError: The shape is another, there are fewer than two items, or a value is not finite.
    """
    array = np.asarray(values, np.float64)
    if array.ndim not in (1, 2) or array.shape[-1] < 2 or array.shape[0] < 1:
        raise ValueError(f"{name} has shape {array.shape}; need [items] or [seeds, items], items>1")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} has values that are not finite")
    return np.atleast_2d(array)


def check_same_items(arms: Sequence[Float[np.ndarray, "_ _"]]) -> None:
    """Refuse arms with different numbers of items.

    Raises:
        ValueError: An arm has more or fewer items than the first.
    """
    first = arms[0].shape[1]
    for arm in arms[1:]:
        if arm.shape[1] != first:
            raise ValueError(f"arms have {first} and {arm.shape[1]} items; compare the same items")


def crossed_bootstrap(
    arms: Sequence[Float[np.ndarray, "_ items"]], replicates: int, seed: int
) -> Float[np.ndarray, "replicates arms"]:
    """Return resampled means of arms: the same items for all of them, each arm's own seeds."""
    rng = np.random.default_rng(seed)
    items = arms[0].shape[1]
    kinds, counts = np.unique(np.concatenate(arms), axis=1, return_counts=True)
    kinds_of_arm = np.split(kinds, np.cumsum([len(arm) for arm in arms])[:-1])
    draws = np.zeros((replicates, len(arms)))
    for start in range(0, replicates, _CHUNK):
        chunk = draws[start : start + _CHUNK]
        drawn = rng.multinomial(items, counts / items, size=len(chunk))
        item_weights = (counts + (drawn - counts) * sqrt(items / (items - 1))) / items
        for column, arm in enumerate(kinds_of_arm):
            per_seed = item_weights @ arm.T
            chunk[:, column] = (per_seed * _seed_weights(rng, len(chunk), len(arm))).sum(axis=1)
    return draws


def _seed_weights(
    rng: np.random.Generator, replicates: int, seeds: int
) -> Float[np.ndarray, "replicates seeds"]:
    if seeds == 1:  # a single row does not show how seeds vary, so it is used unchanged
        return np.ones((replicates, 1))
    drawn = rng.multinomial(seeds, np.full(seeds, 1.0 / seeds), size=replicates)
    return (1.0 + (drawn - 1.0) * sqrt(seeds / (seeds - 1))) / seeds


def degrees_of_freedom(
    arms: Sequence[Float[np.ndarray, "_ items"]], weights: Sequence[float]
) -> float:
    """Return Welch and Satterthwaite's, of the variance due to items and to each arm's seeds."""
    of_items = sum(weight * arm.mean(axis=0) for arm, weight in zip(arms, weights, strict=True))
    samples = [np.asarray(of_items)] + [arm.mean(axis=1) for arm in arms if len(arm) > 1]
    variances = [sample.var(ddof=1) / len(sample) for sample in samples]
    total = sum(variances)
    if total == 0.0:
        return inf
    terms = zip(variances, samples, strict=True)
    return float(total**2 / sum(v**2 / (len(sample) - 1) for v, sample in terms))


def percentiles(
    draws: Float[np.ndarray, " replicates"], freedom: float, tail: float = 0.025
) -> tuple[float, float]:
    """Return expanded percentiles with ``tail`` beyond each: order statistics, as for p-values."""
    expanded = float(stats.norm.cdf(stats.t.ppf(tail, freedom)))
    rank = max(int(expanded * (len(draws) + 1)), 1)
    ordered = np.sort(draws)
    return float(ordered[rank - 1]), float(ordered[-rank])


def two_sided_p(draws: Float[np.ndarray, " replicates"], freedom: float) -> float:
    """Return the p-value that inverts the interval of ``percentiles``; it is never 0.

    With k the number of resampled differences at or beyond 0 on the side away from the estimate
    (the lesser of the counts at or below and at or above 0), the tail is
    q = (k + 1) / (replicates + 1), and p = min(1, 2 T(z)), where z is the normal's quantile of q
    and T Student's distribution function. With many seeds, or with none, p is 2 q.
    """
    beyond = min((draws <= ROUNDING).sum(), (draws >= -ROUNDING).sum())
    tail = (beyond + 1) / (len(draws) + 1)
    if tail >= 0.5:
        return 1.0
    return min(1.0, 2.0 * float(stats.t.cdf(stats.norm.ppf(tail), freedom)))
