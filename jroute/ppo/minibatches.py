"""The rows of the batch that each gradient step of an update learns from."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from jroute.ppo.config import PPOConfig
from jroute.ppo.random_keys import update_keys
from jroute.ppo.types import LearnerState

PACKED_ROWS = 4096
"""Largest batch whose row numbers are packed into the low bits of the words that are sorted."""


def minibatch_rows(config: PPOConfig, state: LearnerState) -> Int[Array, "steps rows"]:
    """Shuffle the rows of the batch for every epoch of the next update and cut minibatches.

    The order of an epoch is that of random words. Sorting single words is several times faster
    than sorting pairs, so the row numbers are the words' low bits; the high bits decide the order,
    and fewer than 1 row in 200 shares them with another.
    """
    key, size = update_keys(config, state).shuffle, config.batch_size
    if size > PACKED_ROWS:
        keys = jax.random.split(key, config.epochs)
        epochs = jax.vmap(lambda k: jax.random.permutation(k, size))(keys)
    else:
        bits = max((size - 1).bit_length(), 1)
        words = jax.random.bits(key, (config.epochs, size)) << jnp.uint32(bits)
        words = words | jnp.arange(size, dtype=jnp.uint32)[None]
        words = jax.lax.sort(words, dimension=1, is_stable=False)
        epochs = (words & jnp.uint32(2**bits - 1)).astype(jnp.int32)
    return epochs.reshape(config.epochs * config.minibatches, -1)
