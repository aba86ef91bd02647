"""The shapes that can be measured, and the defaults of each measurement."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jroute.checkpoint.conversion import Dtype
from jroute.model.config import DecoderConfig


@dataclass(frozen=True)
class Shape:
    """A model's shape and the defaults of its measurement.

    Attributes:
        config: Of the model.
        dtype: Of weights, cache and arithmetic.
        batches: Batch sizes of equal length.
        rounds: For each of them; more for the quicker.
        prompt: Tokens of a prompt of equal length.
        new: New tokens for each of them.
        slots: Rows at a time of the ragged workload.
        scale: By which its lengths are divided.
        parts: What is measured.
        ablations: Fields of ``EngineConfig`` and values to try.
    """

    config: DecoderConfig
    dtype: Dtype
    batches: Sequence[int]
    rounds: Sequence[int]
    prompt: int
    new: int
    slots: int
    scale: float
    parts: Sequence[str]
    ablations: Mapping[str, Sequence[Any]] = field(
        default_factory=lambda: {
            "unroll": (True, False),
            "chunk": (4, 16, 64),
            "attention": ("xla", "cudnn", "pallas"),
            "prefill_tokens": (512, 4096),
            "ahead": (0, 2, 8),
        }
    )


def _qwen3(
    vocabulary: int, width: int, mlp: int, layers: int, heads: int, kv_heads: int, head_dim: int
) -> DecoderConfig:
    return DecoderConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        rms_norm_eps=1e-6,
        rope_theta=1e6,  # tunix knows no other
        tie_word_embeddings=True,
        max_position_embeddings=32_768,
    )


SHAPES = {
    "42m": Shape(
        _qwen3(8192, 512, 1536, 12, 8, 4, 64),
        "float32",
        (1, 16, 64),
        (5, 3, 2),
        prompt=64,
        new=128,
        slots=32,
        scale=16,
        parts=("equal", "ragged", "first", "theta"),
    ),
    "4b": Shape(
        _qwen3(151_936, 2560, 9728, 36, 32, 8, 128),
        "bfloat16",
        (1, 8, 64, 128, 256),
        (5,),
        prompt=256,
        new=256,
        slots=128,
        scale=1,
        parts=("equal", "ragged", "first", "floor", "ablations"),
    ),
    # Tries the script itself.
    "tiny": Shape(
        _qwen3(512, 64, 96, 2, 4, 2, 16),
        "float32",
        (1, 4),
        (2,),
        prompt=8,
        new=8,
        slots=4,
        scale=100,
        parts=("equal", "ragged", "first", "floor", "ablations"),
    ),
}
