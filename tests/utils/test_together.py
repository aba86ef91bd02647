"""Results of several files appear together or not at all, whenever a process is killed."""

import fcntl
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from jroute.utils import together
from jroute.utils.errors import UserError

NAMES = ("results.json", "figures/a.svg", "items.parquet")
WRITER = Path(__file__).with_name("killed_writer.py")


def fill(folder: Path, text: str) -> None:
    for name in NAMES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def read(folder: Path) -> set[str]:
    with together.settled(folder):
        return {(folder / name).read_text() for name in NAMES}


def everything(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_a_kill_at_any_change_of_the_disk_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    folders = [tmp_path / str(n) for n in range(40)]
    for folder in folders:
        fill(folder, "old")
    printed = subprocess.run([sys.executable, WRITER, *folders], stdout=subprocess.PIPE, check=True)
    codes = [int(line) for line in printed.stdout.split()]
    assert codes == sorted(codes, reverse=True) and set(codes) == {9, 0}
    states = []
    for folder in folders:
        (state,) = read(folder)
        states.append(state)
        together.clean(folder)
        assert everything(folder) == {*NAMES, "figures"}
        assert read(folder) == {state}
    assert states[0] == "old" and states[-1] == "new"
    assert states == sorted(states, reverse=True), "from one rename on they are new"
    assert states[: codes.index(0)].count("new") > 6, "files are moved one by one after it"


def test_a_block_that_raises_changes_nothing(tmp_path: Path) -> None:
    fill(tmp_path, "old")
    with (
        pytest.raises(UserError, match="cannot write to"),
        together.written_together(tmp_path, "results") as folder,
    ):
        (folder / "results.json").write_text("new")
        raise OSError(28, "No space left on device")
    assert everything(tmp_path) == {*NAMES, "figures"}
    assert read(tmp_path) == {"old"}


def test_a_writer_waits_for_a_reader_of_several_files(tmp_path: Path) -> None:
    fill(tmp_path, "old")

    def write() -> None:
        with together.written_together(tmp_path, "results") as folder:
            fill(folder, "new")

    writer = threading.Thread(target=write)
    with together.settled(tmp_path):
        first = (tmp_path / NAMES[0]).read_text()
        writer.start()
        time.sleep(0.2)
        assert {first, *((tmp_path / name).read_text() for name in NAMES)} == {"old"}
    writer.join()
    assert read(tmp_path) == {"new"}


def test_a_stopped_reader_does_not_block_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(together, "PATIENCE", 0.1)
    fill(tmp_path, "old")
    descriptor = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    with together.written_together(tmp_path, "results") as folder:
        fill(folder, "new")
    os.close(descriptor)
    assert read(tmp_path) == {"new"}


def test_a_whole_tree_is_cleaned(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "learner" / "abc"):
        complete = folder / ".results.jroute-complete" / "below"
        complete.mkdir(parents=True)
        (complete / "a.json").write_text("new")
    (tmp_path / "learner" / "abc" / ".a.json.partial-999999999").write_text("")
    together.clean_tree(tmp_path)
    assert everything(tmp_path) == {
        "below",
        "below/a.json",
        "learner",
        "learner/abc",
        "learner/abc/below",
        "learner/abc/below/a.json",
    }
