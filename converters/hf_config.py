"""Read and write ``config.json``, in which Hugging Face describes a model."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jroute.model.config import Count, DecoderConfig, Llama3Rope, Llama3Scaling, Shape, Width
from jroute.model.families import FAMILIES, Family
from jroute.utils.errors import UserError
from jroute.utils.json_files import Record, check, read_json
from jroute.utils.keys import stored

TAKE_RELEASED = "take config.json from the model's release"


class Kind(Record):
    """What tells which family's the other fields are."""

    model_type: Any = None


class Heads(Record):
    """What other sizes may be derived from."""

    hidden_size: Width
    num_attention_heads: Count


DERIVED: Mapping[str, Callable[[Heads], int]] = {
    "head_dim": lambda heads: heads.hidden_size // heads.num_attention_heads,
    "num_key_value_heads": lambda heads: heads.num_attention_heads,
}


class Rope(Record):
    """``rope_parameters`` of transformers 5, or ``rope_scaling``."""

    rope_type: str | None = None
    type: str | None = None
    rope_theta: float | None = None
    factor: float | None = None
    partial_rotary_factor: float | None = None

    @property
    def kind(self) -> str:
        """Name of the scaling; ``default`` is none."""
        return self.rope_type or self.type or "default"


class Features(Record):
    """The fields that say what the model computes, beside its ``Shape``."""

    rope_theta: Any = None
    rope_parameters: Rope | None = None
    rope_scaling: Rope | None = None
    partial_rotary_factor: float | None = None
    layer_types: list[str] | None = None
    use_sliding_window: bool | None = None
    attention_bias: bool | None = None
    mlp_bias: bool | None = None
    is_causal: bool | None = None
    hidden_act: str = "silu"


def read_config(file: Path) -> DecoderConfig:
    """Read a ``config.json``.

    Raises:
        UserError: It cannot be read, or as for ``config_from_hf``.
    """
    return config_from_hf(read_json(file, dict[str, Any], TAKE_RELEASED), where=str(file))


def config_from_hf(config: Mapping[str, Any], *, where: str = "config.json") -> DecoderConfig:
    """Read the dictionary of a ``config.json``.

    ``rope_theta`` of a Qwen is read from the file, never assumed: it is 1e6 for Qwen3-4B and 5e6
    for Qwen3-4B-Instruct-2507. Transformers 5 writes it under ``rope_parameters``.

    Args:
        config: The parsed JSON.
        where: Name of the file, for messages.

    Raises:
        UserError: Another architecture, a feature of the family that is not implemented, or a size
            that is missing or impossible.
    """
    content = dict(config)
    family = _family(content, where)
    features = check(content, Features, where, TAKE_RELEASED)
    key = _rope_key(content, features, where)
    rope = getattr(features, key) or Rope()
    layers = [name for name, value in (content.get(key) or {}).items() if isinstance(value, dict)]
    if layers:
        raise UserError(
            f"{where}: {key} differs between kinds of layers ({', '.join(layers):.100}), which is "
            "not implemented in jroute; choose another source"
        )
    _refuse_unsupported(features, rope, family, where)
    content = {**family.defaults, **content, "family": family.name, "rope_scaling": None}
    if rope.rope_theta is not None:
        content["rope_theta"] = rope.rope_theta
    for size in DERIVED:
        absent, null = size not in content, content.get(size, 0) is None
        if (size in family.derived and absent) or (size in family.nullable and null):
            content[size] = DERIVED[size](check(content, Heads, where, TAKE_RELEASED))
    shape = check(content, Shape, where, TAKE_RELEASED)
    fields = shape.model_dump(exclude={"rope_scaling"})
    if rope.kind == "llama3":
        original = {"original_max_position_embeddings": shape.max_position_embeddings}
        scaling = check(
            {**original, **config[key]}, Llama3Scaling, f"{where}: {key}", TAKE_RELEASED
        )
        fields["rope_scaling"] = Llama3Rope(**scaling.model_dump())
    return DecoderConfig(**fields)


def config_to_hf(config: DecoderConfig) -> dict[str, Any]:
    """Return the ``config.json`` of a Hugging Face checkpoint of this shape."""
    family = config.architecture
    shape = {k: v for k, v in stored(config).items() if k not in DecoderConfig.later_fields}
    scaling = config.rope_scaling
    return {
        "architectures": [family.transformers_class],
        "model_type": family.name,
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "rope_scaling": None if scaling is None else {"rope_type": "llama3", **stored(scaling)},
        "use_cache": True,
        **dict.fromkeys(family.unsupported, False),
        **shape,
    }


def _family(content: dict[str, Any], where: str) -> Family:
    kind = check(content, Kind, where, TAKE_RELEASED).model_type
    if isinstance(kind, str) and kind in FAMILIES:
        return FAMILIES[kind]
    raise UserError(
        f"{where}: model_type is {f'{kind!r:.100}'}, but jroute converts dense models of the "
        f"families {', '.join(FAMILIES)} only; choose another source"
    )


def _rope_key(content: Mapping[str, Any], features: Features, where: str) -> str:
    """Return which of two keys describes the rotation.

    Of two that say different things transformers has taken now the one, now the other.
    """
    new, old = content.get("rope_parameters"), content.get("rope_scaling")
    if not new or not old:
        return "rope_parameters" if new else "rope_scaling"
    kinds = (rope.kind for rope in (features.rope_parameters, features.rope_scaling) if rope)
    bases = {rope.get("rope_theta", features.rope_theta) for rope in (new, old)}
    more = old.keys() - {"type", "rope_type", "rope_theta"}
    if set(kinds) != {"default"} or len(bases) > 1 or more:
        raise UserError(
            f"{where} has both rope_parameters ({new!r:.60}) and rope_scaling ({old!r:.60}), and "
            "readers differ in which they take; remove the one that is not the release's"
        )
    return "rope_parameters"


def _refuse_unsupported(features: Features, rope: Rope, family: Family, where: str) -> None:
    partial = (features.partial_rotary_factor, rope.partial_rotary_factor)
    layers = [kind for kind in features.layer_types or () if kind != "full_attention"]
    unsupported = {
        f"rotary scaling of type {rope.kind!r:.100}": rope.kind not in ("default", "llama3"),
        f"a rotation scaled by {rope.factor} without a type": (
            rope.kind == "default" and rope.factor not in (None, 1)
        ),
        "partial_rotary_factor": any(part not in (None, 1) for part in partial),
        f"attention of type {', '.join(layers)!r:.100}": bool(layers),
        "attention to later tokens (is_causal)": features.is_causal is False,
        f"hidden_act {features.hidden_act!r:.100}": features.hidden_act not in ("silu", "swish"),
        **{key: bool(getattr(features, key)) for key in family.unsupported},
    }
    for feature, present in unsupported.items():
        if present:
            raise UserError(
                f"{where}: {feature} is not implemented in jroute; choose another source"
            )
