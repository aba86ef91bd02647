"""Grouped-query attention over fresh keys or a cache, and the keys and values it reads.

A cache is laid out as the products of attention read it and is cut along its positions into blocks;
``jroute.generate.cache`` allocates it and lets it grow.
"""

from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from jroute.distributed.mesh import constrain

CACHED_KEY_AXES = ("batch", "kv_heads", "head_dim", "keys")
CACHED_VALUE_AXES = ("batch", "kv_heads", "keys", "head_dim")
"""Logical axes of a block of the cache (see ``jroute.distributed.mesh``)."""

QUERY_BLOCK = 256
"""Queries whose scores are held at a time: they take batch x heads x 256 x keys x 4 bytes."""

UNSEEN = -1e30
"""Score of a key that a query may not see; finite, so that a query without keys stays finite."""


class KeyValue(NamedTuple):
    """Keys and values of one layer, or of all layers stacked.

    Attributes:
        key: Keys of a call's tokens ``[*layers, batch, keys, kv_heads, head_dim]``. In a cache, a
            tuple of consecutive blocks ``[*layers, batch, kv_heads, head_dim, keys]``.
        value: Values, laid out likewise; in a cache, blocks
            ``[*layers, batch, kv_heads, keys, head_dim]``.
    """

    key: Any
    value: Any


def causal_mask(
    query_positions: Int[Array, "batch seq"], key_positions: Int[Array, "#batch keys"]
) -> Bool[Array, "batch 1 seq keys"]:
    """Return which keys a query may see: real ones (position >= 0) that are not in its future."""
    keys = key_positions[:, None, :]
    return ((keys >= 0) & (keys <= query_positions[:, :, None]))[:, None]


def attend(
    query: Float[Array, "batch seq heads head_dim"],
    key: Float[Array, "batch keys kv_heads head_dim"],
    value: Float[Array, "batch keys kv_heads head_dim"],
    mask: Bool[Array, "batch 1 seq keys"],
) -> Float[Array, "batch seq heads head_dim"]:
    """Attend with grouped queries: query head ``h`` reads key head ``h // (heads / kv_heads)``.

    Scores and softmax are float32. A query that may see nothing (padding) gets a finite result.
    Long prompts are read ``QUERY_BLOCK`` queries at a time, so memory grows with ``seq``, not with
    its square.
    """

    def block(query: Array, mask: Array) -> Array:
        with jax.numpy_dtype_promotion("standard"):  # the library mixes bfloat16 and float32 inside
            return jax.nn.dot_product_attention(query, key, value, mask=mask[:, None])

    return _in_query_blocks(block, query, mask[:, 0])


