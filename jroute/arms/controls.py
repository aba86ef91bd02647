"""Training the arms that stand beside RL, and what every learnt arm chooses.

All of it is arrays in, arrays out; ``jroute.experiment.judging`` keeps the results in a run folder.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Int, Key

from jroute.arms import supervised as arms
from jroute.controller import networks
from jroute.envs.functional import TableEnv
from jroute.ppo import learner

LENGTH = slice(0, 1)
"""Columns of the features that the length-only arm sees."""


def train_rl(cells: arms.Cells, config: learner.PPOConfig, key: Key[Array, ""]) -> networks.Params:
    """Trains ``config.seeds`` PPO controllers; their parameters, ``[seeds, …]``.

    Args:
        cells: Features of train problems and the reward of every gate, of which PPO sees what it
            samples.
        config: Of the learner.
        key: Of the seeds.
    """
    features, rewards = cells
    env = TableEnv.create(features, rewards)
    state = learner.init_seeds(config, env.num_features, (env.num_gates,), key)
    state, _ = _training(config)(env, state)
    return jax.device_get(state.params)


@lru_cache(maxsize=4)
def _training(config: learner.PPOConfig) -> Callable[..., Any]:
    """A whole training as one program, compiled once for all tables of a shape."""
    return learner.compile_train(config, config.updates)


def fit_controls(
    train: arms.Cells,
    validation: arms.Cells,
    rl: networks.Params,
    *,
    ppo: learner.PPOConfig,
    supervised: arms.SupervisedConfig,
    key: Key[Array, ""],
) -> dict[str, Any]:
    """Fits every control that learns or is derived from what RL learnt.

    Args:
        train: Features, and what every gate pays.
        validation: The same of the problems that choose settings.
        rl: Parameters of PPO's controllers, ``[seeds, …]``.
        ppo: How they were trained; the controllers on random rewards are trained so too.
        supervised: How networks that know all train cells are fitted.
        key: Of initial weights and of the random rewards.

    Returns:
        A tree of arrays: ``supervised_features`` and ``exact_gradient`` (networks),
        ``random_reward`` (networks, ``[seeds, …]``) and ``rl_modal`` (columns, ``[seeds]``).
    """
    keys = jax.random.split(key, 4)
    dealt = arms.dealt_rewards(train[1], int(jax.random.bits(keys[2])))
    chosen = arms.choices_of_seeds(rl, train[0])
    tree = {
        "supervised_features": arms.fit_supervised(train, validation, supervised, keys[0]),
        "exact_gradient": arms.fit_exact_gradient(train, validation, supervised, keys[1]),
        "random_reward": train_rl((train[0], dealt), ppo, keys[3]),
        "rl_modal": arms.modal_choices(chosen, train[1].shape[1]),
    }
    return jax.device_get(tree)


def choose(
    observations: Float[np.ndarray, "problems features"],
    rl: networks.Params,
    supervised: networks.Params,
    controls: Mapping[str, Any],
) -> dict[str, Int[np.ndarray, "..."]]:
    """The column every learnt arm chooses for each problem, as ``report.arm_columns`` takes them.

    Args:
        observations: Features of the problems.
        rl: PPO's controllers, ``[seeds, …]``.
        supervised: The length-only arm.
        controls: As ``fit_controls`` gives them.
    """
    x = np.asarray(observations, np.float32)
    return {
        "rl": arms.choices_of_seeds(rl, x),
        "supervised": arms.choices_of_regressor(supervised, x[:, LENGTH]),
        "supervised_features": arms.choices_of_regressor(controls["supervised_features"], x),
        "exact_gradient": arms.choices_of_regressor(controls["exact_gradient"], x),
        "random_reward": arms.choices_of_seeds(controls["random_reward"], x),
        "rl_modal": np.asarray(controls["rl_modal"]),
    }


def best_on(
    values: Float[np.ndarray, "problems gates"], choices: Int[np.ndarray, "seeds problems"]
) -> int:
    """The seed whose choices score best, the first of equals."""
    return int(values[np.arange(len(values))[None], choices].mean(axis=1).argmax())
