"""What a gate does to a model, measured before anyone trains on it.

Effects are measured where they count: as angles of what the blocks read and as the change of the
next-token distribution, never as norms (every reader starts with a norm that undoes them).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jroute.errors import UserError
from jroute.generate.engine import bucket, check_context
from jroute.model.composition import closed_form, composition
from jroute.model.config import Qwen3Config
from jroute.model.diagnostics import StreamMetrics
from jroute.model.qwen3 import Params, forward, unembed
from jroute.model.routing import Routing

Verdict = Literal["inert", "gentle", "strong", "destructive"]

INERT_BELOW = 1e-4
"""Mean next-token KL in nats below which no gate of the grid does anything worth training on.

Rounding alone gives less than 1e-9 in float32 and about 1e-5 in bfloat16.
"""

STRONG_ABOVE = 0.1
"""Mean next-token KL in nats from which a gate is no longer gentle."""

DESTRUCTIVE_ABOVE = 1.0
"""Mean next-token KL in nats from which little of the model's prediction is left."""


class GateEffect(NamedTuple):
    """What one gate does, as means over the real tokens of all prompts.

    Attributes:
        gate: The gate.
        kl: ``KL(base || gated)`` of the next token, in nats.
        kl_largest: The largest over tokens.
        agreement: Share of tokens whose most likely successor is the base's.
        change: Relative change of what is mixed, per block and hook.
        angle: Angle of the same in degrees.
        rms: Root mean square per stream.
        diversity: 1 - mean cosine of pairs of streams.
        dominance: Share of every stream in the mixed trunk.
        effective_streams: exp of that share's entropy.
        gain: Largest row and column sum of absolute values of the product of all matrices, or,
            read-only, of a single one.
        first_attention: Attention that goes to the first token, per block.
        composition: C(g): weights of all sources in what every block's attention, every block's
            MLP and the final norm read, ``[2 layers + 1, sources]``.
    """

    gate: float
    kl: float
    kl_largest: float
    agreement: float
    change: Float[np.ndarray, "layers hooks"]
    angle: Float[np.ndarray, "layers hooks"]
    rms: Float[np.ndarray, "layers hooks streams"]
    diversity: Float[np.ndarray, "layers hooks"]
    dominance: Float[np.ndarray, "layers hooks streams"]
    effective_streams: Float[np.ndarray, "layers hooks"]
    gain: tuple[float, float]
    first_attention: Float[np.ndarray, " layers"]
    composition: Float[np.ndarray, "readers sources"]


@dataclass(frozen=True)
class Probe:
    """Effects of a grid of gates, and the verdict on them."""

    effects: tuple[GateEffect, ...]

    @property
    def verdict(self) -> Verdict:
        """By the largest mean KL of the grid."""
        return verdict(max(effect.kl for effect in self.effects))


def verdict(kl: float) -> Verdict:
    """What a mean next-token KL means."""
    if kl < INERT_BELOW:
        return "inert"
    if kl < STRONG_ABOVE:
        return "gentle"
    return "strong" if kl < DESTRUCTIVE_ABOVE else "destructive"


@partial(jax.jit, static_argnames=("config",))
def _hidden(
    params: Params, tokens: Int[Array, "batch seq"], positions: Int[Array, "batch seq"], *, config
) -> Float[Array, "batch seq embed"]:
    return forward(params, config, tokens, positions).hidden


