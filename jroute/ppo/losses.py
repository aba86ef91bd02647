"""The arithmetic of PPO (Schulman et al. 2017, arXiv 1707.06347), as pure functions of arrays.

The definitions are those of CleanRL's ``ppo.py``, so that curves can be compared, with two
switches for one-step episodes: advantages are normalised over the whole batch with a floor under
the standard deviation, and clipping of the value loss is optional.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Scalar = Float[Array, ""]
Number = float | Float[Array, ""]
"""A setting: part of a compiled program, or an argument of it."""


def log_prob(
    logits: Float[Array, "batch gate_dims choices"], actions: Int[Array, "batch parts"]
) -> Float[Array, " batch"]:
    """Log-probability of a whole decision: the sum over its independent parts."""
    log_probs = jax.nn.log_softmax(logits, axis=-1)
    chosen = jnp.take_along_axis(log_probs, actions[..., None], axis=-1)[..., 0]
    return chosen.sum(axis=-1)


def entropy(logits: Float[Array, "batch gate_dims choices"]) -> Float[Array, " batch"]:
    """Entropy in nats of a whole decision: the sum over its independent parts."""
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
    """Generalised advantage estimates (Schulman et al. 2015, arXiv 1506.02438) and returns.

    Args:
        rewards: Reward of each step.
        values: Critic's value of the observation each step was taken from.
        ended: Whether the step ended its episode, so that nothing follows it.
        last_values: Critic's value of the observation after the last step.
        gamma: Discount.
        gae_lambda: Weight of longer look-ahead.

    Returns:
        Advantages, and returns (advantages + values). Where every step ends its episode the
        advantage is ``rewards - values``, whatever the discount and the weight.
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
    ddof 1). It is not taken below ``std_floor``, in units of reward: when nearly every reward of a
    batch is the same, what is left is the critic's noise, and must not be blown up to unit size.
    """
    centred = advantages - advantages.mean()
    return centred / jnp.maximum(advantages.std(), std_floor)


def clipped_surrogate(
    log_probs: Float[Array, " batch"],
    old_log_probs: Float[Array, " batch"],
    advantages: Float[Array, " batch"],
    clip_coef: Number,
) -> Scalar:
    """The policy loss: the pessimistic one of the plain and the clipped ratio, to be minimised."""
    ratio = jnp.exp(log_probs - old_log_probs)
    clipped = jnp.clip(ratio, 1.0 - clip_coef, 1.0 + clip_coef)
    return -jnp.minimum(ratio * advantages, clipped * advantages).mean()


def value_loss(
    values: Float[Array, " batch"],
    returns: Float[Array, " batch"],
    old_values: Float[Array, " batch"],
    clip_coef: Number | None = None,
) -> Scalar:
    """Half the mean squared error of the critic.

    With ``clip_coef`` (in units of reward) the value may move by that much from ``old_values``
    and the worse of both errors counts.
    """
    error = jnp.square(values - returns)
    if clip_coef is not None:
        moved = old_values + jnp.clip(values - old_values, -clip_coef, clip_coef)
        error = jnp.maximum(error, jnp.square(moved - returns))
    return 0.5 * error.mean()


def old_approx_kl(
    log_probs: Float[Array, " batch"], old_log_probs: Float[Array, " batch"]
) -> Scalar:
    """KL divergence of the new policy from the old one, estimated by the mean log-ratio."""
    return (old_log_probs - log_probs).mean()


def approx_kl(log_probs: Float[Array, " batch"], old_log_probs: Float[Array, " batch"]) -> Scalar:
    """The same divergence, estimated without negative terms (Schulman's "k3" estimator)."""
    log_ratio = log_probs - old_log_probs
    return (jnp.expm1(log_ratio) - log_ratio).mean()


def clip_fraction(
    log_probs: Float[Array, " batch"], old_log_probs: Float[Array, " batch"], clip_coef: Number
) -> Scalar:
    """Share of decisions whose ratio lies outside the clipping range."""
    ratio = jnp.exp(log_probs - old_log_probs)
    return (jnp.abs(ratio - 1.0) > clip_coef).mean()


def explained_variance(values: Float[Array, " batch"], returns: Float[Array, " batch"]) -> Scalar:
    """Share of the variance of the returns that the critic foresaw; NaN if there is none."""
    variance = returns.var()
    ratio = (returns - values).var() / jnp.where(variance > 0.0, variance, 1.0)
    return jnp.where(variance > 0.0, 1.0 - ratio, jnp.nan)
