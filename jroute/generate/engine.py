"""Batched generation: jitted prefill, then chunks of on-device decode steps over fixed slots.

Requests are grouped by prompt-length bucket and run ``slots`` at a time; the last group is filled
up with dummies, so a bucket has one execution shape only. At a fixed shape a row's tokens depend on
that row alone. Each bucket costs two compiled programs, which live as long as the process. Under
``jax.set_mesh`` the slots lie on the mesh's ``data`` axis.
"""

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from transformers import PreTrainedTokenizerFast

from jroute.errors import UserError
from jroute.generate.cache import Cache, from_prefill
from jroute.generate.decoding import Completion, Decoding, StopReason, choose
from jroute.mesh import constrain, fetch, place, replicate
from jroute.model.config import Qwen3Config
from jroute.model.qwen3 import KeyValue, Params, forward, unembed, unstack_blocks
from jroute.model.routing import Routing

SMALLEST_BUCKET = 32


@dataclass(frozen=True)
class EngineConfig:
    """Execution shape of generation; part of how a cell was made, not of what it means.

    Attributes:
        slots: Rows of a batch; a multiple of the mesh's ``data`` axis.
        chunk: Decode steps between two looks at stop strings.
        unroll: Decode over separate layers, which is faster but holds the weights of the blocks
            twice; otherwise scan over the stacked ones.
    """

    slots: int = 64
    chunk: int = 16
    unroll: bool = True

    def __post_init__(self) -> None:
        if self.slots < 1 or self.chunk < 1:
            raise UserError("engine.slots and engine.chunk must be at least 1")


class Request(NamedTuple):
    """One prompt to complete: its tokens, its gate per layer, and the seed of its randomness."""

    tokens: Sequence[int]
    gate: Float[np.ndarray, " layers"] | None
    seed: int = 0


class DecodeState(NamedTuple):
    """Everything a decode chunk carries; donated from one chunk to the next.

    Attributes:
        cache: Keys and values per layer.
        tokens: Tokens generated so far, ``[slots, max_new_tokens]``, -1 where none.
        last: The newest token of each row, not yet in the cache.
        lengths: Tokens of a row in the cache.
        generated: How many tokens each row has generated.
        done: Rows that are finished.
    """

    cache: Cache
    tokens: Int[Array, "slots max_new"]
    last: Int[Array, " slots"]
    lengths: Int[Array, " slots"]
    generated: Int[Array, " slots"]
    done: Bool[Array, " slots"]


def _on_mesh(state: DecodeState) -> DecodeState:
    """The same layout after prefill and after every chunk, so that ``decode`` compiles once."""
    per_row = ("last", "lengths", "generated", "done")
    columns = {name: constrain(getattr(state, name), ("batch",)) for name in per_row}
    return state._replace(tokens=constrain(state.tokens, ("batch", "seq")), **columns)


def bucket(length: int) -> int:
    """Padded width of a prompt: the next of 32, 48, 64, 96, 128, 192, 256, 384 and so on."""
    power = max(SMALLEST_BUCKET, 1 << (length - 1).bit_length())
    shorter = power // 4 * 3
    return shorter if length <= shorter and shorter > SMALLEST_BUCKET else power


def check_context(prompt_tokens: int, new_tokens: int, context: int) -> None:
    """Refuses a prompt that does not fit.

    Raises:
        UserError: Prompt and completion together are longer than the model's context.
    """
    if prompt_tokens < 1:
        raise UserError("a prompt is empty; give at least one token")
    if not new_tokens and prompt_tokens > context:
        raise UserError(
            f"a text of {prompt_tokens} tokens is longer than the model's context of {context} "
            "tokens; shorten it"
        )
    if prompt_tokens + new_tokens > context:
        raise UserError(
            f"a prompt of {prompt_tokens} tokens plus max_new_tokens {new_tokens} is longer than "
            f"the model's context of {context} tokens; shorten the prompt or lower max_new_tokens"
        )


