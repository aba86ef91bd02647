"""Many seeds at once: on an accelerator in one batch, on processors in turn and on every core.

The matrices of one controller fit a core's cache and those of many do not: on processors a batch
of 64 takes about twice the time of 64 alone. So seeds take turns there, and their turns are dealt
to the cores.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from math import prod
from typing import Any

import jax
import jax.numpy as jnp

from jroute.ppo.config import Hyperparameters
from jroute.ppo.types import LearnerState
from jroute.utils.errors import UserError


def in_turn() -> bool:
    """Whether seeds are computed one after the other, unless something else is asked for."""
    return jax.default_backend() == "cpu"


def on_each(
    function: Callable[..., Any],
    together: bool | None,
    state: LearnerState,
    hyper: Hyperparameters,
    *others: Any,
) -> Any:
    """Call a function for every state, and for what goes with it.

    Args:
        function: Of ``(state, hyper, *others)`` of one seed.
        together: Whether all seeds are one batch; ``None`` for what suits the device.
        state: With any leading axes.
        hyper: Single numbers, or with the first of those axes.
        others: With all of those axes.

    Returns:
        What the function gives, with those leading axes.
    """
    axes = state.update.shape
    if not axes:
        return function(state, hyper, *others)
    together = not in_turn() if together is None else together
    arguments = _flat(axes, (state, _of_each(axes, hyper), *others))
    if together:
        found = jax.vmap(function)(*arguments)
    else:
        found = jax.lax.map(lambda one: function(*one), arguments)
    return jax.tree.map(lambda x: x.reshape(*axes, *x.shape[1:]), found)


def options() -> dict[str, bool | int | str] | None:
    """How programs of the learner are compiled for this device.

    A processor does their operations one after the other: they are too small to gain from being
    done side by side.
    """
    return {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"} if in_turn() else None


def on_every_core(program: Any) -> Callable[..., Any]:
    """A program of ``(env, state, hyper)``, as ``jax.jit`` makes it, that deals seeds to the cores.

    Each core has a thread that waits for its share: dispatched from one thread, shares would be
    computed one after the other. They are of one size, which compiles once: the last is filled up
    with its last seed again.
    """
    compiled: dict[Any, Callable[..., Any]] = {}

    def call(env: Any, state: LearnerState, hyper: Hyperparameters) -> Any:
        count = prod(state.update.shape)
        size = -(-count // min(_cores(), count))
        if size == count:
            return program(env, state, hyper)
        dealt = _deal(state, hyper, size=size)
        for leaf in jax.tree.leaves(state):
            if isinstance(leaf, jax.Array):
                leaf.delete()  # as a program does that takes its memory
        leaves, structure = jax.tree.flatten((env, *dealt[0]))
        shapes = structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves)
        if shapes not in compiled:
            compiled[shapes] = program.lower(env, *dealt[0]).compile()
        train = compiled[shapes]
        with ThreadPoolExecutor(len(dealt)) as pool:
            found = list(pool.map(lambda share: jax.block_until_ready(train(env, *share)), dealt))
        return _gather(found, axes=state.update.shape)

    return call


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@partial(jax.jit, static_argnames="size")
def _deal(state: LearnerState, hyper: Hyperparameters, *, size: int) -> list[Any]:
    """Shares of ``size`` seeds each, with one leading axis."""
    axes = state.update.shape
    everything, count = _flat(axes, (state, _of_each(axes, hyper))), prod(axes)
    shares = []
    for start in range(0, count, size):
        rows = jnp.minimum(jnp.arange(start, start + size), count - 1)
        shares.append(jax.tree.map(lambda x, rows=rows: x[rows], everything))
    return shares


@partial(jax.jit, static_argnames="axes")
def _gather(shares: list[Any], *, axes: tuple[int, ...]) -> Any:
    """What belongs to the seeds of all shares, with their own leading axes."""
    count = prod(axes)
    return jax.tree.map(
        lambda *x: jnp.concatenate(x)[:count].reshape(*axes, *x[0].shape[1:]), *shares
    )


def _of_each(axes: tuple[int, ...], hyper: Hyperparameters) -> Hyperparameters:
    """Hyper-parameters with all leading axes.

    Raises:
        UserError: They have other ones than the states.
    """
    if wrong := [x.shape for x in jax.tree.leaves(hyper) if x.shape != axes[: x.ndim]]:
        raise UserError(
            f"hyper-parameters of shape {wrong[0]} do not go with states of shape {axes}; give "
            "states [trials, seeds] for trials"
        )
    return jax.tree.map(
        lambda x: jnp.broadcast_to(x.reshape(x.shape + (1,) * (len(axes) - x.ndim)), axes), hyper
    )


def _flat(axes: tuple[int, ...], tree: Any) -> Any:
    """All leading axes in one."""
    return jax.tree.map(lambda x: x.reshape(prod(axes), *x.shape[len(axes) :]), tree)
