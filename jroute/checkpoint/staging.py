"""Atomic writing of folders: a folder has its name only when it is complete.

It is written beside its destination under a temporary name, its manifest last, and then renamed. To
replace an existing folder, that one is renamed first, so between the two renames neither has the
name; a process killed at that moment leaves both, and the next one puts the old folder back.
"""

import os
import shutil
import socket
from pathlib import Path

from jroute.utils.errors import UserError
from jroute.utils.files import sync
from jroute.utils.processes import is_running

MANIFEST = "manifest.json"
"""A folder with this file is complete."""

_REPLACED = ".replaced"


class Staging:
    """The temporary folder of this process for one destination.

    Attributes:
        directory: The destination.
        partial: The temporary folder beside it.
    """

    def __init__(self, directory: Path):
        """Name the temporary folder of a destination; nothing is written yet."""
        self.directory = directory
        self.partial = directory.with_name(f"{_prefix(directory)}{os.getpid()}")

    def begin(self) -> None:
        """Make the temporary folder.

        Raises:
            UserError: It cannot be made.
        """
        try:
            self.partial.mkdir(parents=True)
        except OSError as error:
            raise UserError(
                f"cannot write to {self.directory.parent} ({error.strerror}); choose another --out"
            ) from None

    def publish(self) -> None:
        """Rename the temporary folder to its destination, durably, and delete what it replaces."""
        replaced = None
        if self.directory.exists():
            replaced = self.partial.with_name(self.partial.name + _REPLACED)
            os.rename(self.directory, replaced)
        os.rename(self.partial, self.directory)
        sync(self.directory.parent)
        if replaced is not None:
            shutil.rmtree(replaced)

    def discard(self) -> None:
        """Remove the temporary folder, if it is still there."""
        shutil.rmtree(self.partial, ignore_errors=True)


def recover(directory: Path) -> None:
    """Clean up after processes of this machine that were killed while writing ``directory``."""
    for leftover in _beside(directory, prefix := _prefix(directory)):
        process = leftover.name.removeprefix(prefix).removesuffix(_REPLACED)
        reused = process == str(os.getpid())  # an earlier process had our number
        if not process.isdecimal() or (not reused and is_running(int(process))):
            continue
        if not leftover.name.endswith(_REPLACED) or (directory / MANIFEST).exists():
            shutil.rmtree(leftover, ignore_errors=True)
        elif is_free(directory):
            os.rename(leftover, directory)


def set_aside(directory: Path) -> Path | None:
    """Return the earlier folder that a process killed while replacing it has left renamed."""
    leftovers = _beside(directory, f"{directory.name}.partial-")
    return next((path for path in leftovers if path.name.endswith(_REPLACED)), None)


def is_free(directory: Path) -> bool:
    """Return whether a path does not exist or is an empty folder."""
    return not directory.exists() or (directory.is_dir() and not any(directory.iterdir()))


def _beside(directory: Path, prefix: str) -> list[Path]:
    if not directory.parent.is_dir():
        return []
    return sorted(p for p in directory.parent.iterdir() if p.name.startswith(prefix))


def _prefix(directory: Path) -> str:
    return f"{directory.name}.partial-{socket.gethostname()}-"
