"""Keyword arguments of generation: single fields of ``Decoding`` and ``EngineConfig``."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, TypedDict, Unpack

from jroute.generate.config import EngineConfig
from jroute.generate.decoding import Decoding


class DecodingOptions(TypedDict, total=False):
    """Fields of ``Decoding``; a single stop string counts as a sequence of one."""

    temperature: float
    top_k: int
    top_p: float
    max_new_tokens: int
    stop: str | Sequence[str]
    min_p: float
    min_new_tokens: int


class EngineOptions(TypedDict, total=False):
    """Fields of ``EngineConfig``."""

    slots: int | Literal["auto"]
    chunk: int
    unroll: bool
    prefill_tokens: int
    ahead: int


class GenerationOptions(DecodingOptions, EngineOptions, total=False):
    """Fields of ``Decoding`` and of ``EngineConfig``."""


def with_options(
    decoding: Decoding, engine: EngineConfig, **options: Unpack[GenerationOptions]
) -> tuple[Decoding, EngineConfig]:
    """Return both configurations with the fields replaced that ``options`` name.

    Raises:
        TypeError: An option is a field of neither.
        UserError: A value is out of range.
    """
    unknown = sorted(options.keys() - GenerationOptions.__annotations__.keys())
    if unknown:
        raise TypeError(
            f"generation has no option {', '.join(unknown)}; its options are "
            f"{', '.join(GenerationOptions.__annotations__)}"
        )
    fields: dict[str, Any] = {**options}
    if isinstance(fields.get("stop"), str):
        fields["stop"] = (fields["stop"],)
    elif "stop" in fields:
        fields["stop"] = tuple(fields["stop"])
    engine_fields = {
        name: fields.pop(name) for name in EngineOptions.__annotations__ if name in fields
    }
    return dataclasses.replace(decoding, **fields), dataclasses.replace(engine, **engine_fields)
