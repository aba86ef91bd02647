"""McNemar's exact test of two deterministic arms, and the differences it can resolve."""

from dataclasses import dataclass
from math import inf
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Bool, Int
from numpy.typing import ArrayLike
from scipy import optimize, stats
from statsmodels.stats.contingency_tables import mcnemar

from jroute.statistics.bootstrap import as_arm, check_same_items
from jroute.utils.keys import Keys, keys


@dataclass(frozen=True)
class McNemar:
    """Exact McNemar test: items that only one of two arms solves, and the two-sided p-value."""

    stored_keys: ClassVar[Keys] = keys("only_a", "only_b", "p", "n")

    only_a: int
    only_b: int
    p: float
    n: int


def mcnemar_exact(a: ArrayLike, b: ArrayLike) -> McNemar:
    """Test two deterministic arms, ``[items]`` of 0 and 1 each.

    Raises:
        ValueError: An arm has several seeds, or values other than 0 and 1.
    """
    first, second = as_arm(a, "a"), as_arm(b, "b")
    check_same_items([first, second])
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


def resolvable_gap(n: int, discordance: float, *, alpha: float = 0.05) -> float:
    """Return the smallest difference in accuracy that an exact McNemar test finds significant.

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
    """Return the smallest true difference that an exact McNemar test finds with the given power.

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
        significant = stats.binom.cdf(losses, discordant, 1.0 - win)
        significant = significant + stats.binom.cdf(losses, discordant, win)
        return float((weight * significant).sum()) - power

    if shortfall(1.0) < 0.0:
        return inf
    win = optimize.root_scalar(shortfall, bracket=(0.5, 1.0)).root
    return float(2.0 * win - 1.0) * discordance


def _most_losses(discordant: Int[np.ndarray, " cases"], alpha: float) -> Int[np.ndarray, " cases"]:
    """Return how many items the winner may lose and still be significant; -1 where nothing is."""
    quantile = stats.binom.ppf(alpha / 2.0, discordant, 0.5)
    within: Bool[np.ndarray, " cases"] = stats.binom.cdf(quantile, discordant, 0.5) <= alpha / 2.0
    return np.where(within, quantile, quantile - 1.0).astype(np.int64)
