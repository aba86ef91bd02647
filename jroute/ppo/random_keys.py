"""The random keys of one update, folded from the learner's state."""

from typing import NamedTuple

import jax
from jaxtyping import Array, Key

from jroute.ppo.config import PPOConfig
from jroute.ppo.types import LearnerState


class UpdateKeys(NamedTuple):
    """Keys of one update: ``reset`` and ``step`` have one for each episode."""

    action: Key[Array, ""]
    shuffle: Key[Array, ""]
    reset: Key[Array, " batch"]
    step: Key[Array, " batch"]


def update_keys(config: PPOConfig, state: LearnerState) -> UpdateKeys:
    """Draw the keys of the next update with a single split: each split takes time to compile."""
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.update)
    keys = jax.random.split(key, 2 + 2 * config.batch_size)
    first_step = 2 + config.batch_size
    return UpdateKeys(keys[0], keys[1], keys[2:first_step], keys[first_step:])
