"""Rows of problems from a file, a folder, or the Hugging Face hub."""

import codecs
import hashlib
import json
import math
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pydantic

from jroute.tasks.exact import MAX_BITS
from jroute.tasks.numbers import meant, parse_number
from jroute.utils.errors import UserError, one_line
from jroute.utils.json_files import parse_json, read_bytes

Row = dict[str, Any]
T = TypeVar("T")


class _Content(pydantic.RootModel[T]):
    model_config = pydantic.ConfigDict(strict=True)


class _Line(_Content[Row]):
    """A line of a JSON-lines file."""


class _List(_Content[list[Row]]):
    """A JSON file of problems."""


_HUGE = "a huge number"
MAX_BYTES = 2**30
"""Size of the largest file of problems that is read."""


def locate(path: str, name: str) -> Path | None:
    """Find a task's local data.

    Args:
        path: A file or a folder, absolute, relative to the working directory, or relative to
            ``$JROUTE_DATA``; ``""`` for the task's own folder there, if it exists.
        name: Name of the task and of its folder under ``$JROUTE_DATA``.

    Returns:
        The file or folder; None if the path is empty and the task's folder does not exist.

    Raises:
        UserError: The path does not exist.
    """
    shared = os.environ.get("JROUTE_DATA", "")
    candidates = [Path(path).expanduser()] if path else []
    if shared:
        candidates.append(Path(shared).expanduser() / (path or name))
    for candidate in candidates:
        if candidate.exists():
            return candidate
    if not path:
        return None
    raise UserError(
        f"there is no file or folder {' or '.join(map(str, candidates))} for task {name}; "
        "correct task.path."
    )


def own_split(file: Path) -> str:
    """Return the split in a file's name (``train`` for ``my_train.jsonl``), else ``test``."""
    words = re.split(r"[^a-z]+", file.stem.lower())
    return next((split for split in ("train", "validation", "ood") if split in words), "test")


def split_file(where: Path, split: str, name: str) -> Path:
    """Choose the file of a split.

    A folder holds ``train.jsonl`` and so on. A single file is the test split, unless its name
    contains another, so training never uses the rows it is tested on.

    Args:
        where: A file or a folder.
        split: The split: ``train``, ``test``, ...
        name: The task's name, for the message.

    Raises:
        UserError: The split has no file.
    """
    if where.is_dir():
        file = where / f"{split}.jsonl"
        if not file.is_file():
            raise UserError(
                f"{where} has no {file.name} for task {name}; put it there or correct task.path."
            )
        return file
    own = own_split(where)
    if own != split:
        raise UserError(
            f"{where} alone is the {own} split of task {name}, but the {split} split is needed; "
            f"let task.path name a folder with {own}.jsonl and {split}.jsonl."
        )
    return where


def read_lines(file: Path) -> list[tuple[int, Row]]:
    """Read a JSON-lines file without its blank lines.

    Args:
        file: UTF-8 text with one JSON object per line.

    Returns:
        Line numbers, counted from 1, with their objects.

    Raises:
        UserError: The file cannot be read, or a line is not a JSON object.
    """
    content = read_bytes(file, "check task.path", max_bytes=MAX_BYTES)
    rows = _parse_lines(content, file)
    if not rows:
        raise UserError(f"{file} is empty; give a file with one JSON object per line.")
    return rows


def _parse_lines(content: bytes, file: Path) -> list[tuple[int, Row]]:
    # Split at line feeds only: str.splitlines would cut strings at U+2028.
    lines = content.removeprefix(codecs.BOM_UTF8).split(b"\n")
    return [
        (number, _parse(line, _Line, f"{file}, line {number}", "write one JSON object per line"))
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]


def read_json(file: Path) -> list[Row]:
    """Read a file that holds a JSON list of objects, or one object per line.

    Args:
        file: The file.

    Raises:
        UserError: The file cannot be read, or it holds something else.
    """
    content = read_bytes(file, "check task.path", max_bytes=MAX_BYTES)
    content = content.removeprefix(codecs.BOM_UTF8)
    if content.lstrip().startswith(b"["):
        rows = _parse(content, _List, str(file), "restore or replace it")
    else:
        rows = [row for _, row in _parse_lines(content, file)]
    if not rows:
        raise UserError(f"{file} is empty; restore or replace it.")
    return rows


def _parse(text: bytes, kind: type[_Content[T]], where: str, remedy: str) -> T:
    """Parse JSON of a kind; refuse objects that name a field twice, which JSON leaves undefined."""
    try:
        content = parse_json(text, kind, where, remedy).root
    except UserError as error:  # of one line, the place in the file is enough
        raise UserError(str(error).replace(" at line 1 column ", " at column ")) from None
    hook = partial(_object, where)
    json.loads(text, object_pairs_hook=hook, parse_int=str)  # its numbers are not used
    return content


