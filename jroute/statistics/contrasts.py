"""What a table of per-item results can and cannot say.

Arms are compared on the same items. A deterministic arm is an array ``[items]`` of 0 and 1; an arm
known by its expectation (``random``) has item values between 0 and 1; an arm of several trained
controllers is ``[seeds, items]``, and its accuracy is the mean over seeds.

Intervals and p-values of anything but one deterministic arm come from the *crossed bootstrap*:
items are resampled, the same for all arms, and whole seeds are resampled, for each arm on its own,
because one seed's controller answers all items. An arm derived from the same seeds (their modal
gates, say) is compared seed by seed. Three refinements matter when seeds are few:

* deviations of the resampling weights from 1 are scaled by sqrt(n / (n - 1)), so that seeds and
  items each contribute their unbiased variance;
* percentiles are expanded from the normal's to Student's t (Hesterberg 2015, The American
  Statistician 69:371), with the degrees of freedom of Welch and Satterthwaite;
* variation of single (seed, item) cells counts more than once (Owen 2007, Annals of Applied
  Statistics 1:386), which errs on the careful side.

With fewer than five seeds an interval can still be too short where seeds decide it; the p-value
then stays large.

Items with equal values are exchangeable, so they are drawn together, as one multinomial count.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, nan, sqrt
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import ArrayLike
from scipy import optimize, stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

REPLICATES = 10_000
"""Bootstrap resamples; the smallest p-value they can give is about 2 / 10,000."""

_CHUNK = 1_000
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Accuracy:
    """Mean of an arm's item values, with a 95 % interval, over ``n`` items."""

    accuracy: float
    ci95: tuple[float, float]
    n: int


@dataclass(frozen=True)
class Contrast:
    """Accuracy of arm a minus that of arm b on the same ``n`` items.

    ``p`` is two-sided, and at most 0.05 exactly where ``ci95`` leaves 0 out (but for the
    interpolation of percentiles). ``lower95`` and ``upper95`` are one-sided: the truth lies below
    the one, or above the other, in one case of twenty each.
    """

    difference: float
    ci95: tuple[float, float]
    p: float
    n: int
    lower95: float
    upper95: float


@dataclass(frozen=True)
class Share:
    """What part of one gain another gain is, (a - base) / (b - base), with a 95 % interval.

    The interval is all numbers where the resamples do not agree that ``b`` gains over ``base``.
    """

    share: float
    ci95: tuple[float, float]
    n: int


@dataclass(frozen=True)
class McNemar:
    """Exact McNemar test: items only one of two arms got right, and the two-sided p-value."""

    only_a: int
    only_b: int
    p: float
    n: int


def accuracy(values: ArrayLike, *, replicates: int = REPLICATES, seed: int = 0) -> Accuracy:
    """Accuracy of one arm with a 95 % interval.

    Wilson's interval for one deterministic arm (``[items]``, all 0 or 1); otherwise the crossed
    bootstrap described at the top of this module.

    Args:
        values: ``[items]`` or ``[seeds, items]``.
        replicates: Number of bootstrap resamples.
        seed: Of the resampling.
    """
    arm = _arm(values, "values")
    items = arm.shape[1]
    mean = float(arm.mean())
    if len(arm) == 1 and np.isin(arm, (0.0, 1.0)).all():
        right = int(arm.sum())
        wilson: Any = proportion_confint(right, items, alpha=0.05, method="wilson")
        return Accuracy(mean, (float(wilson[0]), float(wilson[1])), items)
    draws = _crossed_bootstrap([arm], replicates, seed)[:, 0]
    freedom = _degrees_of_freedom([arm], [1.0])
    low, high = np.clip(_percentiles(draws, freedom), arm.min(), arm.max())
    return Accuracy(mean, (float(low), float(high)), items)


