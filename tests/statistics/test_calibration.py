"""What a calibration counts: planted gains, expectations and false alarms."""

import numpy as np
import pytest

from jroute.arms import registry
from jroute.statistics import calibration
from jroute.statistics.calibration import expectations

ROLES = registry.roles()


def test_planted_gains_are_what_they_are_called() -> None:
    rng = np.random.default_rng(1)
    for gain, flips in ((0.0, 0.01), (0.05, 0.01), (0.1, 0.1)):
        x, correct = calibration.planted(gain, 200_000, rng, flips=flips)
        accuracy = correct.mean(axis=0)
        rule = np.where(x[:, 1] > 0, 3, 0)
        reached = correct[np.arange(len(x)), rule].mean()
        error = 4 * np.sqrt(0.5 / len(x))
        assert reached - accuracy[[0, 1, 3, 4]] == pytest.approx(np.full(4, gain), abs=error)
        assert accuracy[2] <= accuracy[0] + error
        # The length tells nothing.
        short = np.where(x[:, 0] > 0, 3, 0)
        assert correct[np.arange(len(x)), short].mean() == pytest.approx(accuracy[0], abs=error)
    # 1 % of independent flips of cells that are otherwise alike.
    _, plain = calibration.planted(0.0, 100_000, rng)
    assert (plain[:, 0] != plain[:, 1]).mean() == pytest.approx(2 * 0.01 * 0.99, abs=0.002)


def test_expectations_fail_one_by_one() -> None:
    declared = [
        {"b": b, "difference": 0.1, "p_holm": 0.01}
        for b in ("fixed:0.5", "supervised", "baseline", "best_fixed")
    ]
    good = {
        "shares": {"rl": {"share": 0.95, "ci95": [0.85, 1.0]}},
        "arms": {
            "supervised_features": {"accuracy": 0.8},
            "exact_gradient": {"accuracy": 0.805},
        },
        "contrasts": [*declared, {"b": "random", "difference": -1.0}],
    }
    assert list(expectations(good, ROLES).values()) == [True] * 4
    low = {"rl": {"share": 0.89, "ci95": [0.85, 1.0]}}
    assert list(expectations({**good, "shares": low}, ROLES).values()) == [False, *[True] * 3]
    wide = {"rl": {"share": 0.95, "ci95": [0.79, 1.0]}}
    assert list(expectations({**good, "shares": wide}, ROLES).values())[1] is False
    none = {"rl": {"share": None, "ci95": [None, None]}}
    assert list(expectations({**good, "shares": none}, ROLES).values())[:2] == [False] * 2
    for change in ({"p_holm": 0.06}, {"difference": -0.1}):
        worse = [{**declared[0], **change}, *declared[1:]]
        assert list(expectations({**good, "contrasts": worse}, ROLES).values())[2] is False
    straw = {**good["arms"], "supervised_features": {"accuracy": 0.79}}
    assert list(expectations({**good, "arms": straw}, ROLES).values())[3] is False


def test_allowed_false_alarms() -> None:
    assert calibration.allowed_false_alarms(200) == 15
    assert calibration.allowed_false_alarms(20) == 3
