"""The forward pass of a frozen dense decoder, with an optional multi-stream residual.

Parameters are one nested dictionary (``jroute.model.params``). With stacked blocks the forward pass
scans over layers; with unstacked ones, which decode faster, it loops. Both drivers run the same
block.

Under ``jax.set_mesh`` activations are sharded as ``jroute.distributed.mesh`` says, so matrix
products meet the weights where they are and only activations travel between devices.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jroute.distributed.mesh import constrain
from jroute.model.attention import KeyValue, attention_share, causal_mask
from jroute.model.config import DecoderConfig
from jroute.model.layers import STATE_AXES, rms_norm
from jroute.model.params import Params, block_graph
from jroute.model.rope import rope_tables
from jroute.routing import streams
from jroute.routing.config import Hook
from jroute.routing.diagnostics import StreamMetrics
from jroute.routing.mixing import BlockStreams, LayerRouting, Routing

_fence = jax.lax.optimization_barrier


class BlockTrace(NamedTuple):
    """The states in one block, for a ``tap``.

    Attributes:
        attention_input: The state that attention read (before its norm).
        attention_update: What attention added.
        mlp_input: The state that the MLP read (before its norm).
        mlp_update: What the MLP added.
        trunk: The trunk after the block and its mixing.
        first_attention: Share of attention that the row's first token receives.
    """

    attention_input: Float[Array, "batch seq embed"]
    attention_update: Float[Array, "batch seq embed"]
    mlp_input: Float[Array, "batch seq embed"]
    mlp_update: Float[Array, "batch seq embed"]
    trunk: Float[Array, "batch seq embed"]
    first_attention: Float[Array, "batch seq"]


@dataclass(frozen=True)
class ForwardOptions:
    """What a forward pass does besides computing hidden states; static, and free where off.

    Attributes:
        metrics: Measure the streams at every hook; needs a routing and a gate.
        tap: Called with the trace of every block; the results are returned. Not with a cache.
        rematerialise: For gradients: keep only what passes from block to block, and run each block
            once more in the backward pass.
    """

    metrics: bool = False
    tap: Callable[[BlockTrace], Any] | None = None
    rematerialise: bool = False


class ForwardOutput(NamedTuple):
    """Result of a forward pass.

    Attributes:
        hidden: Final-normed states; ``unembed`` turns them into logits.
        kv: Keys and values of every layer: stacked, or a tuple when the blocks are unstacked.
        metrics: Stream metrics with leading ``layers hooks`` axes, or ``None``.
        residual: The state that the final norm reads.
        taps: The results of ``tap``, stacked on a leading ``layers`` axis, or ``None``.
    """

    hidden: Float[Array, "batch seq embed"]
    kv: Any
    metrics: StreamMetrics | None
    residual: Float[Array, "batch seq embed"]
    taps: Any


class _Carry(NamedTuple):
    """State that passes from block to block.

    Attributes:
        trunk: The residual.
        reader: With read-only injection, the mixed state that is read instead of the trunk.
        side: Side streams.
    """

    trunk: Float[Array, "batch seq embed"]
    reader: Float[Array, "batch seq embed"] | None
    side: tuple[Array, ...]


class _LayerInputs(NamedTuple):
    """Inputs of one block, or of all blocks stacked.

    Attributes:
        gate: The gate of every row.
        index: Number of the block.
        past: The layer's part of the cache.
        routing: The routing's numbers.
        weights: The block's parameters.
    """

    gate: Any
    index: Any
    past: Any
    routing: LayerRouting | None
    weights: Any


class _LayerOutputs(NamedTuple):
    """Outputs of one block, or of all blocks stacked; fields as in ``ForwardOutput``."""

    kv: Any
    metrics: StreamMetrics | None
    taps: Any


@dataclass(frozen=True, eq=False)
class _BlockStep:
    """One step of the pass over the blocks; holds what all blocks share."""

    graph: nnx.GraphDef
    cos: Float[Array, "batch seq head_dim"]
    sin: Float[Array, "batch seq head_dim"]
    positions: Int[Array, "batch seq"]
    valid: Bool[Array, "batch seq"]
    routing: Routing | None
    options: ForwardOptions

    def __call__(self, carry: _Carry, layer: _LayerInputs) -> tuple[_Carry, _LayerOutputs]:
        """Run one block and mix its streams."""
        block = nnx.merge(self.graph, layer.weights)
        mixer = BlockStreams(
            self.routing,
            layer.routing,
            layer.gate,
            layer.index,
            carry.side,
            self.positions,
            self.valid if self.options.metrics else None,
        )
        attention_input = _fence(carry.trunk if carry.reader is None else carry.reader)
        attention_update, query, kv = block.attend(
            attention_input, self.cos, self.sin, self.positions, layer.past
        )
        attention_update, mlp_input, kv = _fence(
            (attention_update, attention_input + attention_update, kv)
        )
        trunk = _fence(carry.trunk + attention_update) if mixer.read_only else mlp_input
        mixer.receive("attention", attention_update)
        mixed = mixer.mix("attention", trunk, attention_update)
        mlp_input = _fence(mlp_input if mixed is None else mixed)
        mlp_update = block.feed_forward(mlp_input)
        mlp_update, after = _fence((mlp_update, mlp_input + mlp_update))
        trunk = _fence(trunk + mlp_update) if mixer.read_only else after
        mixer.receive("mlp", mlp_update)
        trunk, reader = _mix_after_mlp(mixer, trunk, mlp_update, attention_update + mlp_update)
        mixer.remember(trunk)
        metrics, taps = mixer.metrics(), None
        if self.options.tap is not None:
            share = self._first_attention(query, kv.key)
            taps = self.options.tap(
                BlockTrace(attention_input, attention_update, mlp_input, mlp_update, trunk, share)
            )
        return _Carry(trunk, reader, mixer.carried), _LayerOutputs(kv, metrics, taps)

    def _first_attention(
        self,
        query: Float[Array, "batch seq heads head_dim"],
        key: Float[Array, "batch seq kv_heads head_dim"],
    ) -> Float[Array, "batch seq"]:
        """Return the share of attention that each row's first token receives."""
        mask = causal_mask(self.positions, self.positions)
        return attention_share(self.positions == 0, query, key, mask)


