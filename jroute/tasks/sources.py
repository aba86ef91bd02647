"""Rows of problems from a file, a folder, or the Hugging Face hub."""

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jroute.utils.errors import UserError

Row = dict[str, Any]


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
    rows: list[tuple[int, Row]] = []
    try:
        # Split bytes at line feeds only: str.splitlines would cut strings at U+2028.
        lines = file.read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}); check task.path.") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{file}, line {number} is not JSON ({error}); correct it.") from error
        if not isinstance(row, dict):
            raise UserError(
                f"{file}, line {number} is not a JSON object; write one object per line."
            )
        rows.append((number, row))
    if not rows:
        raise UserError(f"{file} is empty; give a file with one JSON object per line.")
    return rows


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


def read_json(file: Path) -> list[Row]:
    """Read a JSON or JSON-lines file through ``datasets``; its cache is thrown away afterwards.

    Args:
        file: The file.

    Raises:
        UserError: The file cannot be read.
    """
    try:
        with _quiet_datasets() as datasets, tempfile.TemporaryDirectory() as cache:
            rows = datasets.load_dataset(
                "json", data_files=str(file), split="train", cache_dir=cache, keep_in_memory=True
            ).to_list()
    except Exception as error:  # its type depends on format and version
        if file.suffix == ".jsonl":
            read_lines(file)  # its error names the line
        raise UserError(
            f"{file} cannot be read as JSON ({error.__cause__ or error or 'it is empty'}); "
            "restore or replace it."
        ) from error
    return rows


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
            f"dataset {repository} cannot be loaded from the Hugging Face hub ({error}); connect "
            "to the network once, or set task.path or $JROUTE_DATA to a folder with its files."
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
    if row.get(name) is None:
        raise UserError(
            f"{where} has no field {name!r} (it has {', '.join(map(repr, row)) or 'none'}); "
            "correct the file or the field's name."
        )
    return row[name]


def text_field(row: Row, name: str, where: str) -> str:
    """Return a field of a row that must be a text and not blank; raise UserError otherwise."""
    value = field(row, name, where)
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{where}: field {name!r} is not a text ({value!r}); correct the file.")
    return value


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
