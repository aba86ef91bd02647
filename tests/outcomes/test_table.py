"""The outcome table survives kills, refuses mixtures, and never makes a cell up."""

import dataclasses
import hashlib
import json
import os
import platform
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jroute.outcomes import table as module
from jroute.outcomes.backends import TableBackend
from jroute.outcomes.outcome import Outcome, Provenance
from jroute.outcomes.replicates import NoiseFloor
from jroute.outcomes.table import ConflictingOutcome, MissingOutcome, OutcomeTable
from jroute.tasks.problem import Problem
from jroute.utils.errors import UserError
from jroute.utils.fingerprint import semantic_fingerprint
from jroute.utils.keys import Keys, keys

DESCRIPTION = {"model": "abc", "decoding": {"temperature": 0.0, "stop": ("\n\n",)}, "dtype": "f32"}
FINGERPRINT = semantic_fingerprint(DESCRIPTION)


def cell(problem_id: str = "p/0", gate: float = 0.5, **changes) -> Outcome:
    fields = {
        "problem_id": problem_id,
        "gate": gate,
        "sample": 0,
        "completion": f"{problem_id} at {gate}\n#### 7 — “sept” 🧮",
        "tokens": 9,
        "parsed": "7",
        "status": "ok",
        "correct": True,
        "reward": 1.0,
        "stop_reason": "end_token",
    }
    return Outcome(**(fields | changes))


def content(table: OutcomeTable) -> dict:
    return dict(table._cells)


@pytest.fixture
def empty(tmp_path) -> OutcomeTable:
    return OutcomeTable(tmp_path, FINGERPRINT, DESCRIPTION)


def test_fingerprint_is_sha256_of_canonical_json():
    text = '{"decoding":{"stop":["\\n\\n"],"temperature":0},"dtype":"f32","model":"abc"}'
    assert hashlib.sha256(text.encode()).hexdigest() == FINGERPRINT


def test_fingerprint_ignores_what_does_not_matter_and_nothing_else():
    same = {"dtype": "f32", "decoding": {"stop": ["\n\n"], "temperature": 0}, "model": "abc"}
    assert semantic_fingerprint(same) == FINGERPRINT

    @dataclasses.dataclass(frozen=True)
    class Decoding:
        stored_keys: ClassVar[Keys] = keys("temperature", "stop")

        temperature: float = 0.0
        stop: tuple[str, ...] = ("\n\n",)

    assert semantic_fingerprint({**DESCRIPTION, "decoding": Decoding()}) == FINGERPRINT
    others = [
        {**DESCRIPTION, "model": "abd"},
        {**DESCRIPTION, "decoding": {"temperature": 0.1, "stop": ("\n\n",)}},
        {**DESCRIPTION, "decoding": {"temperature": 0.0, "stop": "\n\n"}},
        {**DESCRIPTION, "extra": None},
        {"model": "abc", "dtype": "f32"},
    ]
    assert len({FINGERPRINT, *map(semantic_fingerprint, others)}) == 1 + len(others)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), Path("x"), {1: 2}, object()])
def test_fingerprint_refuses_what_has_no_stable_text(value):
    with pytest.raises(TypeError, match="fingerprint"):
        semantic_fingerprint({"model": value})


def test_folder_is_named_by_the_fingerprint_and_describes_itself(empty, tmp_path):
    assert empty.folder == tmp_path / FINGERPRINT
    assert not empty.folder.exists() and len(empty) == 0  # looking makes nothing
    empty.append([cell()])
    card = json.loads((empty.folder / "_table.json").read_text())
    assert card["fingerprint"] == FINGERPRINT
    assert card["description"]["decoding"] == {"temperature": 0, "stop": ["\n\n"]}
    assert semantic_fingerprint(card["description"]) == FINGERPRINT


def test_every_field_comes_back_from_disk(empty):
    written = [
        cell("p/0", 0.0),
        cell("p/0", 0.1, completion="", tokens=0, parsed="", status="no_answer", correct=False),
        cell("p/1", -0.25, reward=-0.01, correct=False, status="truncated", stop_reason="length"),
        cell("p/1", -0.25, sample=3, parsed="7/2", reward=1.05),
    ]
    empty.append(written[:1])
    empty.append(written[1:])
    reopened = OutcomeTable.open(empty.folder)
    assert len(reopened) == 4
    assert (reopened.fingerprint, reopened.description) == (FINGERPRINT, empty.description)
    assert reopened.outcome("p/0", 0.0) == empty.outcome("p/0", 0.0) == written[0]
    assert reopened.outcome("p/0", 0.1) == written[1]
    assert reopened.outcome("p/1", -0.25) == written[2]
    assert reopened.outcome("p/1", -0.25, sample=3) == written[3]


