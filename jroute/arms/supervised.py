"""Arms: rules from a prompt to a gate that are compared on the same problems.

=======================  =========================================================================
``baseline``             gate 0, which is the plain model
``fixed:G``              gate G for every prompt
``best_fixed``           the fixed gate with the best accuracy on train
``random``               a gate drawn evenly from the grid; judged by its exact expectation
``supervised``           predicts every gate's reward from prompt length, takes the best
``supervised_features``  the same from all that PPO sees: the rival that decides if RL is needed
``rl``                   PPO's controllers, one per seed, acting by their most probable gate
``rl_selected``          the one of them that was best on validation
``rl_modal``             for each seed the one gate that its controller gave to most train prompts
``exact_gradient``       a policy on PPO's features that climbs the exact gradient of its expected
                         reward over all train cells: what PPO estimates, hence its ceiling
``shuffled_prompt``      PPO's controllers, each reading another problem's prompt; judged by the
                         exact expectation over which other problem that is
``random_reward``        PPO trained on the same rewards dealt at random to train's cells
``oracle``               the best gate in hindsight: an upper bound, not a rule
=======================  =========================================================================

Only ``baseline``, ``fixed:G`` and ``random`` have learnt nothing. ``best_fixed``, ``supervised``,
``supervised_features`` and ``exact_gradient`` learn from every cell of train, PPO from the cells it
sampled; validation chooses settings, stopping times and the selected seed. ``oracle`` alone reads
the cells it is judged on.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key

from jroute.controller import networks
from jroute.utils.errors import UserError

FROM_CONTROLS = ("supervised_features", "exact_gradient")
"""Arms that judging trains, from all that PPO sees."""

LOOKING = ("supervised", *FROM_CONTROLS, "rl")
"""Arms that look at a prompt to choose its gate."""


@dataclass(frozen=True)
class SupervisedConfig:
    """How the arms that know all train cells are fitted: full-batch Adam, validation decides.

    Attributes:
        hidden: Widths of the tanh layers.
        networks: Of a supervised arm; they start differently and their outputs are averaged.
        steps: Gradient steps of each setting.
        learning_rates: Adam's step sizes, each tried with each weight decay.
        weight_decays: Decoupled from the gradient, as in AdamW, in units of the step size.
        check_every: Steps between two looks at validation; the best look of all settings wins.
    """

    hidden: tuple[int, ...] = (64, 64)
    networks: int = 3
    steps: int = 600
    learning_rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    weight_decays: tuple[float, ...] = (0.0, 0.3)
    check_every: int = 30

    def __post_init__(self) -> None:
        """Refuse settings that fit nothing."""
        for name in ("learning_rates", "weight_decays"):
            if not getattr(self, name):
                raise UserError(f"supervised.{name} is empty; give at least one number")
        for name in ("networks", "steps", "check_every"):
            if getattr(self, name) < 1:
                raise UserError(f"supervised.{name} is {getattr(self, name)}; it must be positive")


Cells = tuple[Float[np.ndarray, "_ features"], Float[np.ndarray, "_ gates"]]
"""Features of problems, and the reward of every gate on them."""


def cross_entropy(
    logits: Float[Array, "problems gates"], rewards: Float[Array, "problems gates"]
) -> Float[Array, ""]:
    """What a supervised arm makes small, of rewards from 0 to 1: it learns the mean of each."""
    return jnp.mean(jax.nn.softplus(logits) - rewards * logits)


def expected_loss(
    logits: Float[Array, "problems gates"], rewards: Float[Array, "problems gates"]
) -> Float[Array, ""]:
    """Minus the policy's expected reward, the sum over all gates: nothing is sampled."""
    return -jnp.mean(jnp.sum(jax.nn.softmax(logits, axis=-1) * rewards, axis=-1))


