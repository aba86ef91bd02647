"""Atomic writing: a file has its name only when all of its content is on disk.

Every writer uses a temporary name beside the file (see ``temporary``). A killed process leaves its
temporary file behind, and the next writer of the same file deletes it.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jroute.utils.temporary import HIDDEN, remove_abandoned, temporary_path


@contextmanager
def atomic_write(file: Path) -> Iterator[Path]:
    """Yield a temporary path that replaces ``file`` when the block succeeds.

    The content is flushed to disk before the rename, so a power failure cannot leave an empty file
    under the final name. If the block raises, ``file`` stays as it was.
    """
    remove_abandoned(file.parent, file.name)
    temporary = temporary_path(file, HIDDEN)
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(file: Path, text: str) -> None:
    """Write ``text`` to ``file`` atomically, as UTF-8."""
    with atomic_write(file) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(file: Path, content: Any, *, indent: int | None = 2) -> None:
    """Write ``content`` to ``file`` atomically, as JSON with a final newline."""
    write_text(file, json.dumps(content, indent=indent) + "\n")


def sync(path: Path) -> None:
    """Wait until a file's content, or the names in a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Wait until a folder and everything in it are on disk."""
    for path in [*folder.rglob("*"), folder]:
        sync(path)
