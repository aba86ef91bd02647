"""The shape of a decoder."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, Field, model_validator

from jroute.model.families import FAMILIES, Family
from jroute.utils.json_files import Record, check
from jroute.utils.keys import Keys, keys, restored, stored

Width = Annotated[int, Field(ge=1, le=2**20)]
Count = Annotated[int, Field(ge=1, le=2**12)]


def _known(family: str) -> str:
    if family not in FAMILIES:
        raise ValueError(f"must be one of {', '.join(FAMILIES)}")
    return family


class Llama3Scaling(Record):
    """The fields of ``Llama3Rope``, with the values that each may have."""

    factor: Annotated[float, Field(ge=1, le=1e6)]
    low_freq_factor: Annotated[float, Field(gt=0, le=1e6)]
    high_freq_factor: Annotated[float, Field(gt=0, le=1e6)]
    original_max_position_embeddings: Annotated[int, Field(ge=1, lt=2**31)]

    @model_validator(mode="after")
    def _factors_are_ordered(self) -> "Llama3Scaling":
        if self.low_freq_factor >= self.high_freq_factor:
            raise ValueError(
                f"low_freq_factor ({self.low_freq_factor}) must be below "
                f"high_freq_factor ({self.high_freq_factor})"
            )
        return self


class Shape(Record):
    """The fields of ``DecoderConfig``, with the values that each may have.

    The upper bounds are far above any released model; they keep a damaged file from asking for
    more than a machine has.
    """

    vocab_size: Annotated[int, Field(ge=1, le=2**24)]
    hidden_size: Width
    intermediate_size: Width
    num_hidden_layers: Count
    num_attention_heads: Count
    num_key_value_heads: Count
    head_dim: Annotated[int, Field(ge=2, le=2**12, multiple_of=2)]
    rms_norm_eps: Annotated[float, Field(ge=1e-12, le=1)]
    rope_theta: Annotated[float, Field(ge=1, le=1e12)]
    tie_word_embeddings: bool = False
    max_position_embeddings: Annotated[int, Field(ge=1, lt=2**31)]
    family: Annotated[str, AfterValidator(_known)] = "qwen3"
    rope_scaling: Llama3Scaling | None = None

    @model_validator(mode="after")
    def _heads_share_keys(self) -> "Shape":
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads ({self.num_attention_heads}) must be a multiple of "
                f"num_key_value_heads ({self.num_key_value_heads})"
            )
        return self


@dataclass(frozen=True)
class Llama3Rope:
    """How Llama 3.1 stretches the rotation to longer contexts; names are Hugging Face's.

    Attributes:
        factor: How much slower the slow dimensions turn.
        low_freq_factor: Dimensions that turn less often than this within the original context are
            slow.
        high_freq_factor: Dimensions that turn more often than this are left as they are.
        original_max_position_embeddings: Positions of the original context.
    """

    stored_keys: ClassVar[Keys] = keys(
        "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"
    )

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclass(frozen=True)
class DecoderConfig:
    """Family, sizes and constants of one dense decoder; names are Hugging Face's.

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
        "family",
        "rope_scaling",
    )
    later_fields: ClassVar[Mapping[str, Any]] = {"family": "qwen3", "rope_scaling": None}

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
    family: str = "qwen3"
    rope_scaling: Llama3Rope | None = None

    def __post_init__(self) -> None:
        check(stored(self), Shape, "the model's configuration", "give values that a model can have")

    @classmethod
    def restore(cls, content: Mapping[str, Any]) -> "DecoderConfig":
        """Return the configuration that was stored as ``content``.

        Raises:
            UserError: A value is impossible.
            TypeError: A field is missing.
        """
        fields = restored(cls, content)
        if fields.get("rope_scaling") is not None:
            fields["rope_scaling"] = Llama3Rope(**restored(Llama3Rope, fields["rope_scaling"]))
        return cls(**fields)

    @property
    def architecture(self) -> Family:
        """What is particular to the family."""
        return FAMILIES[self.family]

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