@partial(jax.jit, static_argnames=("config", "decoding", "unroll"))
def prefill(
    params: Params,
    tokens: Int[Array, "slots seq"],
    lengths: Int[Array, " slots"],
    seeds: Int[Array, " slots"],
    ends: Int[Array, " ends"],
    routing: Routing | None,
    gate: Float[Array, "slots layers"] | None,
    *,
    config: Qwen3Config,
    decoding: Decoding,
    unroll: bool = True,
) -> DecodeState:
    """Reads right-padded prompts and chooses each row's first token.

    Only the last hidden state of a row is unembedded. Rows of length 0 are dummies and done.
    ``unroll`` says how the cache is laid out, and so how ``decode`` runs.
    """
    columns = jnp.arange(tokens.shape[1])[None]
    positions = jnp.where(columns < lengths[:, None], columns, -1)
    out = forward(params, config, tokens, positions, routing=routing, gate=gate)
    final = jnp.take_along_axis(out.hidden, jnp.maximum(lengths - 1, 0)[:, None, None], axis=1)[
        :, 0
    ]
    first = choose(unembed(params, config, final), seeds, lengths, decoding)
    nothing = jnp.full((tokens.shape[0], decoding.max_new_tokens), -1, jnp.int32)
    dummy = lengths == 0
    ended = jnp.any(first[:, None] == ends[None], axis=1) | (decoding.max_new_tokens == 1)
    state = DecodeState(
        cache=from_prefill(out.kv, tokens.shape[1] + decoding.max_new_tokens, stacked=not unroll),
        tokens=nothing.at[:, 0].set(first),
        last=first,
        lengths=lengths,
        generated=jnp.ones_like(lengths),
        done=dummy | ended,
    )
    return _on_mesh(state)


@partial(jax.jit, static_argnames=("config", "decoding", "steps"), donate_argnames=("state",))
def decode(
    params: Params,
    state: DecodeState,
    seeds: Int[Array, " slots"],
    ends: Int[Array, " ends"],
    routing: Routing | None,
    gate: Float[Array, "slots layers"] | None,
    *,
    config: Qwen3Config,
    decoding: Decoding,
    steps: int,
) -> DecodeState:
    """Up to ``steps`` decode steps on the device; stops early when every row is done.

    With a cache per layer ``params`` are best unstacked already (``unstack_blocks``): otherwise
    every call slices them anew.
    """
    if not isinstance(state.cache, KeyValue):
        params = unstack_blocks(params)

    def write(row: Array, column: Array, token: Array) -> Array:
        return row.at[column].set(token, mode="drop")

    def step(carry: tuple[Array, DecodeState]) -> tuple[Array, DecodeState]:
        i, s = carry
        positions = jnp.where(s.done, -1, s.lengths)[:, None]
        out = forward(
            params, config, s.last[:, None], positions, cache=s.cache, routing=routing, gate=gate
        )
        lengths = s.lengths + 1
        token = choose(unembed(params, config, out.hidden[:, 0]), seeds, lengths, decoding)
        column = jnp.where(
            s.done, decoding.max_new_tokens, s.generated
        )  # finished rows write nowhere
        count = s.generated + (~s.done).astype(jnp.int32)
        ended = jnp.any(token[:, None] == ends[None], axis=1) | (count >= decoding.max_new_tokens)
        new = DecodeState(
            cache=out.kv,
            tokens=jax.vmap(write)(s.tokens, column, token),
            last=jnp.where(s.done, s.last, token),
            lengths=jnp.where(s.done, s.lengths, lengths),
            generated=count,
            done=s.done | ended,
        )
        return i + 1, _on_mesh(new)

    def unfinished(carry: tuple[Array, DecodeState]) -> Array:
        i, s = carry
        return (i < steps) & ~jnp.all(s.done)

    return jax.lax.while_loop(unfinished, step, (jnp.int32(0), state))[1]


