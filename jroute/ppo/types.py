"""The learner's interfaces and data: environments, its state, decisions and batches."""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import optax
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

from jroute.controller import networks
from jroute.utils.keys import keys


@runtime_checkable
class Prompts(Protocol):
    """A source of prompts: a pure function, to be vmapped.

    A frozen dataclass registered as a pytree (or a named tuple), so that its tables are arguments
    of the compiled training and not constants in it.
    """

    def reset(self, key: Key[Array, ""]) -> tuple[Any, Any]:
        """Draw a prompt: ``(state, observation [features])``."""
        ...


@runtime_checkable
class Environment(Prompts, Protocol):
    """Prompts whose rewards are also a pure function."""

    def step(self, state: Any, action: Any, key: Any) -> tuple[Any, Any, Any, Any, Any]:
        """Answer the prompt: ``(state, observation, reward, done, info)``.

        Every step ends an episode. ``action`` is the index of a gate, or ``[gate_dims]`` indices
        if a decision has several dimensions. An ``info`` with ``problem`` names the row of the
        table of rewards that the step reveals.
        """
        ...


class LearnerState(NamedTuple):
    """Everything that training continues from, as arrays of plain dtypes."""

    stored_keys = keys("params", "optimizer", "key", "update", "revealed")

    params: networks.Params
    """Parameters of the actor-critic, as ``networks.init`` returns them."""
    optimizer: optax.OptState
    """Adam's moments, of all parameters in one vector, and its step count."""
    key: UInt32[Array, " words"]
    """Words of the key that every draw is folded from; constant during a training."""
    update: Int[Array, ""]
    """Number of updates done."""
    revealed: Bool[Array, " cells"]
    """Which cells of the table had their reward revealed; empty if cells are not counted."""


class Decisions(NamedTuple):
    """A policy's decisions on prompts, with their log-probabilities and the critic's values."""

    states: Any
    """The environment's states, as ``reset`` returns them."""
    observations: Float[Array, "batch features"]
    actions: Int[Array, "batch gate_dims"]
    log_probs: Float[Array, " batch"]
    values: Float[Array, " batch"]

    @property
    def choices(self) -> Int[Array, "batch *gate_dims"]:
        """Return the actions as environments take them: one index each for a single gate."""
        return self.actions[..., 0] if self.actions.shape[-1] == 1 else self.actions


class Batch(NamedTuple):
    """One-step episodes, with the log-probabilities and values of the policy that played them."""

    observations: Float[Array, "batch features"]
    actions: Int[Array, "batch gate_dims"]
    log_probs: Float[Array, " batch"]
    values: Float[Array, " batch"]
    rewards: Float[Array, " batch"]
    cells: Int[Array, " batch"] | None = None
    """Number of each cell, ``problem * choices + choice``, where there is a table of rewards."""
