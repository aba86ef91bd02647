"""McNemar's exact test, and the differences it can resolve."""

from math import inf
from typing import Any

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar

from jroute.statistics.mcnemar import detectable_gap, mcnemar_exact, resolvable_gap
from tests.statistics.sampling import binomial_band, rng


def test_mcnemar_is_a_sign_test_on_the_discordant_items() -> None:
    a = np.array([1] * 30 + [1] * 12 + [0] * 4 + [0] * 20)
    b = np.array([1] * 30 + [0] * 12 + [1] * 4 + [0] * 20)
    test = mcnemar_exact(a, b)
    assert (test.only_a, test.only_b, test.n) == (12, 4, 66)
    assert test.p == pytest.approx(stats.binomtest(4, 16).pvalue)
    assert mcnemar_exact(a, a).p == 1.0
    with pytest.raises(ValueError, match="0 and 1"):
        mcnemar_exact(a * 0.5, b)


KNOWN = {  # n -> points just significant and points found with 80 % power, at these discordances
    1319: ((0.91, 1.36, 1.82, 2.58), (1.13, 1.77, 2.50, 3.51)),
    1000: ((1.0, 1.6, 2.2, 3.0), (1.28, 2.03, 2.87, 4.04)),
    300: ((2.0, 3.0, 4.0, 6.0), (inf, 3.68, 5.30, 7.42)),
}


@pytest.mark.parametrize("n", KNOWN)
def test_gaps_of_known_sets(n) -> None:
    for discordance, resolvable, detectable in zip((0.02, 0.05, 0.1, 0.2), *KNOWN[n], strict=True):
        gap = 100 * resolvable_gap(n, discordance)
        assert round(gap, 2) == resolvable
        gap = 100 * detectable_gap(n, discordance)
        assert gap == inf if detectable == inf else round(gap, 2) == detectable


def test_gaps_at_holms_strictest_level() -> None:
    gaps = [100 * resolvable_gap(1319, d, alpha=0.0125) for d in (0.02, 0.05, 0.1)]
    np.testing.assert_allclose(gaps, [1.06, 1.67, 2.27], atol=0.005)
    assert resolvable_gap(300, 0.02, alpha=0.0125) == inf


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
    assert resolvable_gap(n, discordant / n) == min(significant, default=inf)


def test_detectable_gap_is_found_as_often_as_promised() -> None:
    n, discordance = 400, 0.1
    gap = detectable_gap(n, discordance)
    win = (1 + gap / discordance) / 2
    draw, trials = rng(0), 4_000
    discordant = draw.binomial(n, discordance, trials)
    outcomes = list(zip(discordant.tolist(), draw.binomial(discordant, win).tolist(), strict=True))
    p = {(m, w): float(stats.binomtest(w, m).pvalue) for m, w in set(outcomes)}
    significant = np.array([p[outcome] for outcome in outcomes]) <= 0.05
    low, high = binomial_band(trials, 0.8)
    assert low <= np.mean(significant) <= high
