"""Accuracies: Wilson's interval, the crossed bootstrap's, and how often they cover the truth."""

import numpy as np
import pytest
from scipy import stats

from jroute.statistics.intervals import accuracy
from tests.statistics.sampling import binomial_band, covers, rng


@pytest.mark.parametrize(("right", "n"), [(41, 50), (0, 20), (1319, 1319), (1, 1000)])
def test_accuracy_of_a_deterministic_arm_is_wilsons(right, n) -> None:
    result = accuracy(np.arange(n) < right)
    p, z = right / n, stats.norm.ppf(0.975)
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    assert result.accuracy == p
    assert result.n == n
    np.testing.assert_allclose(result.ci95, (centre - half, centre + half), atol=1e-9)


def test_accuracy_of_an_expectation_agrees_with_scipys_bootstrap() -> None:
    values = rng().choice([0.0, 0.2, 0.6, 1.0], size=400)
    result = accuracy(values)
    scipys = stats.bootstrap(
        (values,), np.mean, n_resamples=10_000, method="percentile", rng=rng(1)
    ).confidence_interval
    assert result.accuracy == pytest.approx(values.mean())
    np.testing.assert_allclose(result.ci95, scipys, atol=0.003)


def test_accuracy_over_seeds_counts_the_spread_of_the_seeds() -> None:
    # Seeds of accuracies .5 to .7, each the same throughout: items say nothing.
    values = np.repeat(np.linspace(0.5, 0.7, 10)[:, None], 200, axis=1)
    result = accuracy(values)
    per_seed = values.mean(axis=1)
    half = stats.t.ppf(0.975, 9) * per_seed.std(ddof=1) / np.sqrt(10)
    np.testing.assert_allclose(result.ci95, (0.6 - half, 0.6 + half), atol=0.005)
    # The same cells as 2,000 independent items would look ten times as sure.
    flat = accuracy(values.ravel())
    assert result.ci95[1] - result.ci95[0] > 8 * (flat.ci95[1] - flat.ci95[0])


def test_intervals_stay_within_the_values() -> None:
    values = np.ones((2, 30))
    values[0, 0] = 0.0
    result = accuracy(values)
    assert 0.0 <= result.ci95[0] < result.ci95[1] <= 1.0


@pytest.mark.parametrize("kind", ["deterministic", "expectation"])
def test_coverage_for_one_arm(kind) -> None:
    draw, hits, trials = rng(3), 0, 600
    for trial in range(trials):
        values = draw.random(150) < 0.7 if kind == "deterministic" else draw.beta(2, 1, size=150)
        truth = 0.7 if kind == "deterministic" else 2 / 3
        hits += covers(accuracy(values, replicates=500, seed=trial).ci95, truth)
    low, high = binomial_band(trials)
    assert low <= hits / trials <= high
