"""The arms beside RL: what each learns from, and what it may look at when it chooses."""

import jax
import numpy as np
import pytest

from jroute.arms import controls
from jroute.arms import supervised as arms
from tests.statistics.test_calibration import FIT, PPO, planted_table

RULE = np.array([0, 1]), np.array([3, 4])
"""Columns that are right where feature 1 is negative, and where it is positive."""


@pytest.fixture(scope="module")
def train() -> arms.Cells:
    return planted_table(400, 0)


@pytest.fixture(scope="module")
def validation() -> arms.Cells:
    return planted_table(150, 1)


@pytest.fixture(scope="module")
def fitted(train, validation) -> dict:
    rl = controls.train_rl(train, PPO, jax.random.key(0))
    short = [(x[:, controls.LENGTH], y) for x, y in (train, validation)]
    supervised = arms.fit_supervised(short[0], short[1], FIT, jax.random.key(1))
    told = controls.fit_controls(
        train, validation, rl, ppo=PPO, supervised=FIT, key=jax.random.key(2)
    )
    return {"rl": rl, "supervised": supervised, "controls": told}


@pytest.fixture(scope="module")
def fresh() -> arms.Cells:
    return planted_table(300, 2)


@pytest.fixture(scope="module")
def chosen(fitted, fresh) -> dict[str, np.ndarray]:
    return controls.choose(fresh[0], fitted["rl"], fitted["supervised"], fitted["controls"])


def follows(chosen: np.ndarray, x: np.ndarray) -> float:
    """Share of clear problems that get one of the gates of their half."""
    clear = np.abs(x[:, 1]) > 0.2
    right = np.where(x[:, 1] > 0, np.isin(chosen, RULE[1]), np.isin(chosen, RULE[0]))
    return float(right[..., clear].mean())


def test_what_can_be_learnt_is_learnt_and_what_cannot_is_not(chosen, fresh) -> None:
    for name in ("rl", "supervised_features", "exact_gradient"):
        assert follows(chosen[name], fresh[0]) > 0.95, name
    # Length tells nothing, and neither do rewards that were dealt at random.
    for name in ("supervised", "random_reward"):
        assert follows(chosen[name], fresh[0]) < 0.65, name
    assert chosen["rl"].shape == chosen["random_reward"].shape == (PPO.seeds, 300)
    assert chosen["rl_modal"].shape == (PPO.seeds,)


def test_the_supervised_arm_looks_at_the_length_alone(fitted, chosen, fresh) -> None:
    x, rng = fresh[0].copy(), np.random.default_rng(0)
    x[:, 1:] = rng.standard_normal(x[:, 1:].shape)
    other = controls.choose(x, fitted["rl"], fitted["supervised"], fitted["controls"])
    np.testing.assert_array_equal(other["supervised"], chosen["supervised"])
    for name in ("rl", "supervised_features", "exact_gradient"):
        assert (other[name] != chosen[name]).mean() > 0.2, name


def test_modal_gates_are_those_of_train(fitted, train) -> None:
    seeds = arms.choices_of_seeds(fitted["rl"], train[0])
    counts = np.stack([np.bincount(row, minlength=5) for row in seeds])
    np.testing.assert_array_equal(fitted["controls"]["rl_modal"], counts.argmax(axis=1))


def test_a_training_is_decided_by_its_key_and_its_table(train) -> None:
    def policy(cells: arms.Cells, seed: int) -> np.ndarray:
        return jax.tree.leaves(controls.train_rl(cells, PPO, jax.random.key(seed)))[0]

    first = policy(train, 0)
    np.testing.assert_array_equal(policy(train, 0), first)
    assert (policy(train, 1) != first).any()
    assert (policy((train[0], 1.0 - train[1]), 0) != first).any()


def test_the_best_seed_is_that_of_validation() -> None:
    values = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    choices = np.array([[0, 0, 0], [0, 1, 0], [1, 1, 1], [0, 1, 1], [0, 1, 1]])
    assert controls.best_on(values, choices) == 3  # the first of equals
