"""TensorBoard's event files, written where the caller waits for it.

tensorboardX's own writer hands events to a thread: on a full disk that thread ends with a
traceback, and the training waits for it for ever.
"""

import io
import os
import socket
import struct
import time
from collections.abc import Iterable
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event, SessionLog  # type: ignore[attr-defined]
from tensorboardX.record_writer import masked_crc32c

from jroute.utils.disk import disk_errors

_VERSION = "brain.Event:2"


class EventFile:
    """A file of events, ``events.out.tfevents.<seconds>.<host>``, which only grows.

    Attributes:
        file: The file; it is made with the first events.
    """

    def __init__(self, folder: Path, purge_step: int | None = None):
        """Name the file.

        Args:
            folder: Its folder, which exists.
            purge_step: TensorBoard hides what earlier files have from this step on.
        """
        self.file = folder / f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}"
        self._head = [Event(wall_time=time.time(), file_version=_VERSION)]
        if purge_step is not None:
            log = SessionLog(status=SessionLog.START)
            self._head.append(Event(wall_time=time.time(), step=purge_step, session_log=log))

    def append(self, events: Iterable[Event]) -> None:
        """Append events, all of them or none.

        Raises:
            UserError: The system refuses to write.
        """
        records = b"".join(_record(e.SerializeToString()) for e in [*self._head, *events])
        # Unbuffered: closing would write again what a full disk has refused.
        with disk_errors(self.file, len(records)), self.file.open("ab", buffering=0) as file:
            size = file.seek(0, io.SEEK_END)
            try:
                left = memoryview(records)
                while left:
                    left = left[file.write(left) :]
                os.fsync(file)
            except BaseException:
                os.truncate(self.file, size)
                raise
        self._head = []


def _record(data: bytes) -> bytes:
    """Return a record: length, its checksum, data, their checksum."""
    length = struct.pack("<Q", len(data))
    return b"".join((length, struct.pack("<I", masked_crc32c(length)), data)) + struct.pack(
        "<I", masked_crc32c(data)
    )