def test_missing_names_the_cells_that_are_not_there(empty):
    empty.append([cell("a", 0.0), cell("b", 1.0), cell("a", 1.0, sample=1)])
    expected = [("a", 1.0), ("b", 0.0), ("c", 0.0), ("c", 1.0)]
    assert empty.missing(["a", "b", "c"], [0.0, 1.0]) == expected
    assert empty.missing(["a"], [0.0, 1.0], sample=1) == [("a", 0.0)]
    assert OutcomeTable.open(empty.folder).missing(["a", "b", "c"], [0.0, 1.0]) == expected


def test_matrix_has_problems_down_and_gates_across(empty):
    rewards = {("a", 0.0): 0.25, ("a", 1.0): 1.0, ("b", 0.0): -0.5, ("b", 1.0): 0.75}
    empty.append(
        cell(name, gate, reward=value, correct=value > 0.5)
        for (name, gate), value in rewards.items()
    )
    paid = empty.matrix(["b", "a", "b"], [1.0, 0.0], "reward")
    assert paid.dtype == np.float64
    np.testing.assert_array_equal(paid, [[0.75, -0.5], [1.0, 0.25], [0.75, -0.5]])
    np.testing.assert_array_equal(empty.matrix(["a", "b"], [0.0, 1.0]), [[0, 1], [0, 1]])
    assert empty.matrix([], [0.0, 1.0]).shape == (0, 2)


def test_a_missing_cell_raises_and_names_itself(empty):
    empty.append([cell("gsm8k/test/17", 0.25)])
    with pytest.raises(MissingOutcome, match=r"'gsm8k/test/17' at gate 0\.75 "):
        empty.outcome("gsm8k/test/17", 0.75)
    with pytest.raises(MissingOutcome, match=r"'gsm8k/test/18' at gate 0\.25 "):
        empty.matrix(["gsm8k/test/17", "gsm8k/test/18"], [0.25], "reward")
    with pytest.raises(MissingOutcome, match="sample 1"):
        empty.outcome("gsm8k/test/17", 0.25, sample=1)
    problem = Problem(id="gsm8k/test/17", question="?", answer="7")
    with pytest.raises(MissingOutcome, match=r"gate 0\.5 "):
        TableBackend(empty).outcomes([problem, problem], [0.25, 0.5])


def test_identical_duplicates_collapse(empty, tmp_path):
    other = OutcomeTable(tmp_path, FINGERPRINT, DESCRIPTION)  # another process, say
    empty.append([cell("a"), cell("a"), cell("b")])
    empty.append([cell("a")])
    assert len(empty) == 2
    assert len(list(empty.folder.glob("part-*"))) == 1
    other.append([cell("b"), cell("c")])
    assert len(list(empty.folder.glob("part-*"))) == 2
    assert set(content(OutcomeTable.open(empty.folder))) == {(n, 0.5, 0) for n in "abc"}


def test_conflicting_duplicates_raise_and_leave_nothing(empty, tmp_path):
    other = OutcomeTable(tmp_path, FINGERPRINT, DESCRIPTION)
    empty.append([cell("a", reward=1.0)])
    before = sorted(empty.folder.iterdir())
    for clash in ([cell("b"), cell("a", reward=0.0)], [cell("b"), cell("b", tokens=8)]):
        with pytest.raises(ConflictingOutcome, match=r"differ in (reward|tokens) "):
            empty.append(clash)
    assert sorted(empty.folder.iterdir()) == before
    assert len(empty) == 1
    clash = cell("a", reward=0.0, correct=False)
    with pytest.raises(ConflictingOutcome, match=r"'a' at gate 0\.5 .* correct, reward "):
        other.append([clash])  # which another process has filed in the meantime
    assert sorted(empty.folder.iterdir()) == before
    elsewhere = OutcomeTable(tmp_path / "elsewhere", FINGERPRINT, DESCRIPTION)
    elsewhere.append([clash])
    [part] = elsewhere.folder.glob("part-*")
    (empty.folder / part.name).write_bytes(part.read_bytes())
    with pytest.raises(ConflictingOutcome, match=r"'a' at gate 0\.5 .* correct, reward .*part-"):
        OutcomeTable.open(empty.folder)


