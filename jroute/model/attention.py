"""Rotary positions, masks and grouped-query attention."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


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
    """Turns every head by its position's angles."""
    return x * cos[:, :, None, :] + rotate_half(x) * sin[:, :, None, :]


QUERY_BLOCK = 256
"""Queries whose scores are held at a time: they take batch x heads x 256 x keys x 4 bytes."""


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

    def block(some: tuple[Array, Array]) -> Array:
        with jax.numpy_dtype_promotion("standard"):  # the library mixes bfloat16 and float32 inside
            return jax.nn.dot_product_attention(some[0], key, value, mask=some[1])

    batch, seq = query.shape[:2]
    if seq <= QUERY_BLOCK:
        return block((query, mask))
    blocks = -(-seq // QUERY_BLOCK)
    rest = blocks * QUERY_BLOCK - seq
    queries = jnp.pad(query, ((0, 0), (0, rest), (0, 0), (0, 0)))
    masks = jnp.pad(mask, ((0, 0), (0, 0), (0, rest), (0, 0)))
    queries = queries.reshape(batch, blocks, QUERY_BLOCK, *query.shape[2:]).swapaxes(0, 1)
    masks = masks.reshape(batch, 1, blocks, QUERY_BLOCK, -1).transpose(2, 0, 1, 3, 4)
    attended = jax.lax.map(block, (queries, masks)).swapaxes(0, 1)
    return attended.reshape(batch, -1, *query.shape[2:])[:, :seq]


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
    scores = jnp.where(mask, scores / query.shape[-1] ** 0.5, -1e30)
    share = jnp.einsum("bhqk,bk->bhq", jax.nn.softmax(scores, axis=-1), chosen.astype(jnp.float32))
    return share.mean(axis=1)
