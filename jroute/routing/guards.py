"""Guards that keep mixing within bounds: norm matching, the exemption of sinks, and the cap.

* *Norm matching* scales every side stream to the trunk's root mean square before it is mixed, token
  by token, and scales every mixed stream back to the norm it had: streams turn and do not grow.
* *Sink exemption* leaves attention sinks unmixed: the first token of a row, and tokens whose trunk
  exceeds a norm calibrated per block. Both depend on the token alone, so decoding agrees with the
  full forward pass.
* The *cap* limits how far mixing moves a stream, relative to the stream's norm.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jroute.routing.config import RoutingConfig


def rms(x: Float[Array, "*batch embed"]) -> Float[Array, "*batch 1"]:
    """Return the root mean square over the last axis, bounded away from 0."""
    return jnp.sqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-12)


class MatchedStreams(NamedTuple):
    """The streams as they are mixed, the trunk first.

    Attributes:
        states: Each stream in float32, times its scale.
        norms: Root mean square of each stream before it was scaled ``[batch, seq, 1]``.
        scales: The factor of each stream ``[batch, seq, 1]``; 1 without norm matching.
    """

    states: list[Array]
    norms: list[Array]
    scales: list[Array]


def match_norms(
    streams: Sequence[Float[Array, "batch seq embed"]], *, enabled: bool
) -> MatchedStreams:
    """Scale the side streams to the trunk's root mean square, if ``enabled``."""
    states = [stream.astype(jnp.float32) for stream in streams]
    norms = [rms(state) for state in states]
    scales = [jnp.ones_like(norms[0])] * len(states)
    if enabled:
        scales = [scales[0], *(norms[0] / norm for norm in norms[1:])]
        scaled = [state * scale for state, scale in zip(states[1:], scales[1:], strict=True)]
        states = [states[0], *scaled]
    return MatchedStreams(states, norms, scales)


def exempt_tokens(
    config: RoutingConfig,
    trunk: Float[Array, "batch seq embed"],
    positions: Int[Array, "batch seq"],
    sink_norm: Float[Array, ""],
) -> Bool[Array, "batch seq"]:
    """Return which tokens are exempt: the first of a row, and those above ``sink_norm``."""
    exempt = jnp.zeros(positions.shape, bool)
    if config.exempt_first:
        exempt = positions == 0
    if config.sink_norms:
        exempt = exempt | (rms(trunk.astype(jnp.float32))[..., 0] > sink_norm)
    return exempt


def allowed_share(
    cap: float,
    x: Float[Array, "*batch embed"],
    change: Float[Array, "*batch embed"],
    *,
    norm_restored: bool,
) -> Float[Array, "*batch 1"]:
    """Return the share of ``change``, at most 1, that moves ``x`` by at most ``cap`` norms.

    With ``norm_restored`` the sum is scaled back to the norm of ``x`` afterwards and so moves along
    a chord: a chord of length ``cap`` spans the angle ``2 asin(cap / 2)``.
    """
    size, length = rms(x), rms(change)
    if not norm_restored:
        return jnp.minimum(1.0, cap * size / length)
    angle = 2 * math.asin(min(cap / 2, 1.0))
    along = jnp.mean(x * change, axis=-1, keepdims=True) / size
    across = jnp.sqrt(jnp.maximum(length * length - along * along, 1e-12))
    # Where this is not positive, no share of the change turns as far as that.
    beyond = across * math.cos(angle) - along * math.sin(angle)
    share = size * math.sin(angle) / jnp.where(beyond > 0, beyond, 1.0)
    return jnp.where(beyond > 0, jnp.minimum(1.0, share), 1.0)