@pytest.mark.parametrize("changes", [{"reward": float("nan")}, {"gate": float("inf")}])
def test_numbers_that_are_none_are_refused(empty, changes):
    with pytest.raises(ValueError, match="finite"):
        empty.append([cell(**changes)])
    assert len(empty) == 0


def test_two_fingerprints_never_mix(empty, tmp_path):
    empty.append([cell("a")])
    other = semantic_fingerprint({**DESCRIPTION, "model": "other"})
    table = OutcomeTable(tmp_path, other, {"model": "other"})
    assert len(table) == 0
    table.append([cell("b")])

    [part] = empty.folder.glob("part-*")
    (table.folder / part.name).write_bytes(part.read_bytes())
    with pytest.raises(UserError, match=rf"{part.name} was made under fingerprint {FINGERPRINT}"):
        OutcomeTable.open(table.folder)

    empty.folder.rename(tmp_path / "renamed")
    with pytest.raises(UserError, match=f"of fingerprint {FINGERPRINT}, not of renamed"):
        OutcomeTable(tmp_path, "renamed", {})


MADE = Provenance('{"slots": 8}', '{"jax": "0"}', "1 x device", 0.25)


def test_how_a_cell_was_made_stands_beside_what_it_says(empty, tmp_path):
    """Provenance comes back, and is no reason for a conflict; what a cell says is one."""
    other = OutcomeTable(tmp_path, FINGERPRINT, DESCRIPTION)
    empty.append([cell("a", logprob=-1.5, made=MADE), cell("b")])
    again = dataclasses.replace(MADE, execution='{"slots": 4}', seconds=9.0)
    other.append([cell("a", logprob=-1.500001, made=again), cell("c", made=again)])
    merged = OutcomeTable.open(empty.folder)
    assert set(content(merged)) == {(name, 0.5, 0) for name in "abc"}
    assert merged.outcome("c", 0.5).made == again
    assert merged.outcome("b", 0.5).made is None and merged.outcome("b", 0.5).logprob is None
    assert OutcomeTable(tmp_path, FINGERPRINT, {}).outcome("a", 0.5).logprob in (-1.5, -1.500001)
    # Processes that make the same cells write the same file.
    third = OutcomeTable(tmp_path / "third", FINGERPRINT, DESCRIPTION)
    third.append([cell("a", made=again), cell("b", made=MADE)])
    names = {path.name for path in empty.folder.glob("part-*")}
    assert {path.name for path in third.folder.glob("part-*")} <= names


def test_others_parts_are_taken_in_on_refresh(empty, tmp_path):
    other = OutcomeTable(tmp_path, FINGERPRINT, DESCRIPTION)
    empty.append([cell("a")])
    assert other.missing(["a", "b"], [0.5]) == [("a", 0.5), ("b", 0.5)]
    other.refresh()
    assert other.missing(["a", "b"], [0.5]) == [("b", 0.5)]
    other.append([cell("b")])
    empty.refresh()
    assert empty.cells() == [cell("a"), cell("b")]


def test_the_folder_as_it_stands_is_a_parquet_dataset(empty):
    """Pandas reads the cells and nothing else: no card, no replicates, no half-written part."""
    pandas = pytest.importorskip("pandas")
    empty.append([cell("a", 0.0, logprob=-2.0, made=MADE), cell("b", 1.0)])
    empty.append([cell("c", 0.0, tokens=4)])
    empty.add_replicates([cell("a", 0.0, completion="otherwise")])
    (empty.folder / f".part-x.parquet.elsewhere.{os.getppid()}.tmp").write_bytes(b"half")
    frame = pandas.read_parquet(empty.folder).sort_values("problem_id")
    assert list(frame["problem_id"]) == ["a", "b", "c"] and list(frame["tokens"]) == [9, 9, 4]
    assert frame["execution"].iloc[0] == MADE.execution and frame["seconds"].iloc[0] == 0.25
    assert frame["logprob"].iloc[0] == -2.0 and pandas.isna(frame["logprob"].iloc[1])
    assert frame.groupby("gate")["correct"].mean().to_dict() == {0.0: 1.0, 1.0: 1.0}


