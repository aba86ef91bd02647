"""A small model with sizes that differ, inputs for it, and its programs under a mesh or without."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jroute.distributed.mesh import fetch, place, replicate, shardings
from jroute.generate.programs import Chunk, DecodeState, Rows, decode, prefill
from jroute.model.config import DecoderConfig
from jroute.model.decoder import forward, unembed
from jroute.model.params import abstract_params, init_params, logical_axes
from jroute.routing.config import RoutingConfig
from jroute.routing.mixing import Routing

CONFIG = DecoderConfig(
    vocab_size=96,
    hidden_size=48,
    intermediate_size=112,
    num_hidden_layers=2,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=20,
    rms_norm_eps=1e-6,
    rope_theta=10_000.0,
    tie_word_embeddings=True,
    max_position_embeddings=64,
)
UNTIED = replace(CONFIG, tie_word_embeddings=False)
# Its arrays are large enough to be stored in parts.
LARGE = replace(CONFIG, vocab_size=512, hidden_size=512, intermediate_size=1024)
SLOTS, SEQ, NEW = 8, 12, 10
MESHES = [(8, 1, 1), (2, 2, 2), (1, 4, 2), (1, 1, 4)]


class Inputs(NamedTuple):
    """What ``prefill`` takes after the parameters; routing and gate are None for the plain."""

    rows: Rows
    ends: Any
    routing: Any

    @property
    def lengths(self) -> Any:
        return self.rows.lengths


class Decoded(NamedTuple):
    """What rows generated, -1 where nothing, and the state they ended in."""

    tokens: np.ndarray
    state: DecodeState


@cache
def parameters(config: DecoderConfig = CONFIG) -> dict[str, Any]:
    return init_params(config, jax.random.key(0))


@cache
def host_inputs() -> Inputs:
    """Prompts of 1 to 12 tokens with an empty slot, no end token, and a gate per row and layer."""
    rng = np.random.default_rng(0)
    lengths = np.array([12, 1, 7, 0, 12, 3, 9, 5], np.int32)
    tokens = rng.integers(0, CONFIG.vocab_size, (SLOTS, SEQ)).astype(np.int32)
    rows = ((0.4, 0.3, 0.2, 0.1),)
    streams = ("delay(1)", "attention", "mlp")
    routing = Routing.create(RoutingConfig(streams, "fixed", rows=rows, norm_match=True), 2)
    gate = rng.choice([0, 0.5, 1], (SLOTS, 2)).astype(np.float32)
    limits = np.full(SLOTS, NEW, np.int32)
    rows = Rows(tokens, lengths, np.arange(SLOTS, dtype=np.int32), limits, gate)
    return Inputs(rows, np.array([-7], np.int32), routing)


def on(mesh: Mesh | None) -> AbstractContextManager[Any]:
    return nullcontext() if mesh is None else jax.set_mesh(mesh)


def placed_parameters(mesh: Mesh, config: DecoderConfig = CONFIG) -> dict[str, Any]:
    places = shardings(logical_axes(config), abstract_params(config), mesh)
    return jax.device_put(parameters(config), places)


def placed_inputs(*, routed: bool) -> Inputs:
    """On the mesh that is set, if one is."""
    host = host_inputs()
    rows = host.rows._replace(gate=host.rows.gate if routed else None)
    axes = Rows(("slots", "seq"), ("slots",), ("slots",), ("slots",), ("slots", "layers"), None)
    placed = [
        None if array is None else place(array, names, name)
        for array, names, name in zip(rows, axes, Rows._fields, strict=True)
    ]
    routing = replicate(host.routing) if routed else None
    return Inputs(Rows(*placed), replicate(host.ends), routing)


@partial(jax.jit, static_argnums=0)
def _logits(config, params, tokens, lengths, routing, gate):
    columns = jnp.arange(tokens.shape[1])[None]
    positions = jnp.where(columns < lengths[:, None], columns, -1)
    out = forward(params, config, tokens, positions, routing=routing, gate=gate)
    return unembed(params, config, out.hidden)


def logits(
    params: Any, mesh: Mesh | None, *, routed: bool, config: DecoderConfig = CONFIG
) -> np.ndarray:
    with on(mesh):
        rows, _, routing = placed_inputs(routed=routed)
        return fetch(_logits(config, params, rows.tokens, rows.lengths, routing, rows.gate))


def greedy(params: Any, mesh: Mesh | None, *, routed: bool, unroll: bool = True) -> Decoded:
    """Prefill, then decoding in two chunks, the second of which takes what the first returns."""
    with on(mesh):
        rows, *others = placed_inputs(routed=routed)
        state, first = prefill(params, rows, *others, config=CONFIG, room=NEW, unroll=unroll)
        chunks: list[Chunk] = [first]
        for _ in range(2):
            state, chunk = decode(params, state, *others, config=CONFIG, chunk=6)
            chunks.append(chunk)
        tokens = np.concatenate([fetch(chunk.tokens) for chunk in chunks], axis=1)
        assert (tokens[:, NEW:] == -1).all()
        return Decoded(tokens[:, :NEW], fetch(state))
