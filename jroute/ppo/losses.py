"""The arithmetic of PPO (Schulman et al. 2017, arXiv 1707.06347), as pure functions of arrays.

The definitions are those of CleanRL's ``ppo.py``, so that curves can be compared, with two
switches for one-step episodes: advantages are normalised over the whole batch with a floor under
the standard deviation, and clipping of the value loss is optional.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jroute.ppo.config import Hyperparameters
from jroute.ppo.types import Batch

Scalar = Float[Array, ""]
Number = float | Float[Array, ""]
"""A number that is a constant of a compiled program, or an argument of it."""


class LossTerms(NamedTuple):
    """The PPO loss and the terms that are logged with it, in the order they are logged."""

    loss: Scalar
    policy_loss: Scalar
    value_loss: Scalar
    entropy: Scalar
    old_approx_kl: Scalar
    approx_kl: Scalar
    clipfrac: Scalar


def ppo_loss(
    logits: Float[Array, "batch gate_dims choices"],
    values: Float[Array, " batch"],
    batch: Batch,
    advantages: Float[Array, " batch"],
    returns: Float[Array, " batch"],
    hyper: Hyperparameters,
    *,
    clip_vloss: bool,
) -> LossTerms:
    """Compute ``policy_loss - ent_coef · entropy + vf_coef · value_loss`` of one minibatch.

    Args:
        logits: The policy's logits now.
        values: The critic's values now.
        batch: The minibatch, with the log-probabilities and values of its rollout.
        advantages: The advantage of each decision.
        returns: The return of each decision.
        hyper: Coefficients.
        clip_vloss: Whether the value loss is clipped too.
    """
    log_probs = log_prob(logits, batch.actions)
    policy = clipped_surrogate(log_probs, batch.log_probs, advantages, hyper.clip_coef)
    value = value_loss(values, returns, batch.values, hyper.clip_coef if clip_vloss else None)
    mean_entropy = entropy(logits).mean()
    return LossTerms(
        loss=policy - hyper.ent_coef * mean_entropy + hyper.vf_coef * value,
        policy_loss=policy,
        value_loss=value,
        entropy=mean_entropy,
        old_approx_kl=old_approx_kl(log_probs, batch.log_probs),
        approx_kl=approx_kl(log_probs, batch.log_probs),
        clipfrac=clip_fraction(log_probs, batch.log_probs, hyper.clip_coef),
    )


def log_prob(
    logits: Float[Array, "batch gate_dims choices"], actions: Int[Array, "batch gate_dims"]
) -> Float[Array, " batch"]:
    """Return the log-probability of whole decisions, the sum over their independent dimensions."""
    log_probs = jax.nn.log_softmax(logits, axis=-1)
    chosen = jnp.take_along_axis(log_probs, actions[..., None], axis=-1)[..., 0]
    return chosen.sum(axis=-1)


def entropy(logits: Float[Array, "batch gate_dims choices"]) -> Float[Array, " batch"]:
    """Return the entropy of whole decisions in nats, the sum over their independent dimensions."""
    log_probs = jax.nn.log_softmax(logits, axis=-1)
    return -(jnp.exp(log_probs) * log_probs).sum(axis=(-2, -1))


def gae(
    rewards: Float[Array, "time batch"],
    values: Float[Array, "time batch"],
    ended: Bool[Array, "time batch"],
    last_values: Float[Array, " batch"],
    *,
    gamma: Number,
    gae_lambda: Number,
) -> tuple[Float[Array, "time batch"], Float[Array, "time batch"]]:
    """Compute generalised advantage estimates (Schulman et al. 2015, arXiv 1506.02438) and returns.

    Args:
        rewards: Reward of each step.
        values: The critic's value of the observation that each step starts from.
        ended: Whether the step ends its episode.
        last_values: The critic's value of the observation after the last step.
        gamma: Discount.
        gae_lambda: Weight of longer look-ahead.

    Returns:
        Advantages, and returns (advantages + values). Where every step ends its episode, the
        advantage is ``rewards - values`` for any discount and weight.
    """

    def backwards(
        carry: tuple[Array, Array], step: tuple[Array, Array, Array]
    ) -> tuple[tuple[Array, Array], Array]:
        advantage, next_value = carry
        reward, value, end = step
        future = jnp.where(end, 0.0, next_value)
        advantage = jnp.where(end, 0.0, advantage)
        delta = reward + gamma * future - value
        advantage = delta + gamma * gae_lambda * advantage
        return (advantage, value), advantage

    start = (jnp.zeros_like(last_values), last_values)
    _, advantages = jax.lax.scan(backwards, start, (rewards, values, ended), reverse=True)
    return advantages, advantages + values


def normalise_advantages(
    advantages: Float[Array, " batch"], std_floor: Number
) -> Float[Array, " batch"]:
    """Shift to mean 0 and scale to standard deviation 1, unless that would magnify noise.

    The standard deviation is the population's (ddof 0; torch's ``std``, and so CleanRL, has
    ddof 1), and at least ``std_floor``, in units of reward: when nearly all rewards of a batch are
    equal, the advantages are the critic's noise, which must not be scaled up to 1.
    """
    centred = advantages - advantages.mean()
    return centred / jnp.maximum(advantages.std(), std_floor)


def clipped_surrogate(
    log_probs: Float[Array, " batch"],
    old_log_probs: Float[Array, " batch"],
    advantages: Float[Array, " batch"],
    clip_coef: Number,
) -> Scalar:
    """Compute the policy loss: the larger of the losses of the plain and the clipped ratio."""
    ratio = jnp.exp(log_probs - old_log_probs)
    clipped = jnp.clip(ratio, 1.0 - clip_coef, 1.0 + clip_coef)
    return -jnp.minimum(ratio * advantages, clipped * advantages).mean()


def value_loss(
    values: Float[Array, " batch"],
    returns: Float[Array, " batch"],
    old_values: Float[Array, " batch"],
    clip_coef: Number | None = None,
) -> Scalar:
    """Compute half the mean squared error of the critic.

    With ``clip_coef``, in units of reward, the larger of two errors counts: the value's, and that
    of the value moved by at most ``clip_coef`` from ``old_values``.
    """
    error = jnp.square(values - returns)
    if clip_coef is not None:
        moved = old_values + jnp.clip(values - old_values, -clip_coef, clip_coef)
        error = jnp.maximum(error, jnp.square(moved - returns))
    return 0.5 * error.mean()


def old_approx_kl(
    log_probs: Float[Array, " batch"], old_log_probs: Float[Array, " batch"]
) -> Scalar:
    """Estimate the KL divergence of the old policy from the new one by the mean log-ratio."""
    return (old_log_probs - log_probs).mean()


def approx_kl(log_probs: Float[Array, " batch"], old_log_probs: Float[Array, " batch"]) -> Scalar:
    """Estimate the same divergence without negative terms (Schulman's "k3" estimator)."""
    log_ratio = log_probs - old_log_probs
    return (jnp.expm1(log_ratio) - log_ratio).mean()


def clip_fraction(
    log_probs: Float[Array, " batch"], old_log_probs: Float[Array, " batch"], clip_coef: Number
) -> Scalar:
    """Return the share of decisions whose ratio is outside the clipping range."""
    ratio = jnp.exp(log_probs - old_log_probs)
    return (jnp.abs(ratio - 1.0) > clip_coef).mean()


def explained_variance(values: Float[Array, " batch"], returns: Float[Array, " batch"]) -> Scalar:
    """Return the share of the returns' variance that the critic explains; NaN without variance."""
    variance = returns.var()
    ratio = (returns - values).var() / jnp.where(variance > 0.0, variance, 1.0)
    return jnp.where(variance > 0.0, 1.0 - ratio, jnp.nan)
