"""The reader of NumPy's ``.npz`` files: every checksum is verified, nothing is unpickled.

``numpy.load`` reads no more of a member than its header says, so that damage to a header can hide
the damage from the checksum; here a member is read whole before it is parsed. Nor does ``zipfile``
count the members: damage to the list of members can hide one of them.
"""

import io
import zipfile
from pathlib import Path

import numpy as np

from jroute.utils.errors import UserError

MAX_EXPANSION = 2**33
"""Bytes to which the members of a file may expand together."""

LAST_RECORD = 22
"""Bytes of the record that ends a zip file, after which NumPy writes no comment."""


def read_arrays(file: Path, remedy: str) -> dict[str, np.ndarray]:
    """Read all arrays of an ``.npz`` file by name.

    Args:
        file: The file.
        remedy: What the user should do if the file is missing or damaged.

    Raises:
        UserError: The file is missing, cannot be read, or is damaged.
    """
    try:
        with zipfile.ZipFile(file) as members:
            if sum(member.file_size for member in members.infolist()) > MAX_EXPANSION:
                raise ValueError(f"it expands to more than {MAX_EXPANSION:,} bytes")
            if len(members.infolist()) != _stated_members(file):
                raise ValueError("its list of members is not whole")
            return {
                name.removesuffix(".npy"): _parse(members.read(name)) for name in members.namelist()
            }
    except MemoryError:
        raise
    except Exception as error:  # of zipfile, zlib and NumPy, whichever meets the damage first
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UserError(
            f"{file} is damaged or cannot be read ({reason.splitlines()[0]:.200}); {remedy}"
        ) from None


def _stated_members(file: Path) -> int:
    """Return how many members the last record of a zip file without a comment states."""
    with file.open("rb") as stream:
        stream.seek(-LAST_RECORD, io.SEEK_END)
        return int.from_bytes(stream.read()[10:12], "little")


def _parse(member: bytes) -> np.ndarray:
    stream = io.BytesIO(member)
    array = np.lib.format.read_array(stream, allow_pickle=False)
    if stream.read(1):
        raise ValueError("an array has more values than its shape")
    return array
