"""From the context of a request to its gate: policies, and prompts that a policy does not know."""

import hashlib
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jroute.arms import registry
from jroute.harness.cache_names import array_digest
from jroute.routing.gate import Gate
from jroute.utils.errors import UserError

logger = logging.getLogger(__name__)

GatePolicy = Callable[[list[str]], Any]
"""Prompts to their gates, ``[prompts]`` or ``[prompts, parts]``, each from its own prompt alone."""

MODEL_ARMS = ("baseline", "fixed:0.25", "fixed:0.5", "fixed:0.75", "fixed:1")
"""What ``all`` means for a model without a run: the grid that experiments have by default."""

_PLACE = "\u27e6question\u27e7"
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class ArmPolicy:
    """An arm as a policy.

    Attributes:
        name: Of the arm.
        choose: Prompts to gates.
        identity: Tells it from every policy that could choose otherwise.
        render: The prompt of a question, as the arm has learnt from; ``None`` for an arm that has
            not learnt to look at prompts.
    """

    name: str
    choose: GatePolicy
    identity: str
    render: Callable[[str], str] | None = None

    def __call__(self, prompts: list[str]) -> Any:
        """The gates of prompts."""
        return self.choose(prompts)


def run_policy(run: Any, arm: str) -> ArmPolicy:
    """An arm of a ``jroute.experiment.run.Run``.

    Raises:
        UserError: The run has no such arm.
    """
    if registry.parse_arm(arm).gate is not None:
        return model_policy(arm)
    run.gates(arm, run.prompts(run.experiment.judged[0])[:1])  # complain now of a wrong arm
    about: dict[str, Any] = {"gates": run.gate_values, "seed": run.experiment.seed}
    if arm != "random":
        about["controller"] = array_digest(run.controller)
    if arm in registry.from_controls():
        about["controls"] = array_digest(run.controls)
    return ArmPolicy(
        arm,
        lambda prompts: run.gates(arm, prompts),
        f"{arm} {hashlib.sha256(repr(about).encode()).hexdigest()}",
        run.render if arm in registry.reading() else None,
    )


def model_policy(arm: str) -> ArmPolicy:
    """An arm that needs no run.

    Raises:
        UserError: It needs one.
    """
    gate = registry.parse_arm(arm).gate
    if gate is None:
        raise UserError(f"arm {arm!r} belongs to a run; without one there are baseline and fixed:G")
    return ArmPolicy(arm, constant(gate), f"constant {gate!r}")


def constant(gate: float) -> GatePolicy:
    """One gate for all prompts."""
    return lambda prompts: np.full(len(prompts), gate)


def available_arms(run: Any) -> list[str]:
    """The arms that a run has; of those it has not, a warning says why."""
    found = []
    for arm in registry.generable():
        try:
            run_policy(run, arm)
        except UserError as error:
            logger.warning("arm %s is left out: %s", arm, error)
            continue
        found.append(arm)
    return found


def is_foreign(context: str, doc: Any, render: Callable[[str], str]) -> bool:
    """Whether a prompt is not made as ``render`` makes them.

    It is one of ``render``'s if it is what ``render`` makes of a field of its document, or of some
    text that holds no word which the document does not hold: other wording around the question,
    or examples before it, are foreign.

    Args:
        context: The prompt.
        doc: Its document, as the harness has it.
        render: The prompt of a question.
    """
    values = doc.values() if isinstance(doc, Mapping) else [doc]
    texts = [value for value in values if isinstance(value, str)]
    if any(render(text) == context for text in texts if text.strip() and text.strip() in context):
        return False
    around = render(_PLACE).split(_PLACE)
    places = len(around) - 1
    spare = len(context) - sum(map(len, around))
    if not places or spare < 0 or spare % places:
        return True
    question = context[len(around[0]) : len(around[0]) + spare // places]
    known = set(_WORD.findall(" ".join(texts)))
    return question.join(around) != context or not set(_WORD.findall(question)) <= known


class Gates:
    """The gates of contexts, each put to the policy once.

    Args:
        policy: Chooses them; ``None`` is the model without routing.
    """

    def __init__(self, policy: GatePolicy | None):
        self.policy = policy
        self._known: dict[str, Gate | None] = {}

    def __getitem__(self, context: str) -> Gate | None:
        """The gate chosen for a context; 0 for the empty one."""
        if self.policy is None:
            return None
        return self._known[context] if context else 0.0

    def __contains__(self, context: str) -> bool:
        return context in self._known

    def choose(self, contexts: Sequence[str], shown: Callable[[str], str]) -> None:
        """Chooses gates for contexts that have none yet.

        Args:
            contexts: Texts; empty ones need no choice.
            shown: What the policy sees of a context: as much of it as the model does.
        """
        new = [c for c in dict.fromkeys(contexts) if c and c not in self._known]
        if self.policy is None or not new:
            return
        gates = np.asarray(self.policy([shown(context) for context in new]), np.float64)
        if gates.ndim not in (1, 2) or len(gates) != len(new) or not np.isfinite(gates).all():
            raise ValueError(f"the gate policy of {len(new)} prompts gave {gates!r}")
        for context, gate in zip(new, gates.tolist(), strict=True):
            self._known[context] = tuple(gate) if isinstance(gate, list) else gate

    def array(self, contexts: Sequence[str]) -> np.ndarray | None:
        """Gates of contexts as the model takes them, ``[contexts]`` or ``[contexts, parts]``."""
        if self.policy is None:
            return None
        gates = [self[context] for context in contexts]
        parts = max((len(gate) for gate in gates if isinstance(gate, tuple)), default=0)
        if parts:  # an empty context has one gate only: 0 everywhere
            gates = [gate if isinstance(gate, tuple) else (gate,) * parts for gate in gates]
        return np.asarray(gates, np.float32)
