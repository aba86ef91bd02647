"""The supervised arms: what they learn, and how validation decides."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jroute.arms.supervised import (
    SupervisedConfig,
    columns_of_regressor,
    cross_entropy,
    fit,
    fit_supervised,
    outputs,
)
from jroute.controller import networks
from jroute.utils.errors import UserError

GATES = 5
CONFIG = SupervisedConfig(steps=400, check_every=50)


def lengths(count: int, seed: int) -> np.ndarray:
    """Standardised prompt lengths ``[count, 1]``, as the featurizer makes them."""
    return np.random.default_rng(seed).normal(size=(count, 1)).astype(np.float32)


def right_gates(x: np.ndarray) -> np.ndarray:
    """A step function of the length: gate 3 for short prompts, 0 for middling, 4 for long ones."""
    return np.select([x[:, 0] < -0.5, x[:, 0] < 0.7], [3, 0], 4)


def rewards(best: np.ndarray, seed: int, *, hit: float = 0.9, miss: float = 0.2) -> np.ndarray:
    """Noisy 0/1 outcomes of every gate, of which one is mostly right."""
    chance = np.where(np.arange(GATES)[None] == best[:, None], hit, miss)
    return (np.random.default_rng(seed).random(chance.shape) < chance).astype(np.float32)


def test_it_learns_a_step_function_of_the_length() -> None:
    x, held = lengths(800, 0), lengths(200, 1)
    params = fit_supervised(
        (x, rewards(right_gates(x), 2)),
        (held, rewards(right_gates(held), 3)),
        CONFIG,
        jax.random.key(0),
    )
    fresh = lengths(500, 4)
    clear = fresh[np.minimum(np.abs(fresh[:, 0] + 0.5), np.abs(fresh[:, 0] - 0.7)) > 0.1]
    assert len(clear) > 400
    assert (columns_of_regressor(params, clear) == right_gates(clear)).mean() > 0.97
    # It predicts rewards, not scores: their sizes are right as well.
    predicted = np.asarray(jax.nn.sigmoid(outputs(params, clear)))
    at_best = predicted[np.arange(len(clear)), right_gates(clear)]
    assert np.abs(at_best - 0.9).mean() < 0.1


def test_the_scale_of_rewards_does_not_matter() -> None:
    """Shaping pays more than 1 or less than 0; the same order of gates is learnt."""
    x, held = lengths(200, 0), lengths(100, 1)
    y, held_y = rewards(right_gates(x), 2), rewards(right_gates(held), 3)
    config = SupervisedConfig(steps=60, check_every=30, learning_rates=(3e-3,))
    plain = fit_supervised((x, y), (held, held_y), config, jax.random.key(0))
    paid = fit_supervised((x, 2 * y - 0.5), (held, 2 * held_y - 0.5), config, jax.random.key(0))
    for one, other in zip(jax.tree.leaves(plain), jax.tree.leaves(paid), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    alike = fit_supervised((x, 0 * y), (held, 0 * held_y), config, jax.random.key(0))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(alike))


def test_outputs_are_the_mean_of_networks_that_start_differently() -> None:
    x, held = lengths(200, 0), lengths(100, 1)
    data = (x, rewards(right_gates(x), 2)), (held, rewards(right_gates(held), 3))
    config = SupervisedConfig(steps=60, check_every=30, networks=2)
    params = fit_supervised(*data, config, jax.random.key(0))
    each = [
        np.asarray(
            networks.apply_regressor(jax.tree.map(lambda a, i=i: a[i], params), jnp.asarray(held))
        )
        for i in range(2)
    ]
    assert np.abs(each[0] - each[1]).max() > 0.01
    np.testing.assert_allclose(outputs(params, held), (each[0] + each[1]) / 2, atol=1e-5)
    # Each network has its own setting and stopping time: the first is what it is alone.
    keys = jax.random.split(jax.random.key(0), 2)
    alone = fit(*data, config, keys[1:], cross_entropy)
    for one, both in zip(jax.tree.leaves(alone), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(one[0], both[1], atol=1e-4)


def test_it_gives_one_gate_where_one_gate_is_best() -> None:
    x, held = lengths(600, 0), lengths(300, 1)
    best = np.full(900, 2)
    y = rewards(best, 2, hit=0.8, miss=0.3)
    params = fit_supervised((x, y[:600]), (held, y[600:]), CONFIG, jax.random.key(1))
    chosen = columns_of_regressor(params, lengths(500, 3))
    assert (chosen == 2).mean() > 0.99


def test_validation_decides_and_not_train() -> None:
    """Where train says one thing and validation another, the choice that validation likes wins."""
    x, held = lengths(200, 0), lengths(200, 1)
    train = rewards(np.where(np.arange(200) % 8 < 5, 0, 1), 2, hit=1.0, miss=0.0)
    # On train gate 0 is best on average, on validation gate 1: some early look preferred it.
    validation = rewards(np.full(200, 1), 3, hit=1.0, miss=0.0)
    config = SupervisedConfig(steps=60, check_every=1, learning_rates=(1e-2,))
    params = fit_supervised((x, train), (held, validation), config, jax.random.key(2))
    value = validation[np.arange(200), columns_of_regressor(params, held)].mean()
    trained = fit_supervised((x, train), (x, train), config, jax.random.key(2))
    other = validation[np.arange(200), columns_of_regressor(trained, held)].mean()
    assert value > other


def test_a_learning_rate_that_fails_is_not_taken() -> None:
    x, held = lengths(300, 0), lengths(100, 1)
    data = (x, rewards(right_gates(x), 2)), (held, rewards(right_gates(held), 3))
    both = SupervisedConfig(steps=200, check_every=50, learning_rates=(1e-9, 3e-3))
    good = SupervisedConfig(steps=200, check_every=50, learning_rates=(3e-3,))
    fresh = lengths(100, 4)
    columns = columns_of_regressor(fit_supervised(*data, both, jax.random.key(0)), fresh)
    np.testing.assert_array_equal(
        columns, columns_of_regressor(fit_supervised(*data, good, jax.random.key(0)), fresh)
    )


def test_a_weight_decay_that_fails_is_not_taken() -> None:
    x, held = lengths(300, 0), lengths(100, 1)
    data = (x, rewards(right_gates(x), 2)), (held, rewards(right_gates(held), 3))
    both = SupervisedConfig(
        steps=200, check_every=50, learning_rates=(3e-3,), weight_decays=(300.0, 0.0)
    )
    good = SupervisedConfig(steps=200, check_every=50, learning_rates=(3e-3,), weight_decays=(0.0,))
    fresh = lengths(100, 4)
    columns = columns_of_regressor(fit_supervised(*data, both, jax.random.key(0)), fresh)
    np.testing.assert_array_equal(
        columns, columns_of_regressor(fit_supervised(*data, good, jax.random.key(0)), fresh)
    )


def test_settings_that_fit_nothing_are_refused() -> None:
    with pytest.raises(UserError, match=r"supervised\.weight_decays is empty"):
        SupervisedConfig(weight_decays=())
    with pytest.raises(UserError, match=r"supervised\.steps is 0"):
        SupervisedConfig(steps=0)
    with pytest.raises(UserError, match="networks"):
        SupervisedConfig(networks=0)
