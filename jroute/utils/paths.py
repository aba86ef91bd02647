"""Paths that users give, checked where they enter; what is written there is tried out at once.

A refused path is one sentence that names the option, before anything expensive begins.
"""

import errno
import os
import tempfile
from pathlib import Path
from typing import Any

from jroute.utils.disk import Refusal, refusal
from jroute.utils.errors import UserError
from jroute.utils.inputs import check_text

MAX_PATH = 4095
"""Bytes of the longest path on Linux."""

MAX_NAME = 255
"""Bytes of the longest name in it."""


def check_path(path: Any, what: str) -> Path:
    """Return a path.

    Args:
        path: A text or a path.
        what: The option or the argument, for messages.

    Raises:
        UserError: It is neither a text nor a path, is empty, is longer than a file system allows,
            or holds a NUL character or half of a surrogate pair.
    """
    if not isinstance(path, (str, Path)) or not str(path) or "\0" in str(path):
        raise UserError(f"{what} is {path!r:.60}; give a path")
    name = check_text(str(path), what)
    longest = max(len(part.encode()) for part in name.split("/"))
    if len(name.encode()) > MAX_PATH or longest > MAX_NAME:
        raise UserError(f"{what} {name!r:.60} is longer than a file system allows; shorten it")
    return Path(name)


def folder_path(path: Any, what: str) -> Path:
    """Return the path of a folder of jroute's own, which need not exist.

    Args:
        path: A text or a path.
        what: The option, for messages.

    Raises:
        UserError: It is no path, is the root, or a file has its name or that of a folder above it.
    """
    if path == "" or (isinstance(path, (str, Path)) and str(path).strip("/") == ""):
        raise UserError(f"{what} is {str(path)!r}; give a folder of its own, e.g. runs/demo")
    folder = check_path(path, what)
    if os.path.abspath(folder) == "/":
        raise UserError(f"{what} is {str(folder)!r:.60}, the root; give a folder of its own")
    _require_folder(folder, folder, what)
    return folder


def output_folder(path: Any, what: str) -> Path:
    """Return the path of a folder that will be written, and is made if missing; nothing is made.

    Arguments and errors are those of ``folder_path``, and the system may refuse to write there.
    """
    folder = folder_path(path, what)
    _require_writable(folder, folder, what)
    return folder


def output_file(path: Any, what: str) -> Path:
    """Return the path of a file that will be written or replaced; the folders above may be missing.

    Arguments and errors are those of ``output_folder``.
    """
    file = check_path(path, what)
    if file.is_dir():
        raise UserError(f"{what} is {str(file)!r:.300}, which is a folder; give a file")
    _require_folder(file, file.absolute().parent, what)
    _require_writable(file, file.absolute().parent, what)
    return file


def _require_folder(path: Path, folder: Path, what: str) -> None:
    """Refuse a folder whose name, or that of a folder above it, something else has."""
    nearest = _nearest(folder)
    if not nearest.is_dir():
        raise UserError(
            f"{what} is {str(path)!r:.300}, but {str(nearest)!r:.300} is not a folder; "
            "choose another path, or move away what is in the way"
        )


def _require_writable(path: Path, folder: Path, what: str) -> None:
    """Write a file without a name into the nearest folder that exists."""
    nearest = _nearest(folder)
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        refused = refusal(error) or Refusal(error.strerror or str(error), error.errno)
        if refused.number in (errno.ENOSPC, errno.EDQUOT):
            return  # what writes there says how much room it needs
        raise UserError(f"{what} is {str(path)!r:.300}; {refused.sentence(nearest)}") from None


def _nearest(folder: Path) -> Path:
    """Return the nearest thing that exists at a folder's path or above; links are not followed."""
    path = folder.absolute()
    return next(place for place in (path, *path.parents) if os.path.lexists(place))
