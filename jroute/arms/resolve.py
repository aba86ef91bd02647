"""From an arm to gates: the one resolution that tables, live judging and lm-eval share."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from jroute.arms.columns import arm_columns
from jroute.arms.controls import random_choices
from jroute.arms.registry import ARMS, SELECTED, SUBJECT, Arm, from_controls, selectable
from jroute.arms.rl import choices_of_seeds, decisions_of_seeds
from jroute.arms.supervised import LENGTH, choices_of_regressor
from jroute.controller import networks
from jroute.utils.errors import UserError

REGRESSORS = ("supervised", *from_controls())
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
    if arm.name == "random":
        return random_choices(prompts, len(inputs.grid), inputs.seed)
    if arm.name == "best_fixed":
        return np.full(len(prompts), int(inputs.controller()["best_fixed"]))
    if arm.name == "rl":
        controller = inputs.controller()["rl"]
        decisions = np.asarray(networks.act(controller, jnp.asarray(inputs.observe(prompts))))
        return decisions if inputs.num_gate_dims > 1 else decisions[:, 0]
    if inputs.num_gate_dims > 1:
        raise UserError(
            f"arm {arm.name} chooses one gate for a prompt, and a decision of this run has "
            f"{inputs.num_gate_dims} numbers; choose baseline, fixed:G, random or rl"
        )
    source = inputs.controls if arm.name in from_controls() else inputs.controller
    return _regressor_choices(arm.name, inputs.observe(prompts), source())


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
        best_fixed=int(controller["best_fixed"]),
        selected=int(controller["selected"]),
        **learned_choices(observations, controller, controls),  # type: ignore[arg-type]
    )


def live_columns(
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
    decisions = decisions_of_seeds(controller["seeds"], observations)
    constant = {arm.name: arm.gate for arm in ARMS.values() if arm.gate is not None}
    return {
        SUBJECT: decisions,
        SELECTED: decisions[int(controller["selected"])],
        **{
            name: np.full(decisions.shape[1:], list(grid).index(gate))
            for name, gate in constant.items()
        },
    }


def learned_choices(
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
    trained = {**controls, "supervised": controller["supervised"]}
    return {
        "rl": choices_of_seeds(controller["seeds"], x),
        **{name: _regressor_choices(name, x, trained) for name in REGRESSORS},
        "random_reward": choices_of_seeds(controls["random_reward"], x),
        "rl_modal": np.asarray(controls["rl_modal"]),
    }


def _regressor_choices(
    name: str, observations: Float[np.ndarray, "prompts features"], trained: Mapping[str, Any]
) -> Int[np.ndarray, " prompts"]:
    x = observations[:, LENGTH] if name == "supervised" else observations
    return choices_of_regressor(trained[name], x)


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
            "has no such table; choose baseline, fixed:G, random or rl"
        )