def _mix_after_mlp(
    mixer: BlockStreams,
    trunk: Float[Array, "batch seq embed"],
    mlp_update: Float[Array, "batch seq embed"],
    block_update: Float[Array, "batch seq embed"],
) -> tuple[Float[Array, "batch seq embed"], Float[Array, "batch seq embed"] | None]:
    """Mix at the hooks ``mlp`` and ``block``; return the trunk and the next block's reader."""
    reader = None
    hooks: tuple[tuple[Hook, Array], ...] = (("mlp", mlp_update), ("block", block_update))
    for hook, update in hooks:
        mixed = mixer.mix(hook, trunk, update)
        if mixed is not None and mixer.read_only:
            reader = mixed
        elif mixed is not None:
            trunk = mixed
    if mixer.read_only and reader is None:
        reader = trunk
    return trunk, reader


def _loop(
    step: Callable[[_Carry, _LayerInputs], tuple[_Carry, _LayerOutputs]],
    carry: _Carry,
    layers: _LayerInputs,
) -> tuple[_Carry, _LayerOutputs]:
    """Do what ``jax.lax.scan`` does, unrolled; weights, cache, and ``kv`` are tuples of layers."""
    outputs = []
    for i, weights in enumerate(layers.weights):
        stacked = layers._replace(past=None, weights=None)
        layer = jax.tree.map(lambda leaf, i=i: leaf[i], stacked)
        past = None if layers.past is None else layers.past[i]
        carry, output = step(carry, layer._replace(past=past, weights=weights))
        outputs.append(output)
    without_kv = [output._replace(kv=None) for output in outputs]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *without_kv)
    return carry, stacked._replace(kv=tuple(output.kv for output in outputs))


