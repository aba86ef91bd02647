"""Atomic writing of folders: a folder has its name only when it is complete.

It is written beside its destination under a temporary name, its manifest last, and then renamed. To
replace an existing folder, that one is renamed first, so between the two renames neither has the
name; a process killed at that moment leaves both, and the next one puts the old folder back.
"""

import glob
import os
import shutil
from contextlib import ExitStack, suppress
from pathlib import Path

from jroute.checkpoint.replacing import foreign, is_free, looks_like_a_model, refuse_to_replace
from jroute.utils.errors import UserError
from jroute.utils.files import sync
from jroute.utils.locks import owned
from jroute.utils.temporary import PARTIAL, REPLACED, leftovers, temporary_path

ROOM = "make room or choose another --out"
"""What helps where the disk is full."""

_NAME_BYTES = 255
"""Longest name that common file systems allow."""


def destination(out: str | os.PathLike[str]) -> Path:
    """Return the absolute path of a folder to write, without ``..`` and with links followed.

    Raises:
        UserError: No folder can be written there.
    """
    shown = f"{str(out)!r:.200}"
    try:
        path = Path(os.path.abspath(out))
        path = path.resolve() if path.is_symlink() else path
        names = [temporary_path(path, form).name for form in (PARTIAL, REPLACED)]
        with suppress(FileNotFoundError):  # it will be made
            os.stat(path)
    except (OSError, ValueError, RuntimeError) as error:  # NUL, no name (the root), a loop of links
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot write to {shown} ({reason}); choose another --out") from None
    if max(len(os.fsencode(name)) for name in names) > _NAME_BYTES:
        raise UserError(
            f"cannot write to {shown}: temporary names beside it would be longer than "
            f"{_NAME_BYTES} bytes; choose a shorter --out"
        )
    return path


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
        self._lock = ExitStack()

    def begin(self) -> None:
        """Make the temporary folder, and keep other processes from writing the destination.

        Raises:
            UserError: It cannot be made, or another process is writing the destination.
        """
        directory = self.directory
        try:
            directory.parent.mkdir(parents=True, exist_ok=True)
            self._lock.enter_context(owned(_lock(directory), str(directory)))
            recover(directory)
            self.partial.mkdir()
        except OSError as error:
            self._lock.close()
            raise UserError(
                f"cannot write to {directory.parent} ({error.strerror}); choose another --out"
            ) from None

    def publish(self, *, overwrite: bool = False) -> None:
        """Rename the temporary folder to its destination, durably.

        Args:
            overwrite: Whether to replace, and delete, a model that stands there.

        Raises:
            UserError: Something stands there that may not be replaced.
        """
        refuse_to_replace(self.directory, overwrite=overwrite)
        replaced = None
        if not is_free(self.directory):
            replaced = temporary_path(self.directory, REPLACED)
            os.rename(self.directory, replaced)
        os.rename(
            self.partial, self.directory
        )  # fails if something other than an empty folder is there
        sync(self.directory.parent)
        if replaced is not None:
            shutil.rmtree(replaced)

    def discard(self) -> None:
        """Remove the temporary folder, if it is still there, and let other processes write."""
        shutil.rmtree(self.partial, ignore_errors=True)
        self._lock.close()


def _lock(directory: Path) -> Path:
    return directory.with_name(f".{directory.name}.lock")


def recover(directory: Path) -> None:
    """Clean up after processes of this machine that were killed while writing ``directory``.

    Folders that hold anything else than what jroute writes are left alone.

    Raises:
        UserError: Another process is writing ``directory``.
    """
    if _lock(directory).exists():
        with owned(_lock(directory), str(directory)):  # its end deletes what a dead process left
            pass
    folder, name = directory.parent, directory.name
    for partial in leftovers(folder, name, PARTIAL):
        if partial.is_dir() and foreign(partial, unfinished=True) is None:
            shutil.rmtree(partial, ignore_errors=True)
    for earlier in leftovers(folder, name, REPLACED):
        if is_free(directory) and looks_like_a_model(earlier):
            os.rename(earlier, directory)
        elif looks_like_a_model(directory) and foreign(earlier) is None:
            shutil.rmtree(earlier, ignore_errors=True)


def set_aside(directory: Path) -> Path | None:
    """Return the earlier folder that a process killed while replacing it has left renamed."""
    pattern = REPLACED.format(name=glob.escape(directory.name), host="*", process="*")
    return min(directory.parent.glob(pattern), default=None)
