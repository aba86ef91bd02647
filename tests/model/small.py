"""A small random model, and routings of it that leave nothing out, for the tests of this folder."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jroute.model.config import DecoderConfig
from jroute.model.decoder import ForwardOptions, forward, unembed
from jroute.model.params import abstract_params, init_params, unstack_blocks
from jroute.routing.config import RoutingConfig
from jroute.routing.mixing import Routing
from jroute.routing.presets import preset_names, routing_file
from jroute.utils.config import load

CONFIG = DecoderConfig(
    vocab_size=61,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=12,
    rms_norm_eps=1e-6,
    rope_theta=5e6,
    tie_word_embeddings=True,
    max_position_embeddings=64,
)
SEQ, BATCH, LAYERS = 11, 5, CONFIG.num_hidden_layers
MIXED_GATES = [0.0, 0.7, 0.0, 1.0, -0.5]

ROWS = ((0.4, 0.3, -0.1, 0.4), (0.2, 0.5, 0.1, 0.2), (0.0, 0.25, 0.5, 0.25))
PRESETS = {name: load(RoutingConfig, routing_file(name)) for name in preset_names()}
GUARDS = {
    "norm_match": {"norm_match": True},
    "exempt_first": {"exempt_first": True},
    "sink_norms": {"sink_norms": (1.2, 1.4, 1.8, 2.0)},
    "cap": {"cap": 0.2},
    "all guards": {
        "norm_match": True,
        "exempt_first": True,
        "sink_norms": (1.2, 1.4, 1.8, 2.0),
        "cap": 0.2,
    },
}
"""``sink_norms`` lie amid the norms of this model's tokens: some are exempt, some are not."""

EVERYTHING = RoutingConfig(
    ("ema(0.3)", "rotate", "persistent", "rotate"),
    "fixed",
    rows=((0.3, 0.2, 0.4, -0.1, 0.2), *[(0.1, 0.2, 0.3, 0.1, 0.3)] * 4),
    hooks=("attention", "block"),
    **GUARDS["all guards"],
)
CONFIGS = PRESETS | {
    "lopsided persistent": RoutingConfig(("persistent",) * 3, "fixed", rows=ROWS),
    "scaled updates": RoutingConfig((), scale=1.6, hooks=("attention", "mlp")),
    "everything": EVERYTHING,
}


@functools.cache
def params(dtype: str = "float32"):
    drawn = init_params(CONFIG, jax.random.key(3), dtype)
    # Norm weights away from 1 and projections large enough that every part matters.
    keys = iter(jax.random.split(jax.random.key(4), 32))
    return jax.tree.map(
        lambda x: x * (1 + 0.3 * jax.random.normal(next(keys), x.shape, jnp.float32)).astype(dtype),
        drawn,
    )


def drawn_params(config: DecoderConfig, seed: int):
    """Normal parameters, norm weights 1; drawn at once and not operation by operation."""
    rng = np.random.default_rng(seed)

    def draw(path, like):
        if "norm" in jax.tree_util.keystr(path):
            return jnp.ones(like.shape, like.dtype)
        return jnp.asarray(rng.normal(0, config.hidden_size**-0.5, like.shape), like.dtype)

    return jax.tree_util.tree_map_with_path(draw, abstract_params(config))


@functools.cache
def tokens():
    return jax.random.randint(jax.random.key(1), (BATCH, SEQ), 0, CONFIG.vocab_size)


def positions(batch: int = BATCH):
    return jnp.broadcast_to(jnp.arange(SEQ), (batch, SEQ))


@functools.partial(jax.jit, static_argnames=("unrolled",))
def logits(weights, ids, where, routing=None, gate=None, *, unrolled=False):
    """Logits and new keys; of the plain model without a routing."""
    weights = unstack_blocks(weights) if unrolled else weights
    out = forward(weights, CONFIG, ids, where, routing=routing, gate=gate)
    return unembed(weights, CONFIG, out.hidden), out.kv


@jax.jit
def step(weights, cache, ids, at, routing=None, gate=None):
    """Logits of one more token per row, and the cache with it; scanned or unrolled as both are."""
    out = forward(weights, CONFIG, ids, at, cache=cache, routing=routing, gate=gate)
    return unembed(weights, CONFIG, out.hidden), out.kv


def routed(config: RoutingConfig, gate, dtype: str = "float32", **options):
    """Logits of all tokens under a gate."""
    routing = Routing.create(config, LAYERS)
    gates = routing.layer_gates(gate, BATCH)
    return logits(params(dtype), tokens(), positions(), routing, gates, **options)[0]


def plain(dtype: str = "float32", **options):
    return logits(params(dtype), tokens(), positions(), **options)[0]


@functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
def measured(weights, ids, where, routing, gate):
    """A forward pass with all its inner states and stream metrics, compiled in a hurry."""
    return forward(
        weights,
        CONFIG,
        ids,
        where,
        routing=routing,
        gate=gate,
        options=ForwardOptions(metrics=True, tap=lambda t: t),
    )


def relative(actual, expected) -> float:
    """Largest error of a state, as a share of that state's norm."""
    actual, expected = np.asarray(actual, float), np.asarray(expected, float)
    error = np.linalg.norm(actual - expected, axis=-1)
    return float((error / np.linalg.norm(expected, axis=-1)).max())
