"""Fingerprints: one name for everything that decides a result.

Dataclasses are hashed under their frozen ``stored_keys``, so renaming a field changes nothing.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

from jroute.utils.keys import stored_items


def semantic_fingerprint(description: Mapping[str, Any]) -> str:
    """Name an experiment by everything that changes what its cells mean.

    Args:
        description: Model weights' fingerprint, tokenizer, template, decoding, routing, dtype: any
            nesting of mappings, sequences, dataclasses, strings, booleans, finite numbers and None.
            The order of keys, tuple or list, and 0 or 0.0 make no difference.

    Returns:
        SHA-256 of its canonical JSON, 64 hexadecimal digits.

    Raises:
        TypeError: For a value of any other kind, whose text would not be stable, and for a
            dataclass without ``stored_keys`` (see ``jroute.utils.keys``).
    """
    text = json.dumps(
        canonical(description), sort_keys=True, separators=(",", ":"), allow_nan=False
    )
    return hashlib.sha256(text.encode()).hexdigest()


def canonical(value: Any) -> Any:
    """Reduce a description to JSON values that are equal wherever their meaning is equal.

    Raises:
        TypeError: For a value without a stable text, or a dataclass without ``stored_keys``.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dict(stored_items(value))
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise TypeError("a fingerprint needs string keys")
        return {key: canonical(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [canonical(item) for item in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return int(value) if value.is_integer() else value
    raise TypeError(f"a fingerprint cannot contain {value!r}, a {type(value).__name__}")
