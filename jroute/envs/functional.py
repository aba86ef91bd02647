"""The environment as functions ``reset`` and ``step``, for learners written in JAX.

Over a table they are pure functions of one prompt, to be vmapped and compiled; over any other
backend they take a whole batch, which suits the engine. Both draw the same problems from the same
keys.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from jroute.envs.data import EnvData
from jroute.utils.errors import UserError
from jroute.utils.inputs import check_kind


class TableState(NamedTuple):
    """The problem of an episode.

    Attributes:
        problem: Its row in the environment.
    """

    problem: Int[Array, "*batch"]


class UniformPrompts(NamedTuple):
    """Draw problems, each equally likely, and show their features.

    Attributes:
        observations: Features of each problem.
    """

    observations: Float[Array, "problems features"]

    def reset(self, key: Key[Array, ""]) -> tuple[TableState, Float[Array, " features"]]:
        """Draw a problem; return the state and the problem's features."""
        problem = jax.random.randint(key, (), 0, self.observations.shape[0])
        return TableState(problem), self.observations[problem]


class TableEnv(NamedTuple):
    """One-step episodes over a table of rewards: see features, choose a gate, get its reward.

    A pytree of two arrays with pure methods, so ``jax.vmap(env.step)`` is a batch of prompts and
    ``vmap`` can map over whole environments too. Make one with ``create``, which checks the arrays.

    Attributes:
        observations: Features of each problem.
        rewards: The reward of each gate on each problem.
    """

    observations: Float[Array, "problems features"]
    rewards: Float[Array, "problems gates"]

    @classmethod
    def create(
        cls,
        observations: Float[Array | np.ndarray, "problems features"],
        rewards: Float[Array | np.ndarray, "problems gates"],
    ) -> "TableEnv":
        """Make an environment of float32 arrays on the default device.

        Raises:
            UserError: There are no problems or gates, or a number is not finite.
        """
        if np.ndim(rewards) != 2 or np.ndim(observations) != 2:
            raise UserError(
                "an environment needs observations [problems, features] and rewards "
                "[problems, gates]"
            )
        observations, rewards = np.asarray(observations), np.asarray(rewards)
        problems, gates = rewards.shape
        if len(observations) != problems:
            raise UserError(
                f"an environment has observations of {len(observations)} problems and rewards of "
                f"{problems}; give both for each"
            )
        if problems == 0 or gates == 0:
            raise UserError(
                f"an environment needs problems and gates, but this one has {problems} and "
                f"{gates}: check the split and the gate grid"
            )
        for name, values in (("observations", observations), ("rewards", rewards)):
            bad = np.argwhere(~np.isfinite(np.asarray(values)))
            if len(bad):
                row, column = map(int, bad[0])
                raise UserError(
                    f"{name} of the environment are not finite at problem {row}, column {column}: "
                    "check how they were computed"
                )
        return cls(jnp.asarray(observations, jnp.float32), jnp.asarray(rewards, jnp.float32))

    @property
    def num_problems(self) -> int:
        """Return the number of problems that episodes are drawn from."""
        return self.observations.shape[0]

    @property
    def num_features(self) -> int:
        """Return the length of an observation."""
        return self.observations.shape[1]

    @property
    def num_gates(self) -> int:
        """Return the number of actions."""
        return self.rewards.shape[1]

    def reset(self, key: Key[Array, ""]) -> tuple[TableState, Float[Array, " features"]]:
        """Draw a problem, each equally likely; return the state and the problem's features."""
        return UniformPrompts(self.observations).reset(key)

    def step(
        self, state: TableState, action: Int[Array, ""], key: Key[Array, ""]
    ) -> tuple[
        TableState,
        Float[Array, " features"],
        Float[Array, ""],
        Bool[Array, ""],
        dict[str, Int[Array, ""]],
    ]:
        """Answer the problem under a gate and draw the next one with the key.

        Args:
            state: The problem being answered.
            action: Index of the gate. An index outside the grid gets the reward NaN: traced code
                cannot raise, and JAX's own indexing would silently take the last gate.
            key: Draws the next problem.

        Returns:
            State and features of the *next* problem (the only step of an episode also resets the
            environment), reward, done (always true), and ``{"problem": answered row}``.
        """
        reward = self.rewards.at[state.problem, action].get(
            mode="fill", fill_value=jnp.nan, wrap_negative_indices=False
        )
        following, observation = self.reset(key)
        return following, observation, reward, jnp.array(True), {"problem": state.problem}


class LiveEnv:
    """``TableEnv`` over any backend: ``reset`` and ``step`` of a batch, which cannot be compiled.

    Gates may have several dimensions. All state is passed in and out, so the functions are pure if
    the backend is.

    Attributes:
        data: Problems, features, gates and backend.
        prompts: Draws the problems.
    """

    def __init__(self, data: EnvData) -> None:
        """Make the environment of a split."""
        check_kind(data, EnvData, "data")
        self.data = data
        self.prompts = UniformPrompts(jnp.asarray(data.observations))

    def reset(
        self, keys: Key[Array, " batch"]
    ) -> tuple[TableState, Float[Array, "batch features"]]:
        """Draw problems, one for each key."""
        return jax.vmap(self.prompts.reset)(keys)

    def rewards(
        self,
        problems: Int[Array | np.ndarray, "*batch"],
        actions: Int[Array | np.ndarray, "*batch_and_gate_dims"],
    ) -> Float[np.ndarray, "*batch"]:
        """Return the rewards of gates on problems, given by row, from one call of the backend.

        Raises:
            InvalidAction: An action is not the index of a gate.
        """
        rows, data = np.asarray(problems), self.data
        shape = (rows.size,) if data.num_gate_dims == 1 else (rows.size, data.num_gate_dims)
        gates = data.gates_of(np.asarray(actions).reshape(shape), rows.size)
        outcomes = data.backend.outcomes([data.problems[row] for row in rows.flat], gates)
        rewards = np.array([outcome.reward for outcome in outcomes], np.float32)
        return rewards.reshape(rows.shape)

    def step(
        self, states: TableState, actions: Any, keys: Key[Array, " batch"]
    ) -> tuple[
        TableState,
        Float[Array, "batch features"],
        Float[np.ndarray, " batch"],
        Bool[Array, " batch"],
        dict[str, Int[Array, " batch"]],
    ]:
        """Answer a batch of problems and draw the next ones; see ``TableEnv.step``."""
        rewards = self.rewards(states.problem, actions)
        following, observations = self.reset(keys)
        done = jnp.ones(len(rewards), bool)
        return following, observations, rewards, done, {"problem": states.problem}
