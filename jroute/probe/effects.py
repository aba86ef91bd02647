"""The effects of gates on a model, measured before anyone trains on them.

Effects are measured as angles of what the blocks read and as changes of the next-token
distribution, never as norms, which the norm at the start of every reader undoes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jroute.distributed.mesh import fetch, place, replicate
from jroute.generate.finite import check_tokens, finite_tokens, not_finite
from jroute.generate.shapes import bucket, check_context, pad_rows, positions_of
from jroute.model.config import DecoderConfig
from jroute.model.decoder import BlockTrace, ForwardOptions, forward, unembed
from jroute.model.params import Params
from jroute.routing.composition import closed_form_coefficients, composition
from jroute.routing.diagnostics import StreamMetrics
from jroute.routing.mixing import Routing
from jroute.utils.errors import UserError
from jroute.utils.keys import keys

Verdict = Literal["inert", "gentle", "strong", "destructive"]

INERT_BELOW = 1e-4
"""Mean next-token KL in nats below which no gate of the grid does anything worth training on.

Rounding alone gives less than 1e-7 in float32 and about 1e-5 in bfloat16.
"""

STRONG_ABOVE = 0.1
"""Mean next-token KL in nats from which a gate is no longer gentle."""

DESTRUCTIVE_ABOVE = 1.0
"""Mean next-token KL in nats from which little of the model's prediction is left."""

SINK_RATIO = 20
"""Times the median token's norm from which a token counts as an attention sink."""


class GateEffect(NamedTuple):
    """The effect of one gate: means over the real tokens of all prompts.

    Attributes:
        gate: The gate.
        kl: ``KL(base || gated)`` of the next token, in nats.
        kl_largest: The largest over tokens.
        agreement: Share of tokens whose most likely successor is the base's.
        change: Relative change of what is mixed, per block and hook.
        angle: Angle by which it turns, in degrees.
        rms: Root mean square per stream.
        diversity: 1 - mean cosine of pairs of streams.
        dominance: Share of every stream in the mixed trunk, at gate 1 whatever ``gate`` is.
        effective_streams: exp of that share's entropy, and so of gate 1 too.
        gain: See ``composite_gain``.
        first_attention: Attention that goes to the first token, per block.
        composition: C(g): weights of all sources in what every block's attention, every block's
            MLP and the final norm read, ``[2 layers + 1, sources]``.
    """

    stored_keys = keys(
        "gate",
        "kl",
        "kl_largest",
        "agreement",
        "change",
        "angle",
        "rms",
        "diversity",
        "dominance",
        "effective_streams",
        "gain",
        "first_attention",
        "composition",
    )

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
        return verdict(furthest(self.effects).kl)


def verdict(kl: float) -> Verdict:
    """Return the verdict on a mean next-token KL; a KL that is not finite is destructive."""
    if not math.isfinite(kl):
        return "destructive"
    if kl < INERT_BELOW:
        return "inert"
    if kl < STRONG_ABOVE:
        return "gentle"
    return "strong" if kl < DESTRUCTIVE_ABOVE else "destructive"


class Divergence(NamedTuple):
    """The change of the next-token distribution by one gate; fields as in ``GateEffect``."""

    gate: float
    kl: float
    kl_largest: float
    agreement: float


_Effect = TypeVar("_Effect", GateEffect, Divergence)


def furthest(effects: Sequence[_Effect]) -> _Effect:
    """Return the effect with the largest mean KL; one that is not finite is the largest."""
    return max(effects, key=lambda effect: effect.kl if math.isfinite(effect.kl) else math.inf)


class _Batch(NamedTuple):
    """Prompts padded to one width, on the mesh if one is set."""

    tokens: Int[Any, "batch seq"]
    positions: Int[Any, "batch seq"]
    valid: Bool[np.ndarray, "batch seq"]


def _batch(prompts: Sequence[Sequence[int]], config: DecoderConfig) -> _Batch:
    if not prompts:
        raise UserError("a probe needs at least one prompt")
    for prompt in prompts:
        check_context(len(prompt), 0, config.max_position_embeddings)
    mesh = jax.sharding.get_mesh()
    replicas = 1 if mesh.empty else mesh.shape["data"]
    rows = len(prompts) + -len(prompts) % replicas  # rows of padding, so that the batch can be cut
    tokens, lengths = pad_rows(prompts, (rows, bucket(max(map(len, prompts)))))
    positions = positions_of(lengths, tokens.shape[1])
    axes = ("batch", "seq")
    return _Batch(place(tokens, axes), place(positions, axes), positions >= 0)


