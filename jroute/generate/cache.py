"""The key-value cache of decoding: index = position in the row.

Its layout is that of attention's products: keys ``[slots, kv_heads, head_dim, keys]``, values
``[slots, kv_heads, keys, head_dim]``, so that a step copies nothing of its size. Each is cut along
its positions into blocks (``block_sizes``), which are separate arrays. Block boundaries depend on
the position alone, and attention reads the blocks one by one, in order: what a row computes does
not depend, bit for bit, on the length of the cache, nor on the neighbors that lengthened it. A
cache grows by another block, without a copy.

On a GPU, where more and smaller products cost more than they save, there is a single block of the
requested length; the capacity is then part of the execution shape.
"""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Shaped

from jroute.distributed.mesh import constrain
from jroute.model.attention import CACHED_KEY_AXES, CACHED_VALUE_AXES, KeyValue, to_cache_layout
from jroute.model.config import DecoderConfig

Cache = KeyValue | tuple[KeyValue, ...]
"""Keys and values of all layers: stacked, to scan over, or one pair per layer."""

BLOCK = 64
"""Positions of the first blocks, and what every block is a multiple of."""


def block_sizes(length: int) -> tuple[int, ...]:
    """Return the blocks of a cache for ``length`` positions: 64, 64, 64, 64, 128, 128, 256 ...

    Two sizes per octave keep the blocks few and leave at most a third of a long cache unused. There
    are always two blocks: for a single one XLA makes another program, which rounds differently.
    """
    if jax.default_backend() != "cpu":
        return (-(-length // BLOCK) * BLOCK,)
    sizes: list[int] = []
    while (before := sum(sizes)) < max(length, BLOCK + 1):
        sizes.append(max(BLOCK, (1 << before.bit_length()) // 4))
    return tuple(sizes)


def capacity_for(length: int) -> int:
    """Return the capacity of a cache with room for ``length`` positions."""
    return sum(block_sizes(length))


def capacity(cache: Cache) -> int:
    """Return how many positions a row of the cache has room for."""
    layer = cache if isinstance(cache, KeyValue) else cache[0]
    return sum(block.shape[-1] for block in layer.key)


def allocate(
    config: DecoderConfig, slots: int, length: int, dtype: Any, *, stacked: bool = False
) -> Cache:
    """Allocate an empty cache with room for ``length`` positions."""
    layers, heads = config.num_hidden_layers, config.num_key_value_heads

    def empty() -> KeyValue:
        shape = (*((layers,) if stacked else ()), slots, heads)
        key = jnp.zeros((*shape, config.head_dim, 0), dtype)
        value = jnp.zeros((*shape, 0, config.head_dim), dtype)
        return grow(KeyValue((key,), (value,)), length)

    return empty() if stacked else tuple(empty() for _ in range(layers))


def from_prefill(kv: KeyValue, length: int, *, stacked: bool = False) -> Cache:
    """Make the cache of a prefill, with room for ``length`` positions.

    Args:
        kv: Keys and values ``[layers, batch, seq, kv_heads, head_dim]`` of right-padded prompts; or
            the stacked cache of a prefill that continued a prefix.
        length: Positions of the cache, at least ``seq``. Positions beyond a row's own length are
            overwritten before they are attended to.
        stacked: Keep the layers in one array; otherwise split them.
    """
    if not isinstance(kv.key, tuple):
        kv = to_cache_layout(kv)
        sizes = block_sizes(kv.key.shape[-1])
        kv = KeyValue(_cut(kv.key, -1, sizes), _cut(kv.value, -2, sizes))
    grown = grow(kv, length)
    if stacked:
        return grown
    layers = grown.key[0].shape[0]
    return tuple(jax.tree.map(lambda block, i=i: block[i], grown) for i in range(layers))


def after_prefix(prefix: KeyValue, rows: int, more: int, *, stacked: bool = True) -> Cache:
    """Make a cache of ``rows`` rows that begin with a prefix, with room for ``more`` positions.

    Args:
        prefix: Keys and values ``[layers, replicas, prefix, kv_heads, head_dim]``, one row for
            every replica of the mesh.
        rows: Rows of the cache.
        more: Positions after those of the prefix.
        stacked: Keep the layers in one array.
    """
    replicas, length = prefix.key.shape[1:3]
    repeated = KeyValue(*(jnp.repeat(part, rows // replicas, axis=1) for part in prefix))
    return from_prefill(repeated, length + more, stacked=stacked)


def grow(cache: KeyValue, length: int) -> KeyValue:
    """Lengthen the cache of one layer, or of all stacked, to hold ``length`` positions.

    Full blocks are returned as they are.
    """
    sizes = block_sizes(length)
    if sum(sizes) <= capacity(cache):
        return cache

    def lengthen(blocks: tuple[Array, ...], axis: int, axes: tuple[str, ...]) -> tuple[Array, ...]:
        longer = list(blocks)
        for i, size in enumerate(sizes):
            if i == len(longer):
                longer.append(jax.lax.slice_in_dim(longer[0], 0, 0, axis=axis))
            if missing := size - longer[i].shape[axis]:
                padding = [(0, 0)] * longer[i].ndim
                padding[axis] = (0, missing)
                longer[i] = _constrain(jnp.pad(longer[i], padding), axes)
        return tuple(longer)

    return KeyValue(
        lengthen(cache.key, -1, CACHED_KEY_AXES), lengthen(cache.value, -2, CACHED_VALUE_AXES)
    )


def insert(cache: Cache, rows: Cache, at: Int[Array, " rows"]) -> Cache:
    """Put rows into slots; see ``put_rows``. The cache of the rows may be shorter."""
    if isinstance(cache, KeyValue) and isinstance(rows, KeyValue):
        return _insert(cache, rows, at, jax.vmap(put_rows, in_axes=(0, 0, None)))
    return tuple(_insert(*pair, at, put_rows) for pair in zip(cache, rows, strict=True))


def _insert(cache: KeyValue, rows: KeyValue, at: Array, put: Callable[..., Array]) -> KeyValue:
    def insert_blocks(
        old: tuple[Array, ...], new: tuple[Array, ...], axes: tuple[str, ...]
    ) -> tuple[Array, ...]:
        changed = tuple(_constrain(put(*pair, at), axes) for pair in zip(old, new, strict=False))
        return (*changed, *old[len(new) :])

    return KeyValue(
        insert_blocks(cache.key, rows.key, CACHED_KEY_AXES),
        insert_blocks(cache.value, rows.value, CACHED_VALUE_AXES),
    )


def put_rows(
    old: Shaped[Array, "slots *old"], new: Shaped[Array, "rows *new"], at: Int[Array, " rows"]
) -> Shaped[Array, "slots *old"]:
    """Overwrite slots ``at`` with rows, which may be shorter along any other axis.

    On a mesh a row stays on its replica, without communication: each of the ``data`` parts of
    ``new`` goes into the same part of ``old``, and ``at`` counts within the part. A row with a slot
    outside is dropped.
    """

    def put(old: Array, new: Array, at: Array) -> Array:
        return old.at[(at, *map(slice, new.shape[1:]))].set(new, mode="drop")

    mesh = jax.sharding.get_abstract_mesh()
    parts = 1 if mesh.empty else mesh.shape["data"]
    if parts == 1:
        return put(old, new, at)
    split = (x.reshape(parts, x.shape[0] // parts, *x.shape[1:]) for x in (old, new, at))
    return jax.vmap(put)(*split).reshape(old.shape)


def _cut(x: Array, axis: int, sizes: tuple[int, ...]) -> tuple[Array, ...]:
    """Cut an array into blocks of the given sizes; the last may be shorter."""
    ends = [min(end, x.shape[axis]) for end in itertools.accumulate(sizes)]
    return tuple(jnp.split(x, ends[:-1], axis=axis))


def _constrain(block: Array, axes: tuple[str, ...]) -> Array:
    """Lay a block of one layer, or of all stacked, out by the table of the mesh."""
    return constrain(block, ("layers", *axes)[-block.ndim :])
