from math import inf
from typing import Any

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar

from jroute.statistics import contrasts


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def covers(interval: tuple[float, float], truth: float) -> bool:
    return interval[0] <= truth <= interval[1]


def binomial_band(trials: int, rate: float = 0.95) -> tuple[float, float]:
    """Where a share of that true rate falls, but for once in a thousand runs."""
    return tuple(np.array(stats.binom.interval(0.999, trials, rate)) / trials)


# One arm


@pytest.mark.parametrize(("right", "n"), [(41, 50), (0, 20), (1319, 1319), (1, 1000)])
def test_accuracy_of_a_deterministic_arm_is_wilsons(right, n) -> None:
    found = contrasts.accuracy(np.arange(n) < right)
    p, z = right / n, stats.norm.ppf(0.975)
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    assert found.accuracy == p
    assert found.n == n
    np.testing.assert_allclose(found.ci95, (centre - half, centre + half), atol=1e-9)


def test_accuracy_of_an_expectation_agrees_with_scipys_bootstrap() -> None:
    values = rng().choice([0.0, 0.2, 0.6, 1.0], size=400)
    found = contrasts.accuracy(values)
    scipys = stats.bootstrap(
        (values,), np.mean, n_resamples=10_000, method="percentile", rng=rng(1)
    ).confidence_interval
    assert found.accuracy == pytest.approx(values.mean())
    np.testing.assert_allclose(found.ci95, scipys, atol=0.003)


def test_accuracy_over_seeds_counts_the_spread_of_the_seeds() -> None:
    # Seeds of accuracies .5 to .7, each the same throughout: items say nothing.
    values = np.repeat(np.linspace(0.5, 0.7, 10)[:, None], 200, axis=1)
    found = contrasts.accuracy(values)
    per_seed = values.mean(axis=1)
    half = stats.t.ppf(0.975, 9) * per_seed.std(ddof=1) / np.sqrt(10)
    np.testing.assert_allclose(found.ci95, (0.6 - half, 0.6 + half), atol=0.005)
    # The same cells as 2,000 independent items would look ten times as sure.
    flat = contrasts.accuracy(values.ravel())
    assert found.ci95[1] - found.ci95[0] > 8 * (flat.ci95[1] - flat.ci95[0])


def test_intervals_stay_within_the_values() -> None:
    values = np.ones((2, 30))
    values[0, 0] = 0.0
    found = contrasts.accuracy(values)
    assert 0.0 <= found.ci95[0] < found.ci95[1] <= 1.0


@pytest.mark.parametrize("kind", ["deterministic", "expectation"])
def test_coverage_for_one_arm(kind) -> None:
    draw, hits, trials = rng(3), 0, 600
    for trial in range(trials):
        values = draw.random(150) < 0.7 if kind == "deterministic" else draw.beta(2, 1, size=150)
        truth = 0.7 if kind == "deterministic" else 2 / 3
        hits += covers(contrasts.accuracy(values, replicates=500, seed=trial).ci95, truth)
    low, high = binomial_band(trials)
    assert low <= hits / trials <= high


# Two arms


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
        found = contrasts.paired_contrast(a, b, replicates=500, seed=trial)
        hits += covers(found.ci95, truth)
        below += truth <= found.upper95
        above += truth >= found.lower95
        # The p-value and the interval tell the same story.
        assert (found.p <= 0.05) == (not covers(found.ci95, 0.0))
        assert found.ci95[0] <= found.lower95 <= found.upper95 <= found.ci95[1]
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
        found = contrasts.share_of_gain(a, b, base, replicates=500, seed=trial)
        gains = a.mean() - base.mean(), b.mean() - base.mean()
        assert found.share == pytest.approx(gains[0] / gains[1])
        hits += covers(found.ci95, 0.8)
    low, high = binomial_band(trials)
    assert low <= hits / trials <= high


def test_a_share_of_no_gain_is_unbounded() -> None:
    base = (rng().random(200) < 0.5).astype(float)
    worse = base * (rng(1).random(200) < 0.9)
    assert contrasts.share_of_gain(base, worse, base).ci95 == (-inf, inf)
    assert np.isnan(contrasts.share_of_gain(worse, base, base).share)
    # A gain that not every resample confirms is none to take a share of.
    one_better = base.copy()
    one_better[np.flatnonzero(base == 0)[0]] = 1.0
    found = contrasts.share_of_gain(one_better, one_better, base, replicates=500)
    assert found.share == 1.0 and found.ci95 == (-inf, inf)


