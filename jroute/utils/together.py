"""Results of several files: all of them have their names, or those of before do.

They are written into a hidden folder, and one rename (``.<name>.jroute-complete``) decides: from
then on they count. Moving them to their names can be repeated, so whoever comes after a killed
process, to write or to read, finishes it. A lock of the folder keeps a reader from files of two
results.
"""

import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

from jroute.utils.disk import disk_errors, make_folder, shown_as
from jroute.utils.files import sync, sync_tree
from jroute.utils.temporary import remove_leftovers, temporary_folder

COMPLETE = ".{name}.jroute-complete"
"""Name of a folder whose files are complete and only have to be moved."""

PATIENCE = 10.0
"""Seconds to wait for a reader or a writer, which may have been stopped."""


@contextmanager
def written_together(folder: Path, name: str) -> Iterator[Path]:
    """Yield an empty folder whose files replace those in ``folder`` when the block succeeds.

    If the block raises, all files stay as they were.

    Args:
        folder: Where the files go; made if missing.
        name: Name of the results in it.

    Raises:
        UserError: The system refuses to write.
    """
    make_folder(folder)
    finish(folder)
    with disk_errors(folder), temporary_folder(folder / name) as scratch:
        with shown_as(scratch, folder):
            yield scratch
        publish(scratch, folder, name)


def publish(scratch: Path, folder: Path, name: str) -> None:
    """Move all files of ``scratch``, also in folders of it, to the same places in ``folder``.

    Args:
        scratch: A folder on the same disk; it is gone afterwards.
        folder: Where the files go.
        name: Name of the results.

    Raises:
        UserError: The system refuses to write.
    """
    with disk_errors(folder):
        for each in scratch.rglob("*"):
            if each.is_dir():
                (folder / each.relative_to(scratch)).mkdir(parents=True, exist_ok=True)
        sync_tree(scratch)
        with _locked(folder, fcntl.LOCK_EX):
            _move_all(folder)
            os.rename(scratch, folder / COMPLETE.format(name=name))
            _move_all(folder)


def finish(folder: Path) -> None:
    """Move what a killed process has completed but not moved.

    Raises:
        UserError: The system refuses to write.
    """
    if _complete(folder):
        with disk_errors(folder), _locked(folder, fcntl.LOCK_EX):
            _move_all(folder)


@contextmanager
def settled(folder: Path) -> Iterator[None]:
    """Keep writers from the results in a folder while the block reads several of their files.

    Raises:
        UserError: A killed process left them unfinished, and the folder cannot be written.
    """
    finish(folder)
    with _locked(folder, fcntl.LOCK_SH):
        yield


def clean(folder: Path, *, alone: bool = False) -> None:
    """Finish or undo what killed processes left in a folder of jroute's own, before writing there.

    Args:
        folder: The folder, without those inside it; it need not exist.
        alone: Whether no other process writes the folder (a lock says so).

    Raises:
        UserError: Results have to be moved, and the folder cannot be written.
    """
    finish(folder)
    remove_leftovers(folder, alone=alone)


def clean_tree(folder: Path, *, alone: bool = False) -> None:
    """Do the same in a folder and in all folders inside it."""
    for path, folders, _ in os.walk(folder):
        clean(Path(path), alone=alone)
        folders[:] = [name for name in folders if (Path(path) / name).is_dir()]


def _complete(folder: Path) -> list[Path]:
    try:
        names = sorted(os.listdir(folder))
    except OSError:  # it is not there, or not any more
        return []
    return [folder / name for name in names if fnmatch(name, COMPLETE.format(name="*"))]


def _move_all(folder: Path) -> None:
    for complete in _complete(folder):
        for file in sorted(path for path in complete.rglob("*") if path.is_file()):
            target = folder / file.relative_to(complete)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, target)
            sync(target.parent)
        shutil.rmtree(complete)


@contextmanager
def _locked(folder: Path, kind: int) -> Iterator[None]:
    """Hold a lock of a folder, where the file system has locks, and no longer than patience."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        yield
        return
    try:
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            try:
                fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.02)
            except OSError:  # this file system has no locks
                break
        yield
    finally:
        os.close(descriptor)
