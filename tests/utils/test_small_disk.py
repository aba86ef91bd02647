"""Every kind of file on a disk that is really full: one sentence, nothing left, then it goes on."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jroute.checkpoint import load_state, save_state
from jroute.checkpoint.arrays import write_tree
from jroute.observe.scalars import Scalars, read_curves
from jroute.outcomes.table import OutcomeTable
from jroute.utils.errors import UserError
from jroute.utils.files import write_json
from jroute.utils.together import clean_tree, written_together
from tests.outcomes.test_table import cell

ROOM = "size=4m,nr_inodes=1000"
FULL = ("size=16k,nr_inodes=1000", "size=4m,nr_inodes=4")


def mount(folder: Path, options: str) -> None:
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)],
        check=True,
        capture_output=True,
    )


@pytest.fixture(params=FULL, ids=["bytes", "inodes"])
def disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A small disk; ``mount(disk, "remount,…")`` makes room."""
    try:
        mount(tmp_path, request.param)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this process may not mount file systems")
    yield tmp_path
    subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def write_state(folder: Path) -> Any:
    tree = {"weights": np.arange(8_000.0)}
    save_state(folder / "learner", 5, tree)
    return np.array_equal(load_state(folder / "learner")[1]["weights"], tree["weights"])


def write_table(folder: Path) -> Any:
    table = OutcomeTable(folder / "outcomes", "f" * 64, {"seed": 0})
    table.append([cell(f"p{i}", completion=f"{i} {i * i}" * 500) for i in range(100)])
    return len(OutcomeTable.open(table.folder))


def write_curves(folder: Path) -> Any:
    scalars = Scalars(folder / "tensorboard")
    values = np.random.default_rng(0).normal(size=(4, 300)).astype(np.float32)
    scalars.write({f"losses/{i}": values + i for i in range(8)}, 0)
    scalars.close()
    return float(read_curves(folder / "tensorboard")[0]["losses/7"].sum())


def write_results(folder: Path) -> Any:
    with written_together(folder, "results") as partial:
        for i in range(6):
            write_json(partial / f"{i}.json", "x" * 4_000)
    return [(folder / f"{i}.json").stat().st_size for i in range(6)]


def test_only_the_first_of_many_refused_writes_is_reported(disk: Path, capfd: Any) -> None:
    """Orbax closes its event loop at the first error, and the others end after it."""
    with pytest.raises(Exception, match=r"RESOURCE_EXHAUSTED|No space left"):
        write_tree(disk / "params", [f"blocks.{i}" for i in range(12)])
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("write", [write_state, write_table, write_curves, write_results])
def test_a_full_disk(disk: Path, tmp_path_factory: Any, write: Callable[[Path], Any]) -> None:
    with pytest.raises(UserError) as caught:
        write(disk)
    text = str(caught.value)
    assert text.startswith(f"cannot write to {disk}"), text
    assert "(No space left on device; " in text and " are free there); make room and" in text
    assert ".tmp" not in text, "it names what the user knows"
    assert not [path for path in disk.rglob("*") if path.name.startswith(".")]
    mount(disk, f"remount,{ROOM}")
    elsewhere = tmp_path_factory.mktemp("roomy")
    clean_tree(disk)
    assert write(disk) == write(elsewhere)
    files = [{p.relative_to(f) for p in f.rglob("*.*")} for f in (disk, elsewhere)]
    assert {p for p in files[0] ^ files[1] if "tfevents" not in p.name} == set()
