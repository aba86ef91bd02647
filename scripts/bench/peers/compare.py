"""Compare two sides: ratios of their times with intervals, and tokens right or wrong."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

from scipy import stats

NEAR_TIE = {"float32": 1e-2, "bfloat16": 0.2}
"""The most by which a near-tie misses the reference's choice, in standard deviations of the logits.

Rounding moves a logit by some hundredths of that in bfloat16. In float32 a random model's rounding
grows with its context: after 190 tokens torch's own float32 logits lie 3e-4 from its float64 ones
(root mean square; 5e-3 at most). A wrong model misses by a whole deviation and more, as random
tokens do.
"""


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Return median, least, greatest, and the values themselves in the order of measurement."""
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "rounds": list(values),
    }


def speedup(ours: Sequence[float], theirs: Sequence[float], level: float = 0.95) -> dict[str, Any]:
    """Return how many times faster our side is, from seconds measured round by round.

    Rounds are pairs: both sides ran back to back, so what slowed the machine slowed both. The
    interval is Student's t on the logarithms of the rounds' ratios.

    Returns:
        ``ratio``, the geometric mean of ``rounds`` (their seconds over ours), and ``interval``,
        ``None`` for a single round.
    """
    logs = [math.log(b / a) for a, b in zip(ours, theirs, strict=True)]
    mean, interval = statistics.fmean(logs), None
    if len(logs) > 1:
        error = statistics.stdev(logs) / math.sqrt(len(logs))
        half = float(stats.t.ppf((1 + level) / 2, len(logs) - 1)) * error
        interval = [math.exp(mean - half), math.exp(mean + half)]
    return {
        "ratio": math.exp(mean),
        "interval": interval,
        "level": level,
        "rounds": [math.exp(each) for each in logs],
    }


def verdict(gaps: Sequence[Sequence[tuple[int, float]]], dtype: str) -> dict[str, Any]:
    """Decide whether tokens are the reference's, from how far each misses its choice.

    Args:
        gaps: Per row, (position, gap) of the tokens that the reference would not have chosen.
        dtype: Of the computation.

    Returns:
        ``right``: no token misses by more than a near-tie; ``near_ties``, the tokens that miss by
        no more; ``wrong_tokens`` and ``wrong_rows``; the ``largest_gap``.
    """
    limit = NEAR_TIE[dtype]
    wrong = [[gap for _, gap in row if gap > limit] for row in gaps]
    return {
        "right": not any(wrong),
        "near_ties": sum(gap <= limit for row in gaps for _, gap in row),
        "wrong_tokens": sum(map(len, wrong)),
        "wrong_rows": sum(map(bool, wrong)),
        "rows": len(gaps),
        "largest_gap": max((gap for row in gaps for _, gap in row), default=0.0),
        "near_tie_limit": limit,
    }


def different(ours: Sequence[Sequence[int]], theirs: Sequence[Sequence[int]]) -> int:
    """Count the rows whose tokens differ between two sides."""
    return sum(list(a) != list(b) for a, b in zip(ours, theirs, strict=True))
