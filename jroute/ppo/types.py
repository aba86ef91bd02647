"""What the learner asks of an environment, goes on from, and learns from."""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import optax
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

from jroute.controller import networks
from jroute.utils.keys import keys


@runtime_checkable
class Prompts(Protocol):
    """Where prompts come from: a pure function, to be vmapped.

    A frozen dataclass registered as a pytree (or a named tuple), so that its tables are arguments
    of the compiled training and not constants within it.
    """

    def reset(self, key: Key[Array, ""]) -> tuple[Any, Any]:
        """Draw a prompt: ``(state, observation [features])``."""
        ...


@runtime_checkable
class Environment(Prompts, Protocol):
    """Prompts whose rewards are a pure function too."""

    def step(self, state: Any, action: Any, key: Any) -> tuple[Any, Any, Any, Any, Any]:
        """Answer it: ``(state, observation, reward, done, info)``; every step ends an episode.

        ``action`` is the index of a gate, or ``[parts]`` of them if a decision has several parts.
        An ``info`` with a ``problem`` says which row of a table of rewards was seen.
        """
        ...


class LearnerState(NamedTuple):
    """All that training goes on from; nothing but arrays of plain dtypes."""

    stored_keys = keys("params", "optimizer", "key", "update", "revealed")

    params: networks.Params
    """Of the actor-critic, as ``networks.init`` returns them."""
    optimizer: optax.OptState
    """Adam's moments, of all parameters in a row, and its step count."""
    key: UInt32[Array, " words"]
    """Words of the key that every draw is folded from; the same throughout a training."""
    update: Int[Array, ""]
    """Number of updates done."""
    revealed: Bool[Array, " cells"]
    """Which cells of the table had their reward seen; empty if none are counted."""


class Decisions(NamedTuple):
    """Prompts, the gates a policy chose for them, and what it thought of them."""

    states: Any
    """What ``reset`` gave beside the observations."""
    observations: Float[Array, "batch features"]
    actions: Int[Array, "batch gate_dims"]
    log_probs: Float[Array, " batch"]
    values: Float[Array, " batch"]

    @property
    def choices(self) -> Int[Array, "batch *gate_dims"]:
        """Actions as environments take them: one index each if a decision has one part."""
        return self.actions[..., 0] if self.actions.shape[-1] == 1 else self.actions


class Batch(NamedTuple):
    """One-step episodes, and what the policy that made them thought of them."""

    observations: Float[Array, "batch features"]
    actions: Int[Array, "batch gate_dims"]
    log_probs: Float[Array, " batch"]
    values: Float[Array, " batch"]
    rewards: Float[Array, " batch"]
    cells: Int[Array, " batch"] | None = None
    """Number of the cell that paid, ``problem * choices + choice``, where there is a table."""
