"""What killed processes leave is taken away, and what living ones write is not."""

import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from jroute.utils import temporary
from jroute.utils.temporary import HIDDEN, PARTIAL, REPLACED

HOST = platform.node()


@pytest.fixture(scope="module")
def dead() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.fixture(scope="module")
def living() -> Iterator[int]:
    """The number of a process that runs meanwhile."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process.pid
    process.communicate(b"\n")


def named(form: str, name: str, process: int, host: str = HOST, *, start: int | None = -1) -> str:
    """A temporary name; without ``start`` as earlier versions made it."""
    token = str(process)
    if start is not None:
        started = temporary.start_of(process) or 0 if start == -1 else start
        token = f"{process}-{started}-{os.stat('/proc/self/ns/pid').st_ino}"
    return form.format(name=name, host=host, process=token)


def make(folder: Path, names: list[str], *, age: float = 0.0) -> list[Path]:
    for name in names:
        (folder / name).mkdir()
        (folder / name / "old.json").write_text("{}")
        for path in (folder / name / "old.json", folder / name):
            os.utime(path, (time.time() - age, time.time() - age))
    return [folder / name for name in names]


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_names_say_machine_process_its_start_and_its_container(tmp_path: Path) -> None:
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    owner = f"{HOST}.{os.getpid()}-{fields[19]}-{os.stat('/proc/self/ns/pid').st_ino}"
    dashed = owner.replace(f"{HOST}.", f"{HOST}-")
    assert [
        temporary.temporary_path(tmp_path / "model", form).name
        for form in (HIDDEN, PARTIAL, REPLACED)
    ] == [
        f".model.{owner}.tmp",
        f"model.partial-{dashed}",
        f"model.partial-{dashed}.replaced",
    ]


@pytest.mark.parametrize("form", [HIDDEN, PARTIAL])
@pytest.mark.parametrize("name", ["model", "v1.0 [a]", "n" * 250, "ü" * 120])
def test_only_what_the_dead_left_is_a_leftover(
    tmp_path: Path, dead: int, living: int, form: str, name: str
) -> None:
    short = temporary._short(name)
    kept = [
        named(form, short, living),
        named(form, short, living, start=None),
        named(form, short, os.getpid()),
        named(form, short, dead, host=f"not-{HOST}"),
        named(form, f"other-{short}"[:130], dead),
        "unrelated",
    ]
    gone = [
        named(form, short, dead),
        named(form, short, dead, start=None),
        named(form, short, living, start=12345),  # a later process has the number
        named(form, short, os.getpid(), start=12345),
    ]
    make(tmp_path, [*kept, *gone])
    temporary.remove_leftovers(tmp_path, name)
    assert names_in(tmp_path) == set(kept)
    temporary.remove_leftovers(tmp_path)
    assert names_in(tmp_path) == set(kept) - {named(form, f"other-{short}"[:130], dead)}
    temporary.remove_leftovers(tmp_path / "missing")


def test_a_number_that_was_given_again_is_seen_in_old_names_too(
    tmp_path: Path, living: int
) -> None:
    paths = make(tmp_path, [named(HIDDEN, "a", living, start=None)], age=3600)
    assert temporary.leftovers(tmp_path) == paths


def test_what_another_machine_or_container_left_goes_after_a_quiet_day(
    tmp_path: Path, living: int
) -> None:
    elsewhere = named(HIDDEN, "a", living, host="elsewhere")
    contained = HIDDEN.format(name="b", host=HOST, process=f"{living}-1-77")
    make(tmp_path, [elsewhere, contained], age=temporary.QUIET_SECONDS - 60)
    assert temporary.leftovers(tmp_path) == []
    for name in (elsewhere, contained):
        for path in (tmp_path / name / "old.json", tmp_path / name):
            os.utime(path, (0, 0))
    assert len(temporary.leftovers(tmp_path)) == 2
    (tmp_path / elsewhere / "new.json").write_text("{}")  # it still writes
    assert [path.name for path in temporary.leftovers(tmp_path)] == [contained]


def test_leftovers_of_earlier_versions_go_too(tmp_path: Path, dead: int) -> None:
    kept = ["results.json", ".gitignore", "a-folder", f".results.json.partial-{os.getppid()}"]
    gone = [f".results.json.partial-{dead}", f".0123abcd.json.partial-{dead}"]
    make(tmp_path, [*kept, *gone])
    temporary.remove_leftovers(tmp_path)
    assert names_in(tmp_path) == set(kept)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc")
def test_an_earlier_folder_of_lm_eval_waits_for_a_command_that_may_have_made_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", "input()", "scripts/lm_eval_jax.py"], stdin=subprocess.PIPE
    )
    monkeypatch.setattr(temporary, "_CLOCK_STEP", 0)
    name, folder = ".fixed_0.5-k3_x9abc", tmp_path / "lm_eval"
    path = folder / name
    path.mkdir(parents=True)
    os.utime(path, (0, 0))  # older than every such command of this test run
    try:
        assert temporary.leftovers(folder) == [], "this is not the folder of a run"
        (tmp_path / "config.yaml").write_text("")
        assert temporary.leftovers(folder) == [path]
        os.utime(path)
        assert temporary.leftovers(folder) == []
        (path / "notes.txt").write_text("")
        os.utime(path, (0, 0))
        assert temporary.leftovers(folder) == [], "somebody else's"
    finally:
        process.communicate(b"\n")


def test_folders_of_users_beside_results_survive(tmp_path: Path, dead: int) -> None:
    users = [".vscode-insiders", ".config-obsolete", ".venv-backup01", "5.orbax-checkpoint-tmp"]
    others = [named(form, "other", dead) for form in (HIDDEN, PARTIAL, REPLACED)]
    make(tmp_path, [*users, *others, named(PARTIAL, "model", dead), f".model.partial-{dead}"])
    temporary.remove_leftovers(tmp_path, "model")
    assert names_in(tmp_path) == {*users, *others}
    for name in users[:3]:
        assert tmp_path / name not in temporary.leftovers(tmp_path)


def test_orbax_folders_go_when_nobody_else_writes_there(tmp_path: Path) -> None:
    names = ["50.orbax-checkpoint-tmp", "state.orbax-checkpoint-tmp-1712345678901"]
    paths = make(tmp_path, names)
    assert temporary.leftovers(tmp_path) == []
    assert temporary.leftovers(tmp_path, alone=True) == paths
    for path in (paths[0] / "old.json", paths[0]):
        os.utime(path, (0, 0))
    assert temporary.leftovers(tmp_path) == paths[:1]


def test_what_another_process_moves_meanwhile_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Orbax renames its folders while another command looks for leftovers."""
    state = tmp_path / "50.orbax-checkpoint-tmp-0" / "state"
    (state / "d").mkdir(parents=True)
    scan = os.scandir

    def gone_before_it_is_read(path="."):
        if str(path) == str(state):
            shutil.rmtree(state, ignore_errors=True)
        return scan(path)

    monkeypatch.setattr(os, "scandir", gone_before_it_is_read)
    assert temporary.leftovers(tmp_path) == []
    assert not state.exists()


@pytest.mark.parametrize("newer", ["", "manifest.json", "notes.txt"])
def test_a_folder_that_was_set_aside_gets_its_name_back(
    tmp_path: Path, dead: int, newer: str
) -> None:
    (earlier, _) = make(tmp_path, [named(REPLACED, "model", dead), named(PARTIAL, "model", dead)])
    if newer:
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / newer).write_text("{}")
    temporary.remove_leftovers(tmp_path, "model")
    kept = {"model", earlier.name} if newer == "notes.txt" else {"model"}
    assert names_in(tmp_path) == kept, "only a newer model replaces it"
    assert names_in(tmp_path / "model") == {newer or "old.json"}


def test_a_temporary_folder_is_deleted_in_the_end(tmp_path: Path, dead: int) -> None:
    make(tmp_path, [named(HIDDEN, "arm", dead), named(HIDDEN, "arm", os.getpid(), start=12345)])
    with pytest.raises(KeyboardInterrupt), temporary.temporary_folder(tmp_path / "arm") as folder:
        assert list(tmp_path.iterdir()) == [folder] and not list(folder.iterdir())
        (folder / "new.json").write_text("{}")
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
