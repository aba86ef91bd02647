"""The exact-gradient arm: its gradient by hand, and the best rule, which it reaches."""

import jax
import jax.numpy as jnp
import numpy as np

from jroute.arms.exact_gradient import expected_loss, fit_exact_gradient
from jroute.arms.supervised import columns_of_regressor
from tests.arms.test_supervised import CONFIG, GATES, lengths, rewards, right_gates


def test_the_exact_gradient_is_that_of_the_expected_reward() -> None:
    """Sum of pi(g) (r(g) - mean under pi), by hand, with nothing sampled."""
    logits = np.random.default_rng(0).normal(size=(7, GATES)).astype(np.float32)
    paid = np.random.default_rng(1).random((7, GATES)).astype(np.float32)
    chance = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    value = (chance * paid).sum(axis=1, keepdims=True)
    loss, gradient = jax.value_and_grad(expected_loss)(jnp.asarray(logits), jnp.asarray(paid))
    np.testing.assert_allclose(loss, -value.mean(), rtol=1e-6)
    np.testing.assert_allclose(gradient, -chance * (paid - value) / 7, rtol=1e-4, atol=1e-7)


def test_the_exact_gradient_policy_reaches_the_best_rule() -> None:
    x, held = lengths(800, 0), lengths(200, 1)
    params = fit_exact_gradient(
        (x, rewards(right_gates(x), 2)),
        (held, rewards(right_gates(held), 3)),
        CONFIG,
        jax.random.key(0),
    )
    fresh = lengths(500, 4)
    clear = fresh[np.minimum(np.abs(fresh[:, 0] + 0.5), np.abs(fresh[:, 0] - 0.7)) > 0.1]
    assert (columns_of_regressor(params, clear) == right_gates(clear)).mean() > 0.97
