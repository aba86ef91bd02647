"""A folder that stands under its name when it is complete, and else not at all.

It is made beside its place under a temporary name, its manifest last, and then renamed. Where it
replaces another one, that one is renamed first, so between two renames nothing stands there; a
process that is killed at just that moment leaves both, and the next one puts the old folder back.
"""

import os
import shutil
import socket
from pathlib import Path

from jroute.utils.errors import UserError
from jroute.utils.files import sync
from jroute.utils.processes import is_running

MANIFEST = "manifest.json"
"""A folder that has this file is complete."""

_REPLACED = ".replaced"


class Staging:
    """The temporary folder of this process for one place.

    Attributes:
        directory: The place.
        partial: The temporary folder beside it.
    """

    def __init__(self, directory: Path):
        """``directory``: where the finished folder is to stand. Nothing is touched yet."""
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
        """Give the temporary folder its name; what stood there goes. All of it is on disk then."""
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
    """Clean up behind processes of this machine that were killed on their way to ``directory``."""
    for leftover in _beside(directory, prefix := _prefix(directory)):
        process = leftover.name.removeprefix(prefix).removesuffix(_REPLACED)
        ours = process == str(os.getpid())  # of an earlier process with our number
        if not process.isdecimal() or (not ours and is_running(int(process))):
            continue
        if not leftover.name.endswith(_REPLACED) or (directory / MANIFEST).exists():
            shutil.rmtree(leftover, ignore_errors=True)
        elif is_free(directory):
            os.rename(leftover, directory)


def set_aside(directory: Path) -> Path | None:
    """The folder that stood at ``directory`` when a process that was replacing it was killed."""
    found = _beside(directory, f"{directory.name}.partial-")
    return next((path for path in found if path.name.endswith(_REPLACED)), None)


def is_free(directory: Path) -> bool:
    """Whether nothing stands there, or an empty folder."""
    return not directory.exists() or (directory.is_dir() and not any(directory.iterdir()))


def _beside(directory: Path, prefix: str) -> list[Path]:
    if not directory.parent.is_dir():
        return []
    return sorted(p for p in directory.parent.iterdir() if p.name.startswith(prefix))


def _prefix(directory: Path) -> str:
    return f"{directory.name}.partial-{socket.gethostname()}-"
