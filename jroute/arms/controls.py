"""The controls that judging needs: arms that must gain nothing from the prompt, and the rivals.

Arrays in, arrays out; ``jroute.experiment`` keeps the results in a run folder.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Int, Key

from jroute.arms.exact_gradient import fit_exact_gradient
from jroute.arms.registry import EXACT_GRADIENT, RANDOM_REWARD, RL_MODAL, SUPERVISED_FEATURES
from jroute.arms.rl import columns_of_seeds, train_rl
from jroute.arms.supervised import Cells, SupervisedConfig, fit_supervised
from jroute.controller import networks
from jroute.ppo.config import PPOConfig


def fit_controls(
    train: Cells,
    validation: Cells,
    rl: networks.Params,
    *,
    ppo: PPOConfig,
    supervised: SupervisedConfig,
    key: Key[Array, ""],
) -> dict[str, Any]:
    """Fit every arm that judging trains or derives from RL's controllers.

    Args:
        train: Features and the reward of every gate.
        validation: The same of the problems that choose hyperparameters.
        rl: Parameters of PPO's controllers, ``[seeds, …]``.
        ppo: How they were trained; the controllers on random rewards are trained alike.
        supervised: How networks that know all train cells are fitted.
        key: Key of the initial weights and of the random rewards.

    Returns:
        A tree of arrays: ``supervised_features`` and ``exact_gradient`` (networks),
        ``random_reward`` (networks, ``[seeds, …]``) and ``rl_modal`` (columns, ``[seeds]``).
    """
    keys = jax.random.split(key, 4)
    dealt = dealt_rewards(train[1], int(jax.random.bits(keys[2])))
    columns = columns_of_seeds(rl, train[0])
    tree = {
        SUPERVISED_FEATURES: fit_supervised(train, validation, supervised, keys[0]),
        EXACT_GRADIENT: fit_exact_gradient(train, validation, supervised, keys[1]),
        RANDOM_REWARD: train_rl((train[0], dealt), ppo, keys[3]),
        RL_MODAL: modal_columns(columns, train[1].shape[1]),
    }
    return jax.device_get(tree)


def modal_columns(
    columns: Int[np.ndarray, "seeds prompts"], gates: int
) -> Int[np.ndarray, " seeds"]:
    """Return the column that each seed chooses most often, the first of equals."""
    return np.stack([np.bincount(row, minlength=gates) for row in columns]).argmax(axis=1)


def shuffled_values(
    values: Float[np.ndarray, "prompts gates"], columns: Int[np.ndarray, "seeds prompts"]
) -> Float[np.ndarray, "seeds prompts"]:
    """Return what prompts score under the gate of another prompt, all others equally likely."""
    gates, prompts = values.shape[1], columns.shape[1]
    chosen = columns[..., None] == np.arange(gates)  # [seeds, prompts, gates]
    others = (chosen.sum(axis=1, keepdims=True) - chosen) / (prompts - 1)
    return (others * values[None]).sum(axis=-1)


def dealt_rewards(
    rewards: Float[np.ndarray, "problems gates"], seed: int
) -> Float[np.ndarray, "problems gates"]:
    """Deal the same rewards to all cells at random: they tell nothing of problem or gate."""
    return np.random.default_rng(seed).permutation(rewards.ravel()).reshape(rewards.shape)


def random_columns(prompts: Sequence[str], gates: int, seed: int) -> Int[np.ndarray, " prompts"]:
    """Draw the column of a gate evenly for each prompt.

    It is drawn from the seed and the prompt's own text, so a prompt always gets the same gate,
    whichever prompts stand beside it.
    """
    digests = (hashlib.sha256(f"{seed}/{prompt}".encode()).digest() for prompt in prompts)
    return np.array([int.from_bytes(digest[:8], "big") % gates for digest in digests], int)