@partial(jax.jit, static_argnames=("config",))
def _hidden(
    params: Params, tokens: Int[Array, "batch seq"], positions: Int[Array, "batch seq"], *, config
) -> Float[Array, "batch seq embed"]:
    return forward(params, config, tokens, positions).hidden


def _compare(
    params: Params,
    config: DecoderConfig,
    plain: Float[Array, "batch seq embed"],
    gated: Float[Array, "batch seq embed"],
) -> tuple[Float[Array, "batch seq"], Bool[Array, "batch seq"]]:
    """Return KL and top-1 agreement of every token, holding the logits of one column at a time."""

    def column(pair: tuple[Array, Array]) -> tuple[Array, Array]:
        logits = [unembed(params, config, h) for h in pair]
        base, other = map(jax.nn.log_softmax, logits)
        kl = jnp.sum(jnp.exp(base) * (base - other), axis=-1)
        # Nothing moves where logits are equal, however the two are fused.
        kl = jnp.where(jnp.all(logits[0] == logits[1], axis=-1), 0.0, kl)
        return kl, jnp.argmax(base, axis=-1) == jnp.argmax(other, axis=-1)

    kl, same = jax.lax.map(column, (plain.swapaxes(0, 1), gated.swapaxes(0, 1)))
    return kl.T, same.T


@partial(jax.jit, static_argnames=("config",))
def _finite_logits(
    params: Params, hidden: Float[Array, "batch seq embed"], *, config: DecoderConfig
) -> Bool[Array, "batch seq"]:
    """Return which tokens have finite logits, holding those of one column at a time."""
    columns = hidden.swapaxes(0, 1)
    return jax.lax.map(lambda h: finite_tokens(unembed(params, config, h)), columns).T


@partial(jax.jit, static_argnames=("config",))
def _diverge(
    params: Params,
    tokens: Int[Array, "batch seq"],
    positions: Int[Array, "batch seq"],
    plain: Float[Array, "batch seq embed"],
    routing: Routing,
    gate: Float[Array, "batch layers"],
    *,
    config: DecoderConfig,
) -> tuple[Float[Array, "batch seq"], Bool[Array, "batch seq"]]:
    out = forward(params, config, tokens, positions, routing=routing, gate=gate)
    return _compare(params, config, plain, out.hidden)


@partial(jax.jit, static_argnames=("config",))
def _measure(
    params: Params,
    tokens: Int[Array, "batch seq"],
    positions: Int[Array, "batch seq"],
    routing: Routing,
    gate: Float[Array, "batch layers"],
    *,
    config: DecoderConfig,
) -> tuple[StreamMetrics, Float[Array, "readers sources"], Array]:
    valid = positions >= 0
    out = forward(
        params,
        config,
        tokens,
        positions,
        routing=routing,
        gate=gate,
        options=ForwardOptions(metrics=True, tap=lambda block: block.first_attention),
    )
    assert out.metrics is not None
    read = composition(routing.config, out.metrics.coefficients)
    readers = jnp.concatenate(
        [
            jnp.stack([read.attention, read.mlp], axis=1).reshape(-1, *read.final.shape),
            read.final[None],
        ]
    )
    return out.metrics, _mean(readers, valid), out.taps


def _mean(values: Float[Array, "readers batch seq sources"], valid: Bool[Array, "batch seq"]):
    weights = valid.astype(jnp.float32)
    return jnp.einsum("rbsx,bs->rx", values, weights / jnp.maximum(jnp.sum(weights), 1.0))


def divergence(
    params: Params,
    config: DecoderConfig,
    routing: Routing,
    prompts: Sequence[Sequence[int]],
    gates: Sequence[float],
) -> list[Divergence]:
    """Return the part of ``probe`` that verdicts rest on, in a fraction of its time.

    Arguments and errors are those of ``probe``.
    """
    tokens, positions, valid = _batch(prompts, config)
    plain = _hidden(params, tokens, positions, config=config)
    finite = fetch(_finite_logits(params, plain, config=config))
    ids = np.where(valid, fetch(tokens), -1)
    check_tokens("the logits of prompt", finite, ids, params, config)
    divergences, placed = [], replicate(routing)
    for gate in gates:
        spread = place(routing.layer_gates(gate, len(valid)), ("batch", "layers"))
        pair = _diverge(params, tokens, positions, plain, placed, spread, config=config)
        kl, same = fetch(pair)
        divergences.append(_divergence(gate, kl, same, valid))
    return divergences


def _divergence(gate: float, kl: np.ndarray, same: np.ndarray, valid: np.ndarray) -> Divergence:
    kl = np.maximum(kl, 0)[valid]  # rounding may leave it a hair below
    return Divergence(float(gate), float(kl.mean()), float(kl.max()), float(same[valid].mean()))


