"""Locks: one process at a time writes a run folder or a model directory.

A lock is a file that its owner holds with ``flock``, which the kernel releases when the process
ends, however it ends. The file names the owner for the sentence that refuses another process. Where
the file system has no ``flock``, and between machines, that name alone decides.
"""

import errno
import fcntl
import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jroute.utils.disk import disk_errors
from jroute.utils.errors import UserError
from jroute.utils.json_files import Record, parse_json
from jroute.utils.temporary import is_running

_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)
"""What ``flock`` reports on a file system that has no locks."""

_held: set[Path] = set()
"""The lock files of this process."""


class Owner(Record):
    """The content of a lock file.

    Attributes:
        host: Name of the machine.
        process: Number of the process.
        boot: Id of the machine's current boot, the same in all its containers; may be empty.
        since: Local time at which the lock was taken.
    """

    host: str
    process: int
    boot: str
    since: str

    @classmethod
    def of_this_process(cls) -> "Owner":
        """Describe this process."""
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        return cls(host=platform.node(), process=os.getpid(), boot=_boot(), since=since)

    def __str__(self) -> str:
        return f"process {self.process} on {self.host} (since {self.since})"


@contextmanager
def owned(file: Path, what: str) -> Iterator[None]:
    """Hold the lock ``file`` during the block; blocks of one process for one file may be nested.

    What a dead process of this machine left is taken over. Of several processes of one program,
    only the first may call this::

        with owned(folder / ".lock", f"the run folder {folder}"):
            ...

    Args:
        file: The lock file. Its folder exists; a folder that is itself replaced needs the lock
            beside it, not in it.
        what: What is locked, for messages: ``"the model runs/model"``.

    Raises:
        UserError: Another process has the lock (the message names it), or the file cannot be
            written.
    """
    file = Path(os.path.abspath(file))
    if file in _held:
        yield
        return
    with disk_errors(file):
        descriptor = _acquire(file, what)
    _held.add(file)
    try:
        yield
    finally:
        _held.discard(file)
        _release(descriptor, file)


@contextmanager
def serialised(file: Path) -> Iterator[None]:
    """Hold the lock ``file`` during the block, waiting for the processes that hold it before.

    It is for blocks that take milliseconds. The kernel releases the lock of a killed process, and
    the next block deletes its file. Where the file system has no locks, the block runs at once.

    Args:
        file: The lock file. Its folder exists.

    Raises:
        UserError: The system refuses to write the file.
    """
    while True:
        with disk_errors(file):
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                os.close(descriptor)
                raise
            break
        if _is_at(descriptor, file):
            break
        os.close(descriptor)  # its owner deleted it in between
    try:
        yield
    finally:
        _release(descriptor, file)


def _release(descriptor: int, file: Path) -> None:
    """Give a lock back; a file that cannot be deleted is taken over by the next owner."""
    try:
        if _is_at(descriptor, file):
            file.unlink(missing_ok=True)
    except OSError:
        pass
    finally:
        os.close(descriptor)


def _acquire(file: Path, what: str) -> int:
    """Take the lock and write this process into it; return the open file."""
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            locks = _flock(descriptor, what)
            if not _is_at(descriptor, file):  # its owner deleted it in between
                os.close(descriptor)
                continue
            _refuse_living(_read(descriptor), file, what, locks=locks)
            text = json.dumps(Owner.of_this_process().model_dump()) + "\n"
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, text.encode(), 0)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor


def _flock(descriptor: int, what: str) -> bool:
    """Lock an open file; return whether its file system has locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = _read(descriptor) or "another process"
        raise UserError(
            f"{what} is being written by {owner}; wait until that ends, or choose another"
        ) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return False
    return True


def _refuse_living(owner: Owner | None, file: Path, what: str, *, locks: bool) -> None:
    """Raise a ``UserError`` if the owner that a file names may still be running."""
    if owner is None:
        return
    here = Owner.of_this_process()
    if owner.boot == here.boot != "" or owner.host == here.host:
        rebooted = owner.boot != here.boot
        if locks or rebooted or owner.process == here.process or not is_running(owner.process):
            return
        raise UserError(
            f"{what} is being written by {owner}; wait until that ends, or choose another"
        )
    raise UserError(
        f"{what} was being written by {owner}, another machine, which cannot be seen from here; "
        f"if that process has ended, delete {file} and give the command again"
    )


def _read(descriptor: int) -> Owner | None:
    """Return the owner that a lock file names, if it names one."""
    try:
        return parse_json(os.pread(descriptor, 4096, 0), Owner, "", "")
    except UserError:  # its owner was killed before it wrote its name
        return None


def _is_at(descriptor: int, file: Path) -> bool:
    """Return whether an open file is the one that has a path now."""
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:
        return False


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
