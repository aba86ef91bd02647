"""A write that the system refuses is one sentence, whatever library wraps the error."""

import errno
import os
import sqlite3
from pathlib import Path

import pytest

from jroute.utils import disk, files
from jroute.utils.disk import disk_errors, refusal
from jroute.utils.errors import UserError
from tests.support import most_bytes_of_a_file

TENSORSTORE = (
    "UNKNOWN: Error writing local file \"/x/0.0\": [os_error_code='28'] No space left on device"
)
RUST = "I/O error: No space left on device (os error 28)"
ARROW = "[Errno 122] Error writing bytes to file. Detail: [errno 122] Disk quota exceeded"


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (OSError(errno.ENOSPC, "full"), errno.ENOSPC),
        (PermissionError(errno.EACCES, "no"), errno.EACCES),
        (ValueError(TENSORSTORE), errno.ENOSPC),
        (RuntimeError(RUST), errno.ENOSPC),
        (OSError(ARROW), errno.EDQUOT),
        (sqlite3.OperationalError("database or disk is full"), errno.ENOSPC),
        (sqlite3.OperationalError("attempt to write a readonly database"), errno.EROFS),
        (ExceptionGroup("several", [KeyError("x"), ValueError(TENSORSTORE)]), errno.ENOSPC),
    ],
)
def test_the_number_of_the_system_is_read_out_of_every_library(
    error: Exception, number: int
) -> None:
    direct = refusal(error)
    assert direct is not None and (direct.number, direct.reason) == (number, os.strerror(number))
    outer = RuntimeError("while saving")
    outer.__cause__ = error
    assert refusal(outer) == direct


@pytest.mark.parametrize(
    "error",
    [
        ValueError("shape is 28"),
        FileNotFoundError(errno.ENOENT, "no"),
        KeyError("No"),
        ConnectionRefusedError(errno.ECONNREFUSED, "refused"),
    ],
)
def test_other_errors_are_not_about_the_disk(error: Exception) -> None:
    assert refusal(error) is None
    if not isinstance(error, OSError):
        with pytest.raises(type(error)), disk_errors(Path("x")):
            raise error


def test_the_sentence_says_what_how_much_how_little_and_what_to_do(tmp_path: Path) -> None:
    file = tmp_path / "missing" / "results.json"
    with pytest.raises(UserError) as caught, disk_errors(file, 12_345):
        raise OSError(errno.ENOSPC, "full")
    text = str(caught.value)
    assert text.startswith(
        f"cannot write to {file} (No space left on device; it takes 12,345 bytes; "
    )
    assert text.endswith(" are free there); make room and give the same command again")
    free = os.statvfs(tmp_path)
    assert f"{free.f_bavail * free.f_frsize // 10**9}," in text or free.f_bavail == 0


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.EDQUOT, "make room and give the same command again"),
        (errno.EROFS, "choose a folder that you may write to"),
        (errno.ENAMETOOLONG, "choose a shorter name"),
        (errno.ENOTDIR, "choose another path, or move away what is in the way"),
        (errno.EIO, "check the disk, then give the same command again"),
        (errno.ENOENT, "choose another path"),
    ],
)
def test_every_reason_has_its_remedy(number: int, remedy: str) -> None:
    with pytest.raises(UserError) as caught, disk_errors(Path("x")):
        raise OSError(number, os.strerror(number))
    details, _, last = str(caught.value).rpartition("); ")
    assert last == remedy
    assert details.startswith(f"cannot write to x ({os.strerror(number)}")


def test_a_refused_write_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    files.write_text(file, "old")
    with most_bytes_of_a_file(1000), pytest.raises(UserError, match="it takes 2,003 bytes"):
        files.write_json(file, "x" * 2000)
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_name_may_have_255_bytes_and_no_more(tmp_path: Path) -> None:
    file = tmp_path / ("n" * 250 + ".json")
    files.write_json(file, 1)
    assert file.read_text() == "1\n"
    with pytest.raises(UserError, match=r"File name too long.*choose a shorter name"):
        files.write_json(tmp_path / ("n" * 256), 1)
    assert list(tmp_path.iterdir()) == [file]


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match="move away what is in the way"):
            disk.make_folder(folder)
