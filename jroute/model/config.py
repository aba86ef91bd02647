"""The shape of a Qwen3 decoder, read from a Hugging Face ``config.json``."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field, model_validator

from jroute.utils.errors import UserError
from jroute.utils.json_files import Record, check, read_json
from jroute.utils.keys import Keys, keys, stored

TAKE_RELEASED = "take config.json from the model's release"

Width = Annotated[int, Field(ge=1, le=2**20)]
Count = Annotated[int, Field(ge=1, le=2**12)]
TokenId = Annotated[int, Field(ge=0, lt=2**24)]


class Shape(Record):
    """The fields of ``Qwen3Config``, with the values that each may have.

    The upper bounds are far above any released model; they keep a damaged file from asking for
    more than a machine has.
    """

    vocab_size: Annotated[int, Field(ge=1, le=2**24)]
    hidden_size: Width
    intermediate_size: Width
    num_hidden_layers: Count
    num_attention_heads: Count
    num_key_value_heads: Count
    head_dim: Annotated[int, Field(ge=2, le=2**12, multiple_of=2)] = 128  # as in transformers
    rms_norm_eps: Annotated[float, Field(ge=1e-12, le=1)]
    rope_theta: Annotated[float, Field(ge=1, le=1e12)]
    tie_word_embeddings: bool = False
    max_position_embeddings: Annotated[int, Field(ge=1, lt=2**31)]

    @model_validator(mode="after")
    def _heads_share_keys(self) -> "Shape":
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads ({self.num_attention_heads}) must be a multiple of "
                f"num_key_value_heads ({self.num_key_value_heads})"
            )
        return self


class Rope(Record):
    """``rope_parameters`` of transformers 5, or ``rope_scaling``."""

    rope_type: str | None = None
    type: str | None = None
    rope_theta: float | None = None


class Family(Record):
    """What tells whether the other fields are those of a Qwen3."""

    model_type: Any = None


class HFConfig(Record):
    """The fields of ``config.json`` that say what the model computes, beside its ``Shape``."""

    rope_parameters: Rope | None = None
    rope_scaling: Rope | None = None
    use_sliding_window: bool | None = None
    layer_types: list[str] | None = None
    attention_bias: bool | None = None
    hidden_act: str = "silu"


class GenerationConfig(Record):
    """What ``generation_config.json`` and ``config.json`` say about the end of a text."""

    eos_token_id: TokenId | Annotated[list[TokenId], Field(min_length=1)] | None = None


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
        check(stored(self), Shape, "the model's configuration", "give values that a model can have")

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
    def read(cls, file: Path) -> "Qwen3Config":
        """Read a ``config.json``.

        Raises:
            UserError: It cannot be read, or as for ``from_hf``.
        """
        return cls.from_hf(read_json(file, dict[str, Any], TAKE_RELEASED), where=str(file))

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
                that is missing or impossible.
        """
        content = dict(config)
        kind = check(content, Family, where, TAKE_RELEASED).model_type
        if kind != "qwen3":
            raise UserError(
                f"{where}: model_type is {f'{kind!r:.100}'}, but jroute converts dense Qwen3 "
                "models only (model_type 'qwen3'); choose another source"
            )
        parsed = check(content, HFConfig, where, TAKE_RELEASED)
        ropes = (parsed.rope_parameters, parsed.rope_scaling)
        rope = next((rope for rope in ropes if rope and rope.model_fields_set), Rope())
        _refuse_unsupported(parsed, rope, where)
        if rope.rope_theta is not None:
            content["rope_theta"] = rope.rope_theta
        return cls(**check(content, Shape, where, TAKE_RELEASED).model_dump())

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


def _refuse_unsupported(config: HFConfig, rope: Rope, where: str) -> None:
    rope_type = rope.rope_type or rope.type or "default"
    unsupported = {
        f"rotary scaling of type {rope_type!r:.100}": rope_type != "default",
        "sliding-window attention": bool(config.use_sliding_window)
        or any(kind != "full_attention" for kind in config.layer_types or ()),
        "attention_bias": bool(config.attention_bias),
        f"hidden_act {config.hidden_act!r:.100}": config.hidden_act != "silu",
    }
    for feature, present in unsupported.items():
        if present:
            raise UserError(
                f"{where}: {feature} is not implemented in jroute; choose another source"
            )