def _in_query_blocks(
    block: Callable[[Array, Array], Array],
    query: Float[Array, "batch seq heads head_dim"],
    per_query: Shaped[Array, "batch seq *per_query"],
) -> Float[Array, "batch seq heads head_dim"]:
    """Run ``block`` on ``QUERY_BLOCK`` queries at a time, with their part of ``per_query``."""
    batch, seq = query.shape[:2]
    if seq <= QUERY_BLOCK:
        return block(query, per_query)
    blocks = -(-seq // QUERY_BLOCK)

    def split(x: Array) -> Array:
        x = jnp.pad(x, [(0, 0), (0, blocks * QUERY_BLOCK - seq)] + [(0, 0)] * (x.ndim - 2))
        return x.reshape(batch, blocks, QUERY_BLOCK, *x.shape[2:]).swapaxes(0, 1)

    attended = jax.lax.map(lambda inputs: block(*inputs), (split(query), split(per_query)))
    return attended.swapaxes(0, 1).reshape(batch, -1, *query.shape[2:])[:, :seq]


def attend_cached(
    query: Float[Array, "batch seq heads head_dim"],
    keys: Sequence[Float[Array, "batch kv_heads head_dim _"]],
    values: Sequence[Float[Array, "batch kv_heads _ head_dim"]],
    positions: Int[Array, "batch seq"],
) -> Float[Array, "batch seq heads head_dim"]:
    """Attend to a cache: a query at position ``p`` sees the keys at 0 to ``p``.

    The cache comes in blocks, laid out as the two products read them, so nothing of its size is
    copied. Each block is computed separately, and the partial results are combined in order; a
    block in which a row sees nothing adds zeros. So a row's result does not depend, bit for bit, on
    how many more blocks there are.

    Args:
        query: Queries; as in ``attend``, several heads share a key head.
        keys: Blocks of the cached keys, in the order of their positions.
        values: Their values. They must be finite, seen or not.
        positions: Positions of the queries. A negative one sees nothing and gets a finite result.
    """
    return _in_query_blocks(partial(_attend_blocks, keys, values), query, positions)


def _attend_blocks(
    keys: Sequence[Float[Array, "batch kv_heads head_dim _"]],
    values: Sequence[Float[Array, "batch kv_heads _ head_dim"]],
    query: Float[Array, "batch seq heads head_dim"],
    positions: Int[Array, "batch seq"],
) -> Float[Array, "batch seq heads head_dim"]:
    """Attend to all blocks of a cache with one block of queries."""
    batch, seq, heads, head_dim = query.shape
    groups = heads // keys[0].shape[1]
    grouped = query.reshape(batch, seq, -1, groups, head_dim).transpose(0, 2, 3, 1, 4)
    grouped = grouped.reshape(batch, -1, groups * seq, head_dim)
    last = jnp.tile(positions, groups)[:, None, :, None]
    scores, start = [], 0
    for key in keys:
        product = jnp.einsum("bkqd,bkdn->bkqn", grouped, key, preferred_element_type=jnp.float32)
        key_positions = start + jnp.arange(key.shape[-1])[None, None, None]
        scores.append(jnp.where(key_positions <= last, product, UNSEEN))
        start += key.shape[-1]
    top = reduce(jnp.maximum, [score.max(axis=-1, keepdims=True) for score in scores])
    # Scaled last: a product before the difference might be rounded with it, or by itself.
    weights = [jnp.exp((score - top) / head_dim**0.5) for score in scores]
    total = reduce(jnp.add, [weight.sum(axis=-1, keepdims=True) for weight in weights])
    weigh = partial(jnp.einsum, "bkqn,bknd->bkqd", preferred_element_type=jnp.float32)
    weighted = [
        weigh(weight.astype(value.dtype), value)
        for weight, value in zip(weights, values, strict=True)
    ]
    attended = (reduce(jnp.add, weighted) / total).astype(query.dtype)
    attended = attended.reshape(batch, -1, groups, seq, head_dim).transpose(0, 3, 1, 2, 4)
    return attended.reshape(query.shape)


def attention_share(
    chosen: Bool[Array, "batch keys"],
    query: Float[Array, "batch seq heads head_dim"],
    key: Float[Array, "batch keys kv_heads head_dim"],
    mask: Bool[Array, "batch 1 seq keys"],
) -> Float[Array, "batch seq"]:
    """Return the share of attention that the chosen keys receive, as a mean over heads.

    For diagnostics; it holds all scores at once.
    """
    groups = query.shape[2] // key.shape[2]
    keys = jnp.repeat(key.astype(jnp.float32), groups, axis=2)
    scores = jnp.einsum("bqhd,bkhd->bhqk", query.astype(jnp.float32), keys)
    scores = jnp.where(mask, scores / query.shape[-1] ** 0.5, UNSEEN)
    share = jnp.einsum("bhqk,bk->bhq", jax.nn.softmax(scores, axis=-1), chosen.astype(jnp.float32))
    return share.mean(axis=1)


def to_cache_layout(new: KeyValue) -> KeyValue:
    """Return the keys and values of a call with their axes in the order of a cache.

    Values that are not finite become 0: even where no query sees them they would reach whoever uses
    the row next, since zero times infinity is not zero.
    """
    value = jnp.where(jnp.isfinite(new.value), new.value, jnp.zeros_like(new.value))
    return KeyValue(jnp.moveaxis(new.key, -3, -1), jnp.swapaxes(value, -3, -2))


def update_cache(past: KeyValue, new: KeyValue, positions: Int[Array, "batch seq"]) -> KeyValue:
    """Write a call's keys and values into one layer of a cache, each at its position.

    Tokens beyond the cache's capacity and padding (position -1) are dropped.
    """
    # Row by row, so that the batch axis may be sharded over several devices.
    put_keys = jax.vmap(lambda old, at, add: old.at[:, :, at].set(add, mode="drop"))
    put_values = jax.vmap(lambda old, at, add: old.at[:, at].set(add, mode="drop"))
    if positions.size == 1:  # with padding: on the CPU, XLA copies a cache to write a single key
        positions = jnp.pad(positions, ((0, 0), (0, 1)), constant_values=-1)
        new = KeyValue(*(jnp.pad(part, ((0, 0), (0, 1), (0, 0), (0, 0))) for part in new))
    added = to_cache_layout(new)
    keys, values, start = [], [], 0
    for key, value in zip(past.key, past.value, strict=True):
        size = key.shape[-1]
        at = positions - start
        at = jnp.where((at >= 0) & (at < size), at, size)  # ``size`` is out of bounds: dropped
        keys.append(constrain(put_keys(key, at, added.key), CACHED_KEY_AXES))
        values.append(constrain(put_values(value, at, added.value), CACHED_VALUE_AXES))
        start += size
    return KeyValue(tuple(keys), tuple(values))
