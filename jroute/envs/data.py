"""The data of an environment: problems with their features, the grid of gates, a backend."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.error import InvalidAction
from jaxtyping import Float

from jroute.outcomes.backends import OutcomeBackend
from jroute.outcomes.outcome import Outcome
from jroute.routing.gate import Gate, check_gates
from jroute.tasks.problem import Problem
from jroute.utils.errors import UserError
from jroute.utils.inputs import list_of
from jroute.utils.ranges import whole

# Every observation begins with these two; features of one prefill of the base model follow.
LEADING_FEATURES = ("prompt_length", "length_bucket")


class InvalidActionError(UserError, InvalidAction):
    """Gymnasium's exception for an action outside the action space, with one sentence."""


@dataclass(frozen=True, eq=False)
class EnvData:
    """The immutable data of an environment, which several environments may share.

    Attributes:
        problems: The problems that episodes are drawn from.
        prompts: Prompt text of each problem.
        observations: Features of each problem; kept as a read-only float32 copy.
        feature_names: Name of each feature, beginning with ``LEADING_FEATURES``.
        gates: The grid of gates: the gate of each action, or of each of its choices.
        backend: Gives the outcome of a gate on a problem.
        num_gate_dims: Numbers in one decision: 1 is a single gate for the whole depth
            (``Discrete``); more are one for each band or mixing site (``MultiDiscrete``).

    Raises:
        UserError: The fields do not fit together.
    """

    problems: Sequence[Problem] = field(repr=False)
    prompts: Sequence[str] = field(repr=False)
    observations: Float[np.ndarray, "problems features"] = field(repr=False)
    feature_names: Sequence[str]
    gates: Sequence[float]
    backend: OutcomeBackend = field(repr=False)
    num_gate_dims: int = 1
    rows: Mapping[str, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Check that the fields fit together and freeze them."""
        for name in ("problems", "prompts", "feature_names", "gates"):
            list_of(getattr(self, name), name)
        try:
            observations = np.array(self.observations, dtype=np.float32)
            problems, features = observations.shape
        except (TypeError, ValueError):
            raise UserError(
                "observations of an environment must be numbers [problems, features]"
            ) from None
        if not len(self.problems) == len(self.prompts) == problems > 0:
            raise UserError(
                f"an environment needs one prompt and one row of features per problem, got "
                f"{len(self.problems)} problems, {len(self.prompts)} prompts and {problems} rows"
            )
        if tuple(self.feature_names[:2]) != LEADING_FEATURES or len(self.feature_names) != features:
            raise UserError(
                f"feature names must be {features}, one per feature, beginning with "
                f"{', '.join(LEADING_FEATURES)}; got {', '.join(self.feature_names)}"
            )
        if not np.isfinite(observations).all():
            row, column = map(int, np.argwhere(~np.isfinite(observations))[0])
            raise UserError(
                f"feature {self.feature_names[column]} of problem {self.problems[row].id!r} is "
                "not finite: check how it was computed"
            )
        if not self.gates or len(set(self.gates)) != len(self.gates):
            raise UserError(f"an environment needs distinct gates, got {tuple(self.gates)}")
        check_gates(tuple(self.gates), "gates")
        if not whole(1).holds(self.num_gate_dims):
            raise UserError(f"num_gate_dims must be at least 1, got {self.num_gate_dims!r:.60}")
        if not isinstance(self.backend, OutcomeBackend):
            raise UserError(f"{self.backend!r:.60} is no backend; give one of jroute.outcomes")
        rows = {problem.id: row for row, problem in enumerate(self.problems)}
        if len(rows) != problems:
            raise UserError("two problems of an environment have the same id: make ids unique")
        observations.setflags(write=False)
        for name in ("problems", "prompts", "feature_names", "gates"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "observations", observations)
        object.__setattr__(self, "rows", rows)

    def __deepcopy__(self, memo: dict[int, Any]) -> "EnvData":
        """Return itself: Gymnasium deep-copies specs, and a backend may hold a whole model."""
        return self

    def row(self, problem_id: str) -> int:
        """Return the row of a problem.

        Raises:
            UserError: The environment does not have the problem.
        """
        if not isinstance(problem_id, str) or problem_id not in self.rows:
            raise UserError(
                f"no problem {problem_id!r} among the {len(self.problems)} of this environment: "
                f"ids look like {self.problems[0].id!r}"
            )
        return self.rows[problem_id]

    def observation_space(self) -> spaces.Box:
        """Return the space of all finite features, which is the same for every split."""
        limit = float(np.finfo(np.float32).max)
        return spaces.Box(-limit, limit, shape=self.observations.shape[1:], dtype=np.float32)

    def action_space(self) -> spaces.Discrete | spaces.MultiDiscrete:
        """Return the space of choices from the grid: one, or one for each gate dimension."""
        choices = len(self.gates)
        return (
            spaces.Discrete(choices)
            if self.num_gate_dims == 1
            else spaces.MultiDiscrete(np.full(self.num_gate_dims, choices))
        )

    def gates_of(self, actions: Any, count: int) -> list[Gate]:
        """Return the gates that a batch of actions stands for.

        Raises:
            InvalidAction: The actions are not ``count`` rows of indices into the grid.
        """
        actions = np.asarray(actions)
        shape = (count,) if self.num_gate_dims == 1 else (count, self.num_gate_dims)
        if actions.shape != shape or actions.dtype.kind not in "iu":
            raise InvalidActionError(
                f"actions must be integers of shape {shape}, got an array of shape {actions.shape} "
                f"and type {actions.dtype}"
            )
        if np.any((actions < 0) | (actions >= len(self.gates))):
            raise InvalidActionError(
                f"{actions} are not all indices of the {len(self.gates)} gates"
            )
        if self.num_gate_dims == 1:
            return [self.gates[i] for i in actions]
        return [tuple(self.gates[i] for i in row) for row in actions]

    def prompt_info(self, row: int) -> dict[str, Any]:
        """Return the ``info`` of a problem before it is answered."""
        return {"problem_id": self.problems[row].id, "prompt": self.prompts[row]}

    def outcome_info(self, row: int, outcome: Outcome) -> dict[str, Any]:
        """Return the ``info`` of a problem and its outcome."""
        return {
            **self.prompt_info(row),
            "gate": outcome.gate,
            "completion": outcome.completion,
            "tokens": outcome.tokens,
            "stop_reason": outcome.stop_reason,
            "parsed": outcome.parsed,
            "status": outcome.status,
            "correct": outcome.correct,
        }
