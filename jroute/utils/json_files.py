"""The reader of JSON files: one schema for each file format, one sentence for whatever is wrong.

A format is a ``Record``, checked by pydantic without conversions: ``"8"`` and ``8.5`` are not whole
numbers, ``"false"`` is not a Boolean, NaN and infinity are not numbers. Keys that a record does not
name are ignored, since formats grow.
"""

import os
import re
from functools import cache
from pathlib import Path
from types import GenericAlias
from typing import Annotated, Any, TypeVar

import pydantic
from pydantic_core import ErrorDetails

from jroute.utils.errors import UserError, shown

T = TypeVar("T")

MAX_BYTES = 64 * 2**20
"""Size of the largest JSON file that is read; parsing one takes several times its size."""


class Record(pydantic.BaseModel):
    """A JSON object with known fields. Subclass it to describe a file format."""

    model_config = pydantic.ConfigDict(
        strict=True, frozen=True, extra="ignore", allow_inf_nan=False, protected_namespaces=()
    )


class OpenRecord(Record):
    """A record that keeps the keys it does not name, for formats that are passed on."""

    model_config = pydantic.ConfigDict(extra="allow")


Number = Annotated[float, pydantic.Field(ge=-1e6, le=1e6)]
"""An accuracy, a difference, a gate, a norm: far from where arithmetic overflows."""


def read_json(
    file: Path, kind: type[T] | GenericAlias, remedy: str, *, max_bytes: int = MAX_BYTES
) -> T:
    """Read a JSON file of a known format.

    Args:
        file: The file.
        kind: A ``Record``, or any type that pydantic understands, such as ``dict[str, int]``.
        remedy: What the user should do if the file is missing or damaged, e.g.
            ``"convert again with --overwrite"``.
        max_bytes: Refuse a larger file.

    Raises:
        UserError: The file is missing, cannot be read, is too large, is not JSON, or does not
            follow the schema.
    """
    return parse_json(read_bytes(file, remedy, max_bytes=max_bytes), kind, str(file), remedy)


def parse_json(text: str | bytes, kind: type[T] | GenericAlias, where: str, remedy: str) -> T:
    """Parse JSON of a known format.

    Args:
        text: The JSON.
        kind: As for ``read_json``.
        where: What the JSON is, for messages: a file, perhaps with a line.
        remedy: As for ``read_json``.

    Raises:
        UserError: The text is not JSON or does not follow the schema.
    """
    try:
        return _adapter(kind).validate_json(text)
    except pydantic.ValidationError as error:
        raise UserError(f"{where}{describe(error)}; {remedy}") from None


def check(content: Any, kind: type[T] | GenericAlias, where: str, remedy: str) -> T:
    """Check a value that is already parsed; arguments and errors as for ``parse_json``.

    In strict mode a list is not a tuple here; declare such a field as ``list``.
    """
    try:
        return _adapter(kind).validate_python(content)
    except pydantic.ValidationError as error:
        raise UserError(f"{where}{describe(error)}; {remedy}") from None


def read_bytes(
    file: Path, remedy: str, *, max_bytes: int = MAX_BYTES, pipes: bool = False
) -> bytes:
    """Read a file of at most ``max_bytes``.

    Args:
        file: The file.
        remedy: As for ``read_json``.
        max_bytes: Refuse a larger file.
        pipes: Also read a pipe or a character device (``/dev/stdin``, ``<(...)``), to its end or to
            ``max_bytes``; one that nobody writes to keeps the reader waiting.

    Raises:
        UserError: The file is missing, is not a regular file, cannot be read, or is too
            large.
    """
    try:
        readable = file.is_file() or (pipes and (file.is_fifo() or file.is_char_device()))
        if os.path.lexists(file) and not readable:
            raise UserError(f"{file} is not a regular file; {remedy}")
        if (size := file.stat().st_size) > max_bytes:
            raise UserError(
                f"{file} has {size:,} bytes, and at most {max_bytes:,} are read; {remedy}"
            )
        with file.open("rb") as stream:
            # A pipe has no size. For a number, Python allocates as many bytes before it reads.
            content = stream.read() if file.is_file() else stream.read(max_bytes + 1)
        if len(content) > max_bytes:
            raise UserError(f"{file} has more than {max_bytes:,} bytes; {remedy}")
        return content
    except FileNotFoundError:
        raise UserError(f"{file} is missing; {remedy}") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the path
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{str(file)!r:.300} cannot be read ({reason}); {remedy}") from None


def describe(error: pydantic.ValidationError) -> str:
    """Return the first defect as a clause that follows the name of what was read."""
    details: ErrorDetails = error.errors(include_url=False)[0]
    if details["type"] in ("json_invalid", "json_type"):
        reason = details.get("ctx", {}).get("error", details["msg"])
        return f" is not valid JSON ({reason})"
    place = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in details["loc"])
    place = f"{place.lstrip('.'):.100}"
    if details["type"] == "missing":
        return f" has no {place}"
    message = details["msg"].removeprefix("Value error, ")
    message = re.sub(r"^(Input|String|List|Dictionary) should", "must", message)
    message = re.sub(r" after validation, not \d+$", "", message)
    return f"{f': {place}' if place else ''} {message:.200}, not {shown(details['input'])}"


@cache
def _adapter(kind: Any) -> Any:
    return pydantic.TypeAdapter(kind)
