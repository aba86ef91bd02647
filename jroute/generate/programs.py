"""The compiled programs of generation, over a fixed number of slots.

``prefill`` reads prompts, ``insert`` puts them into free slots, ``decode`` runs a chunk of steps,
``widen`` makes the cache longer. All that concerns a row stands in the state, so one program serves
any mix of rows; states are donated from one program to the next. What the host has to know comes
back in a ``Chunk`` of its own.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jroute.distributed.mesh import constrain
from jroute.generate import cache as caches
from jroute.generate.cache import Cache
from jroute.generate.sampling import Choice, choose
from jroute.model.attention import KeyValue
from jroute.model.config import Qwen3Config
from jroute.model.decoder import forward, unembed
from jroute.model.params import Params, unstack_blocks
from jroute.routing.mixing import Routing


class Rows(NamedTuple):
    """Prompts to read.

    Attributes:
        tokens: Right-padded.
        lengths: Real tokens of each row; rows of length 0 are dummies.
        seeds: Of the rows' randomness.
        limits: Most tokens a row may generate.
        gate: Mixing strength; ``None`` for the plain model.
    """

    tokens: Int[Array, "rows seq"]
    lengths: Int[Array, " rows"]
    seeds: Int[Array, " rows"]
    limits: Int[Array, " rows"]
    gate: Float[Array, "rows layers"] | None


class DecodeState(NamedTuple):
    """Everything that decoding carries; donated from one program to the next.

    Attributes:
        cache: Keys and values per layer.
        last: The newest token of each row, not yet in the cache.
        lengths: Tokens of a row in the cache.
        generated: How many tokens each row has generated.
        done: Rows that are finished: their slots are free.
        seeds: Of the rows' randomness.
        limits: Most tokens a row may generate.
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


class Chunk(NamedTuple):
    """What one program did, for the host.

    Attributes:
        tokens: Tokens chosen, column by column; -1 where a row was finished.
        done: Rows that are finished now.
        logprobs: Of the tokens, if asked for.
        margins: Of the tokens, if asked for.
        steps: Columns that were filled.
        active_steps: Unfinished rows, summed over the steps.
    """

    tokens: Int[Array, "slots steps"]
    done: Bool[Array, " slots"]
    logprobs: Float[Array, "slots steps"] | None
    margins: Float[Array, "slots steps"] | None
    steps: Int[Array, ""]
    active_steps: Int[Array, ""]


def _on_mesh(state: DecodeState) -> DecodeState:
    """The same layout after every program, so that each of them compiles once."""
    rows = {name: constrain(getattr(state, name), ("slots",)) for name in PER_ROW}
    gate = None if state.gate is None else constrain(state.gate, ("slots", "layers"))
    return state._replace(**rows, gate=gate)


PER_ROW = ("last", "lengths", "generated", "done", "seeds", "limits")


def _for_host(x: Array) -> Array:
    """A part of a ``Chunk``, where every process can read it."""
    if jax.process_count() > 1:
        mesh = jax.sharding.get_abstract_mesh()
        whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        return jax.lax.with_sharding_constraint(x, whole)
    return constrain(x, ("slots", "seq")[: x.ndim])


