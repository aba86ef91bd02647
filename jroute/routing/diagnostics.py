"""Diagnostics of the streams at a mixing site, as numbers per row."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


class StreamMetrics(NamedTuple):
    """Means over the real tokens of each row; a forward pass adds leading ``layers hooks`` axes.

    Attributes:
        rms: Root mean square of every stream as it is mixed (after norm matching).
        diversity: 1 - mean cosine over pairs of streams; 0 if all are copies of one another.
        dominance: Share ``p_i`` of stream i in the trunk at gate 1, ``E|M[0,i] S[i]|`` normalised.
            With ``readout: mean``, the row that acts replaces ``M[0]``.
        effective_streams: ``exp(entropy(p))``, between 1 and the number of streams.
        change: Relative change of the trunk by mixing, ``|after - before| / |before|``.
        cosine: Cosine between the trunk before and after mixing.
        angle: The angle between them in degrees, exact even where the cosine rounds to 1.
        coefficients: Weight of every stream before mixing in every stream after it, token by token;
            includes gate, M, norm matching, cap, and exemption. Row 0 is the trunk's.
    """

    rms: Float[Array, "*layers batch streams"]
    diversity: Float[Array, "*layers batch"]
    dominance: Float[Array, "*layers batch streams"]
    effective_streams: Float[Array, "*layers batch"]
    change: Float[Array, "*layers batch"]
    cosine: Float[Array, "*layers batch"]
    angle: Float[Array, "*layers batch"]
    coefficients: Float[Array, "*layers batch seq n n"]


def stream_metrics(
    streams: Sequence[Float[Array, "batch seq embed"]],
    weights: Float[Array, " streams"],
    before: Float[Array, "batch seq embed"],
    after: Float[Array, "batch seq embed"],
    valid: Bool[Array, "batch seq"],
) -> StreamMetrics:
    """Measure the streams at one hook; ``coefficients`` are left 0 for the caller to fill in.

    Args:
        streams: The streams as they are mixed, the trunk first.
        weights: The row of M that makes the trunk at gate 1.
        before: The trunk before mixing.
        after: The trunk after mixing.
        valid: Which tokens are real.
    """
    tiny = jnp.float32(1e-20)
    stack = jnp.stack([s.astype(jnp.float32) for s in streams])
    before, after = before.astype(jnp.float32), after.astype(jnp.float32)
    tokens = jnp.maximum(jnp.sum(valid, axis=-1), 1).astype(jnp.float32)

    def mean(x: Float[Array, "*streams batch seq"]) -> Float[Array, "*streams batch"]:
        weights = valid.astype(jnp.float32) / tokens[:, None]
        return jnp.einsum("...bs,bs->...b", x, weights)

    norms = jnp.linalg.norm(stack, axis=-1)
    unit = stack / jnp.maximum(norms, tiny)[..., None]
    n = len(streams)
    cosines = mean(jnp.einsum("ibse,jbse->ijbs", unit, unit))
    pairs = max(n * (n - 1), 1)
    diversity = (
        1 - (cosines.sum((0, 1)) - jnp.trace(cosines)) / pairs if n > 1 else jnp.zeros_like(tokens)
    )
    contributions = mean(jnp.abs(weights)[:, None, None] * norms)
    dominance = contributions / jnp.maximum(contributions.sum(0, keepdims=True), tiny)
    entropy = -jnp.sum(dominance * jnp.log(jnp.maximum(dominance, tiny)), axis=0)
    size = jnp.maximum(jnp.linalg.norm(before, axis=-1), tiny)
    size_after = jnp.maximum(jnp.linalg.norm(after, axis=-1), tiny)
    across = jnp.linalg.norm(before / size[..., None] - after / size_after[..., None], axis=-1)
    along = jnp.linalg.norm(before / size[..., None] + after / size_after[..., None], axis=-1)
    return StreamMetrics(
        rms=mean(norms / before.shape[-1] ** 0.5).T,
        diversity=diversity,
        dominance=dominance.T,
        effective_streams=jnp.exp(entropy),
        change=mean(jnp.linalg.norm(after - before, axis=-1) / size),
        cosine=mean(jnp.sum(before * after, axis=-1) / (size * size_after)),
        angle=mean(2 * jnp.degrees(jnp.arctan2(across, along))),
        coefficients=jnp.zeros((*before.shape[:2], n, n)),
    )
