"""The arms beside RL: what each learns from, and what it may look at when it chooses."""

import jax
import numpy as np
import pytest
from scipy import stats

from jroute.arms.controls import (
    dealt_rewards,
    fit_controls,
    modal_columns,
    random_columns,
    shuffled_values,
)
from jroute.arms.resolve import table_columns
from jroute.arms.rl import columns_of_seeds, train_rl
from jroute.arms.supervised import LENGTH, Cells, fit_supervised
from tests.arms.tables import FIT, PPO, planted_table
from tests.arms.test_supervised import GATES, rewards

GRID = tuple(map(float, range(GATES)))

RULE = np.array([0, 1]), np.array([3, 4])
"""Columns that are right where feature 1 is negative, and where it is positive."""


@pytest.fixture(scope="module")
def train() -> Cells:
    return planted_table(400, 0)


@pytest.fixture(scope="module")
def validation() -> Cells:
    return planted_table(150, 1)


@pytest.fixture(scope="module")
def fitted(train, validation) -> dict:
    rl = train_rl(train, PPO, jax.random.key(0))
    short = [(x[:, LENGTH], y) for x, y in (train, validation)]
    supervised = fit_supervised(short[0], short[1], FIT, jax.random.key(1))
    controls = fit_controls(train, validation, rl, ppo=PPO, supervised=FIT, key=jax.random.key(2))
    controller = {"seeds": rl, "supervised": supervised, "best_fixed": 0, "selected": 1}
    controller["rl"] = jax.tree.map(lambda leaf: leaf[1], rl)
    return {"controller": controller, "controls": controls}


@pytest.fixture(scope="module")
def fresh() -> Cells:
    return planted_table(300, 2)


@pytest.fixture(scope="module")
def chosen(fitted, fresh) -> dict[str, np.ndarray]:
    return table_columns(fresh[0], GRID, fitted["controller"], fitted["controls"])


def follows(chosen: np.ndarray, x: np.ndarray) -> float:
    """Share of clear problems that get one of the gates of their half."""
    clear = np.abs(x[:, 1]) > 0.2
    right = np.where(x[:, 1] > 0, np.isin(chosen, RULE[1]), np.isin(chosen, RULE[0]))
    return float(right[..., clear].mean())


def test_what_can_be_learnt_is_learnt_and_what_cannot_is_not(fitted, chosen, fresh) -> None:
    for name in ("rl", "supervised_features", "exact_gradient"):
        assert follows(chosen[name], fresh[0]) > 0.95, name
    # Length tells nothing, and neither do rewards that were dealt at random.
    for name in ("supervised", "random_reward"):
        assert follows(chosen[name], fresh[0]) < 0.65, name
    assert chosen["rl"].shape == chosen["random_reward"].shape == (PPO.seeds, 300)
    assert (chosen["rl_modal"] == fitted["controls"]["rl_modal"][:, None]).all()


def test_the_supervised_arm_looks_at_the_length_alone(fitted, chosen, fresh) -> None:
    x, rng = fresh[0].copy(), np.random.default_rng(0)
    x[:, 1:] = rng.standard_normal(x[:, 1:].shape)
    other = table_columns(x, GRID, fitted["controller"], fitted["controls"])
    np.testing.assert_array_equal(other["supervised"], chosen["supervised"])
    for name in ("rl", "supervised_features", "exact_gradient"):
        assert (other[name] != chosen[name]).mean() > 0.2, name


def test_modal_gates_are_those_of_train(fitted, train) -> None:
    seeds = columns_of_seeds(fitted["controller"]["seeds"], train[0])
    counts = np.stack([np.bincount(row, minlength=5) for row in seeds])
    np.testing.assert_array_equal(fitted["controls"]["rl_modal"], counts.argmax(axis=1))


def test_arms_derived_from_what_seeds_chose() -> None:
    chosen = np.array([[0, 1, 1, 2], [2, 2, 0, 0]])
    assert modal_columns(chosen, 3).tolist() == [1, 0]  # the first of equals
    values = np.random.default_rng(0).random((4, 3))
    shuffled = shuffled_values(values, chosen)
    by_hand = [
        [np.mean([values[i, row[j]] for j in range(4) if j != i]) for i in range(4)]
        for row in chosen
    ]
    np.testing.assert_allclose(shuffled, by_hand)


def test_dealt_rewards_are_the_same_ones_elsewhere() -> None:
    paid = rewards(np.zeros(400, int), 0, hit=0.9, miss=0.1)
    dealt = dealt_rewards(paid, 3)
    assert sorted(dealt.ravel()) == sorted(paid.ravel())
    # Gate 0 was far better; now no gate is.
    assert np.ptp(dealt.mean(axis=0)) < 0.12 < np.ptp(paid.mean(axis=0))
    np.testing.assert_array_equal(dealt, dealt_rewards(paid, 3))
    assert (dealt != dealt_rewards(paid, 4)).any()


def test_random_columns_belong_to_the_prompt_and_are_even() -> None:
    prompts = [f"Tom has {i} pens. Émile too." for i in range(5000)]
    chosen = random_columns(prompts, GATES, seed=0)
    assert stats.chisquare(np.bincount(chosen, minlength=GATES)).pvalue > 1e-3
    np.testing.assert_array_equal(random_columns(prompts[::-1], GATES, 0)[::-1], chosen)
    np.testing.assert_array_equal(random_columns(prompts[7:8], GATES, 0), chosen[7:8])
    # Another seed draws anew, independently.
    table = np.zeros((GATES, GATES))
    np.add.at(table, (chosen, random_columns(prompts, GATES, seed=1)), 1)
    assert stats.chi2_contingency(table).pvalue > 1e-3  # type: ignore[attr-defined]
    assert len(random_columns([], GATES, 0)) == 0


def test_random_columns_are_the_same_on_every_machine() -> None:
    assert random_columns(["a", "b", "c", "d", "e", "f"], 5, seed=0).tolist() == [4, 3, 0, 4, 2, 2]
