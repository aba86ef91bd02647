"""From an arm to gates: the one resolution that tables, live judging and lm-eval share."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from jroute.arms.columns import arm_columns
from jroute.arms.controls import random_columns
from jroute.arms.registry import (
    ARMS,
    BEST_FIXED,
    RANDOM,
    RANDOM_REWARD,
    RL_MODAL,
    SELECTED,
    SUBJECT,
    SUPERVISED,
    Arm,
    from_controls,
    selectable,
)
from jroute.arms.rl import columns_of_seeds, decisions_of_policy, decisions_of_seeds
from jroute.arms.supervised import LENGTH, columns_of_regressor
from jroute.utils.errors import UserError

REGRESSORS = (SUPERVISED, *from_controls())
"""Arms that predict a value of every gate and take the largest."""


@dataclass(frozen=True)
class ArmInputs:
    """What arms choose gates from; nothing is read before an arm needs it.

    Attributes:
        grid: The gates that a decision chooses among.
        seed: Seed of the experiment, which the ``random`` arm draws by.
        num_gate_dims: Numbers in one decision: 1, or one for each band or mixing site.
        has_table: Whether training saw the rewards of all gates; not so with live rollouts.
        observe: Prompts to the features that controllers see, ``[prompts, features]``.
        controller: Returns what training saved: ``best_fixed``, ``supervised``, ``rl``, ``seeds``,
            ``selected``. Raises ``UserError`` before training.
        controls: Returns what judging trained; see ``jroute.arms.controls.fit_controls``. Raises
            ``UserError`` before judging, or trains.
    """

    grid: Sequence[float]
    seed: int
    num_gate_dims: int
    has_table: bool
    observe: Callable[[Sequence[str]], Float[np.ndarray, "prompts features"]]
    controller: Callable[[], Mapping[str, Any]]
    controls: Callable[[], Mapping[str, Any]]


def resolve(
    arm: Arm, prompts: Sequence[str], inputs: ArmInputs
) -> Float[np.ndarray, "prompts *dims"]:
    """Return the gate an arm gives to each prompt, from the prompt alone.

    Args:
        arm: An arm with one gate per prompt; see ``jroute.arms.registry.parse_arm``.
        prompts: Texts as the model reads them.
        inputs: What the arm chooses from.

    Returns:
        ``[prompts]``; ``[prompts, dims]`` where RL decides on several numbers (one per band or
        mixing site, not yet spread over layers). One number holds for all bands and layers.

    Raises:
        UserError: The run has no such arm, or not yet.
    """
    check_available(arm, has_table=inputs.has_table)
    if arm.gate is not None:
        return np.full(len(prompts), arm.gate)
    grid = np.asarray(inputs.grid, np.float64)
    return grid[decide(arm, prompts, inputs)]


def decide(arm: Arm, prompts: Sequence[str], inputs: ArmInputs) -> Int[np.ndarray, "prompts *dims"]:
    """Return the index in the grid of the gate that an arm gives to each prompt.

    Args:
        arm: An arm that decides, of those with one gate per prompt.
        prompts: Texts as the model reads them.
        inputs: What the arm chooses from.

    Raises:
        UserError: The run has no such arm, or not yet.
    """
    check_available(arm, has_table=inputs.has_table)
    if arm.name == RANDOM:
        return random_columns(prompts, len(inputs.grid), inputs.seed)
    if arm.name == BEST_FIXED:
        return np.full(len(prompts), int(inputs.controller()[BEST_FIXED]))
    if arm.name == SUBJECT:
        controller = inputs.controller()[SUBJECT]
        decisions = decisions_of_policy(controller, inputs.observe(prompts))
        return decisions if inputs.num_gate_dims > 1 else decisions[:, 0]
    if inputs.num_gate_dims > 1:
        raise UserError(
            f"arm {arm.name} chooses one gate for a prompt, and a decision of this run has "
            f"{inputs.num_gate_dims} numbers; choose {_without_table()}"
        )
    source = inputs.controls if arm.name in from_controls() else inputs.controller
    return _regressor_columns(arm.name, inputs.observe(prompts), source())


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
    return arm_columns(
        len(observations),
        grid,
        best_fixed=int(controller[BEST_FIXED]),
        selected=int(controller["selected"]),
        **learned_columns(observations, controller, controls),  # type: ignore[arg-type]
    )


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
    decisions = learned_decisions(observations, controller)
    constant = {arm.name: arm.gate for arm in ARMS.values() if arm.gate is not None}
    shape = decisions[SELECTED].shape
    return decisions | {
        name: np.full(shape, list(grid).index(gate)) for name, gate in constant.items()
    }


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
    seeds = decisions_of_seeds(controller["seeds"], observations)
    decisions = {SUBJECT: seeds, SELECTED: seeds[int(controller["selected"])]}
    if BEST_FIXED in controller:
        decisions[BEST_FIXED] = np.full(seeds.shape[1:], int(controller[BEST_FIXED]))
    return decisions


def learned_columns(
    observations: Float[np.ndarray, "problems features"],
    controller: Mapping[str, Any],
    controls: Mapping[str, Any],
) -> dict[str, Int[np.ndarray, "..."]]:
    """Return the columns that every learned arm chooses, as ``arm_columns`` takes them.

    Args:
        observations: Features of the problems, as controllers see them.
        controller: What training saved: of it, ``seeds`` and ``supervised``.
        controls: What judging trained.
    """
    x = np.asarray(observations, np.float32)
    trained = {**controls, SUPERVISED: controller[SUPERVISED]}
    return {
        SUBJECT: columns_of_seeds(controller["seeds"], x),
        **{name: _regressor_columns(name, x, trained) for name in REGRESSORS},
        RANDOM_REWARD: columns_of_seeds(controls[RANDOM_REWARD], x),
        RL_MODAL: np.asarray(controls[RL_MODAL]),
    }


def _regressor_columns(
    name: str, observations: Float[np.ndarray, "prompts features"], trained: Mapping[str, Any]
) -> Int[np.ndarray, " prompts"]:
    x = observations[:, LENGTH] if name == SUPERVISED else observations
    return columns_of_regressor(trained[name], x)


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
