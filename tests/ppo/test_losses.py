import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

from jroute.ppo import losses

RNG = np.random.default_rng(0)


def array(values) -> Array:
    return jnp.asarray(values, jnp.float32)


def arrays(*values) -> list[Array]:
    return [array(value) for value in values]


def test_log_prob_and_entropy_are_those_of_the_joint_distribution() -> None:
    parts, choices = 3, 4
    logits = RNG.standard_normal((1, parts, choices))
    each = np.exp(logits[0]) / np.exp(logits[0]).sum(-1, keepdims=True)
    actions = np.array(list(itertools.product(range(choices), repeat=parts)))
    joint = np.array([np.prod([each[part, a[part]] for part in range(parts)]) for a in actions])
    tiled = array(np.repeat(logits, len(actions), axis=0))

    found = losses.log_prob(tiled, jnp.asarray(actions, jnp.int32))
    np.testing.assert_allclose(np.exp(found), joint, rtol=1e-5)
    np.testing.assert_allclose(losses.entropy(tiled)[0], -(joint * np.log(joint)).sum(), rtol=1e-5)


def gae_by_definition(rewards, values, ended, last_values, gamma, gae_lambda):
    """The sum over future temporal differences, cut at the end of the episode."""
    following = np.concatenate([values[1:], last_values[None]])
    delta = rewards + gamma * following * (1 - ended) - values
    advantages = np.zeros_like(rewards)
    steps, batch = rewards.shape
    for b in range(batch):
        for t in range(steps):
            for k in range(t, steps):
                advantages[t, b] += (gamma * gae_lambda) ** (k - t) * delta[k, b]
                if ended[k, b]:
                    break
    return advantages