def paired_contrast(
    a: ArrayLike,
    b: ArrayLike,
    *,
    same_seeds: bool = False,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> Contrast:
    """Difference of two arms on the same items, by the crossed bootstrap.

    The p-value inverts the interval: with k the number of resampled differences at or beyond 0 on
    the side away from the estimate (the lesser of the counts at or below and at or above 0), the
    tail is q = (k + 1) / (replicates + 1), and p = min(1, 2 T(z)) where z is the normal's quantile
    of q and T Student's distribution function; with many seeds or none, p is just 2 q. It is never
    0, and where two seeds are all there is it cannot be small.

    Args:
        a: ``[items]`` or ``[seeds, items]``.
        b: The same items in the same order; its seeds, if any, are its own.
        same_seeds: Whether row i of ``a`` and row i of ``b`` come from one seed, so that they are
            resampled together.
        replicates: Number of bootstrap resamples.
        seed: Of the resampling.
    """
    first, second = _arm(a, "a"), _arm(b, "b")
    _same_items(first, second)
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
    """A weighted sum of arms on the same items; ``paired_contrast`` is that of weights 1 and -1.

    Args:
        arms: ``[items]`` or ``[seeds, items]`` each, every arm with seeds of its own.
        weights: Of the arms; a difference of two gains is 1, -1, -1, 1.
        replicates: Number of bootstrap resamples.
        seed: Of the resampling.
    """
    rows = [_arm(arm, f"arm {i}") for i, arm in enumerate(arms)]
    for row in rows[1:]:
        _same_items(rows[0], row)
    estimate = sum(w * float(row.mean()) for w, row in zip(weights, rows, strict=True))
    draws = _crossed_bootstrap(rows, replicates, seed) @ np.asarray(weights, np.float64)
    freedom = _degrees_of_freedom(rows, weights)
    beyond = min((draws <= _ROUNDING).sum(), (draws >= -_ROUNDING).sum())
    tail = (beyond + 1) / (replicates + 1)
    p = min(1.0, 2.0 * float(stats.t.cdf(stats.norm.ppf(tail), freedom))) if tail < 0.5 else 1.0
    n, most = (
        rows[0].shape[1],
        max(sum(w for w in weights if w > 0), -sum(min(w, 0) for w in weights)),
    )
    ends, (lower, upper) = _percentiles(draws, freedom), _percentiles(draws, freedom, 0.05)
    if np.ptp(draws) <= _ROUNDING:  # all items are alike; others may be as frequent as unseen ones
        (low, high), unseen = ends, most * _unseen(n, 0.05)
        wider = most * _unseen(n, 0.025)
        ends, lower, upper = (low - wider, high + wider), lower - unseen, upper + unseen
    return Contrast(estimate, ends, p, n, lower95=lower, upper95=upper)


def _unseen(n: int, tail: float) -> float:
    """How frequent items may be of which none was among ``n``, exactly: near 3 / n at 5 %."""
    return 1.0 - tail ** (1.0 / n)


def share_of_gain(
    a: ArrayLike, b: ArrayLike, base: ArrayLike, *, replicates: int = REPLICATES, seed: int = 0
) -> Share:
    """What part of ``b``'s gain over ``base`` arm ``a`` reaches, by the crossed bootstrap.

    Args:
        a: ``[items]`` or ``[seeds, items]``.
        b: The arm whose gain counts as 1.
        base: The arm both gains are over.
        replicates: Number of bootstrap resamples.
        seed: Of the resampling.
    """
    rows = [_arm(a, "a"), _arm(b, "b"), _arm(base, "base")]
    for row in rows[1:]:
        _same_items(rows[0], row)
    draws = _crossed_bootstrap(rows, replicates, seed)
    gain, whole = draws[:, 0] - draws[:, 2], draws[:, 1] - draws[:, 2]
    means = [float(row.mean()) for row in rows]
    n = rows[0].shape[1]
    if means[1] <= means[2] or (whole <= _ROUNDING).any():
        share = (means[0] - means[2]) / (means[1] - means[2]) if means[1] != means[2] else nan
        return Share(share, (-inf, inf), n)
    share = (means[0] - means[2]) / (means[1] - means[2])
    # Freedom as of the linear contrast that the ratio is near its estimate.
    freedom = _degrees_of_freedom(rows, [1.0, -share, share - 1.0])
    return Share(share, _percentiles(gain / whole, freedom), n)


def mcnemar_exact(a: ArrayLike, b: ArrayLike) -> McNemar:
    """Exact McNemar test of two deterministic arms, ``[items]`` of 0 and 1 each."""
    first, second = _arm(a, "a"), _arm(b, "b")
    _same_items(first, second)
    both = np.concatenate([first, second])
    if len(both) != 2 or not np.isin(both, (0.0, 1.0)).all():
        raise ValueError("McNemar's test compares two arms of one row each, with values 0 and 1")
    right_a, right_b = first[0] == 1.0, second[0] == 1.0
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    both_right = int((right_a & right_b).sum())
    items = first.shape[1]
    table = [[both_right, only_a], [only_b, items - both_right - only_a - only_b]]
    test: Any = mcnemar(table, exact=True)
    return McNemar(only_a, only_b, float(test.pvalue), items)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given: compare each with the family's level."""
    if not len(p_values):
        return []
    adjusted: Any = multipletests(p_values, method="holm")[1]
    return [float(p) for p in adjusted]


def resolvable_gap(n: int, discordance: float, *, alpha: float = 0.05) -> float:
    """Smallest difference in accuracy that an exact McNemar test finds significant.

    Args:
        n: Number of items.
        discordance: Share of items that exactly one of the two arms gets right.
        alpha: Two-sided level.

    Returns:
        A difference of accuracies, or infinity if no outcome would be significant.
    """
    discordant = np.array([round(n * discordance)])
    lost = int(_most_losses(discordant, alpha)[0])
    return inf if lost < 0 else float(discordant[0] - 2 * lost) / n


def detectable_gap(n: int, discordance: float, *, power: float = 0.8, alpha: float = 0.05) -> float:
    """Smallest true difference that an exact McNemar test finds with the given power.

    The number of discordant items is itself binomial.

    Args:
        n: Number of items.
        discordance: Expected share of items that exactly one of the two arms gets right.
        power: Wanted chance of a significant result.
        alpha: Two-sided level.

    Returns:
        A difference of accuracies, or infinity if even one-sided discordance falls short.
    """
    discordant = np.arange(n + 1)
    weight = stats.binom.pmf(discordant, n, discordance)
    likely = weight > 1e-10
    discordant, weight = discordant[likely], weight[likely]
    losses = _most_losses(discordant, alpha)

    def shortfall(win: float) -> float:
        found = stats.binom.cdf(losses, discordant, 1.0 - win)
        found = found + stats.binom.cdf(losses, discordant, win)
        return float((weight * found).sum()) - power

    if shortfall(1.0) < 0.0:
        return inf
    win = optimize.root_scalar(shortfall, bracket=(0.5, 1.0)).root
    return float(2.0 * win - 1.0) * discordance


def _arm(values: ArrayLike, name: str) -> Float[np.ndarray, "seeds items"]:
    """As ``[seeds, items]`` of float64, checked."""
    array = np.asarray(values, np.float64)
    if array.ndim not in (1, 2) or array.shape[-1] < 2 or array.shape[0] < 1:
        raise ValueError(f"{name} has shape {array.shape}; need [items] or [seeds, items], items>1")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} has values that are not finite")
    return np.atleast_2d(array)


