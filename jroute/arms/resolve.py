"""From an arm to gates: the one resolution that tables, live judging, the report and lm-eval share.

``RULES`` has one rule for each arm that decides, and everything else here asks ``decide``.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

from jroute.arms.controls import random_columns
from jroute.arms.registry import (
    ARMS,
    BASELINE,
    BEST_FIXED,
    EXACT_GRADIENT,
    RANDOM,
    RANDOM_REWARD,
    RL_MODAL,
    SELECTED,
    SUBJECT,
    SUPERVISED,
    SUPERVISED_FEATURES,
    Arm,
    fixed,
    selectable,
)
from jroute.arms.rl import decisions_of_policy, decisions_of_seeds
from jroute.arms.supervised import LENGTH, columns_of_regressor
from jroute.utils.errors import UserError


@dataclass(frozen=True)
class ArmInputs:
    """What arms choose gates from; nothing is read before an arm needs it.

    Attributes:
        grid: The gates that a decision chooses among.
        seed: Seed of the experiment, which the ``random`` arm draws by.
        has_table: Whether training saw the rewards of all gates; not so with live rollouts.
        observe: Prompts to the features that controllers see, ``[prompts, features]``.
        controller: Returns what training saved: ``best_fixed``, ``supervised``, ``rl``, ``seeds``,
            ``selected``. Raises ``UserError`` before training.
        controls: Returns what judging trained; see ``jroute.arms.controls.fit_controls``. Raises
            ``UserError`` before judging.
    """

    grid: Sequence[float]
    seed: int
    has_table: bool
    observe: Callable[[Sequence[str]], Float[np.ndarray, "prompts features"]]
    controller: Callable[[], Mapping[str, Any]]
    controls: Callable[[], Mapping[str, Any]]


Decisions = Int[np.ndarray, "*seeds prompts dims"]
"""Indices into the grid; arms with several seeds have one decision of each."""


# The rule of each arm that decides ----------------------------------------------------------------


def _best_fixed(prompts: Sequence[str], inputs: ArmInputs) -> Decisions:
    return np.full((len(prompts), 1), int(inputs.controller()[BEST_FIXED]))


def _random(prompts: Sequence[str], inputs: ArmInputs) -> Decisions:
    return random_columns(prompts, len(inputs.grid), inputs.seed)[:, None]


def _supervised(prompts: Sequence[str], inputs: ArmInputs) -> Decisions:
    length = inputs.observe(prompts)[:, LENGTH]
    return columns_of_regressor(inputs.controller()[SUPERVISED], length)[:, None]


def _supervised_features(prompts: Sequence[str], inputs: ArmInputs) -> Decisions:
    network = inputs.controls()[SUPERVISED_FEATURES]
    return columns_of_regressor(network, inputs.observe(prompts))[:, None]


def _exact_gradient(prompts: Sequence[str], inputs: ArmInputs) -> Decisions:
    network = inputs.controls()[EXACT_GRADIENT]
    return columns_of_regressor(network, inputs.observe(prompts))[:, None]


def _rl(prompts: Sequence[str], inputs: ArmInputs) -> Decisions:
    return decisions_of_seeds(inputs.controller()["seeds"], inputs.observe(prompts))


def _rl_selected(prompts: Sequence[str], inputs: ArmInputs) -> Decisions:
    controller = inputs.controller()
    selected = int(controller["selected"])
    policy = jax.tree.map(lambda leaf: leaf[selected], controller["seeds"])
    return decisions_of_policy(policy, inputs.observe(prompts))


def _rl_modal(prompts: Sequence[str], inputs: ArmInputs) -> Decisions:
    modal = np.asarray(inputs.controls()[RL_MODAL])
    return np.broadcast_to(modal[:, None, None], (len(modal), len(prompts), 1))


def _random_reward(prompts: Sequence[str], inputs: ArmInputs) -> Decisions:
    return decisions_of_seeds(inputs.controls()[RANDOM_REWARD], inputs.observe(prompts))


RULES: Mapping[str, Callable[[Sequence[str], ArmInputs], Decisions]] = MappingProxyType(
    {
        BEST_FIXED: _best_fixed,
        RANDOM: _random,
        SUPERVISED: _supervised,
        SUPERVISED_FEATURES: _supervised_features,
        EXACT_GRADIENT: _exact_gradient,
        SUBJECT: _rl,
        SELECTED: _rl_selected,
        RL_MODAL: _rl_modal,
        RANDOM_REWARD: _random_reward,
    }
)
"""How each arm that decides does so, in the order of ``ARMS``.

