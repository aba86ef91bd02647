"""The compiled programs of generation, over a fixed number of slots.

``prefill`` reads prompts, ``insert`` puts them into free slots, ``decode`` runs a chunk of steps,
``widen`` makes the cache longer. The state holds everything that concerns a row, so one program
serves any mix of rows; each program donates its state to the next. Results for the host come back
in a ``Chunk``.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jroute.distributed.mesh import constrain
from jroute.generate import cache as caches
from jroute.generate.cache import Cache
from jroute.generate.sampling import NOT_FINITE, Choice, Chosen, choose
from jroute.model.attention import KeyValue
from jroute.model.config import DecoderConfig
from jroute.model.decoder import forward, unembed
from jroute.model.params import Params, unstack_blocks
from jroute.routing.mixing import Routing


class Prefix(NamedTuple):
    """Tokens with which many prompts begin.

    Attributes:
        cache: Their keys and values ``[layers, replicas, prefix, kv_heads, head_dim]``.
        length: Number of tokens, without padding.
    """

    cache: KeyValue
    length: Int[Array, ""] | int


class Rows(NamedTuple):
    """Prompts to read.

    Attributes:
        tokens: Right-padded; what follows the prefix, if there is one.
        lengths: Number of tokens of each row; rows of length 0 are dummies.
        seeds: Seeds of the rows' randomness.
        limits: Largest number of tokens that each row may generate.
        gate: Mixing strength; ``None`` for the plain model.
        prefix: What all rows begin with, from ``read_prefix``.
    """

    tokens: Int[Array, "rows seq"]
    lengths: Int[Array, " rows"]
    seeds: Int[Array, " rows"]
    limits: Int[Array, " rows"]
    gate: Float[Array, "rows layers"] | None
    prefix: Prefix | None = None


class DecodeState(NamedTuple):
    """Everything that decoding carries; donated from one program to the next.

    Attributes:
        cache: Keys and values per layer.
        last: The newest token of each row, not yet in the cache.
        lengths: Number of tokens of each row in the cache.
        generated: Number of tokens that each row has generated.
        done: Whether a row is finished and its slot free.
        seeds: Seeds of the rows' randomness.
        limits: Largest number of tokens that each row may generate.
        gate: Mixing strength of each row and layer; ``None`` for the plain model.
    """

    cache: Cache
    last: Int[Array, " slots"]
    lengths: Int[Array, " slots"]
    generated: Int[Array, " slots"]
    done: Bool[Array, " slots"]
    seeds: Int[Array, " slots"]
    limits: Int[Array, " slots"]
    gate: Float[Array, "slots layers"] | None


class Columns(NamedTuple):
    """The fields of ``Chunk`` that have one column per step; or one such column."""

    tokens: Int[Array, "slots *steps"]
    logprobs: Float[Array, "slots *steps"] | None
    margins: Float[Array, "slots *steps"] | None


class Chunk(NamedTuple):
    """The results of one program, for the host.

    Attributes:
        tokens: Chosen tokens, column by column; -1 where a row was finished, ``NOT_FINITE`` where
            its logits were not finite, which ends it.
        done: Whether each row is finished now.
        logprobs: Log-probabilities of the tokens, if requested.
        margins: Margins by which the tokens were chosen, if requested.
        steps: Number of columns that were filled.
        active_steps: Unfinished rows, summed over the steps.
    """

    tokens: Int[Array, "slots steps"]
    done: Bool[Array, " slots"]
    logprobs: Float[Array, "slots steps"] | None
    margins: Float[Array, "slots steps"] | None
    steps: Int[Array, ""]
    active_steps: Int[Array, ""]


class ChunkControl(NamedTuple):
    """How far one call of ``decode`` runs.

    Attributes:
        stopped: Rows that the host has ended since the last call.
        steps: Most steps to run; by default all of the chunk.
        stop_when_free: Number of free slots at which to stop; by default all of them.
    """

    stopped: Bool[Array, " slots"] | None = None
    steps: Int[Array, ""] | int | None = None
    stop_when_free: Int[Array, ""] | int | None = None


PER_ROW = ("last", "lengths", "generated", "done", "seeds", "limits")


def _on_mesh(state: DecodeState) -> DecodeState:
    """Give the state the same layout after every program, so that each of them compiles once."""
    rows = {name: constrain(getattr(state, name), ("slots",)) for name in PER_ROW}
    gate = None if state.gate is None else constrain(state.gate, ("slots", "layers"))
    return state._replace(**rows, gate=gate)


def _for_host(x: Array) -> Array:
    """Lay out a part of a ``Chunk`` where every process can read it."""
    if jax.process_count() > 1:
        mesh = jax.sharding.get_abstract_mesh()
        replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        return jax.lax.with_sharding_constraint(x, replicated)
    return constrain(x, ("slots", "seq")[: x.ndim])


def _ends_row(chosen: Chosen, ends: Int[Array, " ends"]) -> Bool[Array, " slots"]:
    return ~chosen.finite | jnp.any(chosen.token[:, None] == ends[None], axis=1)


@partial(jax.jit, static_argnames=("config", "choice", "room", "unroll"))
def prefill(
    params: Params,
    rows: Rows,
    ends: Int[Array, " ends"],
    routing: Routing | None = None,
    *,
    config: DecoderConfig,
    choice: Choice | None = None,
    room: int = 0,
    unroll: bool = True,
) -> tuple[DecodeState, Chunk]:
    """Read prompts and choose each row's first token.

    Only the last hidden state of a row is unembedded.

    Args:
        params: Parameters, with ``blocks`` stacked.
        rows: The prompts.
        ends: Tokens that end a completion.
        routing: Streams, or ``None`` for the plain model.
        config: Shape of the model.
        choice: How tokens are chosen; greedily by default.
        room: Positions that the cache of the rows has beyond their padded width.
        unroll: How the cache is laid out, and so how ``decode`` runs.

    Returns:
        A state with one slot for each row, and a ``Chunk`` of one step.
    """
    seq, prefix = rows.tokens.shape[1], rows.prefix
    offset = 0 if prefix is None else prefix.length
    columns = jnp.arange(seq)[None]
    positions = jnp.where(columns < rows.lengths[:, None], columns + offset, -1)
    past = None
    if prefix is not None:
        past = caches.after_prefix(prefix.cache, rows.tokens.shape[0], seq + room)
    out = forward(
        params, config, rows.tokens, positions, cache=past, routing=routing, gate=rows.gate
    )
    dummy = rows.lengths == 0
    last = jnp.maximum(rows.lengths - 1, 0)[:, None, None]
    final = jnp.take_along_axis(out.hidden, last, axis=1)[:, 0]
    lengths = jnp.where(dummy, 0, rows.lengths + offset)
    zeros = jnp.zeros_like(lengths)
    logits = unembed(params, config, final)
    choice = choice or Choice()
    chosen = choose(logits, rows.seeds, lengths, choice, generated=zeros, ends=ends)
    if prefix is None:
        cache = caches.from_prefill(out.kv, seq + room, stacked=not unroll)
    else:
        cache = caches.from_prefill(out.kv, caches.capacity(out.kv), stacked=not unroll)
    done = dummy | _ends_row(chosen, ends) | (rows.limits <= 1)
    state = DecodeState(
        cache, chosen.token, lengths, zeros + 1, done, rows.seeds, rows.limits, rows.gate
    )
    columns = jax.tree.map(lambda x: x[:, None], _column(chosen, dummy))
    return _on_mesh(state), _chunk(columns, done, jnp.int32(1), jnp.sum(~dummy, dtype=jnp.int32))


def _chunk(columns: Columns, done: Array, steps: Array, active_steps: Array) -> Chunk:
    tokens, logprobs, margins = jax.tree.map(_for_host, columns)
    return Chunk(tokens, _for_host(done), logprobs, margins, steps, active_steps)


@partial(jax.jit, static_argnames=("config",))
def read_prefix(
    params: Params,
    tokens: Int[Array, "replicas seq"],
    length: Int[Array, ""] | int,
    routing: Routing | None,
    gate: Float[Array, "replicas layers"] | None,
    *,
    config: DecoderConfig,
) -> KeyValue:
    """Compute the keys and values of tokens with which many prompts begin.

    Args:
        params: Parameters, with ``blocks`` stacked.
        tokens: The same right-padded row for each replica of the mesh.
        length: Number of tokens of the row, without its padding.
        routing: Streams, or ``None`` for the plain model.
        gate: Mixing strength.
        config: Shape of the model.
    """
    columns = jnp.arange(tokens.shape[1])[None]
    positions = jnp.broadcast_to(jnp.where(columns < length, columns, -1), tokens.shape)
    return forward(params, config, tokens, positions, routing=routing, gate=gate).kv


@partial(jax.jit, static_argnames=("config", "slots", "capacity", "routed", "unroll"))
def empty(
    params: Params, *, config: DecoderConfig, slots: int, capacity: int, routed: bool, unroll: bool
) -> DecodeState:
    """Make a state whose slots are all free."""
    dtype = params["embed_tokens"].dtype
    zeros = jnp.zeros(slots, jnp.int32)
    gate = jnp.zeros((slots, config.num_hidden_layers), jnp.float32) if routed else None
    cache = caches.allocate(config, slots, capacity, dtype, stacked=not unroll)
    return _on_mesh(DecodeState(cache, zeros, zeros, zeros, zeros == 0, zeros, zeros, gate))


@partial(jax.jit, donate_argnames=("state",))
def insert(state: DecodeState, rows: DecodeState, at: Int[Array, " rows"]) -> DecodeState:
    """Put rows from ``prefill`` into slots.

    Args:
        state: The slots.
        rows: The rows; their cache may be shorter.
        at: Slot of each row, counted within the row's own replica of the mesh; a number beyond the
            slots drops the row.
    """
    fields = (*PER_ROW, *(() if state.gate is None else ("gate",)))
    new = {name: caches.put_rows(getattr(state, name), getattr(rows, name), at) for name in fields}
    return _on_mesh(state._replace(cache=caches.insert(state.cache, rows.cache, at), **new))


@partial(jax.jit, static_argnames=("length",))
def widen(layer: KeyValue, *, length: int) -> KeyValue:
    """Lengthen one layer of a cache, or all if stacked, to hold ``length`` positions."""
    return caches.grow(layer, length)


def with_capacity(state: DecodeState, length: int) -> DecodeState:
    """Lengthen the cache of a state, layer by layer so that little is held twice."""
    if isinstance(state.cache, KeyValue):
        return state._replace(cache=widen(state.cache, length=length))
    layers = list(state.cache)
    state = state._replace(cache=())
    for i in range(len(layers)):
        layers[i] = widen(layers[i], length=length)
    return state._replace(cache=tuple(layers))


unstack = jax.jit(unstack_blocks)
"""Slice the blocks apart, once for many calls of ``decode``."""


class _Loop(NamedTuple):
    """What the loop over the steps of a chunk carries."""

    step: Int[Array, ""]
    free_slots: Int[Array, ""]
    active_steps: Int[Array, ""]
    state: DecodeState
    columns: Columns


@partial(jax.jit, static_argnames=("config", "choice", "chunk"), donate_argnames=("state",))
def decode(
    params: Params,
    state: DecodeState,
    ends: Int[Array, " ends"],
    routing: Routing | None = None,
    control: ChunkControl | None = None,
    *,
    config: DecoderConfig,
    choice: Choice | None = None,
    chunk: int = 16,
) -> tuple[DecodeState, Chunk]:
    """Run a chunk of decode steps on the device.

    With a cache per layer ``params`` are best unstacked already (``unstack``): otherwise every call
    slices them again.

    Args:
        params: Parameters, stacked or not as the cache is.
        state: Donated.
        ends: Tokens that end a completion.
        routing: Streams, or ``None`` for the plain model.
        control: How far to run; by default all steps of the chunk, until every row is finished.
        config: Shape of the model.
        choice: How tokens are chosen; greedily by default.
        chunk: Columns of the ``Chunk`` that is returned, and most steps that can run.
    """
    if not isinstance(state.cache, KeyValue):
        params = unstack_blocks(params)
    slots, choice, control = state.last.shape[0], choice or Choice(), control or ChunkControl()
    if control.stopped is not None:
        state = state._replace(done=state.done | control.stopped)
    max_steps = chunk if control.steps is None else jnp.minimum(control.steps, chunk)
    stop_when_free = control.stop_when_free
    stop_when_free = slots if stop_when_free is None else jnp.minimum(stop_when_free, slots)

    def unfinished(loop: _Loop) -> Array:
        return (loop.step < max_steps) & (loop.free_slots < stop_when_free)

    def step(loop: _Loop) -> _Loop:
        state, column = _decode_step(params, loop.state, ends, routing, config, choice)
        columns = jax.tree.map(
            lambda filled, new: jax.lax.dynamic_update_slice(filled, new[:, None], (0, loop.step)),
            loop.columns,
            column,
        )
        active = loop.active_steps + slots - loop.free_slots
        return _Loop(loop.step + 1, _free_slots(state), active, state, columns)

    columns = _empty_columns(slots, chunk, choice)
    start = _Loop(jnp.int32(0), _free_slots(state), jnp.int32(0), state, columns)
    end = jax.lax.while_loop(unfinished, step, start)
    return end.state, _chunk(end.columns, end.state.done, end.step, end.active_steps)


def _decode_step(
    params: Params,
    state: DecodeState,
    ends: Int[Array, " ends"],
    routing: Routing | None,
    config: DecoderConfig,
    choice: Choice,
) -> tuple[DecodeState, Columns]:
    """Extend every unfinished row by one token, and return the column of new tokens."""
    done = state.done
    positions = jnp.where(done, -1, state.lengths)[:, None]
    out = forward(
        params,
        config,
        state.last[:, None],
        positions,
        cache=state.cache,
        routing=routing,
        gate=state.gate,
    )
    lengths = state.lengths + 1
    logits = unembed(params, config, out.hidden[:, 0])
    chosen = choose(logits, state.seeds, lengths, choice, generated=state.generated, ends=ends)
    generated = state.generated + (~done).astype(jnp.int32)
    new = state._replace(
        cache=out.kv,
        last=jnp.where(done, state.last, chosen.token),
        lengths=jnp.where(done, state.lengths, lengths),
        generated=generated,
        done=done | _ends_row(chosen, ends) | (generated >= state.limits),
    )
    return _on_mesh(new), _column(chosen, done)


def _column(chosen: Chosen, skipped: Bool[Array, " slots"]) -> Columns:
    tokens = jnp.where(chosen.finite, chosen.token, NOT_FINITE)
    return Columns(jnp.where(skipped, -1, tokens), chosen.logprob, chosen.margin)


def _empty_columns(slots: int, chunk: int, choice: Choice) -> Columns:
    zeros = jnp.zeros((slots, chunk), jnp.float32)
    return Columns(
        jnp.full((slots, chunk), -1, jnp.int32),
        None if choice.logprobs is None else zeros,
        zeros if choice.margins else None,
    )


def _free_slots(state: DecodeState) -> Int[Array, ""]:
    return jnp.sum(state.done, dtype=jnp.int32)
