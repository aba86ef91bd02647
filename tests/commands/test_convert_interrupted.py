"""Conversions that are killed, that run out of disk, and what the next one makes of the rest."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jroute import convert
from jroute.checkpoint import conversion, load_model, model_fingerprint, writer
from jroute.utils.disk import disk_errors
from jroute.utils.errors import UserError
from tests.converters.tiny import COMPANIONS, CONFIG, random_tensors, write_source

ROOT = Path(__file__).parent.parent.parent
ARRAYS = 14

SERVER = """
import importlib, json, os, signal, sys, time
from jroute import convert

def hang_in(module, name, before):
    owner, calls = importlib.import_module(module), 0
    *parents, last = name.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    original = getattr(owner, last)
    def hang(*args, **options):
        nonlocal calls
        calls += 1
        if calls > before:
            print(os.getpid(), flush=True)
            time.sleep(600)
        return original(*args, **options)
    setattr(owner, last, hang)

signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # whoever is killed is gone at once
for line in sys.stdin:
    if os.fork() == 0:
        *where, arguments = json.loads(line)
        hang_in(*where)
        convert.main(arguments)
        print("was not interrupted", flush=True)
        os._exit(1)
"""


@pytest.fixture(scope="module")
def kill_at() -> Iterator[Callable[..., None]]:
    """Converts in a process that is killed in a call of a function, after some other calls of it.

    One process imports everything once; each conversion is a fork of it.
    """
    with subprocess.Popen(
        [sys.executable, "-c", SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=ROOT,
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None

        def kill(module: str, name: str, before: int, *arguments: object) -> None:
            line = json.dumps([module, name, before, list(map(str, arguments))])
            print(line, file=server.stdin, flush=True)
            process = int(server.stdout.readline())
            os.kill(process, signal.SIGKILL)
            while Path(f"/proc/{process}").exists():
                time.sleep(0.001)

        yield kill
        server.stdin.close()


def content(folder: Path) -> dict[str, bytes]:
    """All files but the one in which Orbax notes the time."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in files
        if file.name != "_CHECKPOINT_METADATA"
    }


def visible(folder: Path) -> list[Path]:
    """All entries of a folder, in order, but the lock that a killed process leaves."""
    entries = sorted(folder.iterdir())
    assert [entry.name for entry in entries if entry.name.startswith(".")] == [".model.lock"]
    return entries[1:]


def arrays_in(partial: Path) -> int:
    return len(list((partial / "params").glob("*/zarr.json")))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "hf"
    return write_source(folder, CONFIG, random_tensors(CONFIG), shards=2)


