"""Nested dictionaries and their flat forms, keyed by paths."""

from collections.abc import Mapping
from typing import Any

from flax import traverse_util


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Turn ``{"a": {"b": leaf}}`` into ``{"a/b": leaf}``."""
    return traverse_util.flatten_dict(dict(tree), sep="/")


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Turn ``{"a/b": leaf}`` into ``{"a": {"b": leaf}}``."""
    return traverse_util.unflatten_dict(dict(flat), sep="/")


def nest(leaves: Mapping[tuple[Any, ...], Any]) -> dict[Any, Any]:
    """Turn ``{("a", "b"): leaf}`` into ``{"a": {"b": leaf}}``; keys keep their types."""
    return traverse_util.unflatten_dict(dict(leaves))
