"""Gymnasium environments of one prompt, and of a batch of prompts.

An episode is one prompt: the observation is its features, the action chooses a gate (or one for
each band or site), the reward comes from an ``OutcomeBackend``, and the episode ends. ``info``
holds the texts.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import Env
from gymnasium.error import ResetNeeded
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from jaxtyping import Bool, Float32, Float64, Int

from jroute.envs.data import EnvData
from jroute.outcomes.outcome import Outcome
from jroute.routing.gate import Gate
from jroute.utils.errors import UserError, UserTypeError, UserValueError
from jroute.utils.inputs import check_kind, check_text, list_of
from jroute.utils.ranges import whole

SplitData = EnvData | Mapping[str, EnvData] | Callable[[str], EnvData]
"""The data of one split, of several splits by name, or a loader from a split's name to its data."""


class ResetNeededError(UserError, ResetNeeded):
    """Gymnasium's exception for a step outside an episode, with a ``UserError``'s sentence."""


def check_seed(seed: Any) -> None:
    """Refuse what Gymnasium cannot seed a random stream with.

    Raises:
        UserError: It is neither ``None`` nor a whole number from 0.
    """
    if seed is not None and not whole(0, 2**63 - 1).holds(seed):
        raise UserError(f"seed is {seed!r:.60}; give None or a whole number from 0")


class _Splits:
    """The data of an environment by split; a loader reads each split when it is first needed.

    Attributes:
        first: The split that episodes are drawn from by default.
    """

    def __init__(self, data: SplitData, split: str) -> None:
        check_text(split, "split")
        self._load: Callable[[str], EnvData] | None = None
        self._data: dict[str, EnvData] = {}
        if isinstance(data, EnvData):
            self._data[split] = data
        elif isinstance(data, Mapping):
            self._data.update(data)
        elif callable(data):
            self._load = data
        else:
            raise UserError(f"data is {data!r:.60}; give an EnvData, one by split, or a loader")
        self.first = split
        self.data(split)

    def data(self, split: str) -> EnvData:
        """Return the data of a split.

        Raises:
            UserError: There is no such split, or its features or gates differ from the first's.
        """
        check_text(split, "split")
        if split not in self._data:
            if self._load is None:
                raise UserError(
                    f"no split {split!r} in this environment; it has {', '.join(self._data)}"
                )
            self._data[split] = self._load(split)
        check_kind(self._data[split], EnvData, f"the data of split {split!r}")
        data, first = self._data[split], self._data.get(self.first, self._data[split])
        if (data.feature_names, data.gates, data.num_gate_dims) != (
            first.feature_names,
            first.gates,
            first.num_gate_dims,
        ):
            raise UserError(
                f"split {split!r} has different features or gates than split {self.first!r}: "
                "an environment has one observation space and one action space"
            )
        return data


def _check_options(options: Mapping[str, Any] | None, allowed: Sequence[str]) -> Mapping[str, Any]:
    options = {} if options is None else options
    check_kind(options, Mapping, "options")
    for name in options:
        if name not in allowed:
            raise UserError(
                f"unknown reset option {name!r}: this environment has {', '.join(allowed)}"
            )
    return options


def _problem_rows(data: EnvData, options: Mapping[str, Any], count: int) -> list[int] | None:
    if "problem_ids" not in options:
        return None
    problem_ids = options["problem_ids"]
    if isinstance(problem_ids, str) or len(list_of(problem_ids, "problem_ids")) != count:
        raise UserError(
            f"options['problem_ids'] must be a list of {count}, one problem id for each prompt of "
            f"the environment; got {problem_ids!r}"
        )
    return [data.row(problem_id) for problem_id in problem_ids]


