"""The shape of a Qwen3 decoder, read from a Hugging Face ``config.json``."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, get_type_hints

from jroute.utils.errors import UserError
from jroute.utils.keys import Keys, keys, stored, stored_keys


@dataclass(frozen=True)
class Qwen3Config:
    """Sizes and constants of one dense Qwen3 model; names are Hugging Face's.

    Hashable, so that it can be a static argument of a jitted function.
    """

    stored_keys: ClassVar[Keys] = keys(
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "rms_norm_eps",
        "rope_theta",
        "tie_word_embeddings",
        "max_position_embeddings",
    )

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    tie_word_embeddings: bool
    max_position_embeddings: int

    def __post_init__(self) -> None:
        if self.num_attention_heads % self.num_key_value_heads:
            raise UserError(
                f"num_attention_heads ({self.num_attention_heads}) in config.json is not a "
                f"multiple of num_key_value_heads ({self.num_key_value_heads}); "
                "the file is damaged or does not describe a Qwen3 model"
            )
        if self.head_dim % 2:
            raise UserError(
                f"head_dim must be even for rotary embeddings, but config.json says {self.head_dim}"
            )

    @property
    def axis_sizes(self) -> dict[str, int]:
        """The length of every logical axis of the parameters."""
        return {
            "layers": self.num_hidden_layers,
            "vocab": self.vocab_size,
            "embed": self.hidden_size,
            "heads": self.num_attention_heads,
            "kv_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "mlp": self.intermediate_size,
        }

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], *, where: str = "config.json") -> "Qwen3Config":
        """Read the dictionary of a ``config.json``.

        ``rope_theta`` is read from the file, never assumed: it is 1e6 for Qwen3-4B and 5e6 for
        Qwen3-4B-Instruct-2507. Transformers 5 writes it under ``rope_parameters``, which takes
        precedence.

        Args:
            config: The parsed JSON.
            where: Name of the file, for messages.

        Raises:
            UserError: Another architecture, a feature of Qwen3 that is not implemented, or a size
                that is missing or not a number.
        """
        kind = config.get("model_type")
        if kind != "qwen3":
            raise UserError(
                f"{where}: model_type is {kind!r}, but jroute converts dense Qwen3 models only "
                "(model_type 'qwen3'); choose another source"
            )
        rope: Mapping[str, Any] = config.get("rope_parameters") or config.get("rope_scaling") or {}
        rope_type = rope.get("rope_type", rope.get("type", "default"))
        layer_types = config.get("layer_types") or ()
        unsupported = {
            f"rotary scaling of type {rope_type!r}": rope_type != "default",
            "sliding-window attention": bool(config.get("use_sliding_window"))
            or any(t != "full_attention" for t in layer_types),
            "attention_bias": bool(config.get("attention_bias")),
            f"hidden_act {config.get('hidden_act')!r}": config.get("hidden_act", "silu") != "silu",
        }
        for feature, present in unsupported.items():
            if present:
                raise UserError(
                    f"{where}: {feature} is not implemented in jroute; choose another source"
                )
        theta = rope.get("rope_theta", config.get("rope_theta"))
        values = {**config, "rope_theta": theta}
        values.setdefault("tie_word_embeddings", False)
        values.setdefault("head_dim", 128)  # as transformers' Qwen3Config
        missing = [name for name in stored_keys(cls).values() if values.get(name) is None]
        if missing:
            raise UserError(
                f"{where}: missing {', '.join(missing)}; take config.json from the model's release"
            )
        types = get_type_hints(cls)
        try:
            return cls(**{name: types[name](values[key]) for name, key in stored_keys(cls).items()})
        except (TypeError, ValueError) as error:
            raise UserError(
                f"{where}: a size is not a number ({error}); take config.json from the release"
            ) from None

    def to_hf(self) -> dict[str, Any]:
        """Return the ``config.json`` of a Hugging Face checkpoint of this shape."""
        return {
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "hidden_act": "silu",
            "initializer_range": 0.02,
            "rope_scaling": None,
            "sliding_window": None,
            "use_cache": True,
            "use_sliding_window": False,
            **stored(self),
        }