def test_gates_with_several_parts(tmp_path):
    table = OutcomeTable(tmp_path, FINGERPRINT, DESCRIPTION, num_gate_dims=3)
    table.append([cell("a", (0.0, 0.5, 1.0)), cell("a", (0.0, 0.5, 0.0), tokens=2)])
    again = OutcomeTable.open(table.folder)
    assert again.num_gate_dims == 3
    assert again.outcome("a", (0.0, 0.5, 0.0)).tokens == 2
    assert again.missing(["a"], [(1.0, 1.0, 1.0), (0.0, 0.5, 1.0)]) == [("a", (1.0, 1.0, 1.0))]
    with pytest.raises(MissingOutcome, match=r"gate 1,1,0\.5 "):
        again.outcome("a", (1.0, 1.0, 0.5))
    for gate in (0.5, (0.5, 1.0)):
        with pytest.raises(ValueError, match="3 finite numbers"):
            again.append([cell("b", gate)])
    with pytest.raises(UserError, match="gates with 3 dimensions, not 1"):
        OutcomeTable(tmp_path, FINGERPRINT, DESCRIPTION)


def test_the_noise_floor_counts_what_came_out_otherwise(empty):
    assert NoiseFloor.of(empty.replicates()) is None
    names = [f"p/{i}" for i in range(10)]
    empty.append(cell(name, logprob=-1.0, made=MADE) for name in names)
    wide = dataclasses.replace(MADE, execution='{"slots": 16}')
    changes = [
        {"correct": False, "parsed": "8", "completion": "8", "logprob": -5.0},
        {"parsed": "9", "completion": "9"},
        {"completion": "seven, or 7"},
        {"logprob": -1.25},
    ]
    again = [cell(n, **c, made=wide) for n, c in zip(names, changes, strict=False)]
    empty.add_replicates(again)
    empty.add_replicates(cell(name, logprob=-1.0, made=wide) for name in names[4:8])
    floor = NoiseFloor.of(OutcomeTable.open(empty.folder).replicates())
    assert floor is not None
    assert [(f.flips, f.n) for f in (floor.correct, floor.answer, floor.text)] == [
        (1, 8),
        (2, 8),
        (3, 8),
    ]
    # Wilson's interval of 1 in 8.
    z, p, n = 1.959963984540054, 1 / 8, 8
    centre, half = p + z * z / 2 / n, z * np.sqrt(p * (1 - p) / n + z * z / 4 / n / n)
    expected = [(centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)]
    np.testing.assert_allclose(floor.correct.ci95, expected, rtol=1e-9)
    assert floor.logprob == 0.25  # of cells whose text is the same
    assert floor.executions == ('{"slots": 16}', '{"slots": 8}')
    assert "12.50 % [2.24, 47.09] (1 of 8)" in str(floor)
    assert len(empty) == 10  # they are no cells of the table
    with pytest.raises(MissingOutcome):
        empty.add_replicates([cell("elsewhere")])


