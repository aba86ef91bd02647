"""Draws, and the bands in which shares of them fall."""

import numpy as np
from scipy import stats


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def covers(interval: tuple[float, float], truth: float) -> bool:
    return interval[0] <= truth <= interval[1]


def binomial_band(trials: int, rate: float = 0.95) -> tuple[float, float]:
    """Where a share of that true rate falls, but for once in a thousand runs."""
    return tuple(np.array(stats.binom.interval(0.999, trials, rate)) / trials)
