"""Atomic writing of folders: a folder has its name only when it is complete.

It is written beside its destination under a temporary name, its manifest last, and then renamed. To
replace an existing folder, that one is renamed first, so between the two renames neither has the
name; a process killed at that moment leaves both, and the next one puts the old folder back.
"""

import glob
import os
import shutil
from pathlib import Path

from jroute.utils.errors import UserError
from jroute.utils.files import sync
from jroute.utils.temporary import PARTIAL, REPLACED, abandoned, remove_abandoned, temporary_path

MANIFEST = "manifest.json"
"""A folder with this file is complete."""


class Staging:
    """The temporary folder of this process for one destination.

    Attributes:
        directory: The destination.
        partial: The temporary folder beside it.
    """

    def __init__(self, directory: Path):
        """Name the temporary folder of a destination; nothing is written yet."""
        self.directory = directory
        self.partial = temporary_path(directory, PARTIAL)

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
            replaced = temporary_path(self.directory, REPLACED)
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
    folder, name = directory.parent, directory.name
    remove_abandoned(folder, name, PARTIAL, reused=True)
    for earlier in abandoned(folder, name, REPLACED, reused=True):
        if (directory / MANIFEST).exists():
            shutil.rmtree(earlier, ignore_errors=True)
        elif is_free(directory):
            os.rename(earlier, directory)


def set_aside(directory: Path) -> Path | None:
    """Return the earlier folder that a process killed while replacing it has left renamed."""
    pattern = REPLACED.format(name=glob.escape(directory.name), host="*", process="*")
    return min(directory.parent.glob(pattern), default=None)


def is_free(directory: Path) -> bool:
    """Return whether a path does not exist or is an empty folder."""
    return not directory.exists() or (directory.is_dir() and not any(directory.iterdir()))
