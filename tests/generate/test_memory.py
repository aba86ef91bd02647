"""What generation and scoring hold in memory at full size, read from the compiled programs."""

import math
import re

import jax
import jax.numpy as jnp
import pytest

from jroute.generate.programs import Rows, prefill
from jroute.generate.scoring import token_scores
from jroute.model.config import DecoderConfig
from jroute.model.decoder import forward, unembed
from jroute.model.params import abstract_params
from jroute.routing.config import RoutingConfig
from jroute.routing.mixing import Routing

# The shape of Qwen3-4B-Instruct-2507.
QWEN3_4B = DecoderConfig(
    vocab_size=151_936,
    hidden_size=2560,
    intermediate_size=9728,
    num_hidden_layers=36,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    rms_norm_eps=1e-6,
    rope_theta=5e6,
    tie_word_embeddings=True,
    max_position_embeddings=262_144,
)
BATCH, SEQ = 32, 2048
GB = 10**9


def arguments(batch: int, seq: int) -> tuple:
    rows = jax.ShapeDtypeStruct((batch,), jnp.int32)
    return (
        abstract_params(QWEN3_4B, "bfloat16"),
        jax.ShapeDtypeStruct((batch, seq), jnp.int32),
        rows,
    )


def gates(batch: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((batch, QWEN3_4B.num_hidden_layers), jnp.float32)


ROUTING = Routing.create(RoutingConfig(), QWEN3_4B.num_hidden_layers)


def largest_with_vocabulary(program: str) -> int:
    """Elements of the largest array of a program that has the vocabulary as an axis, without it.

    The token table itself has 2560.
    """
    shapes = re.findall(r"\b(?:f32|bf16|f16|s32|u32|pred)\[([\d,]+)\]", program)
    sizes = [[int(size) for size in shape.split(",")] for shape in shapes]
    vocab = QWEN3_4B.vocab_size
    return max((math.prod(shape) // vocab for shape in sizes if vocab in shape), default=0)


@pytest.mark.parametrize("routing", [None, ROUTING], ids=["plain", "routed"])
def test_scoring_32_rows_of_2048_tokens_fits_beside_the_weights(routing: Routing | None) -> None:
    def score(params, tokens, lengths, gate):
        gate = None if routing is None else gate
        return token_scores(params, tokens, lengths, routing, gate, config=QWEN3_4B)

    compiled = jax.jit(score).lower(*arguments(BATCH, SEQ), gates(BATCH)).compile()
    memory = compiled.memory_analysis()
    assert memory.argument_size_in_bytes > 8.0 * GB  # the weights are counted
    held = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    print(f"\nscoring {BATCH} x {SEQ} tokens, weights included: {held / 2**30:.1f} GiB")
    # On a CPU, XLA keeps float32 copies of bfloat16 weights, so a GPU needs less than this.
    assert held < 40 * GB
    # float32 logits of the whole batch alone would be 39.8 GB
    assert largest_with_vocabulary(compiled.as_text()) <= 2560


def test_prefill_makes_logits_of_one_token_per_row_only() -> None:
    batch, seq = 8, 512
    ends = jnp.array([151_645, 151_643])

    def first(params, tokens, lengths, gate):
        rows = Rows(tokens, lengths, lengths, lengths, gate)
        return prefill(params, rows, ends, ROUTING, config=QWEN3_4B, room=16)

    compiled = jax.jit(first).lower(*arguments(batch, seq), gates(batch)).compile()
    assert largest_with_vocabulary(compiled.as_text()) <= 2560


def test_the_check_sees_logits_of_every_token() -> None:
    def logits(params, tokens, positions):
        return unembed(params, QWEN3_4B, forward(params, QWEN3_4B, tokens, positions).hidden)

    params, tokens, _ = arguments(8, 512)
    assert (
        largest_with_vocabulary(jax.jit(logits).lower(params, tokens, tokens).as_text("hlo"))
        == 8 * 512
    )
