"""The environment as Gymnasium knows it: one prompt, or a batch of prompts.

An episode is one prompt: the observation is its features, the action picks a gate, the reward
comes from an `OutcomeBackend`, and the episode is over. Text travels in ``info``.
"""

import importlib
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import Env, spaces
from gymnasium.envs.registration import register, registry
from gymnasium.error import InvalidAction, ResetNeeded
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from jaxtyping import Bool, Float, Float32, Float64, Int

from jroute.envs.outcomes import Outcome, OutcomeBackend
from jroute.errors import UserError
from jroute.tasks.problem import Problem

ROUTING_ID = "jroute/Routing-v0"

# Every observation begins with these two; what follows are features of one base prefill.
LEADING_FEATURES = ("prompt_length", "length_bucket")


@dataclass(frozen=True, eq=False)
class EnvData:
    """Everything an environment is made of; never changed, so environments share it.

    Attributes:
        problems: The problems that episodes are drawn from.
        prompts: Prompt text of each problem.
        observations: Features of each problem; kept as a read-only float32 copy.
        feature_names: Name of each feature, beginning with `LEADING_FEATURES`.
        gates: The gate of each action.
        backend: Says what a gate gives on a problem.

    Raises:
        UserError: If the parts do not fit together.
    """

    problems: Sequence[Problem] = field(repr=False)
    prompts: Sequence[str] = field(repr=False)
    observations: Float[np.ndarray, "problems features"] = field(repr=False)
    feature_names: Sequence[str]
    gates: Sequence[float]
    backend: OutcomeBackend = field(repr=False)
    rows: Mapping[str, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Check that the parts belong together and freeze them."""
        observations = np.array(self.observations, dtype=np.float32)
        problems, features = observations.shape
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
                "not finite: look at how it was computed"
            )
        if not self.gates or len(set(self.gates)) != len(self.gates):
            raise UserError(f"an environment needs gates that differ, got {tuple(self.gates)}")
        rows = {problem.id: row for row, problem in enumerate(self.problems)}
        if len(rows) != problems:
            raise UserError("two problems of an environment have the same id: make ids unique")
        observations.setflags(write=False)
        for name in ("problems", "prompts", "feature_names", "gates"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "observations", observations)
        object.__setattr__(self, "rows", rows)

    def __deepcopy__(self, memo: dict[int, Any]) -> "EnvData":
        """Itself: Gymnasium copies specs deeply, and a backend may hold a whole model."""
        return self

    def row(self, problem_id: str) -> int:
        """The row of a problem.

        Raises:
            UserError: If it is not one of this environment's.
        """
        if problem_id not in self.rows:
            raise UserError(
                f"no problem {problem_id!r} among the {len(self.problems)} of this environment: "
                f"ids look like {self.problems[0].id!r}"
            )
        return self.rows[problem_id]

    def observation_space(self) -> spaces.Box:
        """Any finite features: the same space for every split, whatever values occur in it."""
        limit = float(np.finfo(np.float32).max)
        return spaces.Box(-limit, limit, shape=self.observations.shape[1:], dtype=np.float32)

    def prompt_info(self, row: int) -> dict[str, Any]:
        """What ``info`` tells of a problem before it is answered."""
        return {"problem_id": self.problems[row].id, "prompt": self.prompts[row]}

    def outcome_info(self, row: int, outcome: Outcome) -> dict[str, Any]:
        """What ``info`` tells of a problem that was answered."""
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


def _load(data: EnvData | None, run: str | Path | None, split: str) -> EnvData:
    if (data is None) == (run is None):
        raise UserError(
            "a routing environment is made either of data=EnvData(...) or of run='<run folder>', "
            "give exactly one"
        )
    if data is not None:
        return data
    # Run folders belong to a floor above, which imports this module; so they are reached by name.
    return importlib.import_module("jroute.run").environment_data(run, split)


def _check_options(options: Mapping[str, Any] | None, known: Sequence[str]) -> Mapping[str, Any]:
    options = options or {}
    for name in options:
        if name not in known:
            raise UserError(
                f"unknown reset option {name!r}: this environment knows {', '.join(known)}"
            )
    return options


def _problem_rows(data: EnvData, options: Mapping[str, Any], count: int) -> list[int] | None:
    if "problem_ids" not in options:
        return None
    problem_ids = options["problem_ids"]
    if isinstance(problem_ids, str) or len(problem_ids) != count:
        raise UserError(
            f"options['problem_ids'] must be a list of {count}, one problem id for each prompt of "
            f"the environment; got {problem_ids!r}"
        )
    return [data.row(problem_id) for problem_id in problem_ids]


class RoutingEnv(Env[np.ndarray, np.int64]):
    """One prompt per episode, one step per episode.

    ``reset(options={"problem_ids": [id]})`` asks for one problem; otherwise each is equally likely.
    The ``info`` of a reset has ``problem_id`` and ``prompt``; that of a step also ``gate``,
    ``completion``, ``tokens``, ``stop_reason``, ``parsed``, ``status`` and ``correct``.

    Attributes:
        data: What the environment is made of.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 (Gymnasium's own declaration)

    def __init__(
        self, data: EnvData | None = None, *, run: str | Path | None = None, split: str = "test"
    ) -> None:
        """Make the environment from data in hand, or from a split of a run folder.

        Raises:
            UserError: Unless exactly one of ``data`` and ``run`` is given.
        """
        self.data = _load(data, run, split)
        self.observation_space = self.data.observation_space()
        self.action_space = spaces.Discrete(len(self.data.gates))
        self._row: int | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode.

        Args:
            seed: Starts the random stream that problems are drawn from anew.
            options: ``problem_ids``, a list of one id.

        Raises:
            UserError: If an option or the problem is unknown.
        """
        rows = _problem_rows(self.data, _check_options(options, ("problem_ids",)), 1)
        super().reset(seed=seed)
        self._row = rows[0] if rows else int(self.np_random.integers(len(self.data.problems)))
        return self.data.observations[self._row].copy(), self.data.prompt_info(self._row)

    def step(self, action: np.int64 | int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Answer the prompt under the chosen gate; the observation stays the prompt's.

        Raises:
            ResetNeeded: If the episode is over or never began.
            InvalidAction: If the action is not an index of a gate.
        """
        if self._row is None:
            raise ResetNeeded("an episode is one step: call reset() before each step()")
        index = operator.index(action)
        if not 0 <= index < len(self.data.gates):
            raise InvalidAction(f"action {index} is no gate, there are {len(self.data.gates)}")
        row = self._row
        [outcome] = self.data.backend.outcomes([self.data.problems[row]], [self.data.gates[index]])
        self._row = None
        observation = self.data.observations[row].copy()
        info = self.data.outcome_info(row, outcome)
        return observation, float(outcome.reward), True, False, info


class RoutingVectorEnv(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """A batch of prompts, answered together by one call of the backend.

    Transition by transition it is what `gymnasium.vector.SyncVectorEnv` makes of `RoutingEnv` with
    ``AutoresetMode.SAME_STEP``: every step ends every episode, so the returned observations and
    top-level infos belong to the next prompts, and what was answered is in ``final_obs`` and
    ``final_info``. ``reset(options={"problem_ids": [...]})`` names the problem of each row.

    Attributes:
        data: What the environment is made of.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 (Gymnasium's own declaration)
        "render_modes": [],
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

    def __init__(
        self,
        num_envs: int = 1,
        data: EnvData | None = None,
        *,
        run: str | Path | None = None,
        split: str = "test",
    ) -> None:
        """Make the environment from data in hand, or from a split of a run folder.

        Raises:
            UserError: Unless exactly one of ``data`` and ``run`` is given.
        """
        self.data = _load(data, run, split)
        self.num_envs = num_envs
        self.single_observation_space = self.data.observation_space()
        self.single_action_space = spaces.Discrete(len(self.data.gates))
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        # One stream per row, so that a row does not depend on its neighbours.
        self._streams = [seeding.np_random() for _ in range(num_envs)]
        self._rows: Int[np.ndarray, " envs"] | None = None

    @property
    def np_random(self) -> tuple[np.random.Generator, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The random stream of each row."""
        return tuple(generator for generator, _ in self._streams)

    @property
    def np_random_seed(self) -> tuple[int, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The seed that each row's random stream began with."""
        return tuple(seed for _, seed in self._streams)

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Float32[np.ndarray, "envs features"], dict[str, Any]]:
        """Begin the episodes of all rows, or of some.

        Args:
            seed: ``seed + i`` starts the random stream of row i anew; or a list, one seed or None
                for each row.
            options: ``problem_ids``, a list of one id per row; ``reset_mask``, a boolean array:
                only its true rows begin anew (and are seeded), the others keep their prompts and
                have no infos. The dictionary is left as it is.

        Raises:
            UserError: If an option or a problem is unknown.
            TypeError: If the mask is no array of booleans.
            ValueError: If the mask or the list of seeds has the wrong length, or no row is chosen.
            ResetNeeded: If only some rows are reset although none has begun.
        """
        asked = _check_options(options, ("problem_ids", "reset_mask"))
        chosen = _problem_rows(self.data, asked, self.num_envs)
        mask = self._reset_mask(asked)
        seeds = self._row_seeds(seed)
        if self._rows is None and not mask.all():
            raise ResetNeeded("call reset() for all rows before resetting some of them")
        for i in np.flatnonzero(mask):
            if (row_seed := seeds[i]) is not None:
                self._streams[i] = seeding.np_random(row_seed)
        return self._begin(mask, chosen)

    def step(
        self, actions: np.ndarray
    ) -> tuple[
        Float32[np.ndarray, "envs features"],
        Float64[np.ndarray, " envs"],
        Bool[np.ndarray, " envs"],
        Bool[np.ndarray, " envs"],
        dict[str, Any],
    ]:
        """Answer every prompt under its gate and draw the next prompts.

        Raises:
            ResetNeeded: If no episode has begun.
            InvalidAction: Unless the actions are one index of a gate for each row.
        """
        if self._rows is None:
            raise ResetNeeded("call reset() before the first step()")
        data, answered = self.data, self._rows
        actions = np.asarray(actions)
        if actions.shape != (self.num_envs,) or actions.dtype.kind not in "iu":
            raise InvalidAction(
                f"actions must be {self.num_envs} integers, one per row; got an array of shape "
                f"{actions.shape} and type {actions.dtype}"
            )
        if np.any((actions < 0) | (actions >= len(data.gates))):
            raise InvalidAction(f"{actions} are not all gates, there are {len(data.gates)}")
        outcomes = data.backend.outcomes(
            [data.problems[row] for row in answered], [data.gates[action] for action in actions]
        )
        infos: dict[str, Any] = {}
        final = data.observations[answered]
        for i, (row, outcome) in enumerate(zip(answered.tolist(), outcomes, strict=True)):
            ended = {"final_obs": final[i], "final_info": data.outcome_info(row, outcome)}
            infos = self._add_info(infos, ended, i)
        observations, begun = self._begin(np.ones(self.num_envs, dtype=np.bool_), None)
        return (
            observations,
            np.array([outcome.reward for outcome in outcomes], dtype=np.float64),
            np.ones(self.num_envs, dtype=np.bool_),
            np.zeros(self.num_envs, dtype=np.bool_),
            infos | begun,
        )

    def _begin(
        self, mask: Bool[np.ndarray, " envs"], chosen: list[int] | None
    ) -> tuple[Float32[np.ndarray, "envs features"], dict[str, Any]]:
        """Give the masked rows their next problems; observations of all rows, infos of those."""
        rows = np.zeros(self.num_envs, dtype=np.int64) if self._rows is None else self._rows.copy()
        infos: dict[str, Any] = {}
        for i in np.flatnonzero(mask):
            generator, _ = self._streams[i]
            rows[i] = chosen[i] if chosen else generator.integers(len(self.data.problems))
            infos = self._add_info(infos, self.data.prompt_info(int(rows[i])), int(i))
        self._rows = rows
        return self.data.observations[rows], infos

    def _reset_mask(self, options: Mapping[str, Any]) -> Bool[np.ndarray, " envs"]:
        """The rows to reset, under the rules that Gymnasium's own vector environments follow."""
        if "reset_mask" not in options:
            return np.ones(self.num_envs, dtype=np.bool_)
        mask = options["reset_mask"]
        if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_:
            kind = f"an array of {mask.dtype}" if isinstance(mask, np.ndarray) else type(mask)
            raise TypeError(f"options['reset_mask'] must be a numpy array of bool, got {kind}")
        if mask.shape != (self.num_envs,):
            raise ValueError(
                f"options['reset_mask'] must have shape ({self.num_envs},), got {mask.shape}"
            )
        if not mask.any():
            raise ValueError("options['reset_mask'] must choose at least one row")
        return mask

    def _row_seeds(self, seed: int | Sequence[int | None] | None) -> list[int | None]:
        if seed is None:
            return [None] * self.num_envs
        if isinstance(seed, int):
            return [seed + i for i in range(self.num_envs)]
        if len(seed) != self.num_envs:
            raise ValueError(f"seed must be a number or {self.num_envs} of them, got {len(seed)}")
        return list(seed)


def register_environments() -> None:
    """Make the ids known to ``gymnasium.make`` and ``gymnasium.make_vec``; harmless if repeated."""
    if ROUTING_ID not in registry:
        register(
            id=ROUTING_ID,
            entry_point="jroute.envs.gymnasium:RoutingEnv",
            vector_entry_point="jroute.envs.gymnasium:RoutingVectorEnv",
        )
