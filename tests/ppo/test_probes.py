"""Probe environments: what is learned where the best policy is known."""

from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np

from jroute.controller import networks
from jroute.envs.functional import TableEnv
from jroute.ppo import compilation, learner
from jroute.ppo.config import PPOConfig
from tests.ppo.bandits import Layers, Locks, Ridge

KEY = jax.random.key(0)
SMALL = PPOConfig(updates=100, batch_size=64, hidden=(16,), learning_rate=1e-2)


@cache
def program(config: PPOConfig):
    return compilation.compile_train(config, config.updates)


def trained(config: PPOConfig, env, num_features: int, nvec: tuple[int, ...]):
    state = jax.jit(lambda: learner.init(config, num_features, nvec, KEY))()
    return program(config)(env, state)


def probe(table) -> tuple[np.ndarray, np.ndarray]:
    """Values [2] and gate probabilities [2, gates] learned from a table of rewards."""
    env = TableEnv.create(np.array([[-1.0], [1.0]]), np.array(table))
    state, _ = trained(SMALL, env, 1, (env.num_gates,))
    chances = networks.policy(state.params, env.observations)[:, 0]
    return np.asarray(networks.apply(state.params, env.observations)[1]), np.asarray(chances)


def test_probe_value_alone() -> None:
    values, chances = probe([[0.7], [0.7]])
    np.testing.assert_allclose(values, [0.7, 0.7], atol=0.01)
    np.testing.assert_array_equal(chances, 1.0)


def test_probe_reward_of_the_observation() -> None:
    values, _ = probe([[0.2, 0.2], [0.9, 0.9]])
    np.testing.assert_allclose(values, [0.2, 0.9], atol=0.02)


def test_probe_reward_of_the_action() -> None:
    values, chances = probe([[0.0, 1.0], [0.0, 1.0]])
    assert (chances[:, 1] > 0.95).all()
    np.testing.assert_allclose(values, [1.0, 1.0], atol=0.05)


def test_probe_reward_of_observation_and_action() -> None:
    values, chances = probe([[0.0, 1.0], [0.6, 0.0]])
    assert chances[0, 1] > 0.95
    assert chances[1, 0] > 0.95
    np.testing.assert_allclose(values, [1.0, 0.6], atol=0.05)


def test_probe_decision_of_two_parts() -> None:
    config = replace(SMALL, batch_size=256)
    state, metrics = trained(config, Locks(jnp.ones(())), 1, (3, 3))
    actual = networks.act(state.params, jnp.asarray([[-1.0], [1.0]]))
    np.testing.assert_array_equal(actual, [[0, 1], [1, 0]])
    assert metrics.episodic_return[-1] > 0.9


def test_probe_decision_of_36_layers() -> None:
    env = Layers.make()
    config = replace(SMALL, updates=150, batch_size=256, adv_std_floor=1e-3, ent_coef=0.0)
    state, metrics = trained(config, env, 1, (5,) * 36)
    signs = jnp.asarray([[-1.0], [1.0]])
    np.testing.assert_array_equal(networks.act(state.params, signs), env.right)
    np.testing.assert_allclose(metrics.episodic_return[0], 0.2, atol=0.02)
    assert metrics.episodic_return[-1] > 0.95
    values = networks.apply(state.params, signs)[1]
    np.testing.assert_allclose(values, [1.0, 1.0], atol=0.05)


def test_bandit_is_solved_to_99_percent_of_the_best_policy_by_each_of_20_seeds() -> None:
    env = Ridge.make()
    config = PPOConfig(updates=120, batch_size=512, hidden=(32,), learning_rate=1e-2)
    assert config.seeds == 20
    state = jax.jit(partial(learner.init_seeds, config, 6, (5,)))(KEY)
    state, metrics = compilation.compile_train(config, config.updates)(env, state)

    observations = jax.random.normal(jax.random.key(7), (4000, 6))
    chances = np.asarray(jax.vmap(env.chances)(observations))
    best = chances.max(axis=1).mean()
    assert chances.mean(axis=0).max() < 0.6 * best  # no fixed gate comes near
    gates = np.asarray(jax.vmap(networks.act, (0, None))(state.params, observations))[..., 0]
    assert gates.shape == (20, 4000)
    for choice in gates:
        assert chances[np.arange(4000), choice].mean() >= 0.99 * best
    # The policy is earned: the first batch was drawn almost evenly.
    assert (metrics.episodic_return[:, 0] < 0.6 * best).all()
    np.testing.assert_allclose(metrics.gate_fraction[:, 0], 0.2, atol=0.08)
    np.testing.assert_allclose(metrics.entropy[:, 0], np.log(5), atol=0.05)
    assert (metrics.explained_variance[:, -1] > metrics.explained_variance[:, 0]).all()
