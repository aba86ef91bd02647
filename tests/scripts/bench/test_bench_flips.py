"""The command that measures how often completions change with the execution shape."""

import dataclasses
import json
from pathlib import Path

import pytest

from jroute.generate.decoding import Completion
from scripts.bench import bench_flips as bench


def test_flips_are_counted_and_near_ties_told_apart() -> None:
    same = Completion((1, 2, 3), "abc", "length", margin=2e-6)
    near, far = dataclasses.replace(same, margin=9e-6), dataclasses.replace(same, margin=0.2)
    other = dataclasses.replace(far, tokens=(1, 9, 3), text="a c")
    shorter = dataclasses.replace(far, tokens=(1, 2))
    figures = bench.compare([same, near, far, far], [same, other, other, shorter])
    assert figures["flipped_rows"]["count"] == 3 and figures["flipped_rows"]["rate"] == 0.75
    low, high = figures["flipped_rows"]["ci95"]
    assert low == pytest.approx(0.3006, abs=1e-3) and high == pytest.approx(0.9544, abs=1e-3)
    assert (figures["explained_by_a_near_tie"], figures["unexplained"]) == (1, 2)
    assert figures["other_texts"] == 2
    assert figures["first_differences"] == [1, 1, 2]


def test_the_command(tiny_directory: Path, tmp_path: Path, capsys) -> None:
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "out" / "flips.json"
    prompts.write_text("".join(json.dumps({"prompt": f"1+{i}="}) + "\n" for i in range(5)))
    options = ["--dtypes", "float32", "--shapes", "4,2", "--new", "6", "--gate", "0.5"]
    files = ["--model", str(tiny_directory), "--prompts", str(prompts), "--out", str(out)]
    bench.main([*files, *options])
    result = json.loads(out.read_text())
    figures = result["dtypes"]["float32"]
    assert set(figures["shapes"]) == {"2 slots", "4 slots, scanned", "8 slots on 8 devices"}
    assert all(shape["unexplained"] == 0 for shape in figures["shapes"].values())
    assert (result["prompts"], figures["rows_with_a_near_tie"]["of"]) == (5, 5)
    assert 5 <= figures["tokens"] <= 30 and figures["smallest_margin"] > 0
    assert "float32   4 slots / 2 slots: 0 of 5 rows flip" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shapes", "4,x"], "give numbers with commas"),
        (["--shapes", "0"], "positive numbers"),
        (["--prompts", "broken"], "line 1 is no JSON object with a field 'prompt'"),
    ],
    ids=["no numbers", "none", "no prompt"],
)
def test_wrong_options_are_told(tiny_directory, tmp_path, options, message, capsys) -> None:
    (tmp_path / "broken").write_text("{}\n")
    options = [str(tmp_path / "broken") if o == "broken" else o for o in options]
    assert bench.main(["--model", str(tiny_directory), *options]) == 2
    assert message in capsys.readouterr().err
