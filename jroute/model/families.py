"""Released architectures of dense decoders: one row each, for what differs is data."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Family:
    """What tells one architecture from the others.

    Attributes:
        name: ``model_type`` in ``config.json``.
        transformers_class: The class of transformers that runs it.
        head_norms: Whether queries and keys are normed, head by head, before the rotation.
        biases: Whether the projections to queries, keys and values add a bias.
        unsupported: Keys of ``config.json`` that turn on what jroute does not implement.
        defaults: Values of keys that ``config.json`` may lack, transformers' own.
        derived: Keys that it may lack because they follow from others.
        nullable: Keys that it may leave null because they follow from others.
    """

    name: str
    transformers_class: str
    head_norms: bool
    biases: bool
    unsupported: tuple[str, ...]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    derived: tuple[str, ...] = ()
    nullable: tuple[str, ...] = ("num_key_value_heads",)


FAMILIES: Mapping[str, Family] = {
    family.name: family
    for family in (
        Family(
            "qwen3",
            "Qwen3ForCausalLM",
            head_norms=True,
            biases=False,
            unsupported=("attention_bias", "use_sliding_window"),
            defaults={"head_dim": 128},
        ),
        Family(
            "qwen2",
            "Qwen2ForCausalLM",
            head_norms=False,
            biases=True,
            unsupported=("use_sliding_window",),
            derived=("head_dim",),
            nullable=("head_dim", "num_key_value_heads"),
        ),
        Family(
            "llama",
            "LlamaForCausalLM",
            head_norms=False,
            biases=False,
            unsupported=("attention_bias", "mlp_bias"),
            defaults={
                "rope_theta": 10_000.0,
                "rms_norm_eps": 1e-6,
                "max_position_embeddings": 2048,
            },
            derived=("head_dim", "num_key_value_heads"),
            nullable=("head_dim", "num_key_value_heads"),
        ),
    )
}
"""The families by name. What of ``Shape`` has no default and is not derived must be given, such as
the base of the rotation of a Qwen: releases differ in it."""
