"""Execution shapes: how wide prompts are padded, how many rows run, how long the cache is.

All shapes of a run are known before it starts, and so are its programs and its memory.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from jroute.generate.cache import whole
from jroute.model.config import Qwen3Config
from jroute.model.decoder import Params
from jroute.utils.errors import UserError

SMALLEST_BUCKET = 16
SMALLEST_CAPACITY = 256
"""A shorter cache would not pay for the programs it takes."""

MOST_SLOTS = 256
"""What ``slots: auto`` takes at most: beyond, a step's arithmetic grows as fast as its tokens."""

SHARE = 0.9
"""Of the free memory, what generation may take."""


@dataclass(frozen=True)
class EngineConfig:
    """Execution shape of generation; part of how a cell was made, not of what it means.

    Attributes:
        slots: Rows that run at a time, a multiple of the mesh's ``data`` axis; ``auto`` takes what
            the device's free memory holds, and no more than there are prompts.
        chunk: Decode steps between two looks at stop strings, at most.
        unroll: Decode over separate layers, which is faster but holds the weights of the blocks
            twice; otherwise scan over the stacked ones.
        prefill_tokens: Prompt tokens to read at a time: as many prompts of equal padded width as
            fit, but no more than an eighth of the slots.
        ahead: Steps that the device runs on while the host refills slots; 0 lets it wait.
    """

    slots: int | Literal["auto"] = 64
    chunk: int = 16
    unroll: bool = True
    prefill_tokens: int = 512
    ahead: int = 2

    def __post_init__(self) -> None:
        if (self.slots != "auto" and self.slots < 1) or self.chunk < 1:
            raise UserError("engine.slots and engine.chunk must be at least 1")
        if self.prefill_tokens < 1 or self.ahead < 0:
            raise UserError(
                "engine.prefill_tokens must be at least 1, and engine.ahead must not be negative"
            )

    @property
    def batch(self) -> int:
        """Rows of what is no generation, and so needs little memory: the slots, if they are set."""
        return 64 if self.slots == "auto" else self.slots

    def rows(self, width: int, slots: int, replicas: int) -> int:
        """Prompts of a padded width that are read together; always so many, whoever waits."""
        fit = max(1, min(self.prefill_tokens // width, slots // 8))
        return max(1, fit // replicas) * replicas


def bucket(length: int) -> int:
    """Padded width of a prompt: the next of 16, 32, 48, 64, 96, 128, 192, 256, 384 and so on."""
    power = max(SMALLEST_BUCKET, 1 << (length - 1).bit_length())
    shorter = power // 4 * 3  # neither 12 nor 24: widths are multiples of the smallest
    return shorter if length <= shorter and shorter % SMALLEST_BUCKET == 0 else power


def check_context(prompt_tokens: int, new_tokens: int, context: int) -> None:
    """Refuses a prompt that does not fit.

    Raises:
        UserError: Prompt and completion together are longer than the model's context.
    """
    if prompt_tokens < 1:
        raise UserError("a prompt is empty; give at least one token")
    if not new_tokens and prompt_tokens > context:
        raise UserError(
            f"a text of {prompt_tokens} tokens is longer than the model's context of {context} "
            "tokens; shorten it"
        )
    if prompt_tokens + new_tokens > context:
        raise UserError(
            f"a prompt of {prompt_tokens} tokens plus max_new_tokens {new_tokens} is longer than "
            f"the model's context of {context} tokens; shorten the prompt or lower max_new_tokens"
        )


class Width(NamedTuple):
    """Padded width of prompts that are read together; ``prefix`` is that of what they share."""

    prefix: int
    rest: int

    @classmethod
    def of(cls, tokens: int, shared: int) -> "Width":
        """The width of a prompt of so many tokens, of which the first are shared."""
        return cls(bucket(shared) if shared else 0, bucket(tokens - shared))

    @property
    def total(self) -> int:
        """Positions that a row of this width takes in the cache."""
        return self.prefix + self.rest


class Program(NamedTuple):
    """A program that a run may compile, by the name under which JAX logs it, and its shape."""

    name: str
    shape: str

    def __str__(self) -> str:
        return f"{self.name} {self.shape}"


@dataclass(frozen=True)
class Plan:
    """The shapes of a run.

    Attributes:
        slots: Rows that run at a time.
        widths: Padded widths of the prompts, widest first.
        rows: How many prompts of each width are read together.
        capacities: Lengths that the cache may have, shortest first.
    """

    slots: int
    widths: tuple[Width, ...]
    rows: dict[Width, int]
    capacities: tuple[int, ...]

    @classmethod
    def make(
        cls, prompts: Iterable[tuple[int, int, int]], shape: EngineConfig, slots: int, replicas: int
    ) -> "Plan":
        """Lays a run out.

        Args:
            prompts: Of every request its tokens, how many of them are shared, and its limit.
            shape: The execution shape asked for.
            slots: Rows that run at a time.
            replicas: Parts that the slots lie on.
        """
        prompts = list(prompts)
        widths = sorted({Width.of(tokens, shared) for tokens, shared, _ in prompts}, reverse=True)
        first = max(width.total for width in widths)
        longest = max([first, *(tokens + limit for tokens, _, limit in prompts)])
        capacities = [whole(longest)]
        while max(first, SMALLEST_CAPACITY) <= (half := whole(capacities[0] // 2)) < capacities[0]:
            capacities.insert(0, half)
        rows = {width: shape.rows(width.rest, slots, replicas) for width in widths}
        return cls(slots, tuple(widths), rows, tuple(capacities))

    def programs(self, *, chunk: int, unroll: bool) -> tuple[Program, ...]:
        """Every program that the run may compile, in the order of first use."""
        found = [Program("unstack_blocks", "")] if unroll else []
        for i, capacity in enumerate(self.capacities):
            here = f"{self.slots} x {capacity}"
            found.append(Program("widen", f"to {here}") if i else Program("empty", here))
            for width in self.widths:
                rows = self.rows[width]
                if not i:
                    after = f" after {width.prefix}" if width.prefix else ""
                    found.append(Program("prefill", f"{rows} x {width.rest}{after}"))
                found.append(Program("insert", f"{rows} x {width.total} into {here}"))
            found.append(Program("decode", f"{here}, up to {chunk} steps"))
        prefixes = sorted({width.prefix for width in self.widths if width.prefix})
        return (*(Program("read_prefix", f"{prefix}") for prefix in prefixes), *found)


# Memory ---------------------------------------------------------------------------------------


class Memory(NamedTuple):
    """Bytes on one device.

    Attributes:
        slot: What one slot takes: keys, values, and the logits of a step, several times.
        fixed: What is there whatever the slots: separate weights, and prompts as they are read.
        free: What the device has left.
    """

    slot: float
    fixed: int
    free: int | None

    def most_slots(self) -> int | None:
        """Slots that fit; ``None`` where the device does not tell its memory."""
        if self.free is None:
            return None
        return max(0, int((SHARE * self.free - self.fixed) // self.slot))


def memory_of(
    params: Params,
    config: Qwen3Config,
    plan: Plan,
    shape: EngineConfig,
    free: int | None,
    routed_streams: int = 0,
) -> Memory:
    """What a run takes on a device, beside what there is.

    Args:
        params: Parameters, as they lie.
        config: Shape of the model.
        plan: The shapes of the run.
        shape: The execution shape asked for.
        free: Bytes that are free (see ``free_memory``).
        routed_streams: Streams of the routing, if there is one.
    """
    mesh = jax.sharding.get_mesh()
    data, tensor = (1, 1) if mesh.empty else (mesh.shape["data"], mesh.shape["tensor"])
    item = params["embed_tokens"].dtype.itemsize
    token = 2 * config.num_key_value_heads // tensor * config.head_dim * item  # of one layer
    layers = config.num_hidden_layers
    slot = plan.capacities[-1] * token * layers
    if len(plan.capacities) > 1:  # a layer is held twice while it grows, a stacked cache as a whole
        slot += plan.capacities[-2] * token * (1 if shape.unroll else layers)
    logits = 4 * config.vocab_size // tensor * 4
    # Of a prompt's token: keys and values, twice; streams and updates; the MLP's inner states.
    inner = (6 + 2 * routed_streams) * config.hidden_size + 3 * config.intermediate_size // tensor
    read = max(plan.rows[width] // data * width.total for width in plan.widths)
    fixed = read * (2 * token * layers + inner * max(item, 4))
    if shape.unroll:
        fixed += sum(_on_one_device(leaf) for leaf in jax.tree.leaves(params["blocks"]))
    return Memory((slot + logits) / data, fixed, free)


def _on_one_device(array: Any) -> int:
    part = array.sharding.shard_shape(array.shape)
    return prod(part) * array.dtype.itemsize


def free_memory() -> int | None:
    """Bytes free on the device of this program that has least; the host's own for a CPU."""
    mesh = jax.sharding.get_mesh()
    devices = [d for d in mesh.devices.flat if d in set(jax.local_devices())] if mesh.size else []
    found = []
    for device in devices or jax.local_devices()[:1]:
        stats = device.memory_stats() or {}
        if "bytes_limit" in stats:
            found.append(stats["bytes_limit"] - stats["bytes_in_use"])
        elif device.platform == "cpu" and (available := _available()):
            found.append(available // max(1, len(devices)))
    least = min(found, default=-1)
    if jax.process_count() > 1:  # every process must come to the same shapes
        least = int(np.min(multihost_utils.process_allgather(np.int64(least))))
    return None if least < 0 else least


def _available() -> int:
    """Bytes that the host could give without swapping; 0 where it does not tell."""
    path = Path("/proc/meminfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(found[0]) * 1024 if found else 0


def choose_slots(memory: Callable[[int], Memory], prompts: int, replicas: int) -> int:
    """Slots for ``auto``: 1, 2, 3, 4, 6, 8, 12 … per replica; no more than prompts need or fit.

    Args:
        memory: What so many slots take, and what there is.
        prompts: Requests of the run.
        replicas: Parts that the slots lie on.

    Raises:
        UserError: Not even one fits.
    """
    sizes = sorted({size << k for size in (2, 3) for k in range(8)} | {1})
    need = next((s for s in sizes if s * replicas >= prompts), sizes[-1])
    for slots in (s * replicas for s in reversed(sizes) if s <= need):
        most = memory(slots).most_slots()
        if slots <= max(MOST_SLOTS, replicas) and (most is None or slots <= most):
            return slots
    return refuse(memory(replicas), replicas)


def check_memory(memory: Memory, slots: int) -> None:
    """Refuses what does not fit.

    Raises:
        UserError: The message says how much is needed, how much there is, and what would fit.
    """
    most = memory.most_slots()
    if most is not None and most < slots:
        refuse(memory, slots)


def refuse(memory: Memory, slots: int) -> NoReturn:
    """Says what does not fit."""
    gib = 2**30
    needed, free = memory.slot * slots + memory.fixed, memory.free or 0
    most = memory.most_slots() or 0
    advice = (
        f"set engine.slots to at most {most}, or to auto"
        if most
        else "set engine.unroll to false, shorten prompts or lower max_new_tokens"
    )
    raise UserError(
        f"generation with {slots} slots needs {needed / gib:.2f} GiB on a device: "
        f"{memory.slot * slots / gib:.2f} for the cache of its rows and {memory.fixed / gib:.2f} "
        f"beside it; {free / gib:.2f} GiB are free, of which {SHARE:.0%} may be used; {advice}"
    )


def replicas_of_mesh() -> int:
    """Parts that slots lie on: the size of the mesh's ``data`` axis."""
    mesh = jax.sharding.get_mesh()
    return 1 if mesh.empty else mesh.shape["data"]
