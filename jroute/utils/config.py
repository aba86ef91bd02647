"""Frozen dataclasses read from YAML and from the command line: how every setting comes in.

YAML keys are field names, ``--section.field value`` on the command line overrides any of them, and
a key that does not exist is an error that names the nearest one that does.

jsonargparse does the typing and the help. It was chosen because it alone takes plain frozen
dataclasses, a YAML tree and dotted options through one set of type rules and lists every field
with its docstring; tyro has no configuration files, OmegaConf neither ``Literal`` nor frozen
tuples, and pydantic or msgspec no command line. Its messages are replaced here by shorter ones.
"""

import argparse
import dataclasses
import difflib
import re
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, overload

import jsonargparse
import yaml

from jroute.utils.errors import UserError

T = TypeVar("T")
E = TypeVar("E")

_COMMAND_LINE = "the command line"


@overload
def parse(
    cls: type[T],
    argv: Sequence[str] | None = None,
    *,
    prog: str,
    description: str = "",
    extra: None = None,
    files: bool = True,
) -> T: ...
@overload
def parse(
    cls: type[T],
    argv: Sequence[str] | None = None,
    *,
    prog: str,
    description: str = "",
    extra: type[E],
    files: bool = True,
) -> tuple[T, E]: ...
def parse(
    cls: type[Any],
    argv: Sequence[str] | None = None,
    *,
    prog: str,
    description: str = "",
    extra: type[Any] | None = None,
    files: bool = True,
) -> Any:
    """Build a configuration from a command line.

    ``--config FILE`` may be given several times; later files win over earlier ones, and options
    win over files wherever they stand. ``--help`` prints every field and exits; after a
    ``--config`` it shows that file's values as the defaults.

    Args:
        cls: A frozen dataclass; nested dataclasses are sections.
        argv: The arguments, without the program's name; ``None`` takes the process's own.
        prog: The command as a user types it, for the help.
        description: What the command does, for the help.
        extra: A second dataclass with options of the command itself, which do not belong to the
            experiment and may not stand in its files.
        files: Whether ``--config`` is an option at all.

    Returns:
        The instance of ``cls``, or that and the instance of ``extra``.

    Raises:
        UserError: An unknown key, a wrong type, a missing file or field.
    """
    classes = [cls] if extra is None else [cls, extra]
    schema = _Schema.of(*classes)
    argv = sys.argv[1:] if argv is None else argv
    given, paths, wants_help = _read_options(argv, schema, files)
    values = _Values()
    for path in paths:
        values.read(path, _Schema.of(cls))
    for key, text in given:
        values.set(key, text, _COMMAND_LINE)
    if wants_help:
        _print_help(classes, values, prog=prog, description=description, files=files)
    built = _build(classes, schema, values)
    return built[0] if extra is None else tuple(built)


def load(cls: type[T], path: str | Path, overrides: Sequence[str] = ()) -> T:
    """Read a configuration file.

    Args:
        cls: A frozen dataclass; nested dataclasses are sections.
        path: The YAML file.
        overrides: Options as on the command line, e.g. ``["--ppo.learning_rate", "3e-4"]``.

    Raises:
        UserError: An unknown key, a wrong type, a missing file or field.
    """
    return parse(cls, ["--config", str(path), *overrides], prog="load")


def dump(config: Any) -> str:
    """Write a configuration as YAML that ``load`` turns back into an equal instance."""
    return yaml.safe_dump(_plain(config), sort_keys=False, allow_unicode=True)


