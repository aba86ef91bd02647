"""Temporary files and folders, named after the machine and the process that write them.

A killed process leaves them behind. Another process of the same machine sees in the name whether
the owner still runs, and deletes what is abandoned.
"""

import os
import platform
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HIDDEN = ".{name}.{host}.{process}.tmp"
"""Name of a file that is not complete, or of a folder that never gets another name.

The leading dot hides it from readers of Parquet folders.
"""

PARTIAL = "{name}.partial-{host}-{process}"
"""Name of a folder that is renamed when it is complete."""

REPLACED = PARTIAL + ".replaced"
"""Name of an earlier folder while a new one takes its place."""


def temporary_path(path: Path, form: str) -> Path:
    """Return the path beside ``path`` that belongs to this process.

    Args:
        path: Where the content goes in the end.
        form: ``HIDDEN``, ``PARTIAL`` or ``REPLACED``.
    """
    name = form.format(name=path.name, host=platform.node(), process=os.getpid())
    return path.with_name(name)


def abandoned(
    folder: Path, name: str | None = None, form: str = HIDDEN, *, reused: bool = False
) -> list[Path]:
    """Return temporary paths of this machine whose processes have ended, in order.

    Args:
        folder: Folder to look in; it need not exist.
        name: Final name of what they are for; any if ``None``.
        form: ``HIDDEN``, ``PARTIAL`` or ``REPLACED``.
        reused: Include paths with the number of this process. Pass it where this process has not
            begun to write, so that an earlier process must have had its number.
    """
    if not folder.is_dir():
        return []
    parts = {"name": ".+" if name is None else re.escape(name), "host": re.escape(platform.node())}
    pattern = re.compile(form.replace(".", r"\.").format(**parts, process=r"(\d+)"))
    owners = [
        (folder / match[0], int(match[1]))
        for match in map(pattern.fullmatch, sorted(os.listdir(folder)))
        if match
    ]
    return [
        path
        for path, process in owners
        if (reused and process == os.getpid()) or not is_running(process)
    ]


def remove_abandoned(
    folder: Path, name: str | None = None, form: str = HIDDEN, *, reused: bool = False
) -> None:
    """Delete what ``abandoned`` returns for these arguments."""
    for path in abandoned(folder, name, form, reused=reused):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """Yield a hidden folder beside ``path``, and delete it at the end.

    Those of killed processes for the same path are deleted first.
    """
    remove_abandoned(path.parent, path.name, reused=True)
    folder = temporary_path(path, HIDDEN)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def is_running(process: int) -> bool:
    """Return whether a process with this number exists on this machine."""
    try:
        os.kill(process, 0)  # signal 0 only checks
    except ProcessLookupError:
        return False
    except PermissionError:  # it belongs to another user
        return True
    return True