def _truncate(part: Path) -> None:
    part.write_bytes(part.read_bytes()[: part.stat().st_size // 2])


def _empty(part: Path) -> None:
    part.write_bytes(b"")


def _flip(part: Path) -> None:
    """Change one letter of a stored text: every structure of the file stays intact."""
    raw = part.read_bytes()
    place = raw.index(b"damage me")
    part.write_bytes(raw[:place] + b"D" + raw[place + 1 :])


def _other_columns(part: Path) -> None:
    pq.write_table(pa.table({"problem_id": ["a"], "gate": [0.5]}), part)


@pytest.mark.parametrize("damage", [_truncate, _empty, _flip, _other_columns])
def test_a_damaged_part_is_named_with_what_to_do(empty, damage, monkeypatch):
    write = pq.write_table
    monkeypatch.setattr(
        module.pq, "write_table", lambda *args, **kw: write(*args, compression="none", **kw)
    )
    empty.append([cell("a", completion="damage me")])
    monkeypatch.undo()
    empty.append([cell("b")])
    [part] = [p for p in empty.folder.glob("part-*") if b"damage me" in p.read_bytes()]
    damage(part)
    with pytest.raises(UserError) as raised:
        OutcomeTable.open(empty.folder)
    message = str(raised.value)
    assert str(part) in message and "delete that file" in message and "\n" not in message
    part.unlink()
    assert OutcomeTable.open(empty.folder).missing(["a", "b"], [0.5]) == [("a", 0.5)]


def test_a_damaged_or_absent_card_is_named(empty, tmp_path):
    with pytest.raises(UserError, match=r"nowhere is not an outcome table, .*check the path"):
        OutcomeTable.open(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()
    empty.append([cell()])
    (empty.folder / "_table.json").write_text('{"fingerprint": "ab')
    with pytest.raises(UserError, match=r"_table\.json is not valid JSON .*; delete it"):
        OutcomeTable.open(empty.folder)


def test_a_part_appears_whole(empty, monkeypatch):
    """Under its own name it is not there before it is complete."""
    rename, renamed = os.replace, []

    def watch(source, target):
        assert not Path(target).exists()
        if Path(target).suffix == ".parquet":
            renamed.append(pq.read_table(source).num_rows)
        rename(source, target)

    monkeypatch.setattr(os, "replace", watch)
    empty.append([cell("a"), cell("b")])
    empty.append([cell("c")])
    assert renamed == [2, 1]


def test_a_failed_write_leaves_nothing(empty, monkeypatch):
    def fail(table, file, **_):
        file.write(b"PAR1 and then the disk is full")
        raise OSError("no space left on device")

    monkeypatch.setattr(module.pq, "write_table", fail)
    with pytest.raises(UserError, match=r"cannot write to .* \(No space left .*make room"):
        empty.append([cell("a")])
    assert [path.name for path in empty.folder.iterdir()] == ["_table.json"]
    assert empty.missing(["a"], [0.5]) == [("a", 0.5)]


def test_only_files_of_the_dead_are_removed(empty):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    empty.append([cell()])
    dead = empty.folder / f".part-0.parquet.{platform.node()}.{process.pid}.tmp"
    living = empty.folder / f".part-1.parquet.{platform.node()}.{os.getppid()}.tmp"
    elsewhere = empty.folder / f".part-2.parquet.not-{platform.node()}.{process.pid}.tmp"
    for path in (dead, living, elsewhere):
        path.write_bytes(b"half a part")
    assert len(OutcomeTable.open(empty.folder)) == 1
    assert not dead.exists() and living.exists() and elsewhere.exists()


WRITER = """
import json, pathlib, sys, time
from jroute.outcomes import table as module

root, fingerprint, stall_at, parts = json.load(sys.stdin)
write, count = pathlib.Path.write_bytes, 0

def write_half_then_stall(path, content):
    global count
    count += path.name.startswith(".part-")
    if count < stall_at:
        return write(path, content)
    write(path, content[: len(content) // 2])
    print("half-way", flush=True)
    time.sleep(600)

pathlib.Path.write_bytes = write_half_then_stall
table = module.OutcomeTable(root, fingerprint, {})
for part in parts:
    table.append(module.Outcome(**row) for row in part)
print("finished", flush=True)
"""


def test_a_killed_run_resumes_to_the_same_table(tmp_path):
    names, gates = [f"p/{i}" for i in range(8)], [0.0, 0.5, 1.0]
    rng = random.Random(0)
    cells = {
        (name, gate): cell(name, gate, tokens=rng.randrange(99), reward=rng.random())
        for name in names
        for gate in gates
    }
    uninterrupted = OutcomeTable(tmp_path / "whole", FINGERPRINT, {})
    uninterrupted.append(cells.values())

    rows = [dataclasses.asdict(outcome) for outcome in cells.values()]
    parts = [rows[i : i + 4] for i in range(0, len(rows), 4)]
    job = json.dumps([str(tmp_path / "killed"), FINGERPRINT, 4, parts])
    with subprocess.Popen(
        [sys.executable, "-c", WRITER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(job)
        process.stdin.close()
        assert process.stdout.readline() == "half-way\n"
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert process.stdout.read() == ""

    folder = tmp_path / "killed" / FINGERPRINT
    assert len(list(folder.glob("part-*.parquet"))) == 3
    [leftover] = folder.glob(".*.tmp")
    assert leftover.stat().st_size > 0

    resumed = OutcomeTable(tmp_path / "killed", FINGERPRINT, {})
    assert not leftover.exists()
    missing = resumed.missing(names, gates)
    assert missing == list(cells)[12:]
    for start in range(0, len(missing), 5):  # other chunks than before
        resumed.append(cells[pair] for pair in missing[start : start + 5])
    again = OutcomeTable(tmp_path / "killed", FINGERPRINT, {})
    assert content(again) == content(resumed) == content(uninterrupted)
    assert not list(folder.glob(".*"))