def _same_items(a: Float[np.ndarray, "_ items_a"], b: Float[np.ndarray, "_ items_b"]) -> None:
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"arms have {a.shape[1]} and {b.shape[1]} items; compare the same items")


def _crossed_bootstrap(
    arms: Sequence[np.ndarray], replicates: int, seed: int
) -> Float[np.ndarray, "replicates arms"]:
    """Resampled means of arms: the same items for all of them, each arm's own seeds."""
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
    if seeds == 1:  # one row says nothing of how seeds vary: the arm is taken as it is
        return np.ones((replicates, 1))
    drawn = rng.multinomial(seeds, np.full(seeds, 1.0 / seeds), size=replicates)
    return (1.0 + (drawn - 1.0) * sqrt(seeds / (seeds - 1))) / seeds


def _degrees_of_freedom(arms: Sequence[np.ndarray], signs: Sequence[float]) -> float:
    """Welch and Satterthwaite's, of the variance due to items and to each arm's seeds."""
    of_items = sum(sign * arm.mean(axis=0) for arm, sign in zip(arms, signs, strict=True))
    samples = [np.asarray(of_items)] + [arm.mean(axis=1) for arm in arms if len(arm) > 1]
    variances = [sample.var(ddof=1) / len(sample) for sample in samples]
    total = sum(variances)
    if total == 0.0:
        return inf
    terms = zip(variances, samples, strict=True)
    return float(total**2 / sum(v**2 / (len(sample) - 1) for v, sample in terms))


def _percentiles(
    draws: Float[np.ndarray, " replicates"], freedom: float, tail: float = 0.025
) -> tuple[float, float]:
    """Expanded percentiles with ``tail`` beyond each, order statistics that match the p-value."""
    expanded = float(stats.norm.cdf(stats.t.ppf(tail, freedom)))
    rank = max(int(expanded * (len(draws) + 1)), 1)
    ordered = np.sort(draws)
    return float(ordered[rank - 1]), float(ordered[-rank])


def _most_losses(discordant: Int[np.ndarray, " cases"], alpha: float) -> Int[np.ndarray, " cases"]:
    """Most items the winner may lose and still be significant; -1 where nothing is."""
    quantile = stats.binom.ppf(alpha / 2.0, discordant, 0.5)
    within: Bool[np.ndarray, " cases"] = stats.binom.cdf(quantile, discordant, 0.5) <= alpha / 2.0
    return np.where(within, quantile, quantile - 1.0).astype(np.int64)
