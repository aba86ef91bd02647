"""jsonargparse behind the configuration: it checks types and prints the help."""

import argparse
import dataclasses
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import jsonargparse

from jroute.utils.config_schema import Schema


class WrongType(Exception):
    """A value has another type than its field.

    Attributes:
        key: The field's key, or ``None`` if jsonargparse does not name it.
    """

    def __init__(self, message: str, key: str | None):
        super().__init__(message)
        self.key = key


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
        tree = parser.instantiate(parser.parse_object(given.as_dict()))
    except argparse.ArgumentError as error:
        path = re.search(r'Parser key "([^"]+)"', str(error))
        keys = {path: key for key, path in schema.paths.items()}
        key = keys.get(path[1]) if path else None
        raise WrongType(" ".join(str(error).split()), key) from error
    return [cls(**{f.name: tree[f.name] for f in dataclasses.fields(cls)}) for cls in classes]


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
    parser.print_help()
    sys.exit(0)


class _Formatter(jsonargparse.DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keep the lines of a description, which may hold commands."""


def _parser(classes: Sequence[type[Any]], **options: Any) -> jsonargparse.ArgumentParser:
    # Abbreviations are off: a shortened option would hide a mistyped one.
    parser = jsonargparse.ArgumentParser(
        exit_on_error=False, allow_abbrev=False, formatter_class=_Formatter, **options
    )
    for cls in classes:
        parser.add_class_arguments(cls, as_group=True)
    return parser