@partial(jax.jit, static_argnames=("config", "choice", "room", "unroll"))
def prefill(
    params: Params,
    rows: Rows,
    ends: Int[Array, " ends"],
    routing: Routing | None = None,
    prefix: KeyValue | None = None,
    shared: Int[Array, ""] | int = 0,
    *,
    config: Qwen3Config,
    choice: Choice | None = None,
    room: int = 0,
    unroll: bool = True,
) -> tuple[DecodeState, Chunk]:
    """Read prompts and choose each row's first token.

    Only the last hidden state of a row is unembedded.

    Args:
        params: Parameters, with ``blocks`` stacked.
        rows: The prompts, or what comes after the prefix in them.
        ends: Tokens that end a completion.
        routing: Streams, or ``None`` for the plain model.
        prefix: Keys and values of tokens with which all rows begin, from ``read_prefix``.
        shared: How many tokens the prefix has, without its padding.
        config: Shape of the model.
        choice: How tokens are chosen; greedily by default.
        room: Positions that the cache of the rows has beyond their padded width.
        unroll: How the cache is laid out, and so how ``decode`` runs.

    Returns:
        A state with one slot for each row, and a ``Chunk`` of one step.
    """
    seq = rows.tokens.shape[1]
    columns = jnp.arange(seq)[None]
    positions = jnp.where(columns < rows.lengths[:, None], columns + shared, -1)
    past = None
    if prefix is not None:
        past = caches.after_prefix(prefix, rows.tokens.shape[0], seq + room)
    out = forward(
        params, config, rows.tokens, positions, cache=past, routing=routing, gate=rows.gate
    )
    dummy = rows.lengths == 0
    last = jnp.maximum(rows.lengths - 1, 0)[:, None, None]
    final = jnp.take_along_axis(out.hidden, last, axis=1)[:, 0]
    lengths = jnp.where(dummy, 0, rows.lengths + shared)
    nothing = jnp.zeros_like(lengths)
    choice = choice or Choice()
    logits = unembed(params, config, final)
    chosen = choose(logits, rows.seeds, lengths, choice, generated=nothing, ends=ends)
    if prefix is None:
        cache = caches.from_prefill(out.kv, seq + room, stacked=not unroll)
    else:
        cache = caches.from_prefill(out.kv, caches.capacity(out.kv), stacked=not unroll)
    done = dummy | _is_end(chosen.token, ends) | (rows.limits <= 1)
    state = DecodeState(
        cache, chosen.token, lengths, nothing + 1, done, rows.seeds, rows.limits, rows.gate
    )
    columns = (jnp.where(dummy, -1, chosen.token), chosen.logprob, chosen.margin)
    tokens, logprobs, margins = jax.tree.map(lambda x: _for_host(x[:, None]), columns)
    live = jnp.sum(~dummy, dtype=jnp.int32)
    return _on_mesh(state), Chunk(tokens, _for_host(done), logprobs, margins, jnp.int32(1), live)


@partial(jax.jit, static_argnames=("config",))
def read_prefix(
    params: Params,
    tokens: Int[Array, "replicas seq"],
    length: Int[Array, ""] | int,
    routing: Routing | None,
    gate: Float[Array, "replicas layers"] | None,
    *,
    config: Qwen3Config,
) -> KeyValue:
    """Keys and values of tokens that many prompts begin with, padded on the right.

    Args:
        params: Parameters, with ``blocks`` stacked.
        tokens: The same row for each replica of the mesh.
        length: Real tokens of the row.
        routing: Streams, or ``None`` for the plain model.
        gate: Mixing strength.
        config: Shape of the model.
    """
    columns = jnp.arange(tokens.shape[1])[None]
    positions = jnp.broadcast_to(jnp.where(columns < length, columns, -1), tokens.shape)
    return forward(params, config, tokens, positions, routing=routing, gate=gate).kv


@partial(jax.jit, static_argnames=("config", "slots", "capacity", "routed", "unroll"))
def empty(
    params: Params, *, config: Qwen3Config, slots: int, capacity: int, routed: bool, unroll: bool
) -> DecodeState:
    """A state whose slots are all free."""
    dtype = params["embed_tokens"].dtype
    none = jnp.zeros(slots, jnp.int32)
    gate = jnp.zeros((slots, config.num_hidden_layers), jnp.float32) if routed else None
    cache = caches.allocate(config, slots, capacity, dtype, stacked=not unroll)
    return _on_mesh(DecodeState(cache, none, none, none, none == 0, none, none, gate))


@partial(jax.jit, donate_argnames=("state",))
def insert(state: DecodeState, rows: DecodeState, at: Int[Array, " rows"]) -> DecodeState:
    """Put the rows that ``prefill`` left into slots.

    Args:
        state: Where to put them.
        rows: What to put there; its cache may be shorter.
        at: Slot of each row, counted within the row's own replica of the mesh; the number of slots,
            or more, drops the row.
    """
    fields = (*PER_ROW, *(() if state.gate is None else ("gate",)))
    new = {name: caches.put_rows(getattr(state, name), getattr(rows, name), at) for name in fields}
    return _on_mesh(state._replace(cache=caches.insert(state.cache, rows.cache, at), **new))


@partial(jax.jit, static_argnames=("length",))
def widen(layer: KeyValue, *, length: int) -> KeyValue:
    """One layer of a cache (or all, if stacked) with room for ``length`` positions."""
    return caches.grow(layer, length)