def forward(
    params: Params,
    config: DecoderConfig,
    tokens: Int[Array, "batch seq"],
    positions: Int[Array, "batch seq"],
    *,
    cache: KeyValue | Sequence[KeyValue] | None = None,
    routing: Routing | None = None,
    gate: Float[Array, "batch layers"] | None = None,
    options: ForwardOptions = ForwardOptions(),
) -> ForwardOutput:
    """Run the decoder.

    Args:
        params: Parameters, with ``blocks`` stacked or unstacked.
        config: Shape of the model.
        tokens: Token ids.
        positions: Position of every token in its own row; padding, on either side, is -1.
        cache: Keys and values of earlier tokens (see ``jroute.generate.cache``), stacked if and
            only if the blocks are. The new keys are written at ``positions``.
        routing: The streams and their mixing; ``None`` is the plain model.
        gate: Mixing strength per row and layer; without it the plain model runs.
        options: What to measure, and how to differentiate.

    Returns:
        A ``ForwardOutput``; ``kv`` is the updated cache, or the new keys if there was none.

    With ``gate == 0`` the values of a row equal the plain model's bit for bit. Three things ensure
    this. The select in ``Routing.mix`` passes the block's own trunk. The optimization barriers
    around attention and MLP keep XLA from fusing their arithmetic with what precedes and follows,
    so both programs compile them identically. And where XLA drops barriers before it fuses, as it
    does for the CPU, everything that is summed is summed in dot products, which it never fuses with
    what computes their operands; single additions and products round identically wherever they
    occur.
    """
    valid = positions >= 0
    x = constrain(params["embed_tokens"][tokens], STATE_AXES)
    cos, sin = rope_tables(jnp.maximum(positions, 0), config, x.dtype)
    if routing is None or gate is None:
        routing = gate = None
    blocks = params["blocks"]
    unstacked = isinstance(blocks, tuple)
    if cache is not None and unstacked == isinstance(cache, KeyValue):
        raise ValueError("blocks and cache must both be stacked over layers, or neither")
    step: Any = _BlockStep(block_graph(config), cos, sin, positions, valid, routing, options)
    if options.rematerialise:
        step = jax.checkpoint(step, prevent_cse=unstacked)  # a scan already is a barrier
    layers = _LayerInputs(
        index=jnp.arange(config.num_hidden_layers),
        gate=None if gate is None else gate.T,
        routing=None if routing is None else routing.per_layer(),
        past=cache,
        weights=blocks,
    )
    run = _loop if unstacked else jax.lax.scan
    carry, outputs = run(step, _first_carry(x, routing), layers)
    residual = _fence(carry.trunk if carry.reader is None else carry.reader)
    hidden = rms_norm(residual, params["final_norm"], config.rms_norm_eps)
    return ForwardOutput(hidden, outputs.kv, outputs.metrics, residual, outputs.taps)


def _first_carry(x: Float[Array, "batch seq embed"], routing: Routing | None) -> _Carry:
    """Return what enters the first block: the embedding as trunk, and as start of every stream."""
    if routing is None:
        return _Carry(x, None, ())
    reader = x if routing.config.injection == "read_only" else None
    return _Carry(x, reader, streams.start(routing.config.streams, x))


def unembed(
    params: Params, config: DecoderConfig, hidden: Float[Array, "*batch embed"]
) -> Float[Array, "*batch vocab"]:
    """Return logits in float32; with tied embeddings the token table is the output layer."""
    product = partial(jnp.matmul, preferred_element_type=jnp.float32)
    if not config.tie_word_embeddings:
        logits = product(hidden, params["lm_head"])
    elif hidden.size == hidden.shape[-1]:  # on the CPU, XLA would copy the table transposed
        logits = product(params["embed_tokens"], hidden.ravel())
        logits = logits.reshape(*hidden.shape[:-1], -1)
    else:
        logits = product(hidden, params["embed_tokens"].T)
    return constrain(logits, (*STATE_AXES[: hidden.ndim - 1], "vocab"))
