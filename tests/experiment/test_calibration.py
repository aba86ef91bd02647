"""Calibration on tables small enough to train on in a moment."""

import jax
import numpy as np
import pytest
from scipy import stats

from jroute.arms.registry import roles
from jroute.experiment import calibration
from jroute.experiment.calibration import CalibrationConfig, Tables
from jroute.statistics.calibration import GRID, expectations, summarize_null
from jroute.statistics.config import JudgeConfig
from jroute.statistics.headroom import CrossValidator
from tests.arms.tables import FIT, PPO, planted_table

CONFIG = CalibrationConfig(
    ppo=PPO,
    small_ppo=PPO,
    supervised=FIT,
    small_supervised=FIT,
    judge=JudgeConfig(replicates=400),
    tables=2,
    problems=(400, 150, 400),
    features=4,
)


@pytest.fixture(scope="module")
def tables() -> Tables:
    train, validation, test, ood = (
        planted_table(n, seed) for seed, n in enumerate((400, 150, 1500, 400))
    )
    return Tables(train, validation, {"test": test, "ood": ood}, GRID)


def test_a_table_with_headroom_passes_as_positive(tables) -> None:
    splits = calibration.train_and_judge(tables, PPO, FIT, CONFIG.judge, jax.random.key(0))
    assert list(splits) == ["test", "ood"]
    for split, results in splits.items():
        assert results["n"] == (1500 if split == "test" else 400)
        met = expectations(results, roles())
        if split == "ood":  # 400 problems cannot tell a point
            met.pop("supervised_on_features_within_a_point_of_exact_gradient")
        assert all(met.values()), (split, met)
        assert results["verdict"]["name"] == "gain"
        accuracy = {name: arm["accuracy"] for name, arm in results["arms"].items()}
        # What must not help does not.
        for placebo in ("shuffled_prompt", "random_reward", "rl_modal", "supervised"):
            assert accuracy[placebo] < accuracy["best_fixed"] + 0.06, placebo
        assert accuracy["rl"] > accuracy["best_fixed"] + 0.14


def validator_of(tables: Tables) -> CrossValidator:
    extra = np.concatenate([tables.train[0], tables.validation[0]])
    return CrossValidator(tables.judged["test"][0], extra)


@pytest.fixture(scope="module")
def null(tables) -> list[dict]:
    validator, permutations = validator_of(tables), []
    for start in (0, 10):
        permutations += calibration.null_rl(tables, CONFIG, np.arange(start, start + 10))
    return [
        {**one, **calibration.null_rule(tables, validator, CONFIG, i)}
        for i, one in enumerate(permutations)
    ]


def test_dealt_features_leave_nothing_to_learn(tables, null) -> None:
    summed = summarize_null(null)
    correct = tables.judged["test"][1]
    best = int(tables.train[1].mean(axis=0).argmax())
    hindsight = correct.max(axis=1).mean() - correct[:, best].mean()
    assert len({one["hindsight"] for one in null}) == 1 and hindsight > 0.15
    assert null[0]["hindsight"] == pytest.approx(hindsight)
    assert summed["declared"] <= stats.binom.ppf(0.999, 20, 0.05)
    # A leak would show as a gain; real features gain 20 points.
    assert summed["rl_minus_best_fixed_mean"] < 0.01
    assert summed["learnable_mean"] < 0.01
    assert summed["n"] == 1500 and summed["permutations"] == 20
    assert all(one["n"] == 1500 and one["ci95"][0] <= one["difference"] for one in null)
    assert len({one["difference"] for one in null}) > 10


def test_a_permutation_does_not_depend_on_its_chunk(tables, null) -> None:
    """A series that was interrupted and cut elsewhere gives what the whole one gives."""
    alone = calibration.null_rl(tables, CONFIG, np.array([13]))[0]
    assert alone == {name: null[13][name] for name in alone}
    assert alone["permutation"] == 13


def test_rl_and_the_rule_see_the_same_permutation(tables) -> None:
    """Features dealt to outcomes, and outcomes dealt back to features, are the same pairs."""
    orders = calibration._permutations(tables, CONFIG, 7)
    parts = (tables.train, tables.validation, tables.judged["test"])
    for (x, y), order in zip(parts, orders, strict=True):
        dealt = {(*a, *b) for a, b in zip(x[order].tolist(), y.tolist(), strict=True)}
        back = y[np.argsort(order)].tolist()
        assert dealt == {(*a, *b) for a, b in zip(x.tolist(), back, strict=True)}
    assert not np.array_equal(orders[0], calibration._permutations(tables, CONFIG, 8)[0])
    validator = validator_of(tables)
    moved = [y[np.argsort(order)] for (_, y), order in zip(parts, orders, strict=True)]
    chosen = validator.columns(moved[2], np.concatenate(moved[:2]))
    best = int(tables.train[1].mean(axis=0).argmax())
    by_hand = (moved[2][np.arange(1500), chosen] - moved[2][:, best]).mean()
    rule = calibration.null_rule(tables, validator, CONFIG, 7)
    assert rule["learnable"] == pytest.approx(by_hand)
    # Without dealing, the rule finds what is there.
    extra = np.concatenate([tables.train[1], tables.validation[1]])
    chosen = validator.columns(tables.judged["test"][1], extra)
    contrast = validator.contrast(tables.judged["test"][1], chosen, best, replicates=400)
    assert contrast.difference > 0.12 and contrast.ci95[0] > 0.08


def test_dose_tells_truth_and_estimate() -> None:
    seen = []
    nothing = calibration.dose(CONFIG, 0.0, lambda: seen.append(1))
    plenty = calibration.dose(CONFIG, 0.2)
    assert len(seen) == 2 and nothing["tables"] == plenty["tables"] == 2
    assert "gain" not in nothing["verdicts"]
    assert plenty["verdicts"] == {"gain": 2}
    assert abs(plenty["rl_minus_best_fixed_mean"] - 0.2) < 0.05
    # The cross-validated rule is worth 18.5 points with so few problems, with a spread of 1.8.
    assert abs(plenty["learnable_mean"] - 0.185) < 4 * 0.018 / 2**0.5
    assert nothing["rl_minus_best_fixed_mean"] < 0.02
    assert {one["n"] for one in plenty["each"]} == {400}
