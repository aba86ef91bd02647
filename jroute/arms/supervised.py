"""The supervised arms: networks that learn the reward of every gate from all cells of train.

``supervised`` reads prompt length alone; ``supervised_features`` reads all that PPO sees, which
makes it the rival that decides whether RL is needed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key

from jroute.controller import networks
from jroute.utils.errors import UserError
from jroute.utils.keys import Keys, keys
from jroute.utils.ranges import Range, check_ranges, whole

LENGTH = slice(0, 1)
"""Columns of the features that the length-only arm sees."""


RANGES = {
    "hidden": whole(1, 2**16),
    "networks": whole(1, 2**16),
    "steps": whole(1),
    "learning_rates": Range(0.0, 1.0, above=True),
    "weight_decays": Range(0.0),
    "check_every": whole(1),
}


@dataclass(frozen=True)
class SupervisedConfig:
    """How the arms that know all train cells are fitted: full-batch Adam, validation decides.

    Attributes:
        hidden: Widths of the tanh layers.
        networks: Networks of a supervised arm; they start differently, their outputs are averaged.
        steps: Gradient steps with each pair of step size and weight decay.
        learning_rates: Adam's step sizes, each tried with each weight decay.
        weight_decays: Decoupled from the gradient, as in AdamW, in units of the step size.
        check_every: Steps between two checks on validation; the best check of all pairs wins.
    """

    stored_keys: ClassVar[Keys] = keys(
        "hidden", "networks", "steps", "learning_rates", "weight_decays", "check_every"
    )

    hidden: tuple[int, ...] = (64, 64)
    networks: int = 3
    steps: int = 600
    learning_rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    weight_decays: tuple[float, ...] = (0.0, 0.3)
    check_every: int = 30

    def __post_init__(self) -> None:
        """Refuse values that fit nothing."""
        for name in ("learning_rates", "weight_decays"):
            if not getattr(self, name):
                raise UserError(f"supervised.{name} is empty; give at least one number")
        check_ranges("supervised", self, RANGES)


Cells = tuple[Float[np.ndarray, "_ features"], Float[np.ndarray, "_ gates"]]
"""Features of problems, and the reward of every gate on them."""


def fit_supervised(
    train: Cells, validation: Cells, config: SupervisedConfig, key: Key[Array, ""]
) -> networks.Params:
    """Train networks that predict the reward of every gate from features; see ``fit``.

    Rewards are mapped from their range on train to 0 … 1; the outputs are logits of the result.
    """
    low, high = float(train[1].min()), float(train[1].max())
    scale = high - low or 1.0
    unit_train, unit_validation = ((x, (y - low) / scale) for x, y in (train, validation))
    keys = jax.random.split(key, config.networks)
    return fit(unit_train, unit_validation, config, keys, cross_entropy)


def cross_entropy(
    logits: Float[Array, "problems gates"], rewards: Float[Array, "problems gates"]
) -> Float[Array, ""]:
    """Return the mean cross-entropy to rewards from 0 to 1; its minimum is their mean."""
    return jnp.mean(jax.nn.softplus(logits) - rewards * logits)


def fit(
    train: Cells,
    validation: Cells,
    config: SupervisedConfig,
    keys: Key[Array, " networks"],
    loss: Callable[[Array, Array], Array],
    *,
    output_gain: float = 1.0,
) -> networks.Params:
    """Fit networks with one output per gate; the largest output is the gate to choose.

    Args:
        train: Features and the reward of every gate, to learn from.
        validation: The same of the problems that choose step size, weight decay and stopping time
            of each network: by the mean reward of acting greedily, then by the loss.
        config: Network and optimisation.
        keys: Keys of the initial weights, one for each network.
        loss: Loss of outputs and rewards.
        output_gain: Scale of the initial output layer.

    Returns:
        The parameters of each network that were best on validation, ``[networks, …]``.
    """
    x, y, held_x, held_y = (jnp.asarray(a, jnp.float32) for a in (*train, *validation))
    each = [networks.init_regressor(k, x.shape[1], y.shape[1], config.hidden) for k in keys]
    starts = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
    starts["output"] = jax.tree.map(lambda leaf: output_gain * leaf, starts["output"])
    pairs = [(rate, decay) for decay in config.weight_decays for rate in config.learning_rates]
    fitted, scores = _fit_all(
        starts,
        (x, y),
        (held_x, held_y),
        jnp.asarray(pairs, jnp.float32),
        loss=loss,
        steps=config.steps,
        check_every=min(config.check_every, config.steps),
    )
    ranked = np.asarray(scores).tolist()  # [network][pair] -> value, minus loss
    best = jnp.asarray([max(range(len(pairs)), key=row.__getitem__) for row in ranked])
    return jax.tree.map(lambda leaf: leaf[jnp.arange(len(best)), best], fitted)


@partial(jax.jit, static_argnames=("loss", "steps", "check_every"))
def _fit_all(
    starts: networks.Params,
    train: tuple[Array, Array],
    held: tuple[Array, Array],
    pairs: Float[Array, "pairs 2"],
    *,
    loss: Callable[[Array, Array], Array],
    steps: int,
    check_every: int,
) -> tuple[networks.Params, Float[Array, "networks pairs 2"]]:
    """Return the best parameters and their score for every start and (step size, decay) pair."""
    adam = optax.scale_by_adam()

    def step(carry: tuple[Any, Any], pair: Array) -> tuple[Any, Any]:
        params, moments = carry
        gradient = jax.grad(lambda p: loss(networks.apply_regressor(p, train[0]), train[1]))(params)
        with jax.numpy_dtype_promotion("standard"):  # optax raises a float to its integer count
            updates, moments = adam.update(gradient, moments)
        rate, decay = pair
        return jax.tree.map(lambda p, u: p - rate * (u + decay * p), params, updates), moments

    def fit_pair(params: networks.Params, pair: Array) -> tuple[networks.Params, Array]:
        def check(carry: Any, _: None) -> tuple[Any, None]:
            now, best, best_score = carry
            now = jax.lax.fori_loop(0, check_every, lambda _, c: step(c, pair), now)
            out = networks.apply_regressor(now[0], held[0])
            value = jnp.take_along_axis(held[1], out.argmax(axis=-1)[:, None], axis=-1).mean()
            score = jnp.stack([value, -loss(out, held[1])])
            better = (score[0] > best_score[0]) | (
                (score[0] == best_score[0]) & (score[1] > best_score[1])
            )
            best = jax.tree.map(lambda new, old: jnp.where(better, new, old), now[0], best)
            return (now, best, jnp.where(better, score, best_score)), None

        start = ((params, adam.init(params)), params, jnp.full(2, -jnp.inf))
        (_, best, score), _ = jax.lax.scan(check, start, length=max(steps // check_every, 1))
        return best, score

    return jax.vmap(jax.vmap(fit_pair, in_axes=(None, 0)), in_axes=(0, None))(starts, pairs)


def outputs(
    params: networks.Params, features: Float[np.ndarray, "prompts features"]
) -> Float[Array, "prompts gates"]:
    """Return one output per gate, the mean over networks, parameters ``[networks, …]``."""
    apply = jax.vmap(networks.apply_regressor, in_axes=(0, None))
    return apply(params, jnp.asarray(features)).mean(axis=0)


def columns_of_regressor(
    params: networks.Params, features: Float[np.ndarray, "prompts features"]
) -> Int[np.ndarray, " prompts"]:
    """Return the column of the gate with the largest output, the first of equals."""
    return np.asarray(outputs(params, features)).argmax(axis=1)
