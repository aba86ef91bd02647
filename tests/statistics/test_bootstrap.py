"""The crossed bootstrap against a plain loop."""

import numpy as np
import pytest

from jroute.statistics.bootstrap import crossed_bootstrap, degrees_of_freedom
from tests.statistics.sampling import rng
from tests.statistics.test_contrasts import two_arms


def test_crossed_bootstrap_is_that_of_a_plain_loop() -> None:
    a, b, _ = two_arms(rng(7), 6, 3, 40, 0.2, 0.2)
    freedom = degrees_of_freedom([a, b], [1.0, -1.0])
    differences = crossed_bootstrap([a, b], 4_000, 0) @ [1.0, -1.0]
    draw, plain = rng(8), []
    for _ in range(4_000):
        items = draw.integers(0, 40, 40)
        of_a = a[draw.integers(0, 6, 6)][:, items].mean()
        of_b = b[draw.integers(0, 3, 3)][:, items].mean()
        plain.append(of_a - of_b)
    # The variance of each factor, unbiased: the plain loop has (n - 1) / n of it.
    seeds_a, seeds_b = a.mean(axis=1).var(ddof=1) / 6, b.mean(axis=1).var(ddof=1) / 3
    of_items = (a.mean(axis=0) - b.mean(axis=0)).var(ddof=1) / 40
    assert np.mean(differences) == pytest.approx(a.mean() - b.mean(), abs=0.01)
    lost = seeds_a / 6 + seeds_b / 3 + of_items / 40
    assert np.var(differences) == pytest.approx(np.var(plain) + lost, rel=0.15)
    total = seeds_a + seeds_b + of_items
    assert np.var(differences) >= 0.95 * total
    by_hand = total**2 / (seeds_a**2 / 5 + seeds_b**2 / 2 + of_items**2 / 39)
    assert freedom == pytest.approx(by_hand)
