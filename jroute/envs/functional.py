"""The environment as functions ``reset`` and ``step``, for learners that live in JAX.

Over a table they are pure and of one prompt, to be vmapped and compiled; over anything else that
gives outcomes they take a whole batch, which is the engine's. Both draw the same problems from the
same keys.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from jroute.envs.data import EnvData
from jroute.utils.errors import UserError


class TableState(NamedTuple):
    """Which problem is on the table.

    Attributes:
        problem: Its row in the environment.
    """

    problem: Int[Array, "*batch"]


class Questions(NamedTuple):
    """Where problems are drawn from: their features alone, each equally likely.

    Attributes:
        observations: Features of each problem.
    """

    observations: Float[Array, "problems features"]

    def reset(self, key: Key[Array, ""]) -> tuple[TableState, Float[Array, " features"]]:
        """Draw a problem; returns the state and its features."""
        problem = jax.random.randint(key, (), 0, self.observations.shape[0])
        return TableState(problem), self.observations[problem]


class TableEnv(NamedTuple):
    """One-step episodes over tabled rewards: see a problem's features, choose a gate, be paid.

    A pytree of two arrays with pure methods, so ``jax.vmap(env.step)`` is a batch of prompts and
    the whole environment can itself be mapped over. Make it with ``create``, which checks the
    arrays.

    Attributes:
        observations: Features of each problem.
        rewards: What each gate pays on each problem.
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
            UserError: If there is no problem or gate, or a number is not finite.
        """
        problems, gates = rewards.shape
        if problems == 0 or gates == 0:
            raise UserError(
                f"an environment needs problems and gates, this one has {problems} and {gates}: "
                "check the split and the gate grid"
            )
        for name, values in (("observations", observations), ("rewards", rewards)):
            bad = np.argwhere(~np.isfinite(np.asarray(values)))
            if len(bad):
                row, column = map(int, bad[0])
                raise UserError(
                    f"{name} of the environment are not finite at problem {row}, column {column}: "
                    "look at how they were computed"
                )
        return cls(jnp.asarray(observations, jnp.float32), jnp.asarray(rewards, jnp.float32))

    @property
    def num_problems(self) -> int:
        """Number of problems that episodes are drawn from."""
        return self.observations.shape[0]

    @property
    def num_features(self) -> int:
        """Length of an observation."""
        return self.observations.shape[1]

    @property
    def num_gates(self) -> int:
        """Number of actions."""
        return self.rewards.shape[1]

    def reset(self, key: Key[Array, ""]) -> tuple[TableState, Float[Array, " features"]]:
        """Draw a problem, each equally likely; returns the state and its features."""
        return Questions(self.observations).reset(key)

    def step(
        self, state: TableState, action: Int[Array, ""], key: Key[Array, ""]
    ) -> tuple[
        TableState,
        Float[Array, " features"],
        Float[Array, ""],
        Bool[Array, ""],
        dict[str, Int[Array, ""]],
    ]:
        """Answer the problem under a gate and move on to the next, drawn with the key.

        Args:
            state: The problem being answered.
            action: Index of the gate. One outside the grid pays NaN: traced code cannot raise,
                and JAX's own indexing would silently take the last gate.
            key: Draws the next problem.

        Returns:
            State and features of the *next* problem (the episode ends with its only step and the
            environment resets within it), reward, done (always true), and
            ``{"problem": row just answered}``.
        """
        reward = self.rewards.at[state.problem, action].get(
            mode="fill", fill_value=jnp.nan, wrap_negative_indices=False
        )
        following, observation = self.reset(key)
        return following, observation, reward, jnp.array(True), {"problem": state.problem}


class LiveEnv:
    """``TableEnv`` over any backend: ``reset`` and ``step`` of a batch, which cannot be compiled.

    Gates may have several parts. The state is passed in and out and nothing else is kept, so with a
    backend that always says the same the functions are pure.

    Attributes:
        data: Problems, features, gates and backend.
        questions: Where problems are drawn from.
    """

    def __init__(self, data: EnvData) -> None:
        """Make the environment of a split."""
        self.data = data
        self.questions = Questions(jnp.asarray(data.observations))

    def reset(
        self, keys: Key[Array, " batch"]
    ) -> tuple[TableState, Float[Array, "batch features"]]:
        """Draw problems, one for each key."""
        return jax.vmap(self.questions.reset)(keys)

    def rewards(
        self,
        problems: Int[Array | np.ndarray, "*batch"],
        actions: Int[Array | np.ndarray, "*batch_and_parts"],
    ) -> Float[np.ndarray, "*batch"]:
        """What gates pay on problems (their rows), by one call of the backend.

        Raises:
            InvalidAction: An action is no gate.
        """
        rows, data = np.asarray(problems), self.data
        shape = (rows.size,) if data.num_gate_dims == 1 else (rows.size, data.num_gate_dims)
        gates = data.chosen(np.asarray(actions).reshape(shape), rows.size)
        outcomes = data.backend.outcomes([data.problems[row] for row in rows.flat], gates)
        paid = np.array([outcome.reward for outcome in outcomes], np.float32)
        return paid.reshape(rows.shape)

    def step(
        self, states: TableState, actions: Any, keys: Key[Array, " batch"]
    ) -> tuple[
        TableState,
        Float[Array, "batch features"],
        Float[np.ndarray, " batch"],
        Bool[Array, " batch"],
        dict[str, Int[Array, " batch"]],
    ]:
        """Answer a batch of problems and move on to the next; see ``TableEnv.step``."""
        rewards = self.rewards(states.problem, actions)
        following, observations = self.reset(keys)
        done = jnp.ones(len(rewards), bool)
        return following, observations, rewards, done, {"problem": states.problem}
