"""Arms: rules from a prompt to a gate that are compared on the same problems.

==================  ==============================================================
``baseline``        gate 0, which is the plain model
``fixed:G``         gate G for every prompt
``best_fixed``      the fixed gate with the best accuracy on train
``random``          a gate drawn evenly from the grid; judged by its exact expectation
``supervised``      predicts every gate's reward from prompt length, takes the best
``rl``              the PPO controller
``oracle``          the best gate in hindsight: an upper bound, not a rule
==================  ==============================================================
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key

from jroute.controller import networks
from jroute.errors import UserError


@dataclass(frozen=True)
class SupervisedConfig:
    """How the supervised arm is trained: full-batch Adam on the squared error of every gate.

    Attributes:
        hidden: Widths of the tanh layers.
        steps: Gradient steps per learning rate.
        learning_rates: Tried one by one; validation decides.
        check_every: Steps between two looks at validation; the best look wins.
    """

    hidden: tuple[int, ...] = (64, 64)
    steps: int = 1000
    learning_rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    check_every: int = 50


@partial(jax.jit, static_argnames=("steps",))
def _fit(
    params: networks.Params,
    moments: optax.OptState,
    features: Float[Array, "train features"],
    rewards: Float[Array, "train gates"],
    learning_rate: Float[Array, ""],
    *,
    steps: int,
) -> tuple[networks.Params, optax.OptState]:
    def loss(params: networks.Params) -> Array:
        return jnp.mean((networks.apply_regressor(params, features) - rewards) ** 2)

    def step(carry: tuple[Any, Any], _: None) -> tuple[tuple[Any, Any], None]:
        params, moments = carry
        with jax.numpy_dtype_promotion("standard"):  # optax raises a float to its integer count
            updates, moments = optax.scale_by_adam().update(jax.grad(loss)(params), moments)
        params = jax.tree.map(lambda p, u: p - learning_rate * u, params, updates)
        return (params, moments), None

    return jax.lax.scan(step, (params, moments), length=steps)[0]


def fit_supervised(
    train: tuple[Float[np.ndarray, "train features"], Float[np.ndarray, "train gates"]],
    validation: tuple[Float[np.ndarray, "val features"], Float[np.ndarray, "val gates"]],
    config: SupervisedConfig,
    key: Key[Array, ""],
) -> networks.Params:
    """Trains a multi-output regressor: features to the reward of every gate.

    Args:
        train: Features and the reward of every gate, which is what this arm learns from.
        validation: The same of the problems that choose learning rate and stopping time: by the
            mean reward of acting greedily, then by the squared error.
        config: Network and optimisation.
        key: Of the initial weights.

    Returns:
        The parameters that were best on validation.
    """
    x, y = jnp.asarray(train[0]), jnp.asarray(train[1])
    held_x, held_y = jnp.asarray(validation[0]), np.asarray(validation[1])
    best: tuple[tuple[float, float], networks.Params] | None = None
    for rate in config.learning_rates:
        params = networks.init_regressor(key, x.shape[1], y.shape[1], config.hidden)
        moments = optax.scale_by_adam().init(params)
        for _ in range(max(config.steps // config.check_every, 1)):
            params, moments = _fit(
                params, moments, x, y, jnp.float32(rate), steps=config.check_every
            )
            predicted = np.asarray(networks.apply_regressor(params, held_x))
            value = held_y[np.arange(len(held_y)), predicted.argmax(axis=1)].mean()
            score = (float(value), -float(((predicted - held_y) ** 2).mean()))
            if best is None or score > best[0]:
                best = (score, params)
    assert best is not None
    return best[1]


def choices_of_regressor(
    params: networks.Params, features: Float[np.ndarray, "prompts features"]
) -> Int[np.ndarray, " prompts"]:
    """Index of the gate with the best predicted reward."""
    return np.asarray(networks.apply_regressor(params, jnp.asarray(features))).argmax(axis=1)


def choices_of_policy(
    params: networks.Params, observations: Float[np.ndarray, "prompts features"]
) -> Int[np.ndarray, " prompts"]:
    """Index of the most probable gate of a PPO controller."""
    return np.asarray(networks.act(params, jnp.asarray(observations)))[:, 0]


def random_choices(prompts: Sequence[str], gates: int, seed: int) -> Int[np.ndarray, " prompts"]:
    """Draws a gate index evenly for each prompt.

    It is drawn from the seed and the prompt's own text, so a prompt always gets the same one,
    whatever it is asked together with.
    """
    digests = (hashlib.sha256(f"{seed}/{prompt}".encode()).digest() for prompt in prompts)
    return np.array([int.from_bytes(digest[:8], "big") % gates for digest in digests], int)


def fixed_gate(arm: str) -> float | None:
    """The gate of ``baseline`` or ``fixed:G``; ``None`` for an arm that looks at the prompt.

    Raises:
        UserError: ``fixed:`` without a number.
    """
    if arm == "baseline":
        return 0.0
    if not arm.startswith("fixed:"):
        return None
    try:
        return float(arm.removeprefix("fixed:"))
    except ValueError:
        raise UserError(f"arm {arm!r} has no number after 'fixed:'; write e.g. fixed:0.5") from None