@dataclasses.dataclass(frozen=True)
class _Schema:
    """The dotted names a tree of dataclasses has.

    Attributes:
        fields: Type of every field that is not a section.
        sections: Names of the nested dataclasses.
        required: Fields without a default.
    """

    fields: dict[str, Any]
    sections: frozenset[str]
    required: frozenset[str]

    @classmethod
    def of(cls, *classes: type[Any]) -> "_Schema":
        fields: dict[str, Any] = {}
        sections: set[str] = set()
        required: set[str] = set()

        def walk(node: type[Any], prefix: str, defaulted: bool) -> None:
            hints = typing.get_type_hints(node)
            for field in dataclasses.fields(node):
                key = prefix + field.name
                has_default = defaulted or not (
                    field.default is dataclasses.MISSING
                    and field.default_factory is dataclasses.MISSING
                )
                if key in fields or key in sections:
                    raise TypeError(f"two fields are named {key}")
                if dataclasses.is_dataclass(hints[field.name]):
                    sections.add(key)
                    walk(hints[field.name], f"{key}.", has_default)
                else:
                    fields[key] = hints[field.name]
                    if not has_default:
                        required.add(key)

        for node in classes:
            walk(node, "", False)
        return cls(fields, frozenset(sections), frozenset(required))

    def nearest(self, key: str) -> str:
        """Find the known name most like ``key``, as a whole or in its last part alone."""

        def likeness(known: str) -> tuple[float, float]:
            ends = key.rpartition(".")[2], known.rpartition(".")[2]
            whole = difflib.SequenceMatcher(None, key, known).ratio()
            return max(whole, difflib.SequenceMatcher(None, *ends).ratio()), whole

        return max([*self.fields, *sorted(self.sections)], key=likeness)


@dataclasses.dataclass
class _Values:
    """What was given so far, by dotted name, and where: a file's path or the command line."""

    values: dict[str, Any] = dataclasses.field(default_factory=dict)
    origins: dict[str, str] = dataclasses.field(default_factory=dict)

    def set(self, key: str, value: Any, origin: str) -> None:
        self.values[key] = value
        self.origins[key] = origin

    def read(self, path: str, schema: _Schema) -> None:
        self._add(_read_yaml(path), "", path, schema)

    def _add(self, tree: Mapping[Any, Any], prefix: str, path: str, schema: _Schema) -> None:
        for name, value in tree.items():
            key = f"{prefix}{name}"
            if key in schema.fields:
                self.set(key, value, path)
            elif key not in schema.sections:
                raise UserError(
                    f"{path}: unknown key {key}; the nearest known key is {schema.nearest(key)}"
                )
            elif isinstance(value, Mapping):
                self._add(value, f"{key}.", path, schema)
            elif value is not None:
                raise UserError(f"{path}: {key} is a section of keys, not the value {value!r}")


class _YamlLoader(yaml.SafeLoader):
    """Safe YAML in which a key that stands twice is an error, not a silent choice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key} stands twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def _read_yaml(path: str) -> Mapping[Any, Any]:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such configuration file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a configuration file: {error}") from error
    try:
        tree = yaml.load(text, Loader=_YamlLoader)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{path}{line}: not valid YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {_one_line(error)}") from error
    if tree is None:
        return {}
    if not isinstance(tree, Mapping):
        raise UserError(f"{path}: must be a mapping of keys to values, not {tree!r}")
    return tree


def _read_options(
    argv: Sequence[str], schema: _Schema, files: bool
) -> tuple[list[tuple[str, str]], list[str], bool]:
    """Split a command line into (key, text) pairs, configuration files, and a wish for help.

    Every option takes exactly one value, so the next argument is it, whatever it starts with; only
    one that is true or false may stand alone, which is true.
    """
    given: list[tuple[str, str]] = []
    paths: list[str] = []
    wants_help = False
    rest = list(argv)
    while rest:
        name, equals, text = rest.pop(0).partition("=")
        if name in ("-h", "--help"):
            wants_help = True
            continue
        if not name.startswith("--"):
            raise UserError(f"unexpected argument {name!r}; options look like --section.field 1")
        key = name.removeprefix("--")
        if key in schema.sections:
            inside = [f"--{field}" for field in schema.fields if field.startswith(f"{key}.")]
            raise UserError(f"{name} is a section; set a field of it: {', '.join(inside)}")
        if key not in schema.fields and not (files and key == "config"):
            raise UserError(
                f"unknown option {name}; the nearest known option is --{schema.nearest(key)}"
            )
        if not equals and schema.fields.get(key) is bool and not (rest and rest[0][:2] != "--"):
            text = "true"
        elif not equals:
            if not rest:
                raise UserError(f"{name} needs a value")
            text = rest.pop(0)
        if key == "config" and files:
            paths.append(text)
        else:
            given.append((key, text))
    return given, paths, wants_help


class _Formatter(jsonargparse.DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of a description: there are commands in it."""


