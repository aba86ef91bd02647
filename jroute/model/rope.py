"""Rotary position embeddings (Su et al. 2021), in the half-split layout."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def rope_tables(
    positions: Int[Array, "batch seq"], head_dim: int, theta: float, dtype: jnp.dtype
) -> tuple[Float[Array, "batch seq head_dim"], Float[Array, "batch seq head_dim"]]:
    """Compute the cosines and sines of every position's angles.

    The tables are computed in float32 and cast at the end, as transformers does. Padding may carry
    any position.
    """
    exponents = jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim
    angles = positions[..., None].astype(jnp.float32) * (theta**-exponents)[None, None]
    angles = jnp.concatenate([angles, angles], axis=-1)
    return jnp.cos(angles).astype(dtype), jnp.sin(angles).astype(dtype)


def rotate_half(x: Float[Array, "*batch head_dim"]) -> Float[Array, "*batch head_dim"]:
    """Map the two halves of a head, ``(first, second)``, to ``(-second, first)``."""
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([-second, first], axis=-1)


def apply_rope(
    x: Float[Array, "batch seq heads head_dim"],
    cos: Float[Array, "batch seq head_dim"],
    sin: Float[Array, "batch seq head_dim"],
) -> Float[Array, "batch seq heads head_dim"]:
    """Rotate every head by the angles of its position."""
    return x * cos[:, :, None, :] + rotate_half(x) * sin[:, :, None, :]
