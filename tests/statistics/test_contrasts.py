"""Differences of arms: the coverage of their intervals and the promise of their p-values."""

from math import inf

import numpy as np
import pytest
from scipy import stats

from jroute.statistics.contrasts import linear_contrast, paired_contrast, share_of_gain
from tests.statistics.sampling import binomial_band, covers, rng


def two_arms(draw, seeds_a: int, seeds_b: int, items: int, gain: float, spread: float):
    """Two arms over shared items; 0 seeds means one deterministic row.

    A quarter of the items are open; there each seed is right with its own chance, which is one
    half and ``gain`` more for the first arm, and varies by ``spread`` between seeds.
    """
    settled = draw.random(items) < 0.6
    is_open = draw.random(items) < 0.25

    def arm(seeds: int, mean: float) -> np.ndarray:
        chances = mean + spread * draw.standard_normal((max(seeds, 1), 1)) * (seeds > 0)
        difficulty = draw.random(items)
        rows = np.where(is_open, difficulty < chances, settled).astype(float)
        return rows if seeds else rows[0]

    return arm(seeds_a, 0.5 + gain), arm(seeds_b, 0.5), 0.25 * gain


@pytest.mark.parametrize(
    ("seeds_a", "seeds_b", "items", "spread"),
    [(0, 0, 200, 0.0), (20, 0, 200, 0.05), (20, 20, 300, 0.1), (5, 0, 300, 0.15)],
)
def test_coverage_for_two_arms(seeds_a, seeds_b, items, spread) -> None:
    draw, trials = rng(4), 500
    hits = below = above = 0
    for trial in range(trials):
        a, b, truth = two_arms(draw, seeds_a, seeds_b, items, 0.1, spread)
        contrast = paired_contrast(a, b, replicates=500, seed=trial)
        hits += covers(contrast.ci95, truth)
        below += truth <= contrast.upper95
        above += truth >= contrast.lower95
        # The p-value and the interval tell the same story.
        assert (contrast.p <= 0.05) == (not covers(contrast.ci95, 0.0))
        assert contrast.ci95[0] <= contrast.lower95 <= contrast.upper95 <= contrast.ci95[1]
    low, high = binomial_band(trials)
    # Two-sided, and each one-sided bound: 19 of 20.
    assert low <= hits / trials <= high
    assert low <= below / trials <= high
    assert low <= above / trials <= high


def three_arms(draw, items: int, share: float):
    """A base, a ceiling with a gain of 0.15, and six seeds that reach ``share`` of it."""
    settled, place = draw.random(items) < 0.55, draw.random(items)
    reach = share + 0.1 * draw.standard_normal((6, 1))
    seeds = np.where(place < 0.15 * reach, True, settled & (place >= 0.15))
    whole = np.where(place < 0.15, True, settled)
    return seeds.astype(float), whole.astype(float), np.where(place < 0.15, False, settled) * 1.0


def test_coverage_of_a_share_of_a_gain() -> None:
    draw, hits, trials = rng(9), 0, 500
    for trial in range(trials):
        a, b, base = three_arms(draw, 600, 0.8)
        share = share_of_gain(a, b, base, replicates=500, seed=trial)
        gains = a.mean() - base.mean(), b.mean() - base.mean()
        assert share.share == pytest.approx(gains[0] / gains[1])
        hits += covers(share.ci95, 0.8)
    low, high = binomial_band(trials)
    assert low <= hits / trials <= high


def test_a_share_of_no_gain_is_unbounded() -> None:
    base = (rng().random(200) < 0.5).astype(float)
    worse = base * (rng(1).random(200) < 0.9)
    assert share_of_gain(base, worse, base).ci95 == (-inf, inf)
    assert np.isnan(share_of_gain(worse, base, base).share)
    # A gain that not every resample confirms is none to take a share of.
    one_better = base.copy()
    one_better[np.flatnonzero(base == 0)[0]] = 1.0
    share = share_of_gain(one_better, one_better, base, replicates=500)
    assert share.share == 1.0 and share.ci95 == (-inf, inf)


def test_coverage_of_a_difference_of_gains() -> None:
    draw, hits, trials = rng(10), 0, 500
    for trial in range(trials):
        first = three_arms(draw, 400, 0.9)
        second = three_arms(draw, 400, 0.5)
        contrast = linear_contrast(
            [first[0], first[2], second[0], second[2]], [1, -1, -1, 1], replicates=500, seed=trial
        )
        hits += covers(contrast.ci95, 0.15 * (0.9 - 0.5))
    low, high = binomial_band(trials)
    assert low <= hits / trials <= high


def test_arms_of_the_same_seeds_are_paired_seed_by_seed() -> None:
    draw, hits, trials = rng(11), 0, 500
    wider = 0
    for trial in range(trials):
        settled = draw.random(300)
        level = 0.5 + 0.15 * draw.standard_normal((8, 1))  # the seeds differ, both arms share it
        b = (settled < level).astype(float)
        extra = 0.08 + 0.02 * draw.standard_normal((8, 1))
        a = np.maximum(b, draw.random(300) < extra)
        contrast = paired_contrast(a, b, same_seeds=True, replicates=500, seed=trial)
        hits += covers(contrast.ci95, 0.08 * 0.5)
        if trial < 20:
            apart = paired_contrast(a, b, replicates=500, seed=trial)
            wider += np.ptp(apart.ci95) > 2 * np.ptp(contrast.ci95)
    low, high = binomial_band(trials)
    assert low <= hits / trials <= high
    assert wider == 20
    with pytest.raises(ValueError, match="have 8 and 3"):
        paired_contrast(np.zeros((8, 9)), np.zeros((3, 9)), same_seeds=True)


