"""Shapes of a batch: padded prompt widths, rows per prefill, and lengths of the cache.

All shapes of a run are known before it starts, and so are its programs and its memory.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Int

from jroute.generate.cache import capacity_for
from jroute.generate.config import EngineConfig
from jroute.utils.errors import UserError

SMALLEST_BUCKET = 16
SMALLEST_CAPACITY = 256
"""A shorter cache would not pay for the programs it takes."""


def bucket(length: int) -> int:
    """Round the length of a prompt up to 16, 32, 48, 64, 96, 128, 192, 256, 384 and so on."""
    power = max(SMALLEST_BUCKET, 1 << (length - 1).bit_length())
    shorter = power // 4 * 3  # neither 12 nor 24: widths are multiples of the smallest
    return shorter if length <= shorter and shorter % SMALLEST_BUCKET == 0 else power


def pad_rows(
    rows: Sequence[Sequence[int]], shape: tuple[int, int]
) -> tuple[Int[np.ndarray, "batch seq"], Int[np.ndarray, " batch"]]:
    """Lay token ids out in a batch.

    Args:
        rows: Token ids of each row.
        shape: Rows and width of the batch; missing rows are empty.

    Returns:
        The tokens, padded on the right with 0, and the length of every row.
    """
    tokens, lengths = np.zeros(shape, np.int32), np.zeros(shape[0], np.int32)
    for i, row in enumerate(rows):
        tokens[i, : len(row)], lengths[i] = row, len(row)
    return tokens, lengths


def positions_of(
    lengths: Int[np.ndarray, " batch"], width: int
) -> Int[np.ndarray, "batch {width}"]:
    """Return the position of every token of right-padded rows; padding is -1."""
    columns = np.arange(width, dtype=np.int32)[None]
    return np.where(columns < lengths[:, None], columns, np.int32(-1))


def check_context(prompt_tokens: int, new_tokens: int, context: int) -> None:
    """Refuse a prompt that does not fit the context.

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


def check_divisible(slots: int | Literal["auto"], replicas: int) -> None:
    """Refuse slots that the replicas of a mesh cannot share evenly.

    Raises:
        UserError: ``replicas`` does not divide ``slots``.
    """
    if slots != "auto" and slots % replicas:
        raise UserError(
            f"engine.slots is {slots}, which the {replicas} replicas of mesh.data do not divide; "
            f"give a multiple of {replicas}"
        )


class Width(NamedTuple):
    """Padded width of prompts that are read together.

    Attributes:
        prefix: Padded width of the leading tokens that they share.
        own: Padded width of the tokens that follow.
    """

    prefix: int
    own: int

    @classmethod
    def of(cls, tokens: int, shared: int) -> "Width":
        """Return the width of a prompt of ``tokens`` tokens that shares the first ``shared``."""
        return cls(bucket(shared) if shared else 0, bucket(tokens - shared))

    @property
    def total(self) -> int:
        """Positions that a row of this width takes in the cache."""
        return self.prefix + self.own


class Program(NamedTuple):
    """A program that a run may compile, by the name under which JAX logs it, and its shape."""

    name: str
    shape: str

    def __str__(self) -> str:
        return f"{self.name} {self.shape}"


@dataclass(frozen=True)
class BatchPlan:
    """The shapes of a run.

    Attributes:
        slots: Rows that run at a time.
        widths: Padded widths of the prompts, widest first.
        rows: Number of prompts of each width that are read together.
        capacities: Lengths that the cache may have, shortest first.
    """

    slots: int
    widths: tuple[Width, ...]
    rows: dict[Width, int]
    capacities: tuple[int, ...]

    @classmethod
    def make(
        cls,
        prompts: Iterable[tuple[int, int, int]],
        config: EngineConfig,
        slots: int,
        replicas: int,
    ) -> "BatchPlan":
        """Plan a run.

        Args:
            prompts: For every request its tokens, how many of them are shared, and its limit.
            config: The execution shape.
            slots: Rows that run at a time; ``config`` may leave them open.
            replicas: Size of the mesh's ``data`` axis, over which the slots are cut.
        """
        prompts = list(prompts)
        widths = sorted({Width.of(tokens, shared) for tokens, shared, _ in prompts}, reverse=True)
        widest = max(width.total for width in widths)
        longest = max([widest, *(tokens + limit for tokens, _, limit in prompts)])
        smallest, capacities = max(widest, SMALLEST_CAPACITY), [capacity_for(longest)]
        while smallest <= (half := capacity_for(capacities[0] // 2)) < capacities[0]:
            capacities.insert(0, half)
        rows = {width: config.prefill_rows(width.own, slots, replicas) for width in widths}
        return cls(slots, tuple(widths), rows, tuple(capacities))

    def programs(self, *, chunk: int, unroll: bool) -> tuple[Program, ...]:
        """List every program that the run may compile, in the order of first use."""
        programs = [Program("unstack_blocks", "")] if unroll else []
        for i, capacity in enumerate(self.capacities):
            here = f"{self.slots} x {capacity}"
            programs.append(Program("widen", f"to {here}") if i else Program("empty", here))
            for width in self.widths:
                rows = self.rows[width]
                if not i:
                    after = f" after {width.prefix}" if width.prefix else ""
                    programs.append(Program("prefill", f"{rows} x {width.own}{after}"))
                programs.append(Program("insert", f"{rows} x {width.total} into {here}"))
            programs.append(Program("decode", f"{here}, up to {chunk} steps"))
        prefixes = sorted({width.prefix for width in self.widths if width.prefix})
        return (*(Program("read_prefix", f"{prefix}") for prefix in prefixes), *programs)
