"""Keyword arguments of generation: single fields of ``Decoding`` and ``EngineConfig``."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, TypedDict, Unpack

from jroute.generate.config import EngineConfig
from jroute.generate.decoding import Decoding
from jroute.utils.errors import UserError, UserTypeError


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
        UserError: An option is a field of neither (also a ``TypeError``), a value is out of range,
            or ``decoding`` or ``engine`` is no such configuration.
    """
    for name, value, kind in (("decoding", decoding, Decoding), ("engine", engine, EngineConfig)):
        if not isinstance(value, kind):
            raise UserError(f"{name} is {value!r:.60}; give a {kind.__name__}")
    unknown = sorted(options.keys() - GenerationOptions.__annotations__.keys())
    if unknown:
        raise UserTypeError(
            f"generation has no option {', '.join(unknown)}; its options are "
            f"{', '.join(GenerationOptions.__annotations__)}"
        )
    fields: dict[str, Any] = {**options}
    if isinstance(fields.get("stop"), str):
        fields["stop"] = (fields["stop"],)
    elif isinstance(fields.get("stop"), (list, tuple)):
        fields["stop"] = tuple(fields["stop"])
    engine_fields = {
        name: fields.pop(name) for name in EngineOptions.__annotations__ if name in fields
    }
    return dataclasses.replace(decoding, **fields), dataclasses.replace(engine, **engine_fields)
