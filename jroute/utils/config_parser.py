"""jsonargparse behind the configuration: it checks types and prints the help."""

import argparse
import dataclasses
import math
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import jsonargparse
from jsonargparse import _loaders_dumpers as loaders

from jroute.utils.config_schema import Schema
from jroute.utils.secrets import redacted
from jroute.utils.yaml_files import PlainLoader


class WrongType(Exception):
    """A value has another type than its field.

    Attributes:
        key: The field's key, or ``None`` if jsonargparse does not name it.
        expected: What its type demands beyond its name; empty if nothing.
    """

    def __init__(self, message: str, key: str | None, expected: str = ""):
        super().__init__(message)
        self.key, self.expected = key, expected


def instantiate(
    classes: Sequence[type[Any]], schema: Schema, values: Mapping[str, Any]
) -> list[Any]:
    """Build one instance of every class.

    Args:
        classes: The dataclasses.
        schema: Their keys.
        values: Values by dotted key; the others have their defaults.

    Raises:
        WrongType: A value does not fit its field.
    """
    parser = _parser(classes)
    given = jsonargparse.Namespace()
    for key, value in values.items():
        given[schema.paths[key]] = value
    try:
        tree = parser.parse_object(given.as_dict())
    except OverflowError as error:  # of float(), for whole numbers of more than 308 digits
        digits = {key: len(re.findall("[0-9]", str(value))) for key, value in values.items()}
        key = max(digits, key=lambda key: digits[key])
        expected = "must be a number of at most 64 bits"
        raise WrongType(f"{key} {expected}", key, expected) from error
    except argparse.ArgumentError as error:
        raise _wrong_type(error, schema) from error
    try:
        for key in values:
            if expected := unusable(tree[schema.paths[key]]):
                raise WrongType(f"{key} {expected}", key, expected)
        tree = parser.instantiate(tree)
    except argparse.ArgumentError as error:
        raise _wrong_type(error, schema) from error
    return [cls(**{f.name: tree[f.name] for f in dataclasses.fields(cls)}) for cls in classes]


def _wrong_type(error: argparse.ArgumentError, schema: Schema) -> WrongType:
    path = re.search(r'Parser key "([^"]+)"', str(error))
    keys = {path: key for key, path in schema.paths.items()}
    key = keys.get(path[1]) if path else None
    return WrongType(f"{' '.join(str(error).split()):.300}", key)


def unusable(value: Any) -> str:
    """Return what a value of the right type must be besides; empty if it is usable.

    No field has a use for NaN, infinity, an integer of more than 64 bits, or a text that no file
    can hold.
    """
    if isinstance(value, Mapping):
        value = [*value.keys(), *value.values()]
    if isinstance(value, list | tuple):
        return next(filter(None, map(unusable, value)), "")
    if isinstance(value, float) and not math.isfinite(value):
        return "must be finite"
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return "must be a number of at most 64 bits"
    if isinstance(value, str) and re.search("[\0\ud800-\udfff]", value):
        return "must be UTF-8 text without NUL characters"
    return ""


def print_help(
    classes: Sequence[type[Any]],
    schema: Schema,
    defaults: Mapping[str, Any],
    *,
    prog: str,
    description: str,
    files: bool,
) -> NoReturn:
    """Print every field with its type, default and docstring, and exit with status 0.

    Args:
        classes: The dataclasses.
        schema: Their keys.
        defaults: Values by dotted key that replace the classes' own defaults.
        prog: The command as a user types it.
        description: What the command does.
        files: Whether ``--config`` is an option.
    """
    usage = f"{prog}{' [--config FILE]' if files else ''} [--field VALUE | --section.field VALUE]"
    parser = _parser(classes, prog=prog, usage=f"{usage} ...", description=description or None)
    if files:
        parser.add_argument("--config", metavar="FILE", help="YAML file with any of these fields.")
    parser.set_defaults({schema.paths[key]: value for key, value in defaults.items()})
    keys = {path: key for key, path in schema.paths.items()}
    for action in parser._actions:
        key = keys.get(action.dest)
        if key in schema.sections or action.dest == "print_config":
            # jsonargparse would read a section from a separate file; this project does not.
            action.help = argparse.SUPPRESS
        elif key is not None and key != action.dest:
            action.option_strings = [f"--{key}"]
            action.metavar = key.rpartition(".")[2].upper()
    print(redacted(parser.format_help()), end="")
    sys.exit(0)


class _Formatter(jsonargparse.DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keep the lines of a description, which may hold commands."""


class _OptionLoader(PlainLoader):
    """Load a value of the command line, where ``1e-3`` is a number as it is in JSON."""


_OptionLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)
# jsonargparse parses texts with libyaml, which deep nesting makes overflow the stack, and has no
# public way to change that everywhere. A test meets it if this name moves.
loaders.yaml_default_loader = _OptionLoader


def _parser(classes: Sequence[type[Any]], **options: Any) -> jsonargparse.ArgumentParser:
    # Abbreviations are off: a shortened option would hide a mistyped one.
    parser = jsonargparse.ArgumentParser(
        exit_on_error=False,
        allow_abbrev=False,
        formatter_class=_Formatter,
        **options,
    )
    for cls in classes:
        parser.add_class_arguments(cls, as_group=True)
    return parser