@partial(jax.jit, static_argnames=("config",))
def _measure(
    params: Params,
    tokens: Int[Array, "batch seq"],
    positions: Int[Array, "batch seq"],
    plain: Float[Array, "batch seq embed"],
    routing: Routing,
    gate: Float[Array, "batch layers"],
    *,
    config: Qwen3Config,
) -> tuple[Any, Float[Array, "batch seq 2"], StreamMetrics, Float[Array, "readers sources"], Array]:
    valid = positions >= 0
    out = forward(
        params,
        config,
        tokens,
        positions,
        routing=routing,
        gate=gate,
        metrics=True,
        tap=lambda block: block.first_attention,
    )

    def column(pair: tuple[Array, Array]) -> tuple[Array, Array]:
        """KL and agreement of one column of tokens; logits of one column are held at a time."""
        base, gated = (jax.nn.log_softmax(unembed(params, config, h)) for h in pair)
        kl = jnp.sum(jnp.exp(base) * (base - gated), axis=-1)
        return kl, jnp.argmax(base, axis=-1) == jnp.argmax(gated, axis=-1)

    kl, same = jax.lax.map(column, (plain.swapaxes(0, 1), out.hidden.swapaxes(0, 1)))
    assert out.metrics is not None
    read = composition(routing.config, out.metrics.coefficients)
    readers = jnp.concatenate(
        [
            jnp.stack([read.attention, read.mlp], axis=1).reshape(-1, *read.final.shape),
            read.final[None],
        ]
    )
    return kl.T, same.T, out.metrics, _mean(readers, valid), out.taps


def _mean(values: Float[Array, "readers batch seq sources"], valid: Bool[Array, "batch seq"]):
    weights = valid / jnp.maximum(jnp.sum(valid), 1)
    return jnp.einsum("rbsx,bs->rx", values, weights.astype(jnp.float32))


def probe(
    params: Params,
    config: Qwen3Config,
    routing: Routing,
    prompts: Sequence[Sequence[int]],
    gates: Sequence[float],
) -> Probe:
    """Measures every gate of a grid on the same prompts, which are run as one batch.

    Args:
        params: Parameters of the model.
        config: Its shape.
        routing: Streams and mixing.
        prompts: Token ids of a few prompts.
        gates: The grid; 0 is worth including, as a check.

    Raises:
        UserError: A prompt is empty or longer than the context; there is none.
    """
    if not prompts:
        raise UserError("a probe needs at least one prompt")
    for prompt in prompts:
        check_context(len(prompt), 0, config.max_position_embeddings)
    width = bucket(max(map(len, prompts)))
    tokens = np.zeros((len(prompts), width), np.int32)
    positions = np.full((len(prompts), width), -1, np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)], positions[row, : len(prompt)] = prompt, range(len(prompt))
    valid = positions >= 0
    plain = _hidden(params, tokens, positions, config=config)
    effects = []
    for gate in gates:
        spread = routing.gates(gate, len(prompts))
        found = _measure(params, tokens, positions, plain, routing, spread, config=config)
        kl, same, metrics, read, first = jax.device_get(found)
        effects.append(
            GateEffect(
                gate=float(gate),
                kl=float(np.maximum(kl, 0)[valid].mean()),
                kl_largest=float(kl[valid].max()),
                agreement=float(same[valid].mean()),
                change=_over_prompts(metrics.change, valid),
                angle=np.degrees(np.arccos(np.clip(_over_prompts(metrics.cosine, valid), -1, 1))),
                rms=_over_prompts(metrics.rms, valid),
                diversity=_over_prompts(metrics.diversity, valid),
                dominance=_over_prompts(metrics.dominance, valid),
                effective_streams=_over_prompts(metrics.effective_streams, valid),
                gain=composite_gain(routing, np.asarray(spread)),
                first_attention=first[:, valid].mean(axis=1),
                composition=read,
            )
        )
    return Probe(tuple(effects))


def _over_prompts(values: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Means over prompts (axis 1 or 2, behind layers and hooks), by their number of tokens."""
    axis = next(i for i, size in enumerate(values.shape) if i and size == len(valid))
    return np.average(values, axis=axis, weights=valid.sum(1))


def composite_gain(
    routing: Routing, gate: Float[np.ndarray, "batch layers"]
) -> tuple[float, float]:
    """Largest sum of absolute values of a row, and of a column, of the product of all matrices.

    Read-only mixing does not compound: it is the largest of the single matrices then.
    """
    steps = np.asarray(closed_form(routing, gate[:1]), np.float64)[:, :, 0, 0]
    steps = steps.reshape(-1, *steps.shape[-2:])
    if routing.config.injection == "write_back":
        product = np.eye(steps.shape[-1])
        for step in steps:
            product = step @ product
        steps = product[None]
    sums = np.abs(steps)
    return float(sums.sum(-1).max()), float(sums.sum(-2).max())
