"""A frozen dense Qwen3 decoder in Flax NNX, with an optional multi-stream residual.

Modules define and name the parameters; everything that runs takes them as one plain nested
dictionary (``params``), so a jit boundary never sees a module. Block parameters are stacked on a
leading ``layers`` axis and the forward pass scans over it; ``unstack_blocks`` slices them apart
once for decoding, where a loop over separate layers is faster. Both drivers run the same block.

Under ``jax.set_mesh`` activations lie on the mesh as ``jroute.distributed.mesh`` says, so that
matrix products meet the weights where they are and only activations travel between devices.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jroute.distributed.mesh import constrain
from jroute.model.attention import (
    apply_rope,
    attend,
    attend_cached,
    attention_to,
    causal_mask,
    rope_tables,
)
from jroute.model.config import Qwen3Config
from jroute.routing import streams
from jroute.routing.routing import Hook, Routing, StreamMetrics
from jroute.routing.streams import Part

Params = Mapping[str, Any]

STATES = ("batch", "seq", "embed")
QUERIES = ("batch", "seq", "heads", "head_dim")
KEYS = ("batch", "seq", "kv_heads", "head_dim")
"""Logical axes of the activations, see ``jroute.distributed.mesh``."""

CACHED_KEYS = ("batch", "kv_heads", "head_dim", "keys")
CACHED_VALUES = ("batch", "kv_heads", "keys", "head_dim")
"""Logical axes of a block of the cache."""


class KeyValue(NamedTuple):
    """Keys and values of one layer, or of all layers stacked.

    Attributes:
        key: Of a call's tokens ``[*layers, batch, keys, kv_heads, head_dim]``. In a cache a tuple
            of blocks ``[*layers, batch, kv_heads, head_dim, keys]`` that follow one another.
        value: Likewise; in a cache blocks ``[*layers, batch, kv_heads, keys, head_dim]``.
    """

    key: Any
    value: Any


class BlockTrace(NamedTuple):
    """What one block read and made, for a ``tap``.

    Attributes:
        reader: What attention read (before its norm).
        attention: Its update.
        middle: What the MLP read.
        mlp: Its update.
        trunk: The trunk after the block and its mixing.
        first_attention: Share of attention to the row's first token.
    """

    reader: Float[Array, "batch seq embed"]
    attention: Float[Array, "batch seq embed"]
    middle: Float[Array, "batch seq embed"]
    mlp: Float[Array, "batch seq embed"]
    trunk: Float[Array, "batch seq embed"]
    first_attention: Float[Array, "batch seq"]


class ForwardOutput(NamedTuple):
    """Result of a forward pass.

    Attributes:
        hidden: Final-normed states ``[batch, seq, embed]``; ``unembed`` makes logits of them.
        kv: Keys and values of every layer: stacked, or a tuple when the blocks are unstacked.
        metrics: Stream metrics with leading ``layers hooks`` axes, if asked for.
        final: What the final norm reads.
        taps: What ``tap`` made of each block, stacked on a leading ``layers`` axis.
    """

    hidden: Float[Array, "batch seq embed"]
    kv: Any
    metrics: StreamMetrics | None
    final: Float[Array, "batch seq embed"]
    taps: Any


def rms_norm(
    x: Float[Array, "*rest dim"], weight: Float[Array, " dim"], eps: float
) -> Float[Array, "*rest dim"]:
    """Root-mean-square norm (Zhang & Sennrich 2019), computed in float32 whatever the dtype.

    The sum of squares is a dot product: for the CPU, XLA drops barriers before it fuses, and
    would sum in another order where another program computes ``x`` in the same loop.
    """
    wide = x.astype(jnp.float32)
    total = jnp.einsum("...e,...e->...", wide, wide, precision="highest")[..., None]
    wide = wide * jax.lax.rsqrt(total / x.shape[-1] + eps)
    return jnp.broadcast_to(weight, x.shape) * wide.astype(x.dtype)


def _parameter(
    config: Qwen3Config, rngs: nnx.Rngs, axes: tuple[str, ...], fan_in: int = 1
) -> nnx.Param:
    """One declaration from which shape, initial values and sharding all follow."""
    shape = tuple(config.axis_sizes[axis] for axis in axes)
    init = nnx.initializers.normal(1 / fan_in**0.5) if fan_in > 1 else nnx.initializers.ones
    return nnx.Param(init(rngs.params(), shape, jnp.float32), axes=axes)


class Attention(nnx.Module):
    """Self-attention with per-head query and key norms before the rotation."""

    def __init__(self, config: Qwen3Config, rngs: nnx.Rngs):
        embed, out = config.hidden_size, config.num_attention_heads * config.head_dim
        self.q_proj = _parameter(config, rngs, ("embed", "heads", "head_dim"), embed)
        self.k_proj = _parameter(config, rngs, ("embed", "kv_heads", "head_dim"), embed)
        self.v_proj = _parameter(config, rngs, ("embed", "kv_heads", "head_dim"), embed)
        self.o_proj = _parameter(config, rngs, ("heads", "head_dim", "embed"), out)
        self.q_norm = _parameter(config, rngs, ("head_dim",))
        self.k_norm = _parameter(config, rngs, ("head_dim",))
        self.eps = config.rms_norm_eps

    def __call__(self, x, cos, sin, positions, past: KeyValue | None):
        """Return the update of ``x``, its queries, and the keys and values they attended to.

        ``past`` is the layer's part of the cache, to which this call's keys are added.
        """
        query = constrain(jnp.einsum("bse,ehd->bshd", x, self.q_proj[...]), QUERIES)
        key = constrain(jnp.einsum("bse,ehd->bshd", x, self.k_proj[...]), KEYS)
        value = constrain(jnp.einsum("bse,ehd->bshd", x, self.v_proj[...]), KEYS)
        query = apply_rope(rms_norm(query, self.q_norm[...], self.eps), cos, sin)
        key = apply_rope(rms_norm(key, self.k_norm[...], self.eps), cos, sin)
        if past is None:
            kv = KeyValue(key, value)
            attended = attend(query, key, value, causal_mask(positions, positions))
        else:
            kv = write(past, KeyValue(key, value), positions)
            attended = attend_cached(query, kv.key, kv.value, positions)
        # One axis to sum over: with two XLA would transpose the weight at every step on a CPU.
        merged = constrain(attended, QUERIES).reshape(*x.shape[:2], -1)
        update = constrain(merged @ self.o_proj[...].reshape(merged.shape[-1], -1), STATES)
        return update, query, kv


class MLP(nnx.Module):
    """SwiGLU feed-forward (Shazeer 2020)."""

    def __init__(self, config: Qwen3Config, rngs: nnx.Rngs):
        self.gate_proj = _parameter(config, rngs, ("embed", "mlp"), config.hidden_size)
        self.up_proj = _parameter(config, rngs, ("embed", "mlp"), config.hidden_size)
        self.down_proj = _parameter(config, rngs, ("mlp", "embed"), config.intermediate_size)

    def __call__(self, x: Float[Array, "batch seq embed"]) -> Float[Array, "batch seq embed"]:
        """The update of ``x``."""
        gated = jax.nn.silu(x @ self.gate_proj[...]) * (x @ self.up_proj[...])
        return constrain(constrain(gated, ("batch", "seq", "mlp")) @ self.down_proj[...], STATES)


class Block(nnx.Module):
    """One pre-norm decoder block."""

    def __init__(self, config: Qwen3Config, rngs: nnx.Rngs):
        self.input_norm = _parameter(config, rngs, ("embed",))
        self.attention = Attention(config, rngs)
        self.post_attention_norm = _parameter(config, rngs, ("embed",))
        self.mlp = MLP(config, rngs)
        self.eps = config.rms_norm_eps

    def attend(self, x, cos, sin, positions, past):
        """Update by attention, its queries, keys and values; arguments as for ``Attention``."""
        normed = rms_norm(x, self.input_norm[...], self.eps)
        return self.attention(normed, cos, sin, positions, past)

    def feed(self, x: Float[Array, "batch seq embed"]) -> Float[Array, "batch seq embed"]:
        """Update by the MLP."""
        return self.mlp(rms_norm(x, self.post_attention_norm[...], self.eps))


class Qwen3(nnx.Module):
    """All parameters of the decoder; ``blocks`` are stacked on a leading ``layers`` axis."""

    def __init__(self, config: Qwen3Config, rngs: nnx.Rngs):
        self.embed_tokens = _parameter(config, rngs, ("vocab", "embed"), config.hidden_size)
        stacked = nnx.vmap(lambda keys: Block(config, keys), axis_size=config.num_hidden_layers)
        self.blocks = stacked(rngs.split(config.num_hidden_layers))
        self.final_norm = _parameter(config, rngs, ("embed",))
        if not config.tie_word_embeddings:
            self.lm_head = _parameter(config, rngs, ("embed", "vocab"), config.hidden_size)


def in_cache(new: KeyValue) -> KeyValue:
    """The keys and values of a call with their axes as in a cache.

    A value that is not finite becomes 0: it would reach whoever has the row next, unseen as it is,
    since zero times infinity is none.
    """
    value = jnp.where(jnp.isfinite(new.value), new.value, jnp.zeros_like(new.value))
    return KeyValue(jnp.moveaxis(new.key, -3, -1), jnp.swapaxes(value, -3, -2))


def write(past: KeyValue, new: KeyValue, positions: Int[Array, "batch seq"]) -> KeyValue:
    """Add a call's keys and values to one layer of a cache, each at its position.

    What does not fit and padding (position -1) is left out.
    """
    # Row by row, so that the batch axis may lie on several devices.
    put_keys = jax.vmap(lambda old, at, add: old.at[:, :, at].set(add, mode="drop"))
    put_values = jax.vmap(lambda old, at, add: old.at[:, at].set(add, mode="drop"))
    if positions.size == 1:  # with padding: for the CPU, XLA copies a cache to write a single key
        positions = jnp.pad(positions, ((0, 0), (0, 1)), constant_values=-1)
        new = KeyValue(*(jnp.pad(part, ((0, 0), (0, 1), (0, 0), (0, 0))) for part in new))
    added = in_cache(new)
    keys, values, start = [], [], 0
    for key, value in zip(past.key, past.value, strict=True):
        size = key.shape[-1]
        at = positions - start
        at = jnp.where((at >= 0) & (at < size), at, size)  # falls off the end
        keys.append(constrain(put_keys(key, at, added.key), CACHED_KEYS))
        values.append(constrain(put_values(value, at, added.value), CACHED_VALUES))
        start += size
    return KeyValue(tuple(keys), tuple(values))


@cache
def _block_graph(config: Qwen3Config) -> nnx.GraphDef:
    return nnx.split(nnx.eval_shape(lambda: Block(config, nnx.Rngs(0))))[0]


@cache
def _abstract_model(config: Qwen3Config) -> nnx.State:
    return nnx.state(nnx.eval_shape(lambda: Qwen3(config, nnx.Rngs(0))), nnx.Param)


def logical_axes(config: Qwen3Config) -> dict[str, Any]:
    """The tree of ``params`` with, for every array, the tuple of its logical axis names."""

    def axes(path: tuple[Any, ...], variable: nnx.Variable) -> tuple[str, ...]:
        stacked = path[0] == "blocks"
        return (
            ("layers", *variable.get_metadata()["axes"])
            if stacked
            else variable.get_metadata()["axes"]
        )

    flat = nnx.to_flat_state(_abstract_model(config))
    return nnx.traversals.unflatten_mapping({path: axes(path, variable) for path, variable in flat})


def abstract_params(config: Qwen3Config, dtype: Any = "float32") -> dict[str, Any]:
    """The tree of ``params`` as ``jax.ShapeDtypeStruct``, nothing allocated."""
    shapes = nnx.to_pure_dict(_abstract_model(config))
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), shapes)


def init_params(config: Qwen3Config, key: Array, dtype: Any = "float32") -> dict[str, Any]:
    """Random parameters: every projection normal with variance 1 / fan-in, norms one."""
    state = nnx.state(Qwen3(config, nnx.Rngs(key)), nnx.Param)
    return jax.tree.map(lambda leaf: leaf.astype(dtype), nnx.to_pure_dict(state))


def unstack_blocks(params: Params) -> dict[str, Any]:
    """The same parameters with ``blocks`` as a tuple of per-layer trees, for unrolled decoding."""
    blocks = params["blocks"]
    if isinstance(blocks, tuple):
        return dict(params)
    layers = jax.tree.leaves(blocks)[0].shape[0]
    return {
        **params,
        "blocks": tuple(jax.tree.map(lambda leaf, i=i: leaf[i], blocks) for i in range(layers)),
    }


def unembed(
    params: Params, config: Qwen3Config, hidden: Float[Array, "*rest embed"]
) -> Float[Array, "*rest vocab"]:
    """Logits in float32; with tied embeddings the token table is the output layer."""
    product = partial(jnp.matmul, preferred_element_type=jnp.float32)
    if not config.tie_word_embeddings:
        logits = product(hidden, params["lm_head"])
    elif hidden.size == hidden.shape[-1]:  # for the CPU, XLA would copy the table transposed
        logits = product(params["embed_tokens"], hidden.ravel())
        logits = logits.reshape(*hidden.shape[:-1], -1)
    else:
        logits = product(hidden, params["embed_tokens"].T)
    return constrain(logits, (*STATES[: hidden.ndim - 1], "vocab"))


def forward(
    params: Params,
    config: Qwen3Config,
    tokens: Int[Array, "batch seq"],
    positions: Int[Array, "batch seq"],
    *,
    cache: KeyValue | Sequence[KeyValue] | None = None,
    routing: Routing | None = None,
    gate: Float[Array, "batch layers"] | None = None,
    metrics: bool = False,
    tap: Callable[[BlockTrace], Any] | None = None,
    rematerialise: bool = False,
) -> ForwardOutput:
    """Run the decoder.

    Args:
        params: Parameters, with ``blocks`` stacked or unstacked.
        config: Shape of the model.
        tokens: Token ids.
        positions: Position of every token in its own row; padding, on either side, is -1.
        cache: Keys and values of earlier tokens (see ``jroute.generate.cache``), stacked or not
            as the blocks are. The new keys are written at ``positions``.
        routing: The streams and their mixing; ``None`` is the plain model.
        gate: Mixing strength per row and layer; required with ``routing``.
        metrics: Also return stream metrics (static; off costs nothing); needs a routing.
        tap: Asked for a summary of every block; not with a cache.
        rematerialise: For gradients: keep only what goes from block to block, and run each block
            once more on the way back.

    Returns:
        A ``ForwardOutput``; ``kv`` is the updated cache, or the new keys if there was none.

    With ``gate == 0`` the values of a row equal the plain model's bit for bit. This rests on
    three things. The select in ``Routing.mix`` hands back the block's own trunk. The optimization
    barriers around attention and MLP keep XLA from fusing their arithmetic with what comes before
    and after, so that they are compiled alike in both programs. And where XLA drops barriers before
    it fuses, as for the CPU, all that is summed is summed in dot products, which it never fuses
    with what makes their operands; single additions and products round alike wherever they stand.
    """
    valid = positions >= 0
    x = constrain(params["embed_tokens"][tokens], STATES)
    cos, sin = rope_tables(jnp.maximum(positions, 0), config.head_dim, config.rope_theta, x.dtype)
    graph = _block_graph(config)
    fence = jax.lax.optimization_barrier
    if routing is None or gate is None:
        routing = None

    def step(carry, per_layer):
        trunk, reader, carried = carry
        weights, past, layer = per_layer["weights"], per_layer["past"], per_layer["layer"]
        block = nnx.merge(graph, weights)
        found = []

        def hook(name: Hook, carried, trunk, update):
            """``S'[0]`` and the side streams after hook ``name``; nothing changes if it is off."""
            if routing is None or name not in routing.config.hooks:
                return None, carried
            mixing = per_layer["routing"].mixing[routing.config.hooks.index(name)]
            strength = routing.strength(per_layer["gate"], per_layer["routing"], trunk, positions)
            mixed, carried, measured = routing.mix(
                carried, trunk, update, mixing, strength, valid if metrics else None
            )
            found.append(measured)
            return mixed, carried

        def receive(carried, part: Part, update):
            if routing is None:
                return carried
            return streams.receive(routing.config.streams, carried, part, update, layer)

        read_only = routing is not None and routing.config.injection == "read_only"
        read = fence(trunk if reader is None else reader)
        attended, query, kv = block.attend(read, cos, sin, positions, past)
        attended, middle, kv = fence((attended, read + attended, kv))
        trunk = fence(trunk + attended) if read_only else middle
        carried = receive(carried, "attention", attended)
        mixed, carried = hook("attention", carried, trunk, attended)
        if mixed is not None:
            middle = mixed
        middle = fence(middle)
        fed = block.feed(middle)
        fed, after = fence((fed, middle + fed))
        trunk = fence(trunk + fed) if read_only else after
        carried = receive(carried, "mlp", fed)
        reader = None
        ends: tuple[tuple[Hook, Array], ...] = (("mlp", fed), ("block", attended + fed))
        for name, update in ends:
            mixed, carried = hook(name, carried, trunk, update)
            if mixed is not None and read_only:
                reader = mixed
            elif mixed is not None:
                trunk = mixed
        if read_only and reader is None:
            reader = trunk
        if routing is not None:
            carried = streams.remember(routing.config.streams, carried, trunk)
        measured = None
        if metrics and routing is not None:
            measured = jax.tree.map(lambda *leaves: jnp.stack(leaves), *found)
        tapped = None
        if tap is not None:
            mask = causal_mask(positions, positions)
            first = attention_to(positions == 0, query, kv.key, mask)
            tapped = tap(BlockTrace(read, attended, middle, fed, trunk, first))
        return (trunk, reader, carried), (kv, measured, tapped)

    blocks = params["blocks"]
    unstacked = isinstance(blocks, tuple)
    if rematerialise:
        step = jax.checkpoint(step, prevent_cse=unstacked)  # a scan is a barrier of its own
    if cache is not None and unstacked == isinstance(cache, KeyValue):
        raise ValueError("blocks and cache must both be stacked over layers, or neither")
    per_layer: dict[str, Any] = {"layer": jnp.arange(config.num_hidden_layers)}
    carry: Any = (x, None, ())
    if routing is not None and gate is not None:
        per_layer |= {"gate": gate.T, "routing": routing.per_layer()}
        reader = x if routing.config.injection == "read_only" else None
        carry = (x, reader, streams.start(routing.config.streams, x))
    if unstacked:
        outputs = []
        for i, weights in enumerate(blocks):
            past = None if cache is None else cache[i]
            one = jax.tree.map(lambda leaf, i=i: leaf[i], per_layer)
            carry, output = step(carry, {**one, "weights": weights, "past": past})
            outputs.append(output)
        kv = tuple(output[0] for output in outputs)
        found, kept = jax.tree.map(
            lambda *leaves: jnp.stack(leaves), *(output[1:] for output in outputs)
        )
    else:
        scanned = {**per_layer, "weights": blocks, "past": cache}
        carry, (kv, found, kept) = jax.lax.scan(step, carry, scanned)
    final = fence(carry[0] if carry[1] is None else carry[1])
    hidden = rms_norm(final, params["final_norm"], config.rms_norm_eps)
    return ForwardOutput(hidden, kv, found, final, kept)
