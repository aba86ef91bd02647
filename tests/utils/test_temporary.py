"""What killed processes leave is deleted, and what living ones write is not."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from jroute.utils import temporary
from jroute.utils.temporary import HIDDEN, PARTIAL, REPLACED


@pytest.fixture(scope="module")
def dead() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def named(form: str, name: str, process: int, host: str = platform.node()) -> str:
    return form.format(name=name, host=host, process=process)


def test_the_names_on_disk_are_frozen(tmp_path: Path) -> None:
    host, process = platform.node(), os.getpid()
    assert [
        temporary.temporary_path(tmp_path / "model", form).name
        for form in (HIDDEN, PARTIAL, REPLACED)
    ] == [
        f".model.{host}.{process}.tmp",
        f"model.partial-{host}-{process}",
        f"model.partial-{host}-{process}.replaced",
    ]


@pytest.mark.parametrize("form", [HIDDEN, PARTIAL, REPLACED])
@pytest.mark.parametrize("name", ["model", "v1.0 [a]"])
def test_only_what_the_dead_left_is_abandoned(
    tmp_path: Path, dead: int, form: str, name: str
) -> None:
    kept = [
        named(form, name, os.getppid()),
        named(form, name, dead, host=f"not-{platform.node()}"),
        named(form, f"other-{name}", dead),
        *(named(each, name, dead) for each in (HIDDEN, PARTIAL, REPLACED) if each != form),
        name,
    ]
    for each in (*kept, named(form, name, dead), named(form, name, os.getpid())):
        (tmp_path / each).mkdir()
    earlier, own = tmp_path / named(form, name, dead), tmp_path / named(form, name, os.getpid())
    assert temporary.abandoned(tmp_path, name, form) == [earlier]
    assert set(temporary.abandoned(tmp_path, name, form, reused=True)) == {earlier, own}
    temporary.remove_abandoned(tmp_path, name, form, reused=True)
    assert {path.name for path in tmp_path.iterdir()} == set(kept)
    assert temporary.abandoned(tmp_path / "missing", name, form) == []


def test_a_temporary_folder_is_deleted_in_the_end(tmp_path: Path, dead: int) -> None:
    for process in (dead, os.getpid()):
        (tmp_path / named(HIDDEN, "arm", process)).mkdir()
        (tmp_path / named(HIDDEN, "arm", process) / "old.json").write_text("{}")
    with pytest.raises(KeyboardInterrupt), temporary.temporary_folder(tmp_path / "arm") as folder:
        assert list(tmp_path.iterdir()) == [folder] and not list(folder.iterdir())
        (folder / "new.json").write_text("{}")
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
