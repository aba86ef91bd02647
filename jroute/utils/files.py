"""Atomic writing: a file has its name only when all of its content is on disk.

Every writer uses a temporary name beside the file (see ``temporary``). A killed process leaves its
temporary file behind, and the next writer of the same file deletes it. What the system refuses, a
full disk for one, is a ``UserError`` (see ``disk``), and the file stays as it was.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from jroute.utils.disk import disk_errors
from jroute.utils.temporary import HIDDEN, remove_leftovers, temporary_path


@contextmanager
def atomic_write(file: Path, needed: int | None = None) -> Iterator[Path]:
    """Yield a temporary path that replaces ``file`` when the block succeeds.

    The content is flushed to disk before the rename, so a power failure cannot leave an empty file
    under the final name. If the block raises, ``file`` stays as it was.

    Args:
        file: The file.
        needed: Bytes of its content, if they are known, for the message on a full disk.

    Raises:
        UserError: The system refuses to write.
    """
    with disk_errors(file, needed):
        remove_leftovers(file.parent, file.name)
        temporary = temporary_path(file, HIDDEN)
        try:
            yield temporary
            sync(temporary)
            os.replace(temporary, file)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def write_bytes(file: Path, content: bytes) -> None:
    """Write ``content`` to ``file`` atomically.

    Raises:
        UserError: The system refuses to write.
    """
    with atomic_write(file, len(content)) as temporary:
        temporary.write_bytes(content)


def write_text(file: Path, text: str) -> None:
    """Write ``text`` to ``file`` atomically, as UTF-8; errors as for ``write_bytes``."""
    write_bytes(file, text.encode())


def write_json(file: Path, content: Any, *, indent: int | None = 2) -> None:
    """Write JSON with a final newline to ``file`` atomically; errors as for ``write_bytes``."""
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
