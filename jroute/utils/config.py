"""Configurations are frozen dataclasses, read from YAML files and the command line.

Every field has a YAML key (see ``jroute.utils.keys``), ``--section.key value`` on the command line
overrides it, and an unknown key is an error that names the nearest known one. Keys of earlier
versions still read.

jsonargparse checks types and prints the help. It was chosen because it alone applies one set of
type rules to plain frozen dataclasses, a YAML tree and dotted options, and lists every field with
its docstring; tyro has no configuration files, OmegaConf neither ``Literal`` nor frozen tuples, and
pydantic and msgspec no command line. Shorter messages replace its own.
"""

import dataclasses
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, overload

from jroute.utils.config_parser import WrongType, instantiate, print_help
from jroute.utils.config_schema import Schema, accepts_none, describe_type
from jroute.utils.errors import UserError, shown
from jroute.utils.keys import yaml_keys
from jroute.utils.yaml_files import read_yaml, yaml_text

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
    win over files in any position. ``--help`` prints every field and exits; after a
    ``--config`` it shows that file's values as the defaults.

    Args:
        cls: A frozen dataclass; nested dataclasses are sections.
        argv: The arguments, without the program's name; ``None`` takes the process's own.
        prog: The command as a user types it, for the help.
        description: What the command does, for the help.
        extra: A second dataclass with options of the command itself, which do not belong to the
            experiment and must not appear in its files.
        files: Whether ``--config`` is an option at all.

    Returns:
        The instance of ``cls``, or that and the instance of ``extra``.

    Raises:
        UserError: An unknown key, a wrong type, a missing file or field.
    """
    classes = [cls] if extra is None else [cls, extra]
    schema = Schema.of(*classes)
    argv = sys.argv[1:] if argv is None else argv
    given, paths, wants_help = _read_options(argv, schema, files)
    values = _Values()
    for path in paths:
        values.read_file(path, Schema.of(cls))
    for key, text in given:
        values.set(key, text, _COMMAND_LINE)
    if wants_help:
        print_help(classes, schema, values.values, prog=prog, description=description, files=files)
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
    return yaml_text(_plain(config))


@dataclasses.dataclass
class _Values:
    """The values given so far.

    Attributes:
        values: By dotted key.
        origins: Where each was read: the path of a file, or the command line.
    """

    values: dict[str, Any] = dataclasses.field(default_factory=dict)
    origins: dict[str, str] = dataclasses.field(default_factory=dict)

    def set(self, key: str, value: Any, origin: str) -> None:
        self.values[key] = value
        self.origins[key] = origin

    def read_file(self, path: str, schema: Schema) -> None:
        content = dict(_walk(read_yaml(path), "", path, schema))
        for key, value in content.items():
            self.set(key, value, path)


def _walk(
    tree: Mapping[Any, Any], prefix: str, path: str, schema: Schema
) -> Iterator[tuple[str, Any]]:
    """Yield the present dotted key and the value of every field in a YAML tree."""
    written: dict[str, str] = {}
    for name, value in tree.items():
        as_written = f"{prefix}{name}"
        key = schema.present(as_written)
        if key in written:
            raise UserError(
                f"{path}: {written[key]} and {as_written} are two names of one key; remove one"
            )
        written[key] = as_written
        if key in schema.fields:
            yield key, value
        elif key not in schema.sections:
            raise UserError(
                f"{path}: unknown key {key:.80}; the nearest known key is {schema.nearest(key)}"
            )
        elif isinstance(value, Mapping):
            yield from _walk(value, f"{key}.", path, schema)
        elif value is not None:
            raise UserError(f"{path}: {key} is a section of keys, not the value {shown(value)}")


def _read_options(
    argv: Sequence[str], schema: Schema, files: bool
) -> tuple[list[tuple[str, str]], list[str], bool]:
    """Split a command line into (key, text) pairs and files; also return whether to print help.

    Every option takes exactly one value, the next argument, whatever that starts with; only a
    Boolean option may stand alone, which means true.
    """
    given: list[tuple[str, str]] = []
    paths: list[str] = []
    wants_help = False
    remaining = list(argv)
    while remaining:
        name, equals, text = remaining.pop(0).partition("=")
        if name in ("-h", "--help"):
            wants_help = True
            continue
        if not name.startswith("--"):
            raise UserError(
                f"unexpected argument {shown(name)}; options look like --section.field 1"
            )
        key = schema.present(name.removeprefix("--"))
        if key in schema.sections:
            inside = [f"--{field}" for field in schema.fields if field.startswith(f"{key}.")]
            raise UserError(f"{name} is a section; set a field of it: {', '.join(inside)}")
        if key not in schema.fields and not (files and key == "config"):
            raise UserError(
                f"unknown option {name:.80}; the nearest known option is --{schema.nearest(key)}"
            )
        if not equals:
            stands_alone = not remaining or remaining[0].startswith("--")
            if schema.fields.get(key) is bool and stands_alone:
                text = "true"
            elif not remaining:
                raise UserError(f"{name} needs a value")
            else:
                text = remaining.pop(0)
        if key == "config" and files:
            paths.append(text)
        else:
            given.append((key, text))
    return given, paths, wants_help


def _build(classes: Sequence[type[Any]], schema: Schema, values: _Values) -> list[Any]:
    missing = [key for key in schema.fields if key in schema.required - values.values.keys()]
    if missing:
        raise UserError(
            f"{missing[0]} has no value: give --{missing[0]} or set it in a configuration file"
        )
    for key, value in values.values.items():
        # jsonargparse reads an explicit null as "not given".
        if value is None and not accepts_none(schema.fields[key]):
            raise _wrong_type(key, schema, values)
    try:
        return instantiate(classes, schema, values.values)
    except WrongType as error:
        if error.key is not None and error.key in values.values:
            raise _wrong_type(error.key, schema, values, error.expected) from error
        raise UserError(f"the configuration is not valid: {error}") from error
    except UserError as error:
        # A section knows what is wrong with its values, but not where they were read.
        origins = ", ".join(dict.fromkeys(values.origins.values()))
        raise UserError(f"{error} (read from {origins})" if origins else str(error)) from error


def _wrong_type(key: str, schema: Schema, values: _Values, expected: str = "") -> UserError:
    origin, value = values.origins[key], values.values[key]
    name = f"--{key}" if origin == _COMMAND_LINE else f"{origin}: {key}"
    expected = expected or f"must be {describe_type(schema.fields[key])}"
    return UserError(f"{name} {expected}, not {'null' if value is None else shown(value)}")


def _plain(value: Any) -> Any:
    """Reduce a configuration to values that YAML can express."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {key: _plain(getattr(value, name)) for name, key in yaml_keys(type(value)).items()}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value
