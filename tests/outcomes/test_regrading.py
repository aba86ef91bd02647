"""Stored completions are graded anew when the rules of reading answers have changed."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import jroute
from jroute.evaluate import main as evaluate
from jroute.experiment.comparison import read_judged
from jroute.outcomes import parts as module
from jroute.outcomes.outcome import Outcome
from jroute.outcomes.regrading import regrade
from jroute.outcomes.replicates import NoiseFloor
from jroute.outcomes.table import MissingOutcome, OutcomeTable
from jroute.report.__main__ import main as report
from jroute.tasks.answers import ANSWER_PARSER_VERSION
from jroute.utils.errors import UserError
from jroute.utils.fingerprint import semantic_fingerprint

DESCRIPTION = {"model": "abc"}
FINGERPRINT = semantic_fingerprint(DESCRIPTION)
RUNS = Path(__file__).parent.parent / "fixtures" / "runs"

VERSION = f"version {ANSWER_PARSER_VERSION} of the answer parser"
ANSWERS = {"a": "18", "b": "7", "c": "3"}


def cell(problem: str, gate: float, completion: str, **grade) -> Outcome:
    fields = {"parsed": "", "status": "no_answer", "correct": False, "reward": 0.0}
    return Outcome(
        problem_id=problem,
        gate=gate,
        sample=0,
        completion=completion,
        tokens=5,
        stop_reason=grade.pop("stop_reason", "end_token"),
        **(fields | grade),
    )


RIGHT = {"status": "ok", "correct": True, "reward": 1.0}
OLD = [
    cell("a", 0.0, "#### 18"),  # it read no answer
    cell("a", 1.0, "#### 17", parsed="18", **RIGHT),  # it read another one
    cell("b", 0.0, "#### 7", parsed="7", **RIGHT),
    cell("b", 1.0, "It goes on", stop_reason="length"),
    cell("stranger", 0.0, "#### 5", parsed="5", status="ok"),
    cell("stranger", 1.0, "#### 6", parsed="5", status="ok"),
    cell("stranger", 0.5, "none", parsed="5", **RIGHT),
]
GRADES = {
    ("a", 0.0): ("18", "ok", True, 1.0),
    ("a", 1.0): ("17", "ok", False, 0.0),
    ("b", 0.0): ("7", "ok", True, 1.0),
    ("b", 1.0): ("", "truncated", False, 0.0),
    ("stranger", 0.0): ("5", "ok", False, 0.0),
    ("stranger", 0.5): ("", "no_answer", False, 0.0),
}


def write_old(table: OutcomeTable, outcomes: list[Outcome], *, replicates: bool = False) -> None:
    """Write a part as version 1 did: it does not say by which rules it was graded."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PARSER_KEY", b"unknown")
        patch.setattr(module, "_DIGEST_KEY", b"unknown too")
        table.add_replicates(outcomes) if replicates else table.append(outcomes)


def grades(table: OutcomeTable) -> dict:
    return {
        (o.problem_id, o.gate): (o.parsed, o.status, o.correct, o.reward) for o in table.cells()
    }


def test_cells_of_an_older_version_are_graded_anew(tmp_path, caplog):
    written = OutcomeTable(tmp_path, FINGERPRINT, DESCRIPTION)
    write_old(written, OLD)
    written.append([cell("c", 0.0, "#### 3", parsed="4", status="ok")])  # of the present version
    files = {file: file.read_bytes() for file in written.folder.iterdir()}
    with caplog.at_level(logging.INFO, "jroute"):
        table = OutcomeTable(tmp_path, FINGERPRINT, DESCRIPTION, answers=lambda: ANSWERS)
    assert grades(table) == GRADES | {("c", 0.0): ("4", "ok", False, 0.0)}
    assert f"7 stored cells graded anew by {VERSION}, 4 of them changed" in caplog.text
    assert "1 left out since their gold answers are not known" in caplog.text
    with pytest.raises(MissingOutcome, match=r"'stranger' at gate 1 .*gold answer is not known"):
        table.outcome("stranger", 1.0)
    assert table.fingerprint == FINGERPRINT
    np.testing.assert_array_equal(table.matrix(["a", "b"], [0.0, 1.0]), [[1, 0], [1, 0]])
    assert {file: file.read_bytes() for file in written.folder.iterdir()} == files


def test_a_part_says_by_which_version_it_was_graded(tmp_path):
    table = OutcomeTable(tmp_path, FINGERPRINT, DESCRIPTION)
    table.append([cell("a", 0.0, "#### 18")])
    [part] = table.folder.glob("part-*")
    metadata = pq.read_schema(part).metadata
    assert metadata[b"jroute_answer_parser"] == str(ANSWER_PARSER_VERSION).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jroute.outcomes.regrading.ANSWER_PARSER_VERSION", 99)
        later = OutcomeTable(tmp_path, FINGERPRINT, DESCRIPTION, answers=lambda: ANSWERS)
    assert later.outcome("a", 0.0).correct


