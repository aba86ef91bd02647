"""Writes that the system refuses become one sentence: what, where, how much room there is.

Libraries hide the system's error: tensorstore and Orbax put its number into the text of a
``ValueError``, safetensors and SQLite have errors of their own, others chain it.
"""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from jroute.utils.errors import UserError

MAKE_ROOM = "make room and give the same command again"
"""What helps on a full disk, unless the command can write elsewhere."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REMEDIES: dict[int | None, str] = {
    **dict.fromkeys(_FULL, MAKE_ROOM),
    **dict.fromkeys(
        (errno.EACCES, errno.EPERM, errno.EROFS), "choose a folder that you may write to"
    ),
    **dict.fromkeys(
        (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY, errno.ELOOP),
        "choose another path, or move away what is in the way",
    ),
    errno.ENAMETOOLONG: "choose a shorter name",
    **dict.fromkeys(
        (errno.EIO, errno.ENXIO, errno.ENODEV, errno.ESTALE, errno.ETIMEDOUT),
        "check the disk, then give the same command again",
    ),
    **dict.fromkeys(
        (errno.EMFILE, errno.ENFILE), "raise the limit of open files and give the command again"
    ),
}

_NUMBER = re.compile(r"os_error_code='(\d+)'|\[?errno (\d+)\]?|\(os error (\d+)\)", re.IGNORECASE)
_TEXTS = {
    "database or disk is full": errno.ENOSPC,  # SQLite
    "readonly database": errno.EROFS,
    "disk i/o error": errno.EIO,
    **{os.strerror(number).lower(): number for number in (*_FULL, errno.EROFS, errno.EIO)},
}


class Refusal(NamedTuple):
    """A write that the system refuses.

    Attributes:
        reason: The system's words.
        number: Its error number, if known.
        path: The file or folder, where the error names it.
    """

    reason: str
    number: int | None = None
    path: str | None = None

    def sentence(
        self, path: Path | None = None, needed: int | None = None, room: str = MAKE_ROOM
    ) -> str:
        """Return what was refused, why, and what to do.

        Args:
            path: What is written; by default what the error names.
            needed: Bytes that it takes, if that is known.
            room: What to do if the disk is full.
        """
        where = Path(self.path) if path is None and self.path else path
        full = self.number in _FULL
        remedy = room if full else _REMEDIES.get(self.number, "choose another path")
        if where is None:
            return f"cannot write ({self.reason}); {remedy}"
        details = f"; {free_room(where, needed)}" if full else ""
        return f"cannot write to {where!s:.300} ({self.reason}{details}); {remedy}"


def refusal(error: BaseException) -> Refusal | None:
    """Return the refused write that an exception reports or was raised from, or ``None``.

    Of the system's errors it knows those that mean the disk, the path or the permission.
    """
    if isinstance(error, BaseExceptionGroup):
        return next(filter(None, map(refusal, error.exceptions)), None)
    name = getattr(error, "filename2", None) or getattr(error, "filename", None)
    path = os.fsdecode(name) if isinstance(name, str | bytes) else None
    number = _number_of(error)
    if number is not None and number in _REMEDIES:
        return Refusal(os.strerror(number), number, path)
    return refusal(error.__cause__) if error.__cause__ is not None else None


def system_message(error: BaseException) -> str | None:
    """Return the system's message that is the reason of an error of it or of a library."""
    number = _number_of(error)
    return None if number is None else os.strerror(number)


def _number_of(error: BaseException) -> int | None:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    text = str(error)
    if match := _NUMBER.search(text):
        return int(next(filter(None, match.groups())))
    return next((number for words, number in _TEXTS.items() if words in text.lower()), None)


@contextmanager
def disk_errors(path: Path, needed: int | None = None, room: str = MAKE_ROOM) -> Iterator[None]:
    """Turn a write that the system refuses into a ``UserError``.

    Args:
        path: The file or folder that is written; it need not exist.
        needed: Bytes that it takes, if that is known.
        room: What to do if the disk is full.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        refused = refusal(error)
        if refused is None and isinstance(error, OSError):
            refused = Refusal(error.strerror or str(error).strip().splitlines()[0], error.errno)
        if refused is None:
            raise
        raise UserError(refused.sentence(path, needed, room)) from error


@contextmanager
def shown_as(temporary: Path, path: Path) -> Iterator[None]:
    """Let the messages of errors name ``path`` where they name ``temporary``."""
    try:
        yield
    except UserError as error:
        message = str(error).replace(str(temporary), str(path))
        raise UserError(message) from error.__cause__


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, unless they exist.

    Raises:
        UserError: The system refuses, or a file has the name.
    """
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)


def free_room(path: Path, needed: int | None = None) -> str:
    """Return the free bytes and files on the disk of ``path``, which need not exist, as text."""
    for folder in (path, *path.absolute().parents):
        try:
            disk = os.statvfs(folder)
        except (OSError, ValueError):
            continue
        free = f"{disk.f_bavail * disk.f_frsize:,} bytes"
        if disk.f_files:  # 0 where the file system does not limit them
            free += f" and {disk.f_favail:,} files"
        takes = "" if needed is None else f"it takes {needed:,} bytes; "
        return f"{takes}{free} are free there"
    return "nothing is known of its disk"
