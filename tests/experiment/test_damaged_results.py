"""Results of a run, and kept parts of a calibration, that were damaged on the disk."""

import hashlib
import json
import random
import shutil
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jroute.experiment.comparison import read_judged
from jroute.experiment.items import write_results
from jroute.experiment.result_cache import ResultCache
from jroute.experiment.results_file import read_results
from jroute.experiment.run import load_run
from jroute.experiment.run_folder import RunFolder
from jroute.report.run_reader import read_run
from jroute.utils.digested import read_digested, write_digested
from jroute.utils.errors import UserError
from jroute.utils.json_files import OpenRecord
from tests.checkpoint.test_damaged_state import flip

RUNS = Path(__file__).parents[1] / "fixtures" / "runs"
RESULTS = {"split": "test", "n": 40, "items": "digest", "other_splits": {}}


@pytest.fixture
def judged(tmp_path) -> Path:
    rng, arms = random.Random(1), ("baseline", "rl")
    rows = [(arm, f"p{i}", rng.random()) for arm in arms for i in range(40)]
    columns = {"split": ["test"] * 80, "seed": [0] * 80, "gate": [0.5] * 80}
    columns |= {"arm": [r[0] for r in rows], "problem": [r[1] for r in rows]}
    items = pa.table({**columns, "value": [row[2] for row in rows]})
    write_results(RunFolder(tmp_path, tmp_path), RESULTS, [items])
    return tmp_path


def values(folder: Path) -> dict[str, list[list[float]]]:
    return {arm: scores.tolist() for arm, scores in read_judged(folder, None).values.items()}


def test_flips_in_items_are_a_sentence_or_have_no_effect(judged):
    file, rng, outcomes = judged / "items.parquet", random.Random(2), Counter()
    expected, original = values(judged), (judged / "items.parquet").read_bytes()
    assert sorted(expected) == ["baseline", "rl"] and len(expected["rl"][0]) == 40
    for _ in range(100):
        flip(file, rng.randrange(len(original) * 8))
        try:
            assert values(judged) == expected
            outcomes["no effect"] += 1
        except UserError as error:
            assert str(error).startswith(str(file)) and "judge the run again" in str(error)
            outcomes["a sentence"] += 1
        file.write_bytes(original)
    assert outcomes["a sentence"] > 40


def test_items_are_those_that_were_written_with_the_results(judged):
    file, results = judged / "items.parquet", judged / "results.json"
    expected, rows = values(judged), pq.read_table(file)
    content = read_digested(results, OpenRecord, "").model_dump()
    assert content["items_sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    place = rows.column_names.index("value")
    pq.write_table(rows.set_column(place, "value", pa.array([1.0] * 80)), file)
    with pytest.raises(UserError, match=r"items.parquet is damaged \(it does not match its digest"):
        read_judged(judged, None)
    write_digested(results, RESULTS)  # as of an earlier version
    assert values(judged) == {arm: [[1.0] * 40] for arm in expected}


@pytest.mark.parametrize(
    ("column", "kind", "message"),
    [
        ("split", pa.float64(), "its column split holds double, not texts"),
        ("arm", pa.int64(), "its column arm holds int64, not texts"),
        ("problem", pa.list_(pa.string()), "its column problem holds list<"),
        ("seed", pa.string(), "its column seed holds string, not whole numbers"),
        ("value", pa.string(), "its column value holds string, not numbers"),
    ],
)
def test_columns_of_another_type_are_refused(judged, column, kind, message):
    file = judged / "items.parquet"
    write_digested(judged / "results.json", RESULTS)
    rows = pq.read_table(file)
    place = rows.column_names.index(column)
    pq.write_table(rows.set_column(place, column, pa.nulls(80, kind)), file)
    with pytest.raises(UserError) as caught:
        read_judged(judged, None)
    assert message in str(caught.value) and "judge the run again" in str(caught.value)


def test_flips_in_results_are_a_sentence_for_every_reader(judged):
    file, rng, outcomes = judged / "results.json", random.Random(4), Counter()
    shutil.copy(RUNS / "table" / "results.json", file)
    content = read_results(file)
    write_digested(file, content)
    (judged / "config.yaml").write_bytes((RUNS / "table" / "config.yaml").read_bytes())
    run, original = load_run(judged), file.read_bytes()
    assert run.results == content
    readers = (lambda: read_judged(judged, None), lambda: read_run(judged), lambda: run.results)
    for _ in range(30):
        flip(file, rng.randrange(len(original) * 8))
        for read in readers:
            try:
                read()
                assert read_results(file) == content  # 1E-05 is 1e-05
                outcomes["no effect"] += 1
            except UserError as error:
                assert str(error).startswith(f"{file} is ")
                assert f"python -m jroute.evaluate --run {judged}" in str(error)
                outcomes["a sentence"] += 1
        file.write_bytes(original)
    assert run.results == content and outcomes["a sentence"] > 80


def test_results_that_are_not_finite_are_not_written(judged):
    before = {file.name: file.read_bytes() for file in judged.iterdir()}
    items = pa.table({"split": ["test"]})
    with pytest.raises(
        UserError, match=r"results\.json is not written, since arms\.rl is not a fi"
    ):
        write_results(RunFolder(judged, judged), {**RESULTS, "arms": {"rl": float("nan")}}, [items])
    assert {file.name: file.read_bytes() for file in judged.iterdir()} == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("", "is not valid JSON"),
        ("[]", "must be an object, not []"),
        ("{}", "has no n"),
        (json.dumps({**RESULTS, "n": 0}), "n must be greater than 0"),
        (json.dumps({**RESULTS, "n": 39}), "lacks scores of baseline on 'test'"),
        (json.dumps({**RESULTS, "split": "ood"}), "has no scores on 'ood'"),
        (json.dumps({**RESULTS, "other_splits": {"ood": 3}}), "other_splits.ood"),
    ],
)
def test_damaged_results_are_a_sentence(judged, change, message):
    (judged / "results.json").write_text(change)
    with pytest.raises(UserError) as refusal:
        read_judged(judged, None)
    assert message in str(refusal.value)
    assert f"python -m jroute.evaluate --run {judged}" in str(refusal.value)


def test_kept_parts_that_are_damaged_are_computed_again(tmp_path, caplog):
    file = tmp_path / "kept.json"
    cache = ResultCache(file)
    cache.get("a", lambda: {10: 0.25, 9: [1.5]})
    cache.get("b", lambda: 2.5)
    assert ResultCache(file).get("b", lambda: 7.0) == 2.5
    file.write_text(file.read_text().replace("0.25", "0.35"))
    damaged = ResultCache(file)
    assert "is damaged; it is computed again" in caplog.text
    assert damaged.get("a", lambda: 1) == 1 and damaged.get("b", lambda: 7.0) == 2.5
    file.write_text(file.read_text()[:-10])
    assert ResultCache(file).get("b", lambda: 7.0) == 7.0
    file.write_text('{"1": {"found": 3, "seconds": 1.0}}')  # as earlier versions wrote it
    assert ResultCache(file).entries["1"]["found"] == 3