def test_gae_is_the_discounted_sum_of_temporal_differences() -> None:
    rewards, values = RNG.standard_normal((2, 7, 5))
    ended = RNG.random((7, 5)) < 0.3
    last = RNG.standard_normal(5)
    advantages, returns = losses.gae(
        array(rewards), array(values), jnp.asarray(ended), array(last), gamma=0.9, gae_lambda=0.8
    )
    expected = gae_by_definition(rewards, values, ended, last, 0.9, 0.8)
    np.testing.assert_allclose(advantages, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(returns, expected + values, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("gamma", "gae_lambda"), [(0.99, 0.95), (1.0, 1.0), (0.3, 0.0)])
def test_gae_of_one_step_episodes_is_reward_minus_value(gamma, gae_lambda) -> None:
    rewards, values, last = arrays(*RNG.standard_normal((3, 9)))
    for steps in (1, 3):  # also when several such episodes follow each other
        tiled = jnp.tile(rewards[None], (steps, 1)), jnp.tile(values[None], (steps, 1))
        advantages, returns = losses.gae(
            *tiled, jnp.ones((steps, 9), bool), last, gamma=gamma, gae_lambda=gae_lambda
        )
        np.testing.assert_array_equal(advantages, tiled[0] - tiled[1])
        np.testing.assert_allclose(returns, tiled[0], atol=1e-6)


def test_advantages_are_normalised_by_the_standard_deviation_of_the_population() -> None:
    advantages = RNG.standard_normal(8) * 3 + 1
    found = np.asarray(losses.normalise_advantages(array(advantages), 1e-3))
    centred = advantages - advantages.mean()
    np.testing.assert_allclose(found, centred / np.sqrt((centred**2).sum() / 8), rtol=1e-5)
    # torch's, and so CleanRL's, divides by n - 1: 7 % apart in a batch of eight.
    of_torch = centred / np.sqrt((centred**2).sum() / 7)
    np.testing.assert_allclose(found, of_torch * np.sqrt(8 / 7), rtol=1e-5)


def test_noise_below_the_floor_is_not_blown_up() -> None:
    noise = RNG.standard_normal(64) * 1e-3
    found = np.asarray(losses.normalise_advantages(array(noise), 0.05))
    np.testing.assert_allclose(found, (noise - noise.mean()) / 0.05, rtol=1e-4)
    assert np.asarray(losses.normalise_advantages(jnp.full(4, 2.0), 0.05)).tolist() == [0.0] * 4


@pytest.mark.parametrize(
    ("ratio", "advantage", "objective", "slope"),
    [
        (1.5, 2.0, 2.4, 0.0),  # more likely and good: enough is enough
        (1.5, -2.0, -3.0, -3.0),  # more likely and bad: nothing is forgiven
        (0.5, 2.0, 1.0, 1.0),  # less likely and good
        (0.5, -2.0, -1.6, 0.0),  # less likely and bad: enough is enough
        (1.1, 2.0, 2.2, 2.2),
        (0.9, -2.0, -1.8, -1.8),
    ],
)
def test_clipped_surrogate(ratio, advantage, objective, slope) -> None:
    new, old, advantages = arrays([np.log(ratio) - 1.0], [-1.0], [advantage])
    loss, gradient = jax.value_and_grad(losses.clipped_surrogate)(new, old, advantages, 0.2)
    assert float(loss) == pytest.approx(-objective, rel=1e-5)
    assert float(gradient[0]) == pytest.approx(-slope, rel=1e-5)


def test_value_loss_with_and_without_clipping() -> None:
    values, returns, old = arrays([1.0, 0.0, 0.5], [0.0, 1.0, 0.4], [0.1, 0.5, 0.5])
    assert float(losses.value_loss(values, returns, old)) == pytest.approx(0.5 * 2.01 / 3)
    # Moves are cut to 0.3, 0.3, 0.5, and the worse error counts: 1, 1, 0.01.
    assert float(losses.value_loss(values, returns, old, 0.2)) == pytest.approx(0.5 * 2.01 / 3)
    # Now the clipped value is the worse one: 0.3 instead of 1 for a return of 1.
    values, returns, old = arrays([1.0], [1.0], [0.1])
    assert float(losses.value_loss(values, returns, old)) == 0.0
    assert float(losses.value_loss(values, returns, old, 0.2)) == pytest.approx(0.5 * 0.49)


def test_divergences_against_the_exact_one() -> None:
    # Ten decisions in exactly the proportions of the old policy, so means are expectations.
    old, new = np.array([0.1, 0.2, 0.3, 0.4]), np.array([0.25, 0.25, 0.25, 0.25])
    rows = np.repeat(np.arange(4), [1, 2, 3, 4])
    new_log, old_log = arrays(np.log(new)[rows], np.log(old)[rows])
    exact = (old * np.log(old / new)).sum()
    assert float(losses.old_approx_kl(new_log, old_log)) == pytest.approx(exact, rel=1e-5)
    assert float(losses.approx_kl(new_log, old_log)) == pytest.approx(exact, rel=1e-5)
    # On a single decision they differ, and only one of them cannot be negative.
    assert float(losses.old_approx_kl(new_log[:1], old_log[:1])) == pytest.approx(-np.log(2.5))
    assert float(losses.approx_kl(new_log[:1], old_log[:1])) == pytest.approx(1.5 - np.log(2.5))


def test_clip_fraction() -> None:
    log_ratio = np.log([0.7, 0.79, 0.85, 1.0, 1.15, 1.21, 2.0, 0.81])
    new, old = arrays(log_ratio - 2.0, np.full(8, -2.0))
    assert float(losses.clip_fraction(new, old, 0.2)) == 0.5


def test_explained_variance() -> None:
    returns = RNG.standard_normal(50)
    values = 0.5 * returns + 3.0
    found = losses.explained_variance(array(values), array(returns))
    assert float(found) == pytest.approx(0.75, rel=1e-4)  # a constant offset is not punished
    assert float(losses.explained_variance(array(returns), array(returns))) == 1.0
    assert np.isnan(losses.explained_variance(array(values), jnp.ones(50)))
