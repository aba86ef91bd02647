"""Atomic writing: a file has its name only when all of its content is on disk.

Every writer uses a temporary name beside the file, ``.<name>.<host>.<process>.tmp``. The leading
dot hides it from readers of Parquet folders. A killed process leaves its temporary file behind; the
next writer of the same file, or ``remove_abandoned``, deletes it.
"""

import glob
import json
import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jroute.utils.processes import is_running


@contextmanager
def atomic_write(file: Path) -> Iterator[Path]:
    """Yield a temporary path that replaces ``file`` when the block succeeds.

    The content is flushed to disk before the rename, so a power failure cannot leave an empty file
    under the final name. If the block raises, ``file`` stays as it was.
    """
    remove_abandoned(file.parent, file.name)
    temporary = file.with_name(f".{file.name}.{platform.node()}.{os.getpid()}.tmp")
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


def remove_abandoned(folder: Path, name: str | None = None) -> None:
    """Delete temporary files of this machine whose processes have ended.

    Args:
        folder: Folder to clean; it need not exist.
        name: Final name of the files to look for; any if ``None``.
    """
    pattern = "*" if name is None else glob.escape(name)
    ours = re.compile(rf"\..+\.{re.escape(platform.node())}\.(\d+)\.tmp")
    for path in folder.glob(f".{pattern}.*.tmp"):
        match = ours.fullmatch(path.name)
        if match and not is_running(int(match[1])):
            path.unlink(missing_ok=True)


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