def _parser(classes: Sequence[type[Any]], **options: Any) -> jsonargparse.ArgumentParser:
    # Abbreviations are off: a shortened option would hide a mistyped one.
    parser = jsonargparse.ArgumentParser(
        exit_on_error=False, allow_abbrev=False, formatter_class=_Formatter, **options
    )
    for cls in classes:
        parser.add_class_arguments(cls, as_group=True)
    return parser


def _build(classes: Sequence[type[Any]], schema: _Schema, values: _Values) -> list[Any]:
    missing = [key for key in schema.fields if key in schema.required - values.values.keys()]
    if missing:
        raise UserError(
            f"{missing[0]} has no value: give --{missing[0]} or set it in a configuration file"
        )
    for key, value in values.values.items():
        # jsonargparse reads an explicit null as "not given".
        if value is None and not _optional(schema.fields[key]):
            _raise_wrong_type(key, schema, values)
    parser = _parser(classes)
    try:
        tree = parser.instantiate(parser.parse_object(_nest(values.values)))
        return [cls(**{f.name: tree[f.name] for f in dataclasses.fields(cls)}) for cls in classes]
    except argparse.ArgumentError as error:
        found = re.search(r'Parser key "([^"]+)"', str(error))
        if found and found[1] in values.values:
            _raise_wrong_type(found[1], schema, values)
        raise UserError(f"the configuration is not valid: {_one_line(error)}") from error
    except UserError as error:
        # A section refused its own values: it knows what is wrong, but not where that was read.
        origins = ", ".join(dict.fromkeys(values.origins.values()))
        raise UserError(f"{error} (read from {origins})" if origins else str(error)) from error


def _raise_wrong_type(key: str, schema: _Schema, values: _Values) -> NoReturn:
    origin, value = values.origins[key], values.values[key]
    name = f"--{key}" if origin == _COMMAND_LINE else f"{origin}: {key}"
    shown = "null" if value is None else repr(value)
    raise UserError(f"{name} must be {_describe(schema.fields[key])}, not {shown}")


def _optional(hint: Any) -> bool:
    return hint is Any or hint is type(None) or type(None) in typing.get_args(hint)


def _describe(hint: Any, plural: bool = False) -> str:
    """Says a type in words: ``tuple[float, ...]`` is "a list of numbers"."""
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
        return " or ".join(_describe(argument, plural) for argument in arguments)
    if origin is tuple and arguments[-1:] == (...,):
        return ("lists of " if plural else "a list of ") + _describe(arguments[0], plural=True)
    return f"of type {hint}"


def _print_help(
    classes: Sequence[type[Any]], values: _Values, *, prog: str, description: str, files: bool
) -> NoReturn:
    usage = f"{prog}{' [--config FILE]' if files else ''} [--field VALUE | --section.field VALUE]"
    parser = _parser(classes, prog=prog, usage=f"{usage} ...", description=description or None)
    if files:
        parser.add_argument("--config", metavar="FILE", help="YAML file with any of these fields.")
    parser.set_defaults(values.values)
    sections = _Schema.of(*classes).sections
    for action in parser._actions:
        # jsonargparse would let a whole section come from a file of its own; this module does not.
        if action.dest in sections or action.dest == "print_config":
            action.help = argparse.SUPPRESS
    parser.print_help()
    sys.exit(0)


def _nest(values: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in values.items():
        *sections, name = key.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[name] = value
    return tree


def _plain(value: Any) -> Any:
    """Reduces a configuration to what YAML has words for."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
