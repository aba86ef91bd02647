import itertools
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
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

    actual = losses.log_prob(tiled, jnp.asarray(actions, jnp.int32))
    np.testing.assert_allclose(np.exp(actual), joint, rtol=1e-5)
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
    actual = np.asarray(losses.normalise_advantages(array(advantages), 1e-3))
    centred = advantages - advantages.mean()
    np.testing.assert_allclose(actual, centred / np.sqrt((centred**2).sum() / 8), rtol=1e-5)
    # torch's, and so CleanRL's, divides by n - 1: 7 % apart in a batch of eight.
    of_torch = centred / np.sqrt((centred**2).sum() / 7)
    np.testing.assert_allclose(actual, of_torch * np.sqrt(8 / 7), rtol=1e-5)


def test_noise_below_the_floor_is_not_blown_up() -> None:
    noise = RNG.standard_normal(64) * 1e-3
    actual = np.asarray(losses.normalise_advantages(array(noise), 0.05))
    np.testing.assert_allclose(actual, (noise - noise.mean()) / 0.05, rtol=1e-4)
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
    actual = losses.explained_variance(array(values), array(returns))
    assert float(actual) == pytest.approx(0.75, rel=1e-4)  # a constant offset is not punished
    assert float(losses.explained_variance(array(returns), array(returns))) == 1.0
    assert np.isnan(losses.explained_variance(array(values), jnp.ones(50)))


# References: CleanRL's arithmetic in plain numbers, optax, rlax


def of_cleanrl(logits, actions, old_log, advantages, values, returns, old_values, clip):
    """Means over a batch of what CleanRL's ``ppo.py`` computes, one number at a time."""
    rows = []
    for row, action, old, advantage, value, target, was in zip(
        logits, actions, old_log, advantages, values, returns, old_values, strict=True
    ):
        parts = [[math.exp(x) / sum(map(math.exp, part)) for x in part] for part in row]
        log_prob = sum(math.log(part[a]) for part, a in zip(parts, action, strict=True))
        ratio = math.exp(log_prob - old)
        clipped = min(max(ratio, 1 - clip), 1 + clip)
        moved = was + min(max(value - was, -clip), clip)
        rows.append(
            {
                "policy_loss": max(-advantage * ratio, -advantage * clipped),
                "value_loss": 0.5 * (value - target) ** 2,
                "clipped_value_loss": 0.5 * max((value - target) ** 2, (moved - target) ** 2),
                "entropy": -sum(p * math.log(p) for part in parts for p in part),
                "old_approx_kl": -math.log(ratio),
                "approx_kl": (ratio - 1) - math.log(ratio),
                "clipfrac": float(abs(ratio - 1.0) > clip),
            }
        )
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}


def test_losses_equal_cleanrls_arithmetic_in_plain_numbers() -> None:
    rng = np.random.default_rng(5)
    logits = rng.standard_normal((40, 3, 4))
    actions = rng.integers(0, 4, (40, 3))
    every = np.log(np.exp(logits) / np.exp(logits).sum(-1, keepdims=True))
    old_log = np.take_along_axis(every, actions[..., None], -1).sum((1, 2))
    old_log += 0.3 * rng.standard_normal(40)
    advantages, values, returns = rng.standard_normal((3, 40))
    old_values = values + 0.4 * rng.standard_normal(40)
    expected = of_cleanrl(
        logits, actions, old_log, advantages, values, returns, old_values, clip=0.2
    )
    old, advantages, values, returns, was = arrays(old_log, advantages, values, returns, old_values)
    new = losses.log_prob(array(logits), jnp.asarray(actions, jnp.int32))
    actual = {
        "policy_loss": losses.clipped_surrogate(new, old, advantages, 0.2),
        "value_loss": losses.value_loss(values, returns, was),
        "clipped_value_loss": losses.value_loss(values, returns, was, 0.2),
        "entropy": losses.entropy(array(logits)).mean(),
        "old_approx_kl": losses.old_approx_kl(new, old),
        "approx_kl": losses.approx_kl(new, old),
        "clipfrac": losses.clip_fraction(new, old, 0.2),
    }
    assert 0.1 < expected["clipfrac"] < 0.9
    assert expected["clipped_value_loss"] > 1.01 * expected["value_loss"]
    for name, value in expected.items():
        assert float(actual[name]) == pytest.approx(value, rel=1e-4), name


def test_losses_equal_optaxs() -> None:
    logits, values, returns = arrays(RNG.standard_normal((9, 1, 5)), *RNG.standard_normal((2, 9)))
    actions = jnp.asarray(RNG.integers(0, 5, (9, 1)), jnp.int32)
    crossed = optax.softmax_cross_entropy_with_integer_labels(logits[:, 0], actions[:, 0])
    np.testing.assert_allclose(losses.log_prob(logits, actions), -crossed, rtol=1e-5)
    itself = optax.softmax_cross_entropy(logits[:, 0], jax.nn.softmax(logits[:, 0]))
    np.testing.assert_allclose(losses.entropy(logits), itself, rtol=1e-5)
    squared = optax.l2_loss(values, returns).mean()
    np.testing.assert_allclose(losses.value_loss(values, returns, values), squared, rtol=1e-6)


def test_losses_equal_rlaxs_recorded_numbers() -> None:
    record = json.loads(Path(__file__).with_name("rlax.json").read_text())
    given, expected, settings = record["inputs"], record["found"], record["settings"]
    logits, old_logits = (array(given[name])[:, None] for name in ("logits", "old_logits"))
    actions = jnp.asarray(given["actions"], jnp.int32)[:, None]
    new, old = losses.log_prob(logits, actions), losses.log_prob(old_logits, actions)
    np.testing.assert_allclose(new, expected["log_prob"], rtol=1e-5)
    np.testing.assert_allclose(losses.entropy(logits), expected["entropy"], rtol=1e-5)
    policy_loss = losses.clipped_surrogate(
        new, old, array(given["advantages"]), settings["clip_coef"]
    )
    assert float(policy_loss) == pytest.approx(expected["policy_loss"], rel=1e-5)
    advantages, _ = losses.gae(
        *(array(given[name]) for name in ("rewards", "values")),
        jnp.asarray(given["ended"]),
        array(given["last_values"]),
        gamma=settings["gamma"],
        gae_lambda=settings["gae_lambda"],
    )
    np.testing.assert_allclose(advantages, expected["gae"], rtol=1e-4, atol=1e-5)
    # The estimators' expectation under the old policy is rlax's exact divergence.
    every = jnp.arange(4, dtype=jnp.int32)[:, None]
    for row, exact in enumerate(expected["kl"]):
        new, old = (
            losses.log_prob(jnp.repeat(x[row : row + 1], 4, axis=0), every)
            for x in (logits, old_logits)
        )
        for estimator in (losses.old_approx_kl, losses.approx_kl):
            each = jax.vmap(estimator)(new[:, None], old[:, None])
            assert float((jnp.exp(old) * each).sum()) == pytest.approx(exact, rel=1e-3, abs=1e-6)
