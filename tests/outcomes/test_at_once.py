"""Several processes fill one table at once: every cell is filed once, whoever is killed."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow.dataset
import pytest

from jroute.outcomes import table as module
from jroute.outcomes.outcome import Outcome
from jroute.outcomes.table import ConflictingOutcome, OutcomeTable
from jroute.utils.fingerprint import semantic_fingerprint

DESCRIPTION = {"model": "abc"}
FINGERPRINT = semantic_fingerprint(DESCRIPTION)
CELLS = 90

WRITER = """
import json, sys
from jroute.outcomes.outcome import Outcome
from jroute.outcomes.table import OutcomeTable

root, fingerprint, description, rows, size = json.loads(sys.stdin.readline())
table = OutcomeTable(root, fingerprint, description)
print("ready", flush=True)
sys.stdin.readline()
for start in range(0, len(rows), size):
    block = [Outcome(**row) for row in rows[start : start + size]]
    table.append(block)
    table.add_replicates(block[:2])
    print(start, flush=True)
"""


def rows() -> list[dict]:
    return [
        {
            "problem_id": f"p/{i}",
            "gate": 0.5,
            "sample": 0,
            "completion": "#### 7",
            "tokens": 3,
            "parsed": "7",
            "status": "ok",
            "correct": True,
            "reward": 1.0,
            "stop_reason": "end_token",
        }
        for i in range(CELLS)
    ]


def start(root: Path, order: list[dict], size: int) -> subprocess.Popen:
    """Start a process that has opened the table and files these cells when it gets a line."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps([str(root), FINGERPRINT, DESCRIPTION, order, size]) + "\n")
    process.stdin.flush()
    return process


def problems_in(folder: Path) -> Counter:
    """What Parquet readers see, row by row."""
    return Counter(pyarrow.dataset.dataset(folder).to_table()["problem_id"].to_pylist())


def test_processes_with_overlapping_shares_file_no_cell_twice(tmp_path):
    cells = rows()
    processes = [start(tmp_path, cells, 7), start(tmp_path, cells[::-1], 4)]
    killed = start(tmp_path, cells[CELLS // 2 :] + cells[: CELLS // 2], 3)
    for process in (*processes, killed):
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in (*processes, killed):
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    assert killed.stdout is not None and killed.stdout.readline() == "0\n"
    killed.kill()
    for process in (*processes, killed):
        process.communicate()
    assert [process.returncode for process in processes] == [0, 0]
    every = Counter({row["problem_id"]: 1 for row in cells})
    table = OutcomeTable(tmp_path, FINGERPRINT, DESCRIPTION)
    assert problems_in(table.folder) == every
    assert max(problems_in(table.folder / "_replicates").values()) == 1
    parts = {path.name for path in table.folder.glob("part-*.parquet")}
    assert {path.name for path in table.folder.iterdir()} == parts | {"_table.json", "_replicates"}


def test_what_a_killed_process_left_is_removed(tmp_path):
    table = OutcomeTable(tmp_path, FINGERPRINT, DESCRIPTION)
    table.append([Outcome(**rows()[0])])
    (table.folder / ".lock").write_bytes(b"")
    OutcomeTable.open(table.folder)
    assert not (table.folder / ".lock").exists()


def test_a_cell_that_another_process_has_filed_otherwise_is_refused(tmp_path):
    """Nothing of the block is written, and the table stays as it was for everyone."""
    mine, other = (OutcomeTable(tmp_path, FINGERPRINT, DESCRIPTION) for _ in range(2))
    cells = [Outcome(**row) for row in rows()[:3]]
    other.append(cells[:1])
    row = rows()[0] | {"completion": "#### 8", "parsed": "8", "correct": False, "reward": 0.0}
    with pytest.raises(ConflictingOutcome, match=r"'p/0' at gate 0\.5 .* completion, parsed"):
        mine.append([Outcome(**row), *cells[1:]])
    assert list(problems_in(mine.folder)) == ["p/0"]
    assert not (mine.folder / module.LOCK).exists()


def test_the_card_comes_back(tmp_path):
    table = OutcomeTable(tmp_path, FINGERPRINT, DESCRIPTION)
    table.append([Outcome(**rows()[0])])
    card = table.folder / "_table.json"
    content = card.read_bytes()
    card.unlink()
    OutcomeTable(tmp_path, FINGERPRINT, DESCRIPTION).restore_card()
    assert card.read_bytes() == content