def test_coverage_of_a_difference_of_gains() -> None:
    draw, hits, trials = rng(10), 0, 500
    for trial in range(trials):
        first = three_arms(draw, 400, 0.9)
        second = three_arms(draw, 400, 0.5)
        found = contrasts.linear_contrast(
            [first[0], first[2], second[0], second[2]], [1, -1, -1, 1], replicates=500, seed=trial
        )
        hits += covers(found.ci95, 0.15 * (0.9 - 0.5))
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
        found = contrasts.paired_contrast(a, b, same_seeds=True, replicates=500, seed=trial)
        hits += covers(found.ci95, 0.08 * 0.5)
        if trial < 20:
            apart = contrasts.paired_contrast(a, b, replicates=500, seed=trial)
            wider += np.ptp(apart.ci95) > 2 * np.ptp(found.ci95)
    low, high = binomial_band(trials)
    assert low <= hits / trials <= high
    assert wider == 20
    with pytest.raises(ValueError, match="have 8 and 3"):
        contrasts.paired_contrast(np.zeros((8, 9)), np.zeros((3, 9)), same_seeds=True)


def test_false_alarms_are_as_rare_as_promised() -> None:
    draw, trials = rng(5), 600
    ps = []
    for trial in range(trials):
        a, b, _ = two_arms(draw, 8, 0, 150, 0.0, 0.1)
        ps.append(contrasts.paired_contrast(a, b, replicates=500, seed=trial).p)
    low, high = binomial_band(trials, 0.05)
    assert low <= np.mean(np.array(ps) <= 0.05) <= high
    assert 0.3 < np.mean(np.array(ps) <= 0.5) < 0.65


def test_contrast_of_two_rows_agrees_with_scipy() -> None:
    a, b, _ = two_arms(rng(2), 0, 0, 500, 0.15, 0.0)
    found = contrasts.paired_contrast(a, b)
    assert found.difference == pytest.approx(a.mean() - b.mean())
    assert found.n == 500
    scipys = stats.bootstrap(
        (a - b,), np.mean, n_resamples=10_000, method="percentile", rng=rng(1)
    ).confidence_interval
    np.testing.assert_allclose(found.ci95, scipys, atol=0.003)
    # Sign flips of the pairs are another road to a p-value.
    flips = stats.permutation_test(
        (a, b),
        lambda x, y, axis: (x - y).mean(axis=axis),
        permutation_type="samples",
        n_resamples=5_000,
        vectorized=True,
        rng=rng(1),
    )
    assert found.p == pytest.approx(flips.pvalue, rel=0.35, abs=0.003)
    assert 0.001 < found.p < 0.2
    reversed_ = contrasts.paired_contrast(b, a)
    assert reversed_.difference == -found.difference
    np.testing.assert_allclose(reversed_.ci95, (-found.ci95[1], -found.ci95[0]), atol=0.004)


def test_crossed_bootstrap_is_that_of_a_plain_loop() -> None:
    a, b, _ = two_arms(rng(7), 6, 3, 40, 0.2, 0.2)
    freedom = contrasts._degrees_of_freedom([a, b], [1.0, -1.0])
    found = contrasts._crossed_bootstrap([a, b], 4_000, 0) @ [1.0, -1.0]
    draw, plain = rng(8), []
    for _ in range(4_000):
        items = draw.integers(0, 40, 40)
        of_a = a[draw.integers(0, 6, 6)][:, items].mean()
        of_b = b[draw.integers(0, 3, 3)][:, items].mean()
        plain.append(of_a - of_b)
    # The variance of each factor, unbiased: the plain loop has (n - 1) / n of it.
    seeds_a, seeds_b = a.mean(axis=1).var(ddof=1) / 6, b.mean(axis=1).var(ddof=1) / 3
    of_items = (a.mean(axis=0) - b.mean(axis=0)).var(ddof=1) / 40
    assert np.mean(found) == pytest.approx(a.mean() - b.mean(), abs=0.01)
    lost = seeds_a / 6 + seeds_b / 3 + of_items / 40
    assert np.var(found) == pytest.approx(np.var(plain) + lost, rel=0.15)
    total = seeds_a + seeds_b + of_items
    assert np.var(found) >= 0.95 * total
    by_hand = total**2 / (seeds_a**2 / 5 + seeds_b**2 / 2 + of_items**2 / 39)
    assert freedom == pytest.approx(by_hand)


def test_items_are_paired_and_seeds_are_not() -> None:
    hard = rng().random(400) < 0.5
    a = np.where(rng(1).random(400) < 0.02, ~hard, hard).astype(float)
    found = contrasts.paired_contrast(a, hard)
    width = found.ci95[1] - found.ci95[0]
    assert width < 0.04  # unpaired it would be 0.14
    shuffled = contrasts.paired_contrast(rng(2).permutation(a), hard)
    assert shuffled.ci95[1] - shuffled.ci95[0] > 3 * width


