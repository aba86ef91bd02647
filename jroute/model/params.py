"""The decoder's parameters as one nested dictionary: shapes, axes, initial values, unstacking.

Block parameters are stacked on a leading ``layers`` axis. Every program takes parameters in this
form (``Params``), so a jit boundary never sees a module.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array

from jroute.model.config import DecoderConfig
from jroute.model.layers import Block, parameter, summing
from jroute.utils.trees import nest

Params = Mapping[str, Any]


class Decoder(nnx.Module):
    """All parameters of the decoder; ``blocks`` are stacked on a leading ``layers`` axis."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        self.embed_tokens = parameter(config, rngs, ("vocab", "embed"), summing(config.hidden_size))
        stacked = nnx.vmap(lambda keys: Block(config, keys), axis_size=config.num_hidden_layers)
        self.blocks = stacked(rngs.split(config.num_hidden_layers))
        self.final_norm = parameter(config, rngs, ("embed",))
        if not config.tie_word_embeddings:
            self.lm_head = parameter(config, rngs, ("embed", "vocab"), summing(config.hidden_size))


@cache
def block_graph(config: DecoderConfig) -> nnx.GraphDef:
    """Return the structure of one block, to be merged with its parameters."""
    return nnx.split(nnx.eval_shape(lambda: Block(config, nnx.Rngs(0))))[0]


@cache
def _abstract_model(config: DecoderConfig) -> nnx.State:
    return nnx.state(nnx.eval_shape(lambda: Decoder(config, nnx.Rngs(0))), nnx.Param)


def logical_axes(config: DecoderConfig) -> dict[str, Any]:
    """Return the tree of ``params`` with the logical axis names of every array as a tuple."""

    def axes(path: tuple[Any, ...], variable: nnx.Variable) -> tuple[str, ...]:
        names = variable.get_metadata()["axes"]
        return ("layers", *names) if path[0] == "blocks" else names

    flat = nnx.to_flat_state(_abstract_model(config))
    return nest({path: axes(path, variable) for path, variable in flat})


def abstract_params(config: DecoderConfig, dtype: Any = "float32") -> dict[str, Any]:
    """Return the tree of ``params`` as ``jax.ShapeDtypeStruct``; allocates nothing."""
    shapes = nnx.to_pure_dict(_abstract_model(config))
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), shapes)


def init_params(config: DecoderConfig, key: Array, dtype: Any = "float32") -> dict[str, Any]:
    """Draw random parameters: projections with variance 1 / fan-in, norms 1, biases 0."""
    state = nnx.state(Decoder(config, nnx.Rngs(key)), nnx.Param)
    return jax.tree.map(lambda leaf: leaf.astype(dtype), nnx.to_pure_dict(state))


def unstack_blocks(params: Params) -> dict[str, Any]:
    """Return the parameters with ``blocks`` as a tuple of per-layer trees, to unroll decoding."""
    blocks = params["blocks"]
    if isinstance(blocks, tuple):
        return dict(params)
    layers = jax.tree.leaves(blocks)[0].shape[0]
    return {
        **params,
        "blocks": tuple(jax.tree.map(lambda leaf, i=i: leaf[i], blocks) for i in range(layers)),
    }
