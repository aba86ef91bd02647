"""The dotted keys of a tree of configuration dataclasses, and their types in words."""

import dataclasses
import difflib
import types
import typing
from typing import Any, Literal

from jroute.utils.keys import old_keys, yaml_keys


@dataclasses.dataclass(frozen=True)
class Schema:
    """The dotted keys that a tree of dataclasses has in YAML and on the command line.

    Attributes:
        fields: Type of every field that is not a section, by key.
        sections: Keys of the nested dataclasses.
        required: Keys of the fields without a default.
        paths: Dotted names of the dataclass fields behind all keys.
        old: Earlier keys, each with the present key in its place; sections by their present keys.
    """

    fields: dict[str, Any] = dataclasses.field(default_factory=dict)
    sections: set[str] = dataclasses.field(default_factory=set)
    required: set[str] = dataclasses.field(default_factory=set)
    paths: dict[str, str] = dataclasses.field(default_factory=dict)
    old: dict[str, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, *classes: type[Any]) -> "Schema":
        """Collect the keys of several classes, which may not share any.

        Raises:
            TypeError: Two fields have the same key.
        """
        schema = cls()
        for node in classes:
            schema._add(node, "", "", optional=False)
        return schema

    def _add(self, node: type[Any], prefix: str, path: str, *, optional: bool) -> None:
        hints = typing.get_type_hints(node)
        present = yaml_keys(node)
        self.old.update({prefix + old: prefix + key for old, key in old_keys(node).items()})
        for field in dataclasses.fields(node):
            key, field_path = prefix + present[field.name], path + field.name
            if key in self.paths:
                raise TypeError(f"two fields have the key {key}")
            self.paths[key] = field_path
            has_default = optional or not (
                field.default is dataclasses.MISSING
                and field.default_factory is dataclasses.MISSING
            )
            if dataclasses.is_dataclass(hints[field.name]):
                self.sections.add(key)
                self._add(hints[field.name], f"{key}.", f"{field_path}.", optional=has_default)
            else:
                self.fields[key] = hints[field.name]
                if not has_default:
                    self.required.add(key)

    def present(self, key: str) -> str:
        """Return a key with every earlier name in it replaced by the present one."""
        present = ""
        for part in key.split("."):
            step = f"{present}.{part}" if present else part
            present = self.old.get(step, step)
        return present

    def nearest(self, key: str) -> str:
        """Return the known key most like ``key``, as a whole or in its last part alone."""

        def likeness(known: str) -> tuple[float, float]:
            ends = key.rpartition(".")[2], known.rpartition(".")[2]
            whole = difflib.SequenceMatcher(None, key, known).ratio()
            return max(whole, difflib.SequenceMatcher(None, *ends).ratio()), whole

        return max([*self.fields, *sorted(self.sections)], key=likeness)


def accepts_none(hint: Any) -> bool:
    """Return whether ``None`` is a value of a type."""
    return hint is Any or hint is type(None) or type(None) in typing.get_args(hint)


def describe_type(hint: Any, *, plural: bool = False) -> str:
    """Return a type in words: ``tuple[float, ...]`` is "a list of numbers"."""
    names = {
        bool: ("true or false", "true or false"),
        int: ("a whole number", "whole numbers"),
        float: ("a number", "numbers"),
        str: ("a text", "texts"),
        type(None): ("null", "null"),
    }
    arguments = typing.get_args(hint)
    origin = typing.get_origin(hint)
    if hint in names:
        return names[hint][plural]
    if origin is Literal:
        return ("any of " if plural else "one of ") + ", ".join(map(str, arguments))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe_type(argument, plural=plural) for argument in arguments)
    if origin is tuple and arguments[-1:] == (...,):
        return ("lists of " if plural else "a list of ") + describe_type(arguments[0], plural=True)
    return f"of type {hint}"
