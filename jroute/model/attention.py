"""Rotary positions, masks and grouped-query attention."""

from collections.abc import Callable, Sequence
from functools import partial, reduce

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped


def rope_tables(
    positions: Int[Array, "batch seq"], head_dim: int, theta: float, dtype: jnp.dtype
) -> tuple[Float[Array, "batch seq head_dim"], Float[Array, "batch seq head_dim"]]:
    """Cosines and sines of the rotary embedding (Su et al. 2021, in the half-split layout).

    Computed in float32 and cast at the end, as transformers does. Padding may carry any position.
    """
    exponents = jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim
    angles = positions[..., None].astype(jnp.float32) * (theta**-exponents)[None, None]
    angles = jnp.concatenate([angles, angles], axis=-1)
    return jnp.cos(angles).astype(dtype), jnp.sin(angles).astype(dtype)


def rotate_half(x: Float[Array, "*rest head_dim"]) -> Float[Array, "*rest head_dim"]:
    """``(first, second) -> (-second, first)`` over the two halves of a head."""
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([-second, first], axis=-1)


def apply_rope(
    x: Float[Array, "batch seq heads head_dim"],
    cos: Float[Array, "batch seq head_dim"],
    sin: Float[Array, "batch seq head_dim"],
) -> Float[Array, "batch seq heads head_dim"]:
    """Turn every head by its position's angles."""
    return x * cos[:, :, None, :] + rotate_half(x) * sin[:, :, None, :]


QUERY_BLOCK = 256
"""Queries whose scores are held at a time: they take batch x heads x 256 x keys x 4 bytes."""

UNSEEN = -1e30
"""Score of a key that a query may not see; finite, so that a query that sees none stays so."""


def causal_mask(
    query_positions: Int[Array, "batch seq"], key_positions: Int[Array, "#batch keys"]
) -> Bool[Array, "batch 1 seq keys"]:
    """Which keys a query may see: real ones (position >= 0) that are not in its future."""
    keys = key_positions[:, None, :]
    return ((keys >= 0) & (keys <= query_positions[:, :, None]))[:, None]


def attend(
    query: Float[Array, "batch seq heads head_dim"],
    key: Float[Array, "batch keys kv_heads head_dim"],
    value: Float[Array, "batch keys kv_heads head_dim"],
    mask: Bool[Array, "batch 1 seq keys"],
) -> Float[Array, "batch seq heads head_dim"]:
    """Grouped-query attention: query head ``h`` reads key head ``h // (heads / kv_heads)``.

    Scores and softmax are float32. A query that may see nothing (padding) gets a finite result.
    Long prompts are read ``QUERY_BLOCK`` queries at a time, so memory grows with ``seq``, not with
    its square.
    """

    def block(query: Array, mask: Array) -> Array:
        with jax.numpy_dtype_promotion("standard"):  # the library mixes bfloat16 and float32 inside
            return jax.nn.dot_product_attention(query, key, value, mask=mask[:, None])

    return _by_queries(block, query, mask[:, 0])


def _by_queries(
    block: Callable[[Array, Array], Array],
    query: Float[Array, "batch seq heads head_dim"],
    other: Shaped[Array, "batch seq *rest"],
) -> Float[Array, "batch seq heads head_dim"]:
    """Run ``block`` on ``QUERY_BLOCK`` queries at a time, with what belongs to them."""
    batch, seq = query.shape[:2]
    if seq <= QUERY_BLOCK:
        return block(query, other)
    blocks = -(-seq // QUERY_BLOCK)

    def split(x: Array) -> Array:
        x = jnp.pad(x, [(0, 0), (0, blocks * QUERY_BLOCK - seq)] + [(0, 0)] * (x.ndim - 2))
        return x.reshape(batch, blocks, QUERY_BLOCK, *x.shape[2:]).swapaxes(0, 1)

    found = jax.lax.map(lambda some: block(*some), (split(query), split(other)))
    return found.swapaxes(0, 1).reshape(batch, -1, *query.shape[2:])[:, :seq]


def attend_cached(
    query: Float[Array, "batch seq heads head_dim"],
    keys: Sequence[Float[Array, "batch kv_heads head_dim _"]],
    values: Sequence[Float[Array, "batch kv_heads _ head_dim"]],
    positions: Int[Array, "batch seq"],
) -> Float[Array, "batch seq heads head_dim"]:
    """Attention to a cache: a query at position ``p`` sees the keys at 0 to ``p``.

    The cache comes in blocks, laid out as the two products read them, so that nothing of its size
    is copied. Every block is a computation of its own, and what they give is put together in
    order: a block of which a row sees nothing adds zeros. So a row's result does not depend on how
    many more blocks there are, bit for bit.

    Args:
        query: Queries; as in ``attend`` several heads share a key head.
        keys: Blocks of the cached keys, in the order of their positions.
        values: Their values. They must be finite, seen or not.
        positions: Of the queries. What is negative sees nothing and gets a finite result.
    """

    def block(query: Array, positions: Array) -> Array:
        batch, seq, heads, head_dim = query.shape
        groups = heads // keys[0].shape[1]
        grouped = query.reshape(batch, seq, -1, groups, head_dim).transpose(0, 2, 3, 1, 4)
        grouped = grouped.reshape(batch, -1, groups * seq, head_dim)
        last = jnp.tile(positions, groups)[:, None, :, None]
        scores, start = [], 0
        for key in keys:
            found = jnp.einsum("bkqd,bkdn->bkqn", grouped, key, preferred_element_type=jnp.float32)
            at = start + jnp.arange(key.shape[-1])[None, None, None]
            scores.append(jnp.where(at <= last, found, UNSEEN))
            start += key.shape[-1]
        top = reduce(jnp.maximum, [found.max(axis=-1, keepdims=True) for found in scores])
        # Scaled last: a product before the difference might be rounded with it, or by itself.
        weights = [jnp.exp((found - top) / head_dim**0.5) for found in scores]
        total = reduce(jnp.add, [weight.sum(axis=-1, keepdims=True) for weight in weights])
        product = partial(jnp.einsum, "bkqn,bknd->bkqd", preferred_element_type=jnp.float32)
        parts = [
            product(weight.astype(value.dtype), value)
            for weight, value in zip(weights, values, strict=True)
        ]
        attended = (reduce(jnp.add, parts) / total).astype(query.dtype)
        attended = attended.reshape(batch, -1, groups, seq, head_dim).transpose(0, 3, 1, 2, 4)
        return attended.reshape(query.shape)

    return _by_queries(block, query, positions)


def attention_to(
    chosen: Bool[Array, "batch keys"],
    query: Float[Array, "batch seq heads head_dim"],
    key: Float[Array, "batch keys kv_heads head_dim"],
    mask: Bool[Array, "batch 1 seq keys"],
) -> Float[Array, "batch seq"]:
    """Share of attention that goes to the chosen keys, as a mean over heads; for diagnostics."""
    groups = query.shape[2] // key.shape[2]
    keys = jnp.repeat(key.astype(jnp.float32), groups, axis=2)
    scores = jnp.einsum("bqhd,bkhd->bhqk", query.astype(jnp.float32), keys)
    scores = jnp.where(mask, scores / query.shape[-1] ** 0.5, UNSEEN)
    share = jnp.einsum("bhqk,bk->bhq", jax.nn.softmax(scores, axis=-1), chosen.astype(jnp.float32))
    return share.mean(axis=1)