Other arms have a constant gate, or only values on a table: an expectation, or hindsight.
"""


def decide(arm: Arm, prompts: Sequence[str], inputs: ArmInputs) -> Decisions:
    """Return the decision of an arm on each prompt, as indices into the grid.

    Args:
        arm: An arm with a rule, or with a constant gate of the grid.
        prompts: Texts as the model reads them.
        inputs: What the arm chooses from.

    Returns:
        ``[prompts, dims]``, or ``[seeds, prompts, dims]`` for arms with several seeds; ``dims`` is
        1 for arms that decide on one number, which holds for all bands and layers.

    Raises:
        UserError: The run was not trained, or not judged yet.
    """
    if arm.gate is not None:
        return np.full((len(prompts), 1), list(inputs.grid).index(arm.gate))
    return RULES[arm.name](prompts, inputs)


# Who asks -----------------------------------------------------------------------------------------


def resolve(
    arm: Arm, prompts: Sequence[str], inputs: ArmInputs
) -> Float[np.ndarray, "prompts *dims"]:
    """Return the gate an arm gives to each prompt, from the prompt alone.

    Args:
        arm: An arm with one gate per prompt; see ``jroute.arms.registry.parse_arm``. ``rl`` stands
            for its selected seed.
        prompts: Texts as the model reads them.
        inputs: What the arm chooses from.

    Returns:
        ``[prompts]``; ``[prompts, dims]`` where RL decides on several numbers (one per band or
        mixing site, not yet spread over layers). One number holds for all bands and layers.

    Raises:
        UserError: The run has no such arm, or not yet.
    """
    check_available(arm, has_table=inputs.has_table)
    if arm.gate is not None:  # need not be of the grid
        return np.full(len(prompts), arm.gate)
    decisions = decide(ARMS[SELECTED] if arm.name == SUBJECT else arm, prompts, inputs)
    gates = np.asarray(inputs.grid, np.float64)[decisions]
    return gates if gates.shape[-1] > 1 else gates[:, 0]


def table_columns(
    observations: Float[np.ndarray, "problems features"],
    grid: Sequence[float],
    controller: Mapping[str, Any],
    controls: Mapping[str, Any],
) -> dict[str, Int[np.ndarray, "..."]]:
    """Return the column of the outcome table that each deciding arm gives to each problem.

    Args:
        observations: Features of the problems, as controllers see them.
        grid: The gate of each column.
        controller: What training saved; see ``ArmInputs``.
        controls: What judging trained.

    Returns:
        Columns by arm, ``[problems]``, or ``[seeds, problems]`` for arms with several seeds. Arms
        known by their expectation, and the oracle, decide nothing.
    """
    learned = [ARMS[name] for name in RULES if not ARMS[name].expectation]
    arms = [ARMS[BASELINE], *map(fixed, grid), *learned]
    decisions = _decide_all(arms, observations, grid, controller, controls)
    return {name: indices[..., 0] for name, indices in decisions.items()}


def live_decisions(
    observations: Float[np.ndarray, "problems features"],
    grid: Sequence[float],
    controller: Mapping[str, Any],
) -> dict[str, Int[np.ndarray, "..."]]:
    """Return the decision that each arm of a run with live rollouts makes on each problem.

    Args:
        observations: Features of the problems, as controllers see them.
        grid: The gates that a decision chooses among.
        controller: What training saved; see ``ArmInputs``.

    Returns:
        Indices into the grid by arm: RL's are ``[seeds, problems, dims]``, those of its selected
        seed and of the arms with a constant gate ``[problems, dims]``.
    """
    constant = [arm for arm in ARMS.values() if arm.gate is not None]
    arms = [ARMS[SUBJECT], ARMS[SELECTED], *constant]
    return _spread(_decide_all(arms, observations, grid, controller))


def learned_decisions(
    observations: Float[np.ndarray, "problems features"], controller: Mapping[str, Any]
) -> dict[str, Int[np.ndarray, "..."]]:
    """Return the decisions that training saved, which need neither table nor controls.

    Args:
        observations: Features of the problems, as controllers see them.
        controller: What training saved; see ``ArmInputs``.

    Returns:
        Indices into the grid by arm: RL's are ``[seeds, problems, dims]``; those of its selected
        seed, and of the best fixed gate where training saw a table, are ``[problems, dims]``.
    """
    names = (SUBJECT, SELECTED, *([BEST_FIXED] if BEST_FIXED in controller else []))
    return _spread(_decide_all([ARMS[name] for name in names], observations, (), controller))


def _decide_all(
    arms: Sequence[Arm],
    observations: Float[np.ndarray, "problems features"],
    grid: Sequence[float],
    controller: Mapping[str, Any],
    controls: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Decisions]:
    """Return the decisions of arms on problems whose features are known."""
    inputs = ArmInputs(
        grid=grid,
        seed=0,  # of the random arm, of which tables have the expectation
        has_table=True,
        observe=lambda _: np.asarray(observations, np.float32),
        controller=lambda: controller,
        controls=lambda: controls,
    )
    texts = [""] * len(observations)
    return {arm.name: decide(arm, texts, inputs) for arm in arms}


def _spread(decisions: dict[str, Decisions]) -> dict[str, Decisions]:
    """Return decisions on one number as decisions on as many as RL's."""
    shape = decisions[SELECTED].shape
    return {
        name: indices if indices.ndim > 2 else np.broadcast_to(indices, shape)
        for name, indices in decisions.items()
    }


def check_available(arm: Arm, *, has_table: bool) -> None:
    """Refuse an arm that gives no single gate to a prompt, or that a run without a table lacks.

    Raises:
        UserError: With a sentence that says which arms there are.
    """
    if not arm.gate_per_prompt:
        raise UserError(
            f"arm {arm.name} does not give one gate to a prompt; "
            f"choose of {', '.join(selectable())}"
        )
    if "table" in arm.needs and not has_table:
        raise UserError(
            f"arm {arm.name} learns from the rewards of all gates, and a run with live rollouts "
            f"has no such table; choose {_without_table()}"
        )


def _without_table() -> str:
    """Return the arms that need no table: ``baseline, fixed:G, random or rl``."""
    *others, last = selectable(table=False)
    return f"{', '.join(others)} or {last}"
