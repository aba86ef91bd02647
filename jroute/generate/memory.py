"""Device memory of generation: the estimate before a run, and the slots that fit."""

from collections.abc import Callable, Iterable
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from jroute.distributed.mesh import num_replicas
from jroute.generate.config import EngineConfig
from jroute.generate.shapes import BatchPlan
from jroute.model.config import DecoderConfig
from jroute.model.params import Params
from jroute.utils.errors import UserError

MAX_AUTO_SLOTS = 256
"""Largest number of slots that ``slots: auto`` takes.

Beyond it the arithmetic of a step grows as fast as the number of tokens.
"""

MEMORY_SHARE = 0.9
"""Share of the free memory that generation may take."""


class MemoryEstimate(NamedTuple):
    """Bytes that generation takes on one device.

    Attributes:
        slot: Bytes per slot: keys, values, and several copies of the logits of a step.
        fixed: Bytes that do not depend on the slots: unstacked weights, and prompts as they are
            read.
        free: Bytes free on the device; ``None`` where the device does not report its memory.
    """

    slot: float
    fixed: int
    free: int | None

    def max_slots(self) -> int | None:
        """Return how many slots fit; ``None`` where the device does not report its memory."""
        if self.free is None:
            return None
        return max(0, int((MEMORY_SHARE * self.free - self.fixed) // self.slot))


def plan_batch(
    prompts: Iterable[tuple[int, int, int]],
    engine: EngineConfig,
    params: Params,
    config: DecoderConfig,
    *,
    routed_streams: int = 0,
) -> tuple[BatchPlan, MemoryEstimate]:
    """Plan the shapes of a run on the mesh that is set, and estimate its memory.

    Args:
        prompts: For every request its tokens, how many of them are shared, and its limit.
        engine: The execution shape; ``auto`` slots become as many as fit.
        params: Parameters of the model, on their devices.
        config: Shape of the model.
        routed_streams: Streams of the routing; 0 for the plain model.

    Raises:
        UserError: With ``auto``, not even one slot fits.
    """
    prompts, replicas, free = list(prompts), num_replicas(), free_memory()

    def plan_slots(slots: int) -> tuple[BatchPlan, MemoryEstimate]:
        plan = BatchPlan.make(prompts, engine, slots, replicas)
        return plan, estimate_memory(params, config, plan, engine, free, routed_streams)

    slots = engine.slots
    if slots == "auto":
        slots = choose_slots(lambda slots: plan_slots(slots)[1], len(prompts), replicas)
    return plan_slots(slots)


def estimate_memory(
    params: Params,
    config: DecoderConfig,
    plan: BatchPlan,
    engine: EngineConfig,
    free: int | None,
    routed_streams: int = 0,
) -> MemoryEstimate:
    """Estimate the memory that a run takes on each device, beside what is there already.

    Args:
        params: Parameters of the model, on their devices.
        config: Shape of the model.
        plan: The shapes of the run.
        engine: The execution shape.
        free: Bytes that are free (see ``free_memory``).
        routed_streams: Streams of the routing; 0 for the plain model.
    """
    mesh = jax.sharding.get_mesh()
    data, tensor = (1, 1) if mesh.empty else (mesh.shape["data"], mesh.shape["tensor"])
    itemsize = params["embed_tokens"].dtype.itemsize
    kv_bytes = 2 * config.num_key_value_heads // tensor * config.head_dim * itemsize  # per layer
    layers = config.num_hidden_layers
    slot = plan.capacities[-1] * kv_bytes * layers
    if len(plan.capacities) > 1:  # growing holds a layer twice; a stacked cache, all of it
        slot += plan.capacities[-2] * kv_bytes * (1 if engine.unroll else layers)
    logits = 4 * config.vocab_size // tensor * 4
    # Per prompt token: keys and values, twice; streams and updates; the MLP's inner states.
    inner = (6 + 2 * routed_streams) * config.hidden_size + 3 * config.intermediate_size // tensor
    prompt_tokens = max(plan.rows[width] // data * width.total for width in plan.widths)
    fixed = prompt_tokens * (2 * kv_bytes * layers + inner * max(itemsize, 4))
    if engine.unroll:
        fixed += sum(_bytes_per_device(leaf) for leaf in jax.tree.leaves(params["blocks"]))
    return MemoryEstimate((slot + logits) / data, fixed, free)


def _bytes_per_device(array: Any) -> int:
    part = array.sharding.shard_shape(array.shape)
    return prod(part) * array.dtype.itemsize


def free_memory() -> int | None:
    """Return the least bytes free on a device of the mesh; for a CPU, those of the host.

    ``None`` where the devices do not report their memory.
    """
    mesh = jax.sharding.get_mesh()
    devices = [d for d in mesh.devices.flat if d in set(jax.local_devices())] if mesh.size else []
    free = []
    for device in devices or jax.local_devices()[:1]:
        stats = device.memory_stats() or {}
        if "bytes_limit" in stats:
            free.append(stats["bytes_limit"] - stats["bytes_in_use"])
        elif device.platform == "cpu" and (available := _available_host_memory()):
            free.append(available // max(1, len(devices)))
    least = min(free, default=-1)
    if jax.process_count() > 1:  # every process must arrive at the same shapes
        least = int(np.min(multihost_utils.process_allgather(np.int64(least))))
    return None if least < 0 else least


def _available_host_memory() -> int:
    """Return the bytes that the host can give without swapping; 0 where it does not report them."""
    path = Path("/proc/meminfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    available = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(available[0]) * 1024 if available else 0


def choose_slots(estimate: Callable[[int], MemoryEstimate], prompts: int, replicas: int) -> int:
    """Choose the slots for ``auto``: 1, 2, 3, 4, 6, 8, 12 … per replica.

    Takes no more than the prompts need or the memory holds.

    Args:
        estimate: The memory of a run with a number of slots.
        prompts: Requests of the run.
        replicas: Size of the mesh's ``data`` axis, over which the slots are cut.

    Raises:
        UserError: Not even one slot per replica fits.
    """
    sizes = sorted({size << k for size in (2, 3) for k in range(8)} | {1})
    enough = next((s for s in sizes if s * replicas >= prompts), sizes[-1])
    for slots in (s * replicas for s in reversed(sizes) if s <= enough):
        largest = estimate(slots).max_slots()
        if slots <= max(MAX_AUTO_SLOTS, replicas) and (largest is None or slots <= largest):
            return slots
    raise _does_not_fit(estimate(replicas), replicas)


def check_memory(estimate: MemoryEstimate, slots: int) -> None:
    """Refuse a run that does not fit.

    Raises:
        UserError: The message says how much memory is needed and free, and what would fit.
    """
    largest = estimate.max_slots()
    if largest is not None and largest < slots:
        raise _does_not_fit(estimate, slots)


def _does_not_fit(estimate: MemoryEstimate, slots: int) -> UserError:
    gib = 2**30
    cache, free = estimate.slot * slots, estimate.free or 0
    largest = estimate.max_slots() or 0
    advice = (
        f"set engine.slots to at most {largest}, or to auto"
        if largest
        else "set engine.unroll to false, shorten prompts or lower max_new_tokens"
    )
    return UserError(
        f"generation with {slots} slots needs {(cache + estimate.fixed) / gib:.2f} GiB on a "
        f"device: {cache / gib:.2f} for the cache of its rows and {estimate.fixed / gib:.2f} "
        f"beside it; {free / gib:.2f} GiB are free, of which {MEMORY_SHARE:.0%} may be used; "
        f"{advice}"
    )
