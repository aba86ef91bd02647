"""Policies: from a prompt to its gate, under an arm or without routing."""

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jroute.arms.registry import BASELINE, FIXED, fixed_name, generable, parse_arm
from jroute.arms.resolve import check_available
from jroute.experiment.config import Experiment
from jroute.experiment.run import Run
from jroute.harness.cache_names import array_digest
from jroute.routing.gate import Gate, GateArray, as_gate
from jroute.utils.errors import UserError

logger = logging.getLogger(__name__)

GatePolicy = Callable[[list[str]], GateArray]
"""Prompts to their gates, ``[prompts]`` or ``[prompts, gate_dims]``, each from its own prompt
alone."""


@dataclass(frozen=True)
class ArmPolicy:
    """An arm as a policy.

    Attributes:
        name: Name of the arm.
        choose: Prompts to gates.
        identity: Distinguishes the policy from every other that may choose other gates.
        render: The prompt of a question, in the form that the arm learned from; ``None`` for an arm
            that does not read prompts.
    """

    name: str
    choose: GatePolicy
    identity: str
    render: Callable[[str], str] | None = None

    def __call__(self, prompts: list[str]) -> GateArray:
        """Return the gates of prompts."""
        return self.choose(prompts)


def run_policy(run: Run, name: str) -> ArmPolicy:
    """Return an arm of a run as a policy.

    Args:
        run: The run.
        name: Name of the arm.

    Raises:
        UserError: The run has no such arm, or not yet.
    """
    arm = parse_arm(name)
    if arm.gate is not None:
        return model_policy(name)
    check_available(arm, has_table=run.arm_inputs().has_table)
    identity: dict[str, Any] = {"gates": run.grid.values, "seed": run.experiment.seed}
    if "training" in arm.needs:
        identity["controller"] = array_digest(run.controllers.trained)
    if "controls" in arm.needs:
        identity["controls"] = array_digest(run.controllers.controls)
    return ArmPolicy(
        name,
        lambda prompts: run.gates(name, prompts),
        f"{name} {hashlib.sha256(repr(identity).encode()).hexdigest()}",
        run.data.render if arm.reads_prompt else None,
    )


def model_policy(name: str) -> ArmPolicy:
    """Return an arm that needs no run as a policy.

    Raises:
        UserError: The arm needs a run, or does not exist.
    """
    arm = parse_arm(name)
    if arm.gate is None:
        raise UserError(
            f"arm {name!r} belongs to a run; without one there are {BASELINE} and {FIXED}G"
        )
    return ArmPolicy(name, constant(arm.gate), f"constant {arm.gate!r}")


def constant(gate: float) -> GatePolicy:
    """Return the policy that gives one gate to all prompts."""
    return lambda prompts: np.full(len(prompts), gate, np.float64)


def available_arms(run: Run) -> list[str]:
    """Return the arms that a run has; a warning says why it lacks the others."""
    available = []
    for name in generable():
        try:
            run_policy(run, name)
        except UserError as error:
            logger.warning("arm %s is left out: %s", name, error)
            continue
        available.append(name)
    return available


def model_arms() -> list[str]:
    """Return the arms of a model without a run: the gates of an experiment's default grid."""
    return [BASELINE if gate == 0 else fixed_name(gate) for gate in Experiment.gates]


class ContextGates:
    """The gates of contexts; each context goes to the policy once.

    Args:
        policy: Chooses gates; ``None`` is the model without routing.
    """

    def __init__(self, policy: GatePolicy | None):
        self._policy = policy
        self._gates: GateArray = np.zeros(1)
        self._rows = {"": 0}  # the empty context has gate 0, everywhere

    def __getitem__(self, context: str) -> Gate | None:
        """Return the gate chosen for a context, as records hold it; 0 for the empty one."""
        if self._policy is None:
            return None
        return as_gate(self._gates[self._rows[context]]) if context else 0.0

    def __contains__(self, context: str) -> bool:
        return bool(context) and context in self._rows

    def choose(self, contexts: Sequence[str], visible: Callable[[str], str]) -> None:
        """Choose gates for contexts that have none yet.

        Args:
            contexts: Texts; the empty one needs no choice.
            visible: What the policy sees of a context: as much of it as the model does.
        """
        new = [c for c in dict.fromkeys(contexts) if c not in self._rows]
        if self._policy is None or not new:
            return
        gates = np.asarray(self._policy([visible(context) for context in new]), np.float64)
        if len(self._rows) == 1:  # the first gates say how many numbers a gate has
            self._gates = np.zeros((1, *gates.shape[1:]))
        fits = gates.ndim in (1, 2) and gates.shape == (len(new), *self._gates.shape[1:])
        if not fits or not np.isfinite(gates).all():
            raise ValueError(f"the gate policy of {len(new)} prompts gave {gates!r}")
        self._gates = np.concatenate([self._gates, gates])
        self._rows |= {context: row for row, context in enumerate(new, start=len(self._rows))}

    def array(self, contexts: Sequence[str]) -> GateArray | None:
        """Return the gates of contexts as the model takes them."""
        if self._policy is None:
            return None
        return self._gates[[self._rows[context] for context in contexts]]