def test_equal_arms_and_p_values_at_the_ends() -> None:
    row = (rng().random(100) < 0.5).astype(float)
    same = contrasts.paired_contrast(row, row)
    unseen = 1.0 - 0.025 ** (1 / 100)  # so frequent, an item that differs is missed once in forty
    assert (same.difference, same.ci95, same.p) == (0.0, (-unseen, unseen), 1.0)
    seeds = np.tile(row, (7, 1))
    same = contrasts.paired_contrast(seeds, row)
    np.testing.assert_allclose([same.difference, *same.ci95], [0.0, -unseen, unseen], atol=1e-12)
    assert same.p == 1.0
    # 299 items that are all alike bound a difference below a point, and 298 do not.
    for n, bounded in ((298, False), (299, True)):
        rest = contrasts.paired_contrast(np.ones(n), np.ones(n))
        assert (rest.upper95 < 0.01) is (rest.lower95 > -0.01) is bounded
        assert (1.0 - rest.upper95) ** n == pytest.approx(0.05)
    both = contrasts.linear_contrast([row] * 4, [1.0, -1.0, -1.0, 1.0])
    assert both.ci95 == pytest.approx((-2 * unseen, 2 * unseen))
    # A certain win: (0 + 1) / (B + 1) in each tail.
    certain = contrasts.paired_contrast(np.ones(100), np.zeros(100), replicates=999)
    assert certain.p == pytest.approx(2 / 1000)
    # Two seeds cannot be sure of anything that seeds decide.
    two = contrasts.paired_contrast(np.full((2, 100), [[0.6], [0.9]]), np.zeros(100))
    assert two.p > 0.05


def test_the_same_seed_gives_the_same_answer() -> None:
    a, b, _ = two_arms(rng(2), 4, 0, 100, 0.1, 0.1)
    assert contrasts.paired_contrast(a, b, seed=3) == contrasts.paired_contrast(a, b, seed=3)
    assert contrasts.paired_contrast(a, b, seed=3) != contrasts.paired_contrast(a, b, seed=4)


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
        contrasts.paired_contrast(a, b)


# Exact tests and their reach


def test_mcnemar_is_a_sign_test_on_the_discordant_items() -> None:
    a = np.array([1] * 30 + [1] * 12 + [0] * 4 + [0] * 20)
    b = np.array([1] * 30 + [0] * 12 + [1] * 4 + [0] * 20)
    found = contrasts.mcnemar_exact(a, b)
    assert (found.only_a, found.only_b, found.n) == (12, 4, 66)
    assert found.p == pytest.approx(stats.binomtest(4, 16).pvalue)
    assert contrasts.mcnemar_exact(a, a).p == 1.0
    with pytest.raises(ValueError, match="0 and 1"):
        contrasts.mcnemar_exact(a * 0.5, b)


def test_holm() -> None:
    # Sorted .005 .01 .03 .04 times 4 3 2 1, never falling.
    assert contrasts.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert contrasts.holm([0.6, 0.5]) == [1.0, 1.0]
    assert contrasts.holm([]) == []


KNOWN = {  # n -> points just significant and points found with 80 % power, at these discordances
    1319: ((0.91, 1.36, 1.82, 2.58), (1.13, 1.77, 2.50, 3.51)),
    1000: ((1.0, 1.6, 2.2, 3.0), (1.28, 2.03, 2.87, 4.04)),
    300: ((2.0, 3.0, 4.0, 6.0), (inf, 3.68, 5.30, 7.42)),
}


@pytest.mark.parametrize("n", KNOWN)
def test_gaps_of_known_sets(n) -> None:
    for discordance, resolvable, detectable in zip((0.02, 0.05, 0.1, 0.2), *KNOWN[n], strict=True):
        found = 100 * contrasts.resolvable_gap(n, discordance)
        assert round(found, 2) == resolvable
        found = 100 * contrasts.detectable_gap(n, discordance)
        assert found == inf if detectable == inf else round(found, 2) == detectable


def test_gaps_at_holms_strictest_level() -> None:
    gaps = [100 * contrasts.resolvable_gap(1319, d, alpha=0.0125) for d in (0.02, 0.05, 0.1)]
    np.testing.assert_allclose(gaps, [1.06, 1.67, 2.27], atol=0.005)
    assert contrasts.resolvable_gap(300, 0.02, alpha=0.0125) == inf


@pytest.mark.parametrize("discordant", [0, 1, 5, 6, 7, 20, 33])
def test_resolvable_gap_is_where_mcnemar_turns_significant(discordant) -> None:
    n = 100
    tests: dict[int, Any] = {
        wins: mcnemar([[0, wins], [discordant - wins, 0]], exact=True)
        for wins in range(discordant + 1)
    }
    significant = [
        abs(2 * wins - discordant) / n for wins, test in tests.items() if test.pvalue <= 0.05
    ]
    assert contrasts.resolvable_gap(n, discordant / n) == min(significant, default=inf)


def test_detectable_gap_is_found_as_often_as_promised() -> None:
    n, discordance = 400, 0.1
    gap = contrasts.detectable_gap(n, discordance)
    win = (1 + gap / discordance) / 2
    draw, trials = rng(0), 4_000
    discordant = draw.binomial(n, discordance, trials)
    outcomes = list(zip(discordant.tolist(), draw.binomial(discordant, win).tolist(), strict=True))
    p = {(m, w): float(stats.binomtest(w, m).pvalue) for m, w in set(outcomes)}
    found = np.array([p[outcome] for outcome in outcomes]) <= 0.05
    low, high = binomial_band(trials, 0.8)
    assert low <= np.mean(found) <= high
