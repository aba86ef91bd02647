"""A model so small that a whole run of the engine costs milliseconds, and requests for it."""

from functools import cache
from typing import Any

import jax
import numpy as np

from jroute.generate.config import EngineConfig
from jroute.generate.decoding import Decoding
from jroute.generate.engine import Engine
from jroute.generate.requests import FrozenModel, Request
from jroute.model.config import DecoderConfig
from jroute.model.params import init_params
from jroute.routing.config import RoutingConfig
from jroute.routing.mixing import Routing

CONFIG = DecoderConfig(
    vocab_size=48,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
    rms_norm_eps=1e-6,
    rope_theta=10_000.0,
    tie_word_embeddings=True,
    max_position_embeddings=1024,
)
ENDS = (3, 7)
ROUTING = RoutingConfig(("delay(1)", "mlp"), "fixed", rows=((0.2, 0.5, 0.3),))


@cache
def parameters() -> dict[str, Any]:
    return init_params(CONFIG, jax.random.key(5))


def requests(count: int, seed: int, *, longest: int = 40, limit: int = 24) -> list[Request]:
    """Random prompts, gates, seeds and limits."""
    rng = np.random.default_rng(seed)
    return [
        Request(
            rng.integers(0, CONFIG.vocab_size, rng.integers(1, longest + 1)).tolist(),
            rng.choice([0.0, 0.25, 1.0, -0.5], 1).astype(np.float32),
            seed=int(rng.integers(0, 2**31)),
            limit=int(rng.integers(1, limit + 1)),
        )
        for _ in range(count)
    ]


def engine(
    tokenizer: Any,
    *,
    decoding: Decoding | None = None,
    ends: tuple[int, ...] = ENDS,
    shape: EngineConfig | None = None,
    **options: Any,
) -> Engine:
    routing = Routing.create(ROUTING, CONFIG.num_hidden_layers)
    return Engine(
        FrozenModel(parameters(), CONFIG, tokenizer, ends, routing),
        decoding or Decoding(temperature=1.0, max_new_tokens=120),
        shape or EngineConfig(slots=4, chunk=8),
        **options,
    )