def test_false_alarms_are_as_rare_as_promised() -> None:
    draw, trials = rng(5), 600
    ps = []
    for trial in range(trials):
        a, b, _ = two_arms(draw, 8, 0, 150, 0.0, 0.1)
        ps.append(paired_contrast(a, b, replicates=500, seed=trial).p)
    low, high = binomial_band(trials, 0.05)
    assert low <= np.mean(np.array(ps) <= 0.05) <= high
    assert 0.3 < np.mean(np.array(ps) <= 0.5) < 0.65


def test_contrast_of_two_rows_agrees_with_scipy() -> None:
    a, b, _ = two_arms(rng(2), 0, 0, 500, 0.15, 0.0)
    contrast = paired_contrast(a, b)
    assert contrast.difference == pytest.approx(a.mean() - b.mean())
    assert contrast.n == 500
    scipys = stats.bootstrap(
        (a - b,), np.mean, n_resamples=10_000, method="percentile", rng=rng(1)
    ).confidence_interval
    np.testing.assert_allclose(contrast.ci95, scipys, atol=0.003)
    # Sign flips of the pairs are another road to a p-value.
    flips = stats.permutation_test(
        (a, b),
        lambda x, y, axis: (x - y).mean(axis=axis),
        permutation_type="samples",
        n_resamples=5_000,
        vectorized=True,
        rng=rng(1),
    )
    assert contrast.p == pytest.approx(flips.pvalue, rel=0.35, abs=0.003)
    assert 0.001 < contrast.p < 0.2
    reversed_ = paired_contrast(b, a)
    assert reversed_.difference == -contrast.difference
    np.testing.assert_allclose(reversed_.ci95, (-contrast.ci95[1], -contrast.ci95[0]), atol=0.004)


def test_items_are_paired_and_seeds_are_not() -> None:
    hard = rng().random(400) < 0.5
    a = np.where(rng(1).random(400) < 0.02, ~hard, hard).astype(float)
    contrast = paired_contrast(a, hard)
    width = contrast.ci95[1] - contrast.ci95[0]
    assert width < 0.04  # unpaired it would be 0.14
    shuffled = paired_contrast(rng(2).permutation(a), hard)
    assert shuffled.ci95[1] - shuffled.ci95[0] > 3 * width


def test_equal_arms_and_p_values_at_the_ends() -> None:
    row = (rng().random(100) < 0.5).astype(float)
    same = paired_contrast(row, row)
    unseen = 1.0 - 0.025 ** (1 / 100)  # so frequent, an item that differs is missed once in forty
    assert (same.difference, same.ci95, same.p) == (0.0, (-unseen, unseen), 1.0)
    seeds = np.tile(row, (7, 1))
    same = paired_contrast(seeds, row)
    np.testing.assert_allclose([same.difference, *same.ci95], [0.0, -unseen, unseen], atol=1e-12)
    assert same.p == 1.0
    # 299 items that are all alike bound a difference below a point, and 298 do not.
    for n, bounded in ((298, False), (299, True)):
        contrast = paired_contrast(np.ones(n), np.ones(n))
        assert (contrast.upper95 < 0.01) is (contrast.lower95 > -0.01) is bounded
        assert (1.0 - contrast.upper95) ** n == pytest.approx(0.05)
    both = linear_contrast([row] * 4, [1.0, -1.0, -1.0, 1.0])
    assert both.ci95 == pytest.approx((-2 * unseen, 2 * unseen))
    # A certain win: (0 + 1) / (B + 1) in each tail.
    certain = paired_contrast(np.ones(100), np.zeros(100), replicates=999)
    assert certain.p == pytest.approx(2 / 1000)
    # Two seeds cannot be sure of anything that seeds decide.
    two = paired_contrast(np.full((2, 100), [[0.6], [0.9]]), np.zeros(100))
    assert two.p > 0.05


def test_the_same_seed_gives_the_same_answer() -> None:
    a, b, _ = two_arms(rng(2), 4, 0, 100, 0.1, 0.1)
    assert paired_contrast(a, b, seed=3) == paired_contrast(a, b, seed=3)
    assert paired_contrast(a, b, seed=3) != paired_contrast(a, b, seed=4)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (np.zeros(10), np.zeros(9), "10 and 9 items"),
        (np.full(10, np.nan), np.zeros(10), "not finite"),
        (np.zeros((2, 2, 5)), np.zeros(5), "shape"),
        (np.zeros(1), np.zeros(1), "shape"),
    ],
)
def test_arms_that_cannot_be_compared(a, b, message) -> None:
    with pytest.raises(ValueError, match=message):
        paired_contrast(a, b)
