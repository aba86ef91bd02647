"""The RL arm: what decides a training, and how its controllers choose."""

import jax
import jax.numpy as jnp
import numpy as np

from jroute.arms.rl import best_seed, columns_of_seeds, decisions_of_policy, train_rl
from jroute.arms.supervised import Cells
from jroute.controller import networks
from tests.arms.tables import PPO, planted_table
from tests.arms.test_supervised import GATES


def test_a_training_is_decided_by_its_key_and_its_table() -> None:
    train = planted_table(400, 0)

    def policy(cells: Cells, seed: int) -> np.ndarray:
        return jax.tree.leaves(train_rl(cells, PPO, jax.random.key(seed)))[0]

    first = policy(train, 0)
    np.testing.assert_array_equal(policy(train, 0), first)
    assert (policy(train, 1) != first).any()
    assert (policy((train[0], 1.0 - train[1]), 0) != first).any()


def test_the_best_seed_is_that_of_validation() -> None:
    values = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    choices = np.array([[0, 0, 0], [0, 1, 0], [1, 1, 1], [0, 1, 1], [0, 1, 1]])
    assert best_seed(values, choices) == 3  # the first of equals


def test_seeds_choose_as_they_would_alone() -> None:
    each = [networks.init(jax.random.key(i), 3, (GATES,)) for i in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
    x = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    alone = [decisions_of_policy(one, x)[:, 0] for one in each]
    np.testing.assert_array_equal(columns_of_seeds(stacked, x), alone)


def test_a_policy_acts_by_its_most_probable_gate() -> None:
    params = networks.init(jax.random.key(0), 3, (GATES,))
    x = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    chosen = decisions_of_policy(params, x)[:, 0]
    assert chosen.shape == (50,)
    np.testing.assert_array_equal(
        chosen, np.asarray(networks.policy(params, jnp.asarray(x)))[:, 0].argmax(axis=1)
    )
    assert len(set(chosen.tolist())) > 1
