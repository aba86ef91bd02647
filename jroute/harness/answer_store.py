"""Answers on disk before they are scored, so that nothing which fails later costs a generation.

One file holds the answers of one model under one arm, each with the record of what the model did.
They are appended as they come, one line of JSON each with a checksum: a line that a kill cut short,
or that was damaged, is answered again.
"""

import json
import logging
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pydantic

from jroute.harness.gen_kwargs import ResponseText
from jroute.harness.records import Record
from jroute.utils import json_files
from jroute.utils.disk import disk_errors
from jroute.utils.errors import UserError
from jroute.utils.keys import stored

logger = logging.getLogger(__name__)

Answer = ResponseText | tuple[float, bool] | float
"""The answer to a request: a text, a log-likelihood and whether it is greedy, or a sum of them."""


class _Line(json_files.Record):
    """A stored answer.

    Attributes:
        key: Names the request.
        answer: The answer.
        truncated: Whether a text reached its token limit.
        record: What the model did.
    """

    model_config: ClassVar[pydantic.ConfigDict] = pydantic.ConfigDict(allow_inf_nan=True)

    key: str
    answer: str | float | list[float | bool]
    truncated: bool = False
    record: dict[str, Any]

    def content(self) -> tuple[Answer, Record]:
        """Return the answer as lm-eval expects it, and its record."""
        record = Record.from_json(dict(self.record))
        match self.answer:
            case str(text):
                return ResponseText.create(text, self.truncated), record
            case [score, greedy]:
                return (float(score), bool(greedy)), record
            case float(score):
                return score, record
        raise ValueError(f"an answer is {self.answer!r}")


class AnswerStore:
    """The answers of one model under one arm, in memory and in a file.

    Args:
        file: The file; it is made with the first answer.
    """

    def __init__(self, file: Path):
        self.file = file
        self._answers = _read(file)

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, key: str) -> tuple[Answer, Record] | None:
        """Return the answer to a request and its record, if there is one."""
        return self._answers.get(key)

    def add(self, key: str, answer: Any, record: Record) -> None:
        """Store an answer.

        Raises:
            UserError: It cannot be written.
        """
        line = _Line.model_construct(
            key=key,
            answer=list(answer) if isinstance(answer, tuple) else answer,
            truncated=getattr(answer, "truncated", False),
            record=stored(record),
        )
        content = json.dumps(dict(line))
        with disk_errors(self.file):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            _append(self.file, f"{zlib.crc32(content.encode()):08x} {content}\n")
        self._answers[key] = (answer, record)

    def remove(self) -> None:
        """Delete the file, and its folder if that is empty now."""
        self.file.unlink(missing_ok=True)
        if self.file.parent.is_dir() and not any(self.file.parent.iterdir()):
            self.file.parent.rmdir()


class AnswerStores:
    """The stores of one evaluation, in one folder.

    Args:
        folder: The folder; it is made with the first answer.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._opened: dict[str, AnswerStore] = {}

    def open(self, name: str) -> AnswerStore:
        """Return the store of this name."""
        if name not in self._opened:
            self._opened[name] = AnswerStore(self.folder / f"{name}.jsonl")
        return self._opened[name]

    @contextmanager
    def kept_until_done(self) -> Iterator[None]:
        """Delete the answers when the block succeeds; otherwise say that they are kept.

        Raises:
            UserError: That of the block.
        """
        try:
            yield
        except UserError as error:
            count = sum(map(len, self._opened.values()))
            if not count:
                raise
            raise UserError(
                f"{error} (the {count:,} answers so far are kept in {self.folder}: the same "
                "command goes on from them; delete that folder to generate them anew)"
            ) from error
        for store in self._opened.values():
            store.remove()


def _append(file: Path, line: str) -> None:
    """Append a line in one piece, and on a line of its own even after one that was cut short."""
    with file.open("ab+") as stream:
        if stream.tell():
            stream.seek(-1, os.SEEK_END)
            if stream.read(1) != b"\n":
                line = "\n" + line
        stream.write(line.encode())


def _read(file: Path) -> dict[str, tuple[Answer, Record]]:
    """Read the lines that are whole."""
    answers: dict[str, tuple[Answer, Record]] = {}
    damaged = 0
    try:
        lines: Sequence[bytes] = file.read_bytes().split(b"\n") if file.is_file() else []
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}); delete it") from error
    for line in filter(None, lines):
        checksum, _, content = line.partition(b" ")
        try:
            if checksum != b"%08x" % zlib.crc32(content):
                raise ValueError
            parsed = json_files.parse_json(content, _Line, str(file), "delete it")
            answers[parsed.key] = parsed.content()
        except (ValueError, KeyError, TypeError, UserError):
            damaged += 1
    if damaged:
        logger.warning("%s: %d damaged answers are generated again", file, damaged)
    return answers