def test_replicates_are_graded_like_their_cells(tmp_path):
    table = OutcomeTable(tmp_path, FINGERPRINT, DESCRIPTION)
    write_old(table, OLD)
    again = [cell("a", 0.0, "#### 18", parsed="8"), cell("a", 1.0, "#### 18")]
    write_old(table, [*again, cell("stranger", 1.0, "#### 6")], replicates=True)
    reopened = OutcomeTable.open(table.folder, lambda: ANSWERS)
    floor = NoiseFloor.of(reopened.replicates())
    assert floor is not None and (floor.correct.flips, floor.correct.n) == (1, 2)


def test_merged_parts_of_two_versions_agree(tmp_path):
    """The same text under two grades is one outcome, whichever part is read first."""
    for old_first in (True, False):
        table = OutcomeTable(tmp_path / str(old_first), FINGERPRINT, DESCRIPTION)
        other = OutcomeTable(tmp_path / f"{old_first} too", FINGERPRINT, DESCRIPTION)
        write_old(table, OLD[:2])
        other.append([cell("a", 0.0, "#### 18", parsed="18", **RIGHT)])
        [part] = other.folder.glob("part-*")
        shutil.copy(part, table.folder / ("part-z" if old_first else "part-0")).rename(
            table.folder / f"part-{'z' if old_first else '0'}.parquet"
        )
        merged = OutcomeTable.open(table.folder, lambda: ANSWERS)
        assert merged.outcome("a", 0.0).correct and len(merged) == 2


@pytest.mark.parametrize("version", ["", "two", "1" * 5000])
def test_a_version_that_is_no_number_is_damage(tmp_path, version):
    table = OutcomeTable(tmp_path, FINGERPRINT, DESCRIPTION)
    table.append([cell("a", 0.0, "#### 18")])
    [part] = table.folder.glob("part-*")
    columns = pq.read_table(part)
    metadata = columns.schema.metadata | {b"jroute_answer_parser": version.encode()}
    pq.write_table(columns.replace_schema_metadata(metadata), part)
    with pytest.raises(UserError, match=r"part-\w+\.parquet is damaged .*delete that file"):
        OutcomeTable.open(table.folder)


def test_without_the_gold_answer_only_certain_grades_are_given():
    assert regrade(OLD[4], None) == OLD[4]
    assert regrade(OLD[5], None) is None
    lost = regrade(OLD[6], None)
    assert lost is not None and (lost.status, lost.correct, lost.reward) == ("no_answer", False, 0)


# A run folder of an earlier version -------------------------------------------------------------


@pytest.fixture
def old_run(tiny_directory, tmp_path, monkeypatch) -> Path:
    """A run that an earlier version made, in the working directory it was made in."""
    (tmp_path / "model").symlink_to(tiny_directory)
    shutil.copytree(RUNS / "table", tmp_path / "table_run")
    monkeypatch.chdir(tmp_path)
    return Path("table_run")


def grade_wrongly(run: Path, *splits: str) -> int:
    """Write into the files that the right answers of these splits are wrong; return how many."""
    count = 0
    for file in run.glob("outcomes/*/part-*.parquet"):
        columns = pq.read_table(file)
        rows = columns.to_pylist()
        for row in rows:
            if row["problem_id"].split("/")[1] in splits and row["correct"]:
                row |= {"correct": False, "reward": 0.0, "parsed": "0"}
                count += 1
        pq.write_table(pa.Table.from_pylist(rows, schema=columns.schema), file)
    return count


def test_a_run_sees_the_new_grades(old_run, caplog):
    before = jroute.load_run(old_run)
    splits = before.experiment.splits
    expected = {split: before.outcomes.matrix(split) for split in splits}
    training, fingerprint = before.controllers.training, before.outcomes.table.fingerprint
    assert grade_wrongly(old_run, "test") > 0
    with caplog.at_level(logging.INFO, "jroute"):
        run = jroute.load_run(old_run)
        assert run.outcomes.table.fingerprint == fingerprint
    for split, correct in expected.items():
        np.testing.assert_array_equal(run.outcomes.matrix(split), correct)
    assert f"graded anew by {VERSION}" in caplog.text
    assert run.controllers.training == training  # it learned nothing from test cells
    changed = grade_wrongly(old_run, "train")
    assert changed == expected["train"].sum() > 0
    other = jroute.load_run(old_run).controllers
    assert other.training != training and not other.are_trained
    with pytest.raises(UserError, match=f"{training}, which it has, differs in grades"):
        _ = other.trained
    assert json.loads((old_run / "results.json").read_text())["training"] == training


def test_results_of_other_grades_are_refused_until_they_are_judged_again(old_run, capsys):
    """The report and the comparison read what judging wrote; the cells are graded on loading."""
    before = read_judged(old_run, None)  # no grade has changed
    assert grade_wrongly(old_run, "test") > 0
    with pytest.raises(UserError, match=r"results\.json was judged by version 1 of the answer"):
        read_judged(old_run, None)
    assert report(["--run", str(old_run)]) == 2
    assert "another grade; run python -m jroute.train --config" in capsys.readouterr().err
    assert evaluate(["--run", str(old_run)]) == 0
    assert report(["--run", str(old_run)]) == 0
    after = read_judged(old_run, None)
    np.testing.assert_array_equal(after.values["baseline"], before.values["baseline"])