@pytest.fixture(scope="module")
def whole(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a conversion gives that nobody interrupts."""
    out = tmp_path_factory.mktemp("whole") / "model"
    conversion.convert(str(source), out)
    return out


def no_tree(partial: Path) -> bool:
    return list(partial.iterdir()) == []


def empty_tree(partial: Path) -> bool:
    return (partial / "params" / "_METADATA").exists() and arrays_in(partial) == 0


def few_arrays(partial: Path) -> bool:
    return arrays_in(partial) == 5


def most_arrays(partial: Path) -> bool:
    return arrays_in(partial) == ARRAYS - 1


def some_companions(partial: Path) -> bool:
    count = sum((partial / name).exists() for name in COMPANIONS)
    return arrays_in(partial) == ARRAYS and count == 2


def no_manifest(partial: Path) -> bool:
    complete = all((partial / name).exists() for name in COMPANIONS)
    return complete and not (partial / "manifest.json").exists()


def unnamed(partial: Path) -> bool:
    return (partial / "manifest.json").exists()


@pytest.mark.parametrize(
    ("module", "name", "before", "midway"),
    [
        ("jroute.checkpoint.arrays", "write_tree", 0, no_tree),
        ("jroute.checkpoint.arrays", "create", 0, empty_tree),
        ("jroute.checkpoint.arrays", "create", 5, few_arrays),
        ("jroute.checkpoint.arrays", "create", ARRAYS - 1, most_arrays),
        ("shutil", "copyfile", 3, some_companions),  # the first is config.json
        ("jroute.checkpoint.writer", "sync_tree", 0, no_manifest),
        ("jroute.checkpoint.staging", "Staging.publish", 0, unnamed),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_killed_at_any_moment(
    source: Path, whole: Path, tmp_path: Path, kill_at, module: str, name: str, before: int, midway
) -> None:
    out = tmp_path / "out" / "model"
    kill_at(module, name, before, "--source", source, "--out", out)
    (partial,) = visible(out.parent)
    assert midway(partial)  # the proof that it was just there
    with pytest.raises(UserError, match="no model directory"):
        load_model(out)
    if midway is not unnamed:  # which is whole
        with pytest.raises(UserError, match="not a finished jroute model"):
            load_model(partial)
    living = partial.with_name(f"{partial.name.rpartition('-')[0]}-{os.getppid()}")
    living.mkdir()  # as of a conversion that still runs
    assert convert.main(["--source", str(source), "--out", str(out)]) == 0
    assert {entry.name for entry in out.parent.iterdir()} == {"model", living.name}
    assert content(out) == content(whole)
    assert model_fingerprint(out) == model_fingerprint(whole)


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """Another model, where the new one is to stand."""
    other = write_source(tmp_path / "hf", CONFIG, random_tensors(CONFIG, seed=1))
    conversion.convert(str(other), tmp_path / "out" / "model")
    return tmp_path / "out" / "model"


def test_killed_between_the_two_renames_of_a_replacement(
    source: Path, whole: Path, earlier: Path, kill_at
) -> None:
    before = content(earlier)
    # Orbax renames once, and the earlier model is renamed before the new one.
    kill_at("os", "rename", 2, "--source", source, "--out", earlier, "--overwrite")
    new, old = visible(earlier.parent)
    assert not earlier.exists()
    assert content(old) == before
    assert content(new) == content(whole)
    with pytest.raises(UserError, match=rf"the model that stood there is now .*{old.name}"):
        load_model(earlier)
    # Without --overwrite the next one puts the earlier model back, and refuses.
    arguments = ["--source", str(source), "--out", str(earlier)]
    assert convert.main(arguments) == 2
    assert [entry.name for entry in earlier.parent.iterdir()] == ["model"]
    assert content(earlier) == before
    assert convert.main([*arguments, "--overwrite"]) == 0
    assert content(earlier) == content(whole)
    assert [entry.name for entry in earlier.parent.iterdir()] == ["model"]


def test_killed_after_the_renames_of_a_replacement(
    source: Path, whole: Path, earlier: Path, kill_at
) -> None:
    # Orbax's placeholders go first.
    kill_at("shutil", "rmtree", ARRAYS, "--source", source, "--out", earlier, "--overwrite")
    assert len(visible(earlier.parent)) == 2
    assert content(earlier) == content(whole)
    assert convert.main(["--source", str(source), "--out", str(earlier)]) == 0
    assert [entry.name for entry in earlier.parent.iterdir()] == ["model"]
    assert content(earlier) == content(whole)


def test_a_model_that_was_set_aside_is_not_thrown_away_for_foreign_files(
    source: Path, earlier: Path, kill_at
) -> None:
    before = content(earlier)
    kill_at("os", "rename", 2, "--source", source, "--out", earlier, "--overwrite")
    earlier.mkdir()
    (earlier / "note.txt").write_text("mine")
    assert convert.main(["--source", str(source), "--out", str(earlier)]) == 2
    (old,) = (entry for entry in earlier.parent.iterdir() if entry != earlier)
    assert content(old) == before
    (earlier / "note.txt").unlink()
    assert convert.main(["--source", str(source), "--out", str(earlier)]) == 2
    assert content(earlier) == before


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
from jroute import convert
sys.exit(convert.main(sys.argv[2:]))
"""


@pytest.mark.parametrize(("limit", "begun"), [(600, False), (20_000, True)])
def test_a_write_that_fails_half_way(tmp_path: Path, limit: int, begun: bool) -> None:
    """The system refuses it for real: no file may grow beyond the limit."""
    config = dataclasses.replace(CONFIG, hidden_size=48, intermediate_size=96)
    source = write_source(tmp_path / "hf", config, random_tensors(config))
    out = tmp_path / "out" / "model"
    command = [sys.executable, "-c", LIMITED, str(limit), "--source", str(source)]
    done = subprocess.run(
        [*command, "--out", str(out)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    *before, last = done.stderr.strip().splitlines()
    assert re.fullmatch(
        rf"error: cannot write to {out.parent} \(File too large; it takes [\d,]+ bytes; "
        r"[\d,]+ bytes and [\d,]+ files are free there\); make room or choose another --out",
        last,
    )
    assert bool(before) == begun
    assert all(line.startswith("convert: ") for line in before)  # progress; no library's word
    assert list(out.parent.iterdir()) == []


Usage = namedtuple("Usage", "total used free")


def test_too_little_room_is_seen_before_anything_is_written(
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out" / "deep" / "model"
    needed = writer.disk_bytes(
        CONFIG, "float32", [source / n for n in ("config.json", *COMPANIONS)]
    )
    free = needed - 1
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9 - free, free))
    arguments = ["--source", str(source), "--out", str(out)]
    assert convert.main(arguments) == 2
    error = capsys.readouterr().err
    assert error == (
        f"error: {out} needs {needed:,} bytes of disk and {free:,} are free there; "
        "make room or choose another --out\n"
    )
    assert list(tmp_path.iterdir()) == []
    assert convert.main([*arguments, "--dry-run"]) == 2
    printed = capsys.readouterr().out
    assert f"would refuse: {out} needs {needed:,} bytes" in printed
    assert "too little" in printed
    free = needed
    assert convert.main(arguments) == 0
    stored = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    assert needed - 2**20 < stored <= needed


def test_errors_that_are_no_disk_s_pass_through(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a bug"), disk_errors(tmp_path, 1):
        raise ValueError("a bug")
