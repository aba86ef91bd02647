"""The exact-gradient arm: what PPO estimates by sampling, without sampling; hence PPO's ceiling."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jroute.arms.supervised import Cells, SupervisedConfig, fit
from jroute.controller import networks


def expected_loss(
    logits: Float[Array, "problems gates"], rewards: Float[Array, "problems gates"]
) -> Float[Array, ""]:
    """Return minus the expected reward of the softmax policy, summed over gates, not sampled."""
    return -jnp.mean(jnp.sum(jax.nn.softmax(logits, axis=-1) * rewards, axis=-1))


def fit_exact_gradient(
    train: Cells, validation: Cells, config: SupervisedConfig, key: Key[Array, ""]
) -> networks.Params:
    """Train one softmax policy by the exact gradient of its expected reward.

    Full-batch Adam from an almost uniform policy (output gain 0.01, as PPO's), each step size with
    each weight decay for ``config.steps`` steps. The parameters with the best greedy value on
    validation are kept, of all checks, every ``config.check_every`` steps; see
    ``jroute.arms.supervised.fit``. It is one network, as each of PPO's seeds is.
    """
    return fit(train, validation, config, key[None], expected_loss, output_gain=0.01)