class RoutingEnv(Env[np.ndarray, Any]):
    """One prompt per episode, one step per episode.

    ``reset(options={"problem_ids": [id], "split": name})`` chooses a problem, or another split to
    draw this episode from; by default each problem of the first split is equally likely. The
    ``info`` of a reset has ``problem_id`` and ``prompt``; that of a step also has ``gate``,
    ``completion``, ``tokens``, ``stop_reason``, ``parsed``, ``status`` and ``correct``.

    Attributes:
        data: The data of the current episode's split.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 (Gymnasium's own declaration)

    def __init__(
        self,
        data: SplitData,
        *,
        split: str = "test",
    ) -> None:
        """Make the environment.

        Args:
            data: One split, splits by name, or a loader of splits.
            split: The split to draw problems from.

        Raises:
            UserError: There is no such split.
        """
        self._splits = _Splits(data, split)
        self.data = self._splits.data(split)
        self.observation_space = self.data.observation_space()
        self.action_space = self.data.action_space()
        self._row: int | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode.

        Args:
            seed: Restarts the random stream that problems are drawn from.
            options: ``problem_ids``, a list of one id; ``split``, the split to draw from.

        Raises:
            UserError: An option, the split or the problem is unknown.
        """
        checked = _check_options(options, ("problem_ids", "split"))
        data = self._splits.data(checked.get("split", self._splits.first))
        rows = _problem_rows(data, checked, 1)
        check_seed(seed)
        super().reset(seed=seed)
        self.data = data
        self._row = rows[0] if rows else int(self.np_random.integers(len(data.problems)))
        return data.observations[self._row].copy(), data.prompt_info(self._row)

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Answer the prompt under the chosen gate; the observation remains the prompt's.

        Raises:
            ResetNeeded: The episode is over or never began.
            InvalidAction: The action is not the index of a gate, or one for each dimension.
        """
        if self._row is None:
            raise ResetNeededError("an episode is one step: call reset() before each step()")
        data, row = self.data, self._row
        gates = data.gates_of(np.asarray(action)[None], 1)
        [outcome] = data.backend.outcomes([data.problems[row]], gates)
        self._row = None
        info = data.outcome_info(row, outcome)
        return data.observations[row].copy(), float(outcome.reward), True, False, info


class RoutingVectorEnv(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """A batch of prompts, answered together by one call of the backend.

    Every transition equals that of ``gymnasium.vector.SyncVectorEnv`` over ``RoutingEnv`` with
    ``AutoresetMode.SAME_STEP``: every step ends every episode, so the returned observations and
    top-level infos belong to the next prompts, and those of the answered prompts are in
    ``final_obs`` and ``final_info``. ``reset(options={"problem_ids": [...], "split": name})`` names
    the problem of each row, or the split to draw these episodes from; later episodes come from the
    first split again.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 (Gymnasium's own declaration)
        "render_modes": [],
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

    def __init__(
        self,
        num_envs: int,
        data: SplitData,
        *,
        split: str = "test",
    ) -> None:
        """Make the environment.

        Args:
            num_envs: Rows of the batch.
            data: One split, splits by name, or a loader of splits.
            split: The split to draw problems from.

        Raises:
            UserError: There is no such split.
        """
        self._splits = _Splits(data, split)
        first = self._splits.data(split)
        if not whole(1).holds(num_envs):
            raise UserError(f"num_envs is {num_envs!r:.60}; give {whole(1)}")
        self.num_envs = num_envs
        self.single_observation_space = first.observation_space()
        self.single_action_space = first.action_space()
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        # One stream per row, so that a row does not depend on its neighbours.
        self._streams = [seeding.np_random() for _ in range(num_envs)]
        self._data = [first] * num_envs
        self._rows: Int[np.ndarray, " envs"] | None = None

    @property
    def np_random(self) -> tuple[np.random.Generator, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the random stream of each row."""
        return tuple(generator for generator, _ in self._streams)

    @property
    def np_random_seed(self) -> tuple[int, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the seed that each row's random stream started from."""
        return tuple(seed for _, seed in self._streams)

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Float32[np.ndarray, "envs features"], dict[str, Any]]:
        """Begin the episodes of all rows, or of the rows of a mask.

        Args:
            seed: ``seed + i`` restarts the random stream of row i; or a list with a seed or None
                for each row.
            options: ``problem_ids``, a list of one id per row; ``split``, the split to draw from;
                ``reset_mask``, a boolean array: only its true rows are reset (and seeded), the
                others keep their prompts and have no infos. The dictionary is not changed.

        Raises:
            UserError: An option, the split or a problem is unknown.
            TypeError: The mask is not an array of booleans.
            ValueError: The mask or the list of seeds has the wrong length, or the mask is empty.
            ResetNeeded: The mask leaves rows out before the first reset of all rows.
        """
        checked = _check_options(options, ("problem_ids", "split", "reset_mask"))
        data = self._splits.data(checked.get("split", self._splits.first))
        chosen = _problem_rows(data, checked, self.num_envs)
        mask = self._reset_mask(checked)
        seeds = self._row_seeds(seed)
        if self._rows is None and not mask.all():
            raise ResetNeededError("call reset() for all rows before resetting a part of them")
        for i in np.flatnonzero(mask):
            if (row_seed := seeds[i]) is not None:
                self._streams[i] = seeding.np_random(row_seed)
        return self._begin(mask, data, chosen)

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
            ResetNeeded: No episode has begun.
            InvalidAction: The actions are not one index of a gate for each row.
        """
        if self._rows is None:
            raise ResetNeededError("call reset() before the first step()")
        first, answered, answered_data = (
            self._splits.data(self._splits.first),
            self._rows,
            self._data,
        )
        gates = first.gates_of(actions, self.num_envs)
        outcomes = self._outcomes(answered_data, answered, gates)
        infos: dict[str, Any] = {}
        final = self._observations()
        for i, (row, outcome) in enumerate(zip(answered.tolist(), outcomes, strict=True)):
            ended = {
                "final_obs": final[i],
                "final_info": answered_data[i].outcome_info(row, outcome),
            }
            infos = self._add_info(infos, ended, i)
        observations, begun = self._begin(np.ones(self.num_envs, dtype=np.bool_), first, None)
        return (
            observations,
            np.array([outcome.reward for outcome in outcomes], dtype=np.float64),
            np.ones(self.num_envs, dtype=np.bool_),
            np.zeros(self.num_envs, dtype=np.bool_),
            infos | begun,
        )

    def _outcomes(
        self, owners: Sequence[EnvData], rows: Int[np.ndarray, " envs"], gates: Sequence[Gate]
    ) -> list[Outcome]:
        """Return the outcome of each row's gate, with one call for each backend."""
        by_row: dict[int, Outcome] = {}
        for backend in {id(data.backend): data.backend for data in owners}.values():
            members = [i for i, data in enumerate(owners) if data.backend is backend]
            problems = [owners[i].problems[rows[i]] for i in members]
            outcomes = backend.outcomes(problems, [gates[i] for i in members])
            by_row.update(zip(members, outcomes, strict=True))
        return [by_row[i] for i in range(len(owners))]

    def _observations(self) -> Float32[np.ndarray, "envs features"]:
        """Return a new array of every row's observation."""
        assert self._rows is not None
        pairs = zip(self._data, self._rows.tolist(), strict=True)
        return np.stack([data.observations[row] for data, row in pairs])

    def _begin(
        self, mask: Bool[np.ndarray, " envs"], data: EnvData, chosen: list[int] | None
    ) -> tuple[Float32[np.ndarray, "envs features"], dict[str, Any]]:
        """Begin the masked rows' episodes; return all rows' observations and those rows' infos."""
        rows = np.zeros(self.num_envs, dtype=np.int64) if self._rows is None else self._rows.copy()
        owners = list(self._data)
        infos: dict[str, Any] = {}
        for i in np.flatnonzero(mask):
            generator, _ = self._streams[i]
            rows[i] = chosen[i] if chosen else generator.integers(len(data.problems))
            owners[i] = data
            infos = self._add_info(infos, data.prompt_info(int(rows[i])), int(i))
        self._rows, self._data = rows, owners
        return self._observations(), infos

    def _reset_mask(self, options: Mapping[str, Any]) -> Bool[np.ndarray, " envs"]:
        """Return the rows to reset, by the rules of Gymnasium's own vector environments."""
        if "reset_mask" not in options:
            return np.ones(self.num_envs, dtype=np.bool_)
        mask = options["reset_mask"]
        if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_:
            kind = f"an array of {mask.dtype}" if isinstance(mask, np.ndarray) else type(mask)
            raise UserTypeError(f"options['reset_mask'] must be a numpy array of bool, got {kind}")
        if mask.shape != (self.num_envs,):
            raise UserValueError(
                f"options['reset_mask'] must have shape ({self.num_envs},), got {mask.shape}"
            )
        if not mask.any():
            raise UserValueError("options['reset_mask'] must choose at least one row")
        return mask

    def _row_seeds(self, seed: int | Sequence[int | None] | None) -> list[int | None]:
        if seed is None:
            return [None] * self.num_envs
        if isinstance(seed, int):
            check_seed(seed)
            return [seed + i for i in range(self.num_envs)]
        if len(list_of(seed, "seed")) != self.num_envs:
            raise UserValueError(
                f"seed must be a number or {self.num_envs} of them, got {len(seed)}"
            )
        for row_seed in seed:
            check_seed(row_seed)
        return list(seed)
