"""Locks of run folders and model directories."""

import errno
import json
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jroute.utils import locks
from jroute.utils.errors import UserError
from jroute.utils.locks import owned

HOLD = """
import sys
from pathlib import Path
from jroute.utils.locks import owned
with owned(Path(sys.argv[1]), "the run"):
    print("ready", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def file(tmp_path):
    return tmp_path / ".lock"


@pytest.fixture
def other(file):
    """Another process that holds the lock until its input ends."""
    arguments = [sys.executable, "-c", HOLD, str(file)]
    process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    yield process
    process.kill()
    process.communicate()


def _write_owner(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(locks.Owner.of_this_process().model_dump() | changes))


def test_another_process_is_named_until_it_ends(file, other):
    with pytest.raises(UserError) as refusal, owned(file, "the run"):
        pass
    message = str(refusal.value)
    assert f"the run is being written by process {other.pid} on {platform.node()}" in message
    other.communicate("")  # it releases the lock
    assert not file.exists()
    with owned(file, "the run"):
        assert json.loads(file.read_text())["process"] == os.getpid()
    assert not file.exists()


def test_the_lock_of_a_killed_process_is_taken_over(file, other):
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert file.exists()
    with owned(file, "the run"):
        assert json.loads(file.read_text())["process"] == os.getpid()
    assert not file.exists()


def test_blocks_of_one_process_may_be_nested(file):
    with owned(file, "the run"):
        with owned(file.parent / "." / ".lock", "the run"):
            pass
        assert file.exists()
    assert not file.exists()


def test_the_lock_is_released_by_an_error(file):
    with pytest.raises(ZeroDivisionError), owned(file, "the run"):
        raise ZeroDivisionError
    with owned(file, "the run"):
        pass


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b'{"host": 3}', b"x" * 5000])
def test_a_lock_that_names_nobody_is_taken_over(file, content):
    file.write_bytes(content)
    with owned(file, "the run"):
        assert json.loads(file.read_text())["process"] == os.getpid()


def test_another_machine_is_refused_with_the_file_to_delete(file):
    _write_owner(file, host="node7", boot="another", process=31)
    with pytest.raises(UserError, match=rf"process 31 on node7 .* delete {file} and"):
        owned(file, "the run").__enter__()
    assert json.loads(file.read_text())["host"] == "node7"  # a refusal changes nothing
    file.unlink()
    with owned(file, "the run"):
        pass


@pytest.mark.parametrize("change", [{"host": "container"}, {"boot": "an earlier one"}])
def test_a_dead_container_or_an_earlier_boot_of_this_machine_is_taken_over(file, change):
    _write_owner(file, process=1, **change)
    with owned(file, "the run"):
        pass


def test_without_flock_the_number_of_the_process_decides(file, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    _write_owner(file, process=os.getppid())
    with pytest.raises(UserError, match=f"process {os.getppid()} on"):
        owned(file, "the run").__enter__()
    process = subprocess.Popen(["true"])
    process.wait()
    _write_owner(file, process=process.pid)
    with owned(file, "the run"):
        pass


def test_a_folder_that_cannot_hold_the_lock_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"cannot write to .*/missing/.lock \(No such file"):
        owned(tmp_path / "missing" / ".lock", "the run").__enter__()
    with pytest.raises(UserError, match=r"cannot write to .* \(Is a directory"):
        owned(tmp_path, "the run").__enter__()
