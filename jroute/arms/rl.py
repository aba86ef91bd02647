"""The RL arm: PPO controllers trained on an outcome table, and the gates they choose."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from jroute.arms.supervised import Cells
from jroute.controller import networks
from jroute.envs.functional import TableEnv
from jroute.ppo import compilation, learner
from jroute.ppo.config import PPOConfig


def train_rl(cells: Cells, config: PPOConfig, key: Key[Array, ""]) -> networks.Params:
    """Train ``config.seeds`` PPO controllers on a table.

    Args:
        cells: Features of train problems and the reward of every gate, of which PPO sees what it
            samples.
        config: Configuration of the learner.
        key: Key of the seeds.

    Returns:
        Their parameters, ``[seeds, …]``.
    """
    features, rewards = cells
    env = TableEnv.create(features, rewards)
    state = learner.init_seeds(config, env.num_features, (env.num_gates,), key)
    state, _ = _compiled_training(config)(env, state)
    return jax.device_get(state.params)


@lru_cache(maxsize=4)
def _compiled_training(config: PPOConfig) -> Callable[..., Any]:
    """Return a whole training as one program, compiled once for all tables of a shape."""
    return compilation.compile_train(config, config.updates)


def decisions_of_policy(
    params: networks.Params, observations: Float[np.ndarray, "prompts features"]
) -> Int[np.ndarray, "prompts dims"]:
    """Return the most probable decision of a PPO controller: indices into the grid."""
    return np.asarray(networks.act(params, jnp.asarray(observations)))


def columns_of_seeds(
    params: networks.Params, observations: Float[np.ndarray, "prompts features"]
) -> Int[np.ndarray, "seeds prompts"]:
    """Return the column of the table that every seed's controller decides for, on one number.

    Args:
        params: Parameters of the controllers, ``[seeds, …]``.
        observations: Features as controllers see them.
    """
    return decisions_of_seeds(params, observations)[:, :, 0]


def decisions_of_seeds(
    params: networks.Params, observations: Float[np.ndarray, "prompts features"]
) -> Int[np.ndarray, "seeds prompts dims"]:
    """Return the most probable decision of every seed's controller; see ``columns_of_seeds``."""
    act = jax.vmap(networks.act, in_axes=(0, None))
    return np.asarray(act(params, jnp.asarray(observations, jnp.float32)))


def best_seed(
    values: Float[np.ndarray, "problems gates"], columns: Int[np.ndarray, "seeds problems"]
) -> int:
    """Return the seed whose columns score best, the first of equals."""
    return int(values[np.arange(len(values))[None], columns].mean(axis=1).argmax())
