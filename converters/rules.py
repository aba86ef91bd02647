"""Where Hugging Face keeps each array of ours: one table for each family."""

from collections.abc import Mapping
from typing import NamedTuple


class Rule(NamedTuple):
    """How one array of ours is stored by Hugging Face.

    Attributes:
        path: Path in the nested dictionary.
        hf: Name in the checkpoint; ``{layer}`` stands for the block's index.
        inputs: How many leading axes of ours (after ``layers``) are inputs of a linear layer, all
            others being its outputs: 0 for a bias. ``None`` means that the array is stored as it
            is.
    """

    path: str
    hf: str
    inputs: int | None = None


TOKENS = "model.embed_tokens.weight"
HEAD = "lm_head.weight"

_FIRST = (
    Rule("embed_tokens", TOKENS),
    Rule("blocks/input_norm", "model.layers.{layer}.input_layernorm.weight"),
    Rule("blocks/attention/q_proj", "model.layers.{layer}.self_attn.q_proj.weight", inputs=1),
    Rule("blocks/attention/k_proj", "model.layers.{layer}.self_attn.k_proj.weight", inputs=1),
    Rule("blocks/attention/v_proj", "model.layers.{layer}.self_attn.v_proj.weight", inputs=1),
    Rule("blocks/attention/o_proj", "model.layers.{layer}.self_attn.o_proj.weight", inputs=2),
)
_BIASES = (
    Rule("blocks/attention/q_bias", "model.layers.{layer}.self_attn.q_proj.bias", inputs=0),
    Rule("blocks/attention/k_bias", "model.layers.{layer}.self_attn.k_proj.bias", inputs=0),
    Rule("blocks/attention/v_bias", "model.layers.{layer}.self_attn.v_proj.bias", inputs=0),
)
_HEAD_NORMS = (
    Rule("blocks/attention/q_norm", "model.layers.{layer}.self_attn.q_norm.weight"),
    Rule("blocks/attention/k_norm", "model.layers.{layer}.self_attn.k_norm.weight"),
)
_LAST = (
    Rule("blocks/post_attention_norm", "model.layers.{layer}.post_attention_layernorm.weight"),
    Rule("blocks/mlp/gate_proj", "model.layers.{layer}.mlp.gate_proj.weight", inputs=1),
    Rule("blocks/mlp/up_proj", "model.layers.{layer}.mlp.up_proj.weight", inputs=1),
    Rule("blocks/mlp/down_proj", "model.layers.{layer}.mlp.down_proj.weight", inputs=1),
    Rule("final_norm", "model.norm.weight"),
    Rule("lm_head", HEAD, inputs=1),
)

TABLES: Mapping[str, tuple[Rule, ...]] = {
    "qwen3": (*_FIRST, *_HEAD_NORMS, *_LAST),
    "qwen2": (*_FIRST, *_BIASES, *_LAST),
    "llama": (*_FIRST, *_LAST),
}
"""The rules of every family, in the order in which arrays are converted."""
