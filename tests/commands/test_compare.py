"""Runs side by side, from the files that judging leaves behind."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jroute.compare import main
from jroute.statistics.contrasts import paired_contrast
from jroute.statistics.holm import holm

N = 300


def write_run(folder: Path, values: dict[str, np.ndarray], items: str = "a", order=None) -> Path:
    folder.mkdir()
    ids = [f"p{i}" for i in range(N)]
    columns: dict[str, list] = {name: [] for name in ("split", "arm", "seed", "problem", "value")}
    for arm, rows in values.items():
        for seed, row in enumerate(np.atleast_2d(rows)):
            for i in range(N) if order is None else order:
                item = ("test", arm, seed, ids[i], float(row[i]))
                for name, value in zip(columns, item, strict=True):
                    columns[name].append(value)
    pq.write_table(pa.table(columns), folder / "items.parquet")
    results = {"split": "test", "n": N, "items": items, "other_splits": {}}
    (folder / "results.json").write_text(json.dumps(results))
    return folder


@pytest.fixture(scope="module")
def values() -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    settled = rng.random(N)
    runs = []
    for level in (0.6, 0.8):
        seeds = (settled < level + 0.02 * rng.standard_normal((3, 1))).astype(float)
        runs.append({"rl": seeds, "best_fixed": (settled < 0.5).astype(float)})
    return runs


def test_runs_are_paired_problem_by_problem(values, tmp_path, capsys) -> None:
    a = write_run(tmp_path / "a", values[0])
    # The same problems in another order.
    b = write_run(tmp_path / "b", values[1], order=np.random.default_rng(1).permutation(N))
    report = tmp_path / "told.json"
    given = [str(a), str(b), "--arms", "rl", "best_fixed", "gain", "--replicates", "1000"]
    assert main([*given, "--report", str(report)]) == 0
    summary = json.loads(report.read_text())
    rows = {(row["arm"], Path(row["run"]).name): row for row in summary["rows"]}
    assert summary["n"] == N and len(rows) == 6
    minus = rows["rl", "b"]["minus_first"]
    assert minus["difference"] == pytest.approx(values[1]["rl"].mean() - values[0]["rl"].mean())
    ids = np.argsort([f"p{i}" for i in range(N)])  # resampling is over the ordered ids
    expected = paired_contrast(values[1]["rl"][:, ids], values[0]["rl"][:, ids], replicates=1000)
    assert minus["ci95"] == pytest.approx(expected.ci95)
    # Identical arms differ by nothing at all only if they are paired.
    same = rows["best_fixed", "b"]["minus_first"]
    assert same["difference"] == 0 and same["p"] == 1
    unseen = 1 - 0.025 ** (1 / N)  # an item that differs may be so frequent and not be there
    assert same["ci95"] == pytest.approx([-unseen, unseen])
    gain = rows["gain", "b"]
    assert gain["gain"]["difference"] == pytest.approx(
        values[1]["rl"].mean() - values[1]["best_fixed"].mean()
    )
    assert gain["minus_first"]["difference"] == pytest.approx(minus["difference"])
    ps = [rows[arm, "b"]["minus_first"] for arm in ("rl", "best_fixed", "gain")]
    assert [one["p_holm"] for one in ps] == pytest.approx(holm([one["p"] for one in ps]))
    assert all("minus_first" not in rows[arm, "a"] for arm in ("rl", "gain"))
    printed = capsys.readouterr().out
    assert f"test: n = {N} problems" in printed and printed.count("\n") == 8


def test_what_cannot_be_compared(values, tmp_path, capsys) -> None:
    a = write_run(tmp_path / "a", values[0])
    b = write_run(tmp_path / "b", values[1], items="other")

    def refused(*argv: object) -> str:
        assert main([str(one) for one in argv]) == 2
        return capsys.readouterr().err

    assert "judged on different problems" in refused(a, b)
    assert "at least two different runs" in refused(a)
    assert "at least two different runs" in refused(a, a)
    assert "was not judged" in refused(a, tmp_path)
    assert "not judged on 'ood', only on test" in refused(a, b, "--split", "ood")
    assert "at least 100" in refused(a, b, "--replicates", 5)
    c = write_run(tmp_path / "c", {"rl": values[0]["rl"]})
    assert "no arm 'best_fixed'" in refused(a, c, "--arms", "best_fixed")


def test_samples_of_lm_eval_are_compared_by_document(tmp_path, capsys) -> None:
    """Two folders that hold samples, or the files; a folder with neither is a run unjudged."""
    for name, texts in (("ours", ("8", "7")), ("theirs", ("8", "5"))):
        (tmp_path / name / "deep").mkdir(parents=True)
        rows = [
            {
                "doc_id": i,
                "doc_hash": f"d{i}",
                "prompt_hash": f"p{i}",
                "resps": [[text]],
                "filtered_resps": [text],
                "filter": "strict",
                "metrics": ["exact_match"],
                "exact_match": float(text == "8"),
            }
            for i, text in enumerate(texts)
        ]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / name / "deep" / "samples_gsm8k_2026-01-01T00-00-00.jsonl").write_text(lines)
    both = [str(tmp_path / name) for name in ("ours", "theirs")]
    assert main(both) == 0
    printed = capsys.readouterr().out
    assert "gsm8k, exact_match by strict: n = 2 documents" in printed
    assert "equal: prompt 2 (100.0%), text 1 (50.0%)" in printed and f"{both[1]} 0.5000" in printed
    assert main([*both, "--task", "svamp"]) == 2
    (tmp_path / "empty").mkdir()
    assert main([both[0], str(tmp_path / "empty")]) == 2
    assert "give two such folders" in capsys.readouterr().err
    assert main([both[0], str(tmp_path / "nowhere")]) == 2
    assert "there is no folder" in capsys.readouterr().err