def _object(where: str, pairs: list[tuple[str, Any]]) -> Row:
    """Return an object of JSON; refuse one that names a field twice."""
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in row if names.count(name) > 1)
        raise UserError(f"{where} has field {twice!r:.60} twice; remove one of them.")
    return row


@contextmanager
def _quiet_datasets() -> Iterator[Any]:
    """Silence the progress bars and log lines of the ``datasets`` library."""
    import datasets  # takes a second, and synthetic problems do not need it

    bars = not datasets.are_progress_bars_disabled()
    verbosity = datasets.logging.get_verbosity()
    if bars:
        datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield datasets
    finally:
        datasets.logging.set_verbosity(verbosity)
        if bars:
            datasets.enable_progress_bars()


def read_hub(repository: str, configuration: str | None, splits: Sequence[str]) -> list[Row]:
    """Read splits of a dataset of the hub, one after the other, through the user's own cache.

    Args:
        repository: Such as ``openai/gsm8k``.
        configuration: The dataset's configuration; None for its default.
        splits: Names of the dataset's splits.

    Raises:
        UserError: The dataset cannot be fetched and is not in the cache.
    """
    try:
        with _quiet_datasets() as datasets:
            loaded = [
                datasets.load_dataset(repository, configuration, split=split) for split in splits
            ]
            return [row for rows in loaded for row in rows.to_list()]
    except Exception as error:  # network, hub, cache and disk have their own types
        raise UserError(
            f"dataset {repository} cannot be loaded from the Hugging Face hub ({one_line(error)}); "
            "connect to the network once, or set task.path or $JROUTE_DATA to a folder with its "
            "files."
        ) from error


def field(row: Row, name: str, where: str) -> Any:
    """Return a field of a row.

    Args:
        row: The row.
        name: Name of the field.
        where: Where the row is, for the message.

    Raises:
        UserError: The row does not have the field, or it is null.
    """
    if name in row and row[name] is None:
        raise UserError(f"{where}: field {name!r} is null; give it a value, or remove the line.")
    if name not in row:
        raise UserError(
            f"{where} has no field {name!r} (it has {', '.join(map(repr, row)) or 'none':.300}); "
            "correct the file or the field's name."
        )
    return row[name]


def text_field(row: Row, name: str, where: str) -> str:
    """Return a field of a row that must be a text and not blank; raise UserError otherwise."""
    value = field(row, name, where)
    if not isinstance(value, str) or not value.strip():
        raise UserError(
            f"{where}: field {name!r} is not a text ({shown(value)}); correct the file."
        )
    return value


def number_field(row: Row, name: str, where: str) -> Fraction:
    """Return a field of a row that must be a number, or a text that is one.

    A number with a decimal point is read as ``jroute.tasks.numbers.meant`` says.

    Raises:
        UserError: The field is missing or is not a number.
    """
    value = field(row, name, where)
    number = None
    if isinstance(value, float) and math.isfinite(value):
        number = meant(value)
        if number is None:
            raise UserError(
                f"{where}: field {name!r} has more digits than a JSON number can hold ({value}); "
                'give it as a text, such as "1/7" or "0.125".'
            )
    elif isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
        number = None if shown(value) == _HUGE else parse_number(str(value))
    if number is None:
        raise UserError(
            f"{where}: field {name!r} is not a number ({shown(value)}); give a number such as 18."
        )
    return number


def shown(value: Any) -> str:
    """Return a value as it stands in a message."""
    huge = isinstance(value, int) and value.bit_length() > MAX_BITS  # Python refuses to print it
    text = _HUGE if huge else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def held_out(questions: Sequence[str], count: int, name: str) -> list[bool]:
    """Decide which rows of a training file belong to the validation split.

    The ``count`` rows whose question, with white space collapsed, has the smallest SHA-256 digest
    are held out. The rule depends neither on the order of the rows nor on a random state, is the
    same on every machine, keeps equal questions together (which may hold out more than ``count``
    rows), and every smaller validation split is part of every larger one.

    Args:
        questions: The questions of the whole training file.
        count: Number of rows to hold out.
        name: The task's name, for the message.

    Returns:
        A boolean for each question.

    Raises:
        UserError: No row would remain to train on.
    """
    digests = [hashlib.sha256(" ".join(q.split()).encode()).digest() for q in questions]
    if count >= len(questions):
        raise UserError(
            f"task.validation is {count}, but the training file of task {name} has only "
            f"{len(questions)} rows; hold out fewer."
        )
    limit = sorted(digests)[count - 1] if count else b""
    return [digest <= limit for digest in digests]
