"""The YAML reader and writer: plain values, whose top level is a mapping, without duplicate keys.

Values are those of JSON: texts, numbers, Booleans, null, lists and mappings with texts as keys. No
other tag is read, so ``2026-01-31`` is a text. Aliases and merge keys work, but what a file may
grow to is bounded, as are its size and its depth.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from jroute.utils.errors import UserError, shown
from jroute.utils.json_files import read_bytes

MAX_BYTES = 2**18
"""Size of the largest file that is read."""

MAX_VALUES = 5_000
"""Keys and values of a file; PyYAML needs a quarter of a second for so many."""

MAX_CHARACTERS = 2**20
"""Length of all values of a file when every alias is written out."""

MAX_DEPTH = 50
"""Deepest nesting, counted with every alias written out."""

MAX_NUMBER = 100
"""Characters of the longest number."""

_TAG = "tag:yaml.org,2002:"
_AMBIGUOUS = re.compile(r"[-+]?(?:0[0-9_]+|[0-9_]+(?::[0-9_.]+)+)")


def read_yaml(path: str | Path) -> Mapping[str, Any]:
    """Read a file or a pipe; an empty one is an empty mapping.

    Raises:
        UserError: The file cannot be read, is not valid YAML, holds a duplicate key, or is not a
            mapping.
    """
    path = Path(path)
    remedy = "give an existing configuration file"
    content = read_bytes(path, remedy, max_bytes=MAX_BYTES, pipes=True)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 text (byte {error.start} is {content[error.start]:#04x}); "
            "save it as UTF-8"
        ) from None
    try:
        tree = yaml.load(text, Loader=PlainLoader)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{path}{line}: not valid YAML: {error.problem}"[:400]) from None
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: not valid YAML: {reason}"[:400]) from None
    if tree is None:
        return {}
    if not isinstance(tree, Mapping):
        raise UserError(f"{path}: must be a mapping of keys to values, not {shown(tree)}")
    return tree


def yaml_text(tree: Mapping[str, Any]) -> str:
    """Return a mapping as YAML, its keys in their order."""
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


class PlainLoader(yaml.SafeLoader):
    """Load plain values within bounds, and refuse a mapping with a duplicate key."""

    def __init__(self, text: str):
        super().__init__(text)
        self._depth = 0
        self._extents: dict[int, tuple[int, int]] = {}  # node -> characters, height

    def get_single_data(self) -> Any:
        """Return the value of the only document; whatever is wrong is a ``yaml.YAMLError``."""
        try:
            return super().get_single_data()
        except (ValueError, OverflowError) as error:  # of escapes and versions
            reason = f"a number or an escape is out of range ({error})"
            raise yaml.YAMLError(reason[:150]) from error

    def fetch_flow_collection_start(self, TokenClass: Any) -> None:
        """Open a bracket; the scanner's time is quadratic in how many are open."""
        _require(self.flow_level < MAX_DEPTH, f"more than {MAX_DEPTH} levels deep", self.get_mark())
        super().fetch_flow_collection_start(TokenClass)

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Compose a node, and refuse one that is too large or too deep."""
        is_alias, mark = self.check_event(yaml.AliasEvent), self.peek_event().start_mark
        self._depth += 1
        _require(self._depth <= MAX_DEPTH, f"more than {MAX_DEPTH} levels deep", mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        _require(len(self._extents) < MAX_VALUES, f"more than {MAX_VALUES:,} values", mark)
        if isinstance(node, yaml.MappingNode) and not is_alias:
            _check_keys(node)
        if not is_alias:
            self._extents[id(node)] = characters, height = self._extent(node)
            _require(height <= MAX_DEPTH, f"aliases nest more than {MAX_DEPTH} levels deep", mark)
            _require(characters <= MAX_CHARACTERS, "aliases make it too large", mark)
        _require(id(node) in self._extents, "an alias stands inside its own anchor", mark)
        return node

    def _extent(self, node: Any) -> tuple[int, int]:
        """Return the characters and the height of a node whose children are composed."""
        if isinstance(node, yaml.ScalarNode):
            return len(node.value) + 1, 1
        pairs = isinstance(node, yaml.MappingNode)
        children = [n for pair in node.value for n in pair] if pairs else node.value
        extents = [self._extents[id(child)] for child in children]
        return 1 + sum(c for c, _ in extents), 1 + max((h for _, h in extents), default=0)

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        """Construct a value; whatever is wrong with its content is a ``ConstructorError``."""
        kind = node.tag.removeprefix(_TAG)
        _require(node.tag in self.yaml_constructors, f"the tag {shown(kind)} is not read", node)
        if kind in ("int", "float") and isinstance(node, yaml.ScalarNode):
            length = len(node.value)
            _require(length <= MAX_NUMBER, f"a number of {length} characters", node)
            # 1:30 is 90 and 010 is 8 in YAML 1.1, but neither in YAML 1.2.
            plain = not _AMBIGUOUS.fullmatch(node.value)
            _require(plain, f"{node.value:.60} is a number in two ways; write digits alone", node)
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError) as error:
            value = shown(node.value if isinstance(node, yaml.ScalarNode) else "it")
            raise _problem(f"{value} is not of the kind {kind}", node) from error


PlainLoader.yaml_constructors = {
    _TAG + kind: yaml.SafeLoader.yaml_constructors[_TAG + kind]
    for kind in ("null", "bool", "int", "float", "str", "seq", "map")
}
PlainLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in rules if not tag.endswith((":timestamp", ":value"))]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _check_keys(node: yaml.MappingNode) -> None:
    """Refuse keys that are not distinct texts."""
    seen: set[str] = set()
    for key_node, _ in node.value:
        key: str = key_node.value if isinstance(key_node, yaml.ScalarNode) else "here"
        is_text = key_node.tag in (_TAG + "str", _TAG + "merge")
        _require(is_text, f"the key {shown(key)} is not a text; quote it", key_node)
        _require(key not in seen, f"duplicate key {key:.60}", key_node)
        seen.add(key)


def _require(holds: bool, problem: str, place: Any) -> None:
    if not holds:
        raise _problem(problem, place)


def _problem(problem: str, place: Any) -> yaml.MarkedYAMLError:
    mark = getattr(place, "start_mark", place)
    return yaml.constructor.ConstructorError(None, None, problem, mark)
