"""Training many seeds at once: in one batch on an accelerator, in turn on every core of a CPU.

The matrices of one controller fit a core's cache and those of many do not: on a CPU a batch of 64
takes about twice the time of 64 separate ones. So seeds take turns there, on all cores.
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


def take_turns() -> bool:
    """Return whether this device computes seeds one after the other by default."""
    return jax.default_backend() == "cpu"


def compiler_options() -> dict[str, bool | int | str] | None:
    """Return the options that compile the learner's programs for this device.

    A CPU runs their operations one after the other: they are too small to gain from parallelism.
    """
    if not take_turns():
        return None
    return {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}


def map_seeds(
    function: Callable[..., Any],
    together: bool | None,
    state: LearnerState,
    hyper: Hyperparameters,
    *others: Any,
) -> Any:
    """Call a function for every seed's state, hyper-parameters and other arguments.

    Args:
        function: A function ``(state, hyper, *others)`` of one seed.
        together: Whether all seeds are one batch; ``None`` for the device's default.
        state: With any leading axes.
        hyper: Single numbers, or with the first of those axes.
        others: With all of those axes.

    Returns:
        The function's results, with those leading axes.
    """
    axes = state.update.shape
    if not axes:
        return function(state, hyper, *others)
    together = not take_turns() if together is None else together
    arguments = _flatten_axes(axes, (state, _broadcast(axes, hyper), *others))
    if together:
        results = jax.vmap(function)(*arguments)
    else:
        results = jax.lax.map(lambda seed: function(*seed), arguments)
    return jax.tree.map(lambda x: x.reshape(*axes, *x.shape[1:]), results)


def spread_over_cores(program: Any) -> Callable[..., Any]:
    """Make a jitted program ``(env, state, hyper)`` train the seeds on all cores.

    Each core has a thread that waits for its share: shares dispatched from one thread would run
    one after the other. All shares have the same size, so the program compiles once: copies of the
    last seed fill the last share.
    """
    compiled: dict[Any, Callable[..., Any]] = {}

    def call(env: Any, state: LearnerState, hyper: Hyperparameters) -> Any:
        count = prod(state.update.shape)
        size = -(-count // min(_cores(), count))
        if size == count:
            return program(env, state, hyper)
        shares = _split(state, hyper, size=size)
        for leaf in jax.tree.leaves(state):
            if isinstance(leaf, jax.Array):
                leaf.delete()  # as a program does that donates it
        leaves, structure = jax.tree.flatten((env, *shares[0]))
        shapes = structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves)
        if shapes not in compiled:
            compiled[shapes] = program.lower(env, *shares[0]).compile()
        train = compiled[shapes]
        with ThreadPoolExecutor(len(shares)) as pool:
            results = list(
                pool.map(lambda share: jax.block_until_ready(train(env, *share)), shares)
            )
        return _join(results, axes=state.update.shape)

    return call


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@partial(jax.jit, static_argnames="size")
def _split(state: LearnerState, hyper: Hyperparameters, *, size: int) -> list[Any]:
    """Split seeds into shares of ``size``, with one leading axis."""
    axes = state.update.shape
    seeds, count = _flatten_axes(axes, (state, _broadcast(axes, hyper))), prod(axes)
    shares = []
    for start in range(0, count, size):
        rows = jnp.minimum(jnp.arange(start, start + size), count - 1)
        shares.append(jax.tree.map(lambda x, rows=rows: x[rows], seeds))
    return shares


@partial(jax.jit, static_argnames="axes")
def _join(shares: list[Any], *, axes: tuple[int, ...]) -> Any:
    """Join the results of all shares, with the state's leading axes."""
    count = prod(axes)
    return jax.tree.map(
        lambda *x: jnp.concatenate(x)[:count].reshape(*axes, *x[0].shape[1:]), *shares
    )


def _broadcast(axes: tuple[int, ...], hyper: Hyperparameters) -> Hyperparameters:
    """Broadcast hyper-parameters to all leading axes.

    Raises:
        UserError: Their axes are not the first of the state's.
    """
    if wrong := [x.shape for x in jax.tree.leaves(hyper) if x.shape != axes[: x.ndim]]:
        raise UserError(
            f"hyper-parameters of shape {wrong[0]} do not go with states of shape {axes}; give "
            "states [trials, seeds] for trials"
        )
    return jax.tree.map(
        lambda x: jnp.broadcast_to(x.reshape(x.shape + (1,) * (len(axes) - x.ndim)), axes), hyper
    )


def _flatten_axes(axes: tuple[int, ...], tree: Any) -> Any:
    """Flatten all leading axes into one."""
    return jax.tree.map(lambda x: x.reshape(prod(axes), *x.shape[len(axes) :]), tree)