@partial(jax.jit, static_argnames=("loss", "steps", "check_every"))
def _fit(
    starts: networks.Params,
    train: tuple[Array, Array],
    held: tuple[Array, Array],
    settings: Float[Array, "settings 2"],
    *,
    loss: Callable[[Array, Array], Array],
    steps: int,
    check_every: int,
) -> tuple[networks.Params, Float[Array, "networks settings 2"]]:
    """For every start and setting (step size, decay) the best parameters and their score."""
    adam = optax.scale_by_adam()

    def step(carry: tuple[Any, Any], setting: Array) -> tuple[Any, Any]:
        params, moments = carry
        gradient = jax.grad(lambda p: loss(networks.apply_regressor(p, train[0]), train[1]))(params)
        with jax.numpy_dtype_promotion("standard"):  # optax raises a float to its integer count
            updates, moments = adam.update(gradient, moments)
        rate, decay = setting
        return jax.tree.map(lambda p, u: p - rate * (u + decay * p), params, updates), moments

    def one(params: networks.Params, setting: Array) -> tuple[networks.Params, Array]:
        def look(carry: Any, _: None) -> tuple[Any, None]:
            now, best, score = carry
            now = jax.lax.fori_loop(0, check_every, lambda _, c: step(c, setting), now)
            out = networks.apply_regressor(now[0], held[0])
            value = jnp.take_along_axis(held[1], out.argmax(axis=-1)[:, None], axis=-1).mean()
            found = jnp.stack([value, -loss(out, held[1])])
            better = (found[0] > score[0]) | ((found[0] == score[0]) & (found[1] > score[1]))
            best = jax.tree.map(lambda new, old: jnp.where(better, new, old), now[0], best)
            return (now, best, jnp.where(better, found, score)), None

        start = ((params, adam.init(params)), params, jnp.full(2, -jnp.inf))
        (_, best, score), _ = jax.lax.scan(look, start, length=max(steps // check_every, 1))
        return best, score

    return jax.vmap(jax.vmap(one, in_axes=(None, 0)), in_axes=(0, None))(starts, settings)


def fit(
    train: Cells,
    validation: Cells,
    config: SupervisedConfig,
    keys: Key[Array, " networks"],
    loss: Callable[[Array, Array], Array],
    *,
    output_gain: float = 1.0,
) -> networks.Params:
    """Fits networks with one output per gate, of which the largest is the gate to choose.

    Args:
        train: Features and the reward of every gate, which is what is learnt from.
        validation: The same of the problems that choose setting and stopping time of each network:
            by the mean reward of acting greedily, then by the loss.
        config: Network and optimisation.
        keys: Of the initial weights, one for each network.
        loss: Of outputs and rewards.
        output_gain: Scale of the initial output layer.

    Returns:
        The parameters of each network that were best on validation, ``[networks, …]``.
    """
    x, y, held_x, held_y = (jnp.asarray(a, jnp.float32) for a in (*train, *validation))
    each = [networks.init_regressor(k, x.shape[1], y.shape[1], config.hidden) for k in keys]
    starts = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
    starts["output"] = jax.tree.map(lambda leaf: output_gain * leaf, starts["output"])
    pairs = [(rate, decay) for decay in config.weight_decays for rate in config.learning_rates]
    found, scores = _fit(
        starts,
        (x, y),
        (held_x, held_y),
        jnp.asarray(pairs, jnp.float32),
        loss=loss,
        steps=config.steps,
        check_every=min(config.check_every, config.steps),
    )
    ranked = np.asarray(scores).tolist()  # [network][setting] -> value, minus loss
    best = jnp.asarray([max(range(len(pairs)), key=one.__getitem__) for one in ranked])
    return jax.tree.map(lambda leaf: leaf[jnp.arange(len(best)), best], found)


def fit_supervised(
    train: Cells, validation: Cells, config: SupervisedConfig, key: Key[Array, ""]
) -> networks.Params:
    """Trains networks that predict the reward of every gate from features; see ``fit``.

    Rewards are mapped from the range they have on train to 0 … 1, of which the outputs are logits.
    """
    low, high = float(train[1].min()), float(train[1].max())
    scale = high - low or 1.0
    learnt, held = ((x, (y - low) / scale) for x, y in (train, validation))
    return fit(learnt, held, config, jax.random.split(key, config.networks), cross_entropy)


def fit_exact_gradient(
    train: Cells, validation: Cells, config: SupervisedConfig, key: Key[Array, ""]
) -> networks.Params:
    """Trains one softmax policy by the exact gradient of its expected reward; see ``fit``.

    Full-batch Adam from an almost uniform policy (output gain 0.01, as PPO's), each step size with
    each weight decay for ``config.steps`` steps; of all looks at validation, one every
    ``config.check_every`` steps, the one with the best greedy value is kept. It is one network, as
    each of PPO's seeds is.
    """
    return fit(train, validation, config, key[None], expected_loss, output_gain=0.01)


def outputs(
    params: networks.Params, features: Float[np.ndarray, "prompts features"]
) -> Float[Array, "prompts gates"]:
    """One output per gate, the mean over networks, parameters ``[networks, …]``."""
    apply = jax.vmap(networks.apply_regressor, in_axes=(0, None))
    return apply(params, jnp.asarray(features)).mean(axis=0)


def choices_of_regressor(
    params: networks.Params, features: Float[np.ndarray, "prompts features"]
) -> Int[np.ndarray, " prompts"]:
    """Index of the gate with the largest output, the first of equals."""
    return np.asarray(outputs(params, features)).argmax(axis=1)


def choices_of_policy(
    params: networks.Params, observations: Float[np.ndarray, "prompts features"]
) -> Int[np.ndarray, " prompts"]:
    """Index of the most probable gate of a PPO controller."""
    return np.asarray(networks.act(params, jnp.asarray(observations)))[:, 0]


def choices_of_seeds(
    params: networks.Params, observations: Float[np.ndarray, "prompts features"]
) -> Int[np.ndarray, "seeds prompts"]:
    """Index of the most probable gate of every seed's PPO controller, parameters ``[seeds, …]``."""
    act = jax.vmap(networks.act, in_axes=(0, None))
    return np.asarray(act(params, jnp.asarray(observations, jnp.float32)))[:, :, 0]


def modal_choices(
    choices: Int[np.ndarray, "seeds prompts"], gates: int
) -> Int[np.ndarray, " seeds"]:
    """The gate each seed chose most often, the first of equals."""
    return np.stack([np.bincount(row, minlength=gates) for row in choices]).argmax(axis=1)


def shuffled_values(
    values: Float[np.ndarray, "prompts gates"], choices: Int[np.ndarray, "seeds prompts"]
) -> Float[np.ndarray, "seeds prompts"]:
    """What each prompt scores under the gate chosen for another one, any other equally likely."""
    gates, prompts = values.shape[1], choices.shape[1]
    chosen = choices[..., None] == np.arange(gates)  # [seeds, prompts, gates]
    others = (chosen.sum(axis=1, keepdims=True) - chosen) / (prompts - 1)
    return (others * values[None]).sum(axis=-1)


def dealt_rewards(
    rewards: Float[np.ndarray, "problems gates"], seed: int
) -> Float[np.ndarray, "problems gates"]:
    """The same rewards dealt at random to all cells: they tell nothing of problem or gate."""
    return np.random.default_rng(seed).permutation(rewards.ravel()).reshape(rewards.shape)


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
