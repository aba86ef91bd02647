"""Rotary position embeddings (Su et al. 2021), in the half-split layout."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jroute.model.config import DecoderConfig, Llama3Rope


def rope_tables(
    positions: Int[Array, "batch seq"], config: DecoderConfig, dtype: jnp.dtype
) -> tuple[Float[Array, "batch seq head_dim"], Float[Array, "batch seq head_dim"]]:
    """Compute the cosines and sines of every position's angles.

    The tables are computed in float32 and cast at the end, as transformers does. Padding may carry
    any position.
    """
    exponents = jnp.arange(0, config.head_dim, 2, dtype=jnp.float32) / config.head_dim
    frequencies = config.rope_theta**-exponents
    if config.rope_scaling is not None:
        frequencies = stretched(frequencies, config.rope_scaling)
    angles = positions[..., None].astype(jnp.float32) * frequencies[None, None]
    angles = jnp.concatenate([angles, angles], axis=-1)
    return jnp.cos(angles).astype(dtype), jnp.sin(angles).astype(dtype)


def stretched(frequencies: Float[Array, " dims"], scaling: Llama3Rope) -> Float[Array, " dims"]:
    """Slow down the slow dimensions of the rotation, as Llama 3.1 does for its longer context.

    Dimensions that turn at least ``high_freq_factor`` times within the original context are left
    as they are, those that turn at most ``low_freq_factor`` times are slowed by ``factor``, and
    between the two it is interpolated linearly in the number of turns (Llama Team 2024; the
    constants are Meta's reference code's).

    Args:
        frequencies: Radians per position.
        scaling: The constants.
    """
    turns = scaling.original_max_position_embeddings * frequencies / (2 * np.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = jnp.clip((turns - low) / (high - low), 0, 1)
    return kept * frequencies + (1 - kept) * frequencies / scaling.factor


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