def with_capacity(state: DecodeState, length: int) -> DecodeState:
    """The state with a longer cache; layer by layer, so that little is held twice."""
    if isinstance(state.cache, KeyValue):
        return state._replace(cache=widen(state.cache, length=length))
    layers = list(state.cache)
    state = state._replace(cache=())
    for i in range(len(layers)):
        layers[i] = widen(layers[i], length=length)
    return state._replace(cache=tuple(layers))


unstack = jax.jit(unstack_blocks)
"""Slices the blocks apart, once for many calls of ``decode``."""


def _is_end(tokens: Int[Array, " slots"], ends: Int[Array, " ends"]) -> Bool[Array, " slots"]:
    return jnp.any(tokens[:, None] == ends[None], axis=1)


@partial(jax.jit, static_argnames=("config", "choice", "chunk"), donate_argnames=("state",))
def decode(
    params: Params,
    state: DecodeState,
    ends: Int[Array, " ends"],
    routing: Routing | None = None,
    stopped: Bool[Array, " slots"] | None = None,
    steps: Int[Array, ""] | int | None = None,
    stop_when_free: Int[Array, ""] | int | None = None,
    *,
    config: Qwen3Config,
    choice: Choice | None = None,
    chunk: int = 16,
) -> tuple[DecodeState, Chunk]:
    """A chunk of decode steps on the device.

    With a cache per layer ``params`` are best unstacked already (``unstack``): otherwise every
    call slices them anew.

    Args:
        params: Parameters, stacked or not as the cache is.
        state: Donated.
        ends: Tokens that end a completion.
        routing: Streams, or ``None`` for the plain model.
        stopped: Rows that the host has ended meanwhile.
        steps: Steps to run at most; by default all of the chunk.
        stop_when_free: Stop as soon as so many slots are free; by default when all are.
        config: Shape of the model.
        choice: How tokens are chosen; greedily by default.
        chunk: Columns of the ``Chunk`` that is told, and most steps that can run.
    """
    if not isinstance(state.cache, KeyValue):
        params = unstack_blocks(params)
    slots, choice = state.last.shape[0], choice or Choice()
    if stopped is not None:
        state = state._replace(done=state.done | stopped)
    most = chunk if steps is None else jnp.minimum(steps, chunk)
    stop_when_free = slots if stop_when_free is None else jnp.minimum(stop_when_free, slots)
    unknown = jnp.zeros((slots, chunk), jnp.float32)
    told = (
        jnp.full((slots, chunk), -1, jnp.int32),
        None if choice.logprobs is None else unknown,
        unknown if choice.margins else None,
    )

    def free(state: DecodeState) -> Array:
        return jnp.sum(state.done, dtype=jnp.int32)

    def step(carry: Any) -> Any:
        i, free_before, live, s, told = carry
        positions = jnp.where(s.done, -1, s.lengths)[:, None]
        out = forward(
            params, config, s.last[:, None], positions, cache=s.cache, routing=routing, gate=s.gate
        )
        lengths = s.lengths + 1
        logits = unembed(params, config, out.hidden[:, 0])
        chosen = choose(logits, s.seeds, lengths, choice, generated=s.generated, ends=ends)
        count = s.generated + (~s.done).astype(jnp.int32)
        new = s._replace(
            cache=out.kv,
            last=jnp.where(s.done, s.last, chosen.token),
            lengths=jnp.where(s.done, s.lengths, lengths),
            generated=count,
            done=s.done | _is_end(chosen.token, ends) | (count >= s.limits),
        )
        column = (jnp.where(s.done, -1, chosen.token), chosen.logprob, chosen.margin)
        told = jax.tree.map(
            lambda all_, one: jax.lax.dynamic_update_slice(all_, one[:, None], (0, i)), told, column
        )
        new = _on_mesh(new)
        return i + 1, free(new), live + slots - free_before, new, told

    def unfinished(carry: Any) -> Array:
        i, now_free, *_ = carry
        return (i < most) & (now_free < stop_when_free)

    start = (jnp.int32(0), free(state), jnp.int32(0), state, told)
    ran, _, live, state, told = jax.lax.while_loop(unfinished, step, start)
    tokens, logprobs, margins = jax.tree.map(_for_host, told)
    return state, Chunk(tokens, _for_host(state.done), logprobs, margins, ran, live)
