"""Frozen names under which dataclasses are stored: in fingerprints, in files, and in YAML.

A class that is hashed or written declares the key of every field::

    @dataclass(frozen=True)
    class Decoding:
        stored_keys: ClassVar[Keys] = keys("temperature", "top_k", max_tokens="max_new_tokens")

So a field can be renamed while fingerprints, files and configurations stay as they are: the renamed
field keeps its old key. A field that was added later is not stored at the value that stands for how
things were before; ``later_fields`` names it with that value.

Two further declarations serve YAML and the command line alone: ``yaml_keys`` gives the fields of a
class other names there than in fingerprints, and ``old_keys`` maps names that were valid once to
those that replaced them, so that old files still read.
"""

import dataclasses
from collections.abc import Mapping
from functools import cache
from types import MappingProxyType
from typing import Any

Keys = Mapping[str, str]
"""A key for each field."""


def keys(*unchanged: str, **renamed: str) -> Keys:
    """Declare under which keys the fields of a class are stored.

    Args:
        *unchanged: Fields that are stored under their own names.
        **renamed: The stored key of every other field.
    """
    return MappingProxyType({**{name: name for name in unchanged}, **renamed})


@cache
def stored_keys(cls: type[Any]) -> Keys:
    """Return the stored key of every field of a dataclass or named tuple, in the fields' order.

    Raises:
        TypeError: The class does not declare exactly one distinct key for each of its fields.
    """
    return _declared(cls, "stored_keys", getattr(cls, "stored_keys", {}))


@cache
def yaml_keys(cls: type[Any]) -> Keys:
    """Return the YAML key of every field of a dataclass, in the fields' order.

    They are its ``yaml_keys``, or else its ``stored_keys``; a class that is never stored, such as
    the options of one command, has its fields' names.

    Raises:
        TypeError: The class declares keys, but not exactly one distinct key for each field.
    """
    for name in ("yaml_keys", "stored_keys"):
        if hasattr(cls, name):
            return _declared(cls, name, getattr(cls, name))
    return {name: name for name in _fields(cls)}


def old_keys(cls: type[Any]) -> Keys:
    """Return the earlier YAML keys of a dataclass with the present key of each.

    Raises:
        TypeError: An old key leads to no field, or is a present key.
    """
    declared: Keys = getattr(cls, "old_keys", {})
    present = set(yaml_keys(cls).values())
    if not set(declared.values()) <= present or present & set(declared):
        raise TypeError(f"{cls.__name__}.old_keys must map keys no longer in use to present ones")
    return declared


def stored(value: Any) -> dict[str, Any]:
    """Return a dataclass or named tuple as a dictionary with its stored keys.

    Dataclasses inside it, also in lists, tuples and dictionaries, are converted too; everything
    else stays as it is. This replaces ``dataclasses.asdict`` wherever the result is hashed or
    written.

    Raises:
        TypeError: A class does not declare its stored keys.
    """
    return {key: _stored(item) for key, item in stored_items(value)}


def stored_items(value: Any) -> list[tuple[str, Any]]:
    """Return the stored keys and the values of a dataclass or named tuple, in the fields' order."""
    later: Mapping[str, Any] = getattr(value, "later_fields", {})
    items = [(f, key, getattr(value, f)) for f, key in stored_keys(type(value)).items()]
    return [(key, item) for f, key, item in items if f not in later or item != later[f]]


def restored(cls: type[Any], content: Mapping[str, Any]) -> dict[str, Any]:
    """Return stored values by field name, ready for the constructor of ``cls``; not recursive."""
    return {field: content[key] for field, key in stored_keys(cls).items() if key in content}


def _stored(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _stored(item) for key, item in value.items()}
    if type(value) in (tuple, list):
        return type(value)(_stored(item) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return stored(value)
    return value


def _declared(cls: type[Any], name: str, declared: Keys) -> Keys:
    fields = _fields(cls)
    if set(declared) != set(fields) or len(set(declared.values())) != len(fields):
        different = sorted(set(declared) ^ set(fields))
        raise TypeError(
            f"{cls.__name__}.{name} must declare one distinct key for each field "
            f"(different: {', '.join(different) or 'duplicate key'})"
        )
    return {field: declared[field] for field in fields}


def _fields(cls: type[Any]) -> tuple[str, ...]:
    if dataclasses.is_dataclass(cls):
        return tuple(field.name for field in dataclasses.fields(cls))
    return tuple(getattr(cls, "_fields", ()))