def probe(
    params: Params,
    config: DecoderConfig,
    routing: Routing,
    prompts: Sequence[Sequence[int]],
    gates: Sequence[float],
) -> Probe:
    """Measure every gate of a grid on the same prompts, which run as one batch.

    Args:
        params: Parameters of the model.
        config: Its shape.
        routing: Streams and mixing.
        prompts: Token ids of a few prompts.
        gates: The grid; 0 is worth including, as a check.

    Raises:
        UserError: There are no prompts, or one is empty or longer than the context.
        NotFiniteError: The plain model's logits are not finite. A gate that makes them so is no
            error: it is destructive.
    """
    # What is measured inside makes a program round differently, so divergences have their own.
    divergences = divergence(params, config, routing, prompts, gates)
    tokens, positions, valid = _batch(prompts, config)
    effects, placed = [], replicate(routing)
    for gate, gate_divergence in zip(gates, divergences, strict=True):
        spread = routing.layer_gates(gate, len(valid))
        gates_of_rows = place(spread, ("batch", "layers"))
        measured = _measure(params, tokens, positions, placed, gates_of_rows, config=config)
        metrics, read, first = fetch(measured)
        effects.append(
            GateEffect(
                *gate_divergence,
                change=_over_prompts(metrics.change, valid),
                angle=_over_prompts(metrics.angle, valid),
                rms=_over_prompts(metrics.rms, valid),
                diversity=_over_prompts(metrics.diversity, valid),
                dominance=_over_prompts(metrics.dominance, valid),
                effective_streams=_over_prompts(metrics.effective_streams, valid),
                gain=composite_gain(routing, spread),
                first_attention=first[:, valid].mean(axis=1),
                composition=read,
            )
        )
    return Probe(tuple(effects))


def _over_prompts(values: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Return means over prompts (axis 2), weighted by their number of tokens."""
    return np.average(values, axis=2, weights=valid.sum(1))


@partial(jax.jit, static_argnames=("config",))
def _trunk_rms(
    params: Params, tokens: Int[Array, "batch seq"], positions: Int[Array, "batch seq"], *, config
) -> Float[Array, "layers batch seq"]:
    def rms(block: BlockTrace) -> Array:
        return jnp.sqrt(jnp.mean(jnp.square(block.trunk.astype(jnp.float32)), axis=-1))

    return forward(params, config, tokens, positions, options=ForwardOptions(tap=rms)).taps


def sink_norms(
    params: Params, config: DecoderConfig, prompts: Sequence[Sequence[int]]
) -> tuple[Float[np.ndarray, " layers"], Float[np.ndarray, " layers"]]:
    """Return norms for ``routing.sink_norms``: ``SINK_RATIO`` x the median token's in each block.

    They are measured on the trunk of the plain model after every block. A token is compared with a
    number that does not depend on other tokens, so the guard is causal.

    Returns:
        The norms, and the share of the prompts' tokens that exceed them.

    Raises:
        NotFiniteError: The trunk of a prompt is not finite.
    """
    tokens, positions, valid = _batch(prompts, config)
    of_tokens = fetch(_trunk_rms(params, tokens, positions, config=config))
    if (broken := (~np.isfinite(of_tokens) & valid).any(axis=(0, 2))).any():
        row = int(np.argmax(broken))
        raise not_finite("the norms of prompt", row, params, config, prompts[row])
    rms = of_tokens[:, valid]
    norms = SINK_RATIO * np.median(rms, axis=1)
    return norms, (rms > norms[:, None]).mean(axis=1)


def composite_gain(
    routing: Routing, gate: Float[np.ndarray, "batch layers"]
) -> tuple[float, float]:
    """Return the largest absolute row sum, and column sum, of the product of all matrices.

    Read-only, the trunk is carried on as it is, but streams with rows of their own are carried on
    mixed. It is the row that is read then, times the product of what was carried before: the
    furthest of all depths. Without side streams there is nothing to compound: updates are scaled
    before they join the trunk.
    """
    config = routing.config
    if not config.streams:
        return 1.0, 1.0
    steps = np.asarray(closed_form_coefficients(routing, gate[:1]), np.float64)[:, :, 0, 0]
    carried, read = np.eye(config.size), []
    for block in steps:
        for hook, step in zip(config.hooks, block, strict=True):
            if config.injection == "write_back":
                carried = step @ carried
                continue
            if hook != "mlp" or "block" not in config.hooks:  # else the latter is read instead
                read.append(step[:1] @ carried)
            carried = np.vstack([carried[:1], step[1:] @ carried])
    sums = np.abs([carried] if config.injection == "write_back" else read)
    return float(sums.sum(-1).max()), float(sums.sum(-2).max())