class Engine:
    """Completes requests under one fixed decoding."""

    def __init__(
        self,
        params: Params,
        config: Qwen3Config,
        tokenizer: PreTrainedTokenizerFast,
        decoding: Decoding,
        *,
        end_token_ids: Sequence[int],
        routing: Routing | None = None,
        shape: EngineConfig | None = None,
    ):
        self._params = params
        self._config = config
        self._tokenizer = tokenizer
        self._decoding = decoding
        self._ends = np.asarray(end_token_ids, np.int32)
        self._routing = routing
        self._shape = shape or EngineConfig()

    def run(
        self,
        requests: Sequence[Request],
        *,
        finished: Callable[[list[int], list[Completion]], None] | None = None,
    ) -> list[Completion]:
        """Completes every request, in the order given.

        Args:
            requests: What to complete. Either all have a gate or none has.
            finished: Called after each batch with the indices and completions of its requests.

        Raises:
            UserError: A prompt that does not fit the context.
        """
        for request in requests:
            check_context(
                len(request.tokens),
                self._decoding.max_new_tokens,
                self._config.max_position_embeddings,
            )
        groups: dict[int, list[int]] = {}
        for i, request in enumerate(requests):
            groups.setdefault(bucket(len(request.tokens)), []).append(i)
        sliced = unstack_blocks(self._params) if self._shape.unroll and requests else self._params
        done: dict[int, Completion] = {}
        for width, members in sorted(groups.items()):
            for start in range(0, len(members), self._shape.slots):
                indices = members[start : start + self._shape.slots]
                completions = self._batch([requests[i] for i in indices], width, sliced)
                done.update(zip(indices, completions, strict=True))
                if finished:
                    finished(indices, completions)
        return [done[i] for i in range(len(requests))]

    def _batch(self, requests: list[Request], width: int, sliced: Params) -> list[Completion]:
        """One batch; ``sliced`` are the parameters as decoding takes them."""
        slots, layers = self._shape.slots, self._config.num_hidden_layers
        tokens = np.zeros((slots, width), np.int32)
        lengths, seeds = np.zeros(slots, np.int32), np.zeros(slots, np.int32)
        gate = np.zeros((slots, layers), np.float32)
        routed = requests[0].gate is not None
        if routed and self._routing is None:
            raise UserError(
                "a gate was given, but no routing: load the model with one to use a gate"
            )
        for row, request in enumerate(requests):
            tokens[row, : len(request.tokens)] = request.tokens
            lengths[row], seeds[row] = len(request.tokens), request.seed
            if request.gate is not None:
                gate[row] = request.gate
        routing = replicate(self._routing) if routed else None
        gates = place(gate, ("batch", "layers")) if routed else None
        fixed = (place(seeds, ("batch",)), self._ends, routing, gates)
        # Stop strings are the host's business; the compiled programs do not depend on them.
        static = {"config": self._config, "decoding": replace(self._decoding, stop=())}
        state = prefill(
            self._params,
            place(tokens, ("batch", "seq")),
            place(lengths, ("batch",)),
            *fixed,
            **static,
            unroll=self._shape.unroll,
        )
        if not self._decoding.stop:
            state = decode(sliced, state, *fixed, **static, steps=self._decoding.max_new_tokens)
            return self._collect(state, len(requests))
        while True:
            completions = self._collect(state, len(requests))
            done = np.array(fetch(state.done))
            done[: len(requests)] |= [c.stop_reason == "stop_string" for c in completions]
            if done.all():
                return completions
            state = state._replace(done=jnp.asarray(place(done, ("batch",))))
            state = decode(sliced, state, *fixed, **static, steps=self._shape.chunk)

    def _collect(self, state: DecodeState, rows: int) -> list[Completion]:
        """Reads the rows back; rows that are still running are reported as of now."""
        tokens, count = (x[:rows] for x in fetch((state.tokens, state.generated)))
        generated = [row[:n].tolist() for row, n in zip(tokens, count, strict=True)]
        texts = self._tokenizer.batch_decode(generated, skip_special_tokens=True)
        return [self._completion(ids, text) for ids, text in zip(generated, texts, strict=True)]

    def _completion(self, ids: list[int], text: str) -> Completion:
        reason: StopReason = "end_token" if ids and ids[-1] in self._ends else "length"
        if any(stop in text for stop in self._decoding.stop):
            # The row ran on to the end of its chunk; what follows the stop is not part of it.
            ids = ids[
                : bisect.bisect_left(range(len(ids)), True, key=partial(self._stopped, ids)) + 1
            ]
            text = str(self._tokenizer.decode(ids, skip_special_tokens=True))
            cuts = [at for stop in self._decoding.stop if (at := text.find(stop)) >= 0]
            text, reason = text[: min(cuts)], "stop_string"
        return Completion(tuple(ids), text, reason)

    def _stopped(self, ids: list[int], last: int) -> bool:
        """Whether a stop string shows in the text up to and with token ``last``."""
        text = self._tokenizer.decode(ids[: last + 1], skip_special_tokens=True)
        return any(stop in text for stop in self._decoding.stop)
