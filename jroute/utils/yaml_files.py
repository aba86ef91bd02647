"""The YAML reader and writer: safe YAML, whose top level is a mapping, without duplicate keys."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from jroute.utils.errors import UserError


def read_yaml(path: str | Path) -> Mapping[Any, Any]:
    """Read a file; an empty one is an empty mapping.

    Raises:
        UserError: The file cannot be read, is not valid YAML, holds a duplicate key, or is not a
            mapping.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such configuration file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a configuration file: {error}") from error
    try:
        tree = yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{path}{line}: not valid YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if tree is None:
        return {}
    if not isinstance(tree, Mapping):
        raise UserError(f"{path}: must be a mapping of keys to values, not {tree!r}")
    return tree


def yaml_text(tree: Mapping[str, Any]) -> str:
    """Return a mapping as YAML, its keys in their order."""
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


class _Loader(yaml.SafeLoader):
    """Load safe YAML, and refuse a mapping with a duplicate key."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"duplicate key {key}", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)
