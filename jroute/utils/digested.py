"""JSON files with a digest of their content, so that damage is seen that leaves them readable.

The digest is written as ``sha256:...``, which no other field is: a digest whose own name is damaged
does not make the file one of the versions that wrote none.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from jroute.utils.errors import UserError
from jroute.utils.files import write_json
from jroute.utils.fingerprint import semantic_fingerprint
from jroute.utils.json_files import Record, parse_json, read_bytes

R = TypeVar("R", bound=Record)

KEY = "digest"
PREFIX = "sha256:"


def write_digested(file: Path, content: Mapping[str, Any], *, indent: int | None = 2) -> None:
    """Write a JSON object and the digest of its fields atomically.

    Raises:
        UserError: A number is not finite, or the system refuses to write.
    """
    try:
        plain = json.loads(json.dumps(content, allow_nan=False))  # as it will be read again
    except ValueError:
        raise UserError(
            f"{file} is not written, since {_not_finite(content)} is not a finite number; "
            "check the files that it is computed from, and the dtype of the model"
        ) from None
    write_json(file, {**plain, KEY: _digest(plain)}, indent=indent)


def read_digested(file: Path, kind: type[R], remedy: str) -> R:
    """Read a file of ``write_digested``, or of an earlier version that wrote no digest.

    Args:
        file: The file.
        kind: Its schema, without the digest.
        remedy: What the user should do if it is missing or damaged.

    Raises:
        UserError: The file is missing or damaged, or does not follow the schema.
    """
    content = parse_json(read_bytes(file, remedy), dict[str, Any], str(file), remedy)
    has_digest = KEY in content or any(
        isinstance(value, str) and value.startswith(PREFIX) for value in content.values()
    )
    if has_digest and content.pop(KEY, None) != _digest(content):
        raise UserError(f"{file} is damaged (it does not match its digest); {remedy}")
    return parse_json(json.dumps(content), kind, str(file), remedy)


def _digest(content: Mapping[str, Any]) -> str:
    """Return the digest of JSON values; empty if they hold what is never written."""
    try:
        return PREFIX + semantic_fingerprint(content)
    except (TypeError, ValueError):
        return ""


def _not_finite(content: Any, place: str = "") -> str:
    """Return the place of the first number that is not finite."""
    if isinstance(content, Mapping):
        content = {f"{place}.{key}".lstrip("."): value for key, value in content.items()}
    elif isinstance(content, list | tuple):
        content = {f"{place}[{i}]": value for i, value in enumerate(content)}
    else:
        return place if isinstance(content, float) and not math.isfinite(content) else ""
    return next(filter(None, (_not_finite(value, key) for key, value in content.items())), "")
