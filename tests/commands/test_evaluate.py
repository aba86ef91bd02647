"""Every arm of a small run from its table, and the final ones by generating anew."""

import dataclasses
import json
import math
from pathlib import Path

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest

import jroute
from jroute.arms import registry
from jroute.arms.supervised import columns_of_regressor
from jroute.evaluate import main
from jroute.experiment import judging
from jroute.experiment.config import Experiment
from jroute.experiment.pipeline import train
from jroute.experiment.run import Run
from jroute.experiment.run_folder import RunFolder
from jroute.experiment.run_outcomes import RunOutcomes
from jroute.harness import policy
from jroute.outcomes.generation import CellGenerator
from jroute.statistics.verdict import TABLE
from jroute.utils.config import load
from jroute.utils.errors import UserError

SMALL = [
    *("--judged", "[test, ood]", "--decoding.max_new_tokens", "40", "--engine.slots", "32"),
    *("--task.train", "48", "--task.validation", "16", "--task.test", "24", "--task.ood", "16"),
    *("--features.components", "8", "--ppo.updates", "20", "--ppo.batch_size", "64"),
    *("--ppo.seeds", "2", "--supervised.steps", "60", "--judge.replicates", "400"),
    *("--judge.folds", "3"),
]


@pytest.fixture(scope="module")
def judged(tiny_directory, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate") / "run"
    config = Path(jroute.__file__).parent.parent / "configs" / "tiny.yaml"
    run = Run.start(
        load(Experiment, config, ["--run", str(folder), "--model", str(tiny_directory), *SMALL])
    )
    train(run)
    assert main(["--run", str(folder)]) == 0
    return folder


def test_every_arm_is_judged_on_every_split(judged) -> None:
    run = jroute.load_run(judged)
    results = run.results
    names = {"rl", "rl_selected", "rl_modal", "shuffled_prompt", "random_reward", "oracle"}
    names |= {"baseline", "random", "supervised", "supervised_features", "exact_gradient"}
    names |= {"best_fixed", *(f"fixed:{gate:g}" for gate in run.grid.values)}
    for split, n in (("test", 24), ("ood", 16)):
        of_split = results if split == "test" else results["other_splits"][split]
        assert of_split["n"] == n and set(of_split["arms"]) == names
        assert of_split["verdict"]["name"] in {row.name for row in TABLE}
        assert of_split["verdict"]["n"] == of_split["headroom"]["learnable"]["n"] == n
        assert of_split["resolvable_gap"] is None or 0 < of_split["resolvable_gap"] < 1
        correct = run.outcomes.matrix(split)
        controls = judging.train_controls(run.experiment, run.outcomes, run.controllers)
        x = run.controllers.featurizer(run.features.raw(split)).astype(np.float32)
        chosen = columns_of_regressor(controls["exact_gradient"], x)
        assert of_split["arms"]["exact_gradient"]["accuracy"] == pytest.approx(
            correct[np.arange(n), chosen].mean()
        )


def test_arms_that_judging_trains_choose_from_prompts_as_from_the_table(
    judged, tmp_path, monkeypatch
) -> None:
    run = jroute.load_run(judged)
    parts = run.data, run.outcomes, run.controllers, run.controllers.controls
    judgement = judging.judge_table_split("test", *parts, run.experiment.judge)
    grid, columns = np.asarray(run.grid.values), judgement.columns
    for arm in registry.from_controls():
        np.testing.assert_array_equal(run.gates(arm, run.data.prompts("test")), grid[columns[arm]])
    assert policy.available_arms(run) == list(registry.generable())
    known = {arm: policy.run_policy(run, arm).identity for arm in registry.reading()}
    assert len(set(known.values())) == len(known)
    trained = jax.tree.map(lambda leaf: leaf + 1, run.controllers.controls)
    monkeypatch.setitem(run.controllers.__dict__, "controls", trained)
    after = {arm: policy.run_policy(run, arm).identity for arm in registry.reading()}
    assert {arm for arm in known if known[arm] != after[arm]} == set(registry.from_controls())
    unjudged = jroute.load_run(judged)
    monkeypatch.setattr(RunFolder, "controls", lambda *_: tmp_path / "none")
    with pytest.raises(UserError, match=r"has no supervised_features .* jroute\.evaluate"):
        unjudged.gates("supervised_features", unjudged.data.prompts("test"))
    missing = set(registry.generable()) - set(policy.available_arms(unjudged))
    assert missing == set(registry.from_controls())


def test_a_run_without_a_table_is_refused(judged) -> None:
    run = jroute.load_run(judged)
    live = dataclasses.replace(run.experiment, rollouts="live")
    with pytest.raises(UserError, match="learned from live rollouts"):
        judging.train_controls(live, run.outcomes, run.controllers)


def test_items_hold_what_the_results_sum_up(judged) -> None:
    rows = pq.read_table(judged / "items.parquet").to_pandas()
    results = json.loads((judged / "results.json").read_text())
    means = rows[rows.split == "test"].groupby("arm")["value"].mean()
    for name, arm in results["arms"].items():
        assert means[name] == pytest.approx(arm["accuracy"]), name
    assert (rows[rows.arm == "rl"].groupby("split")["seed"].nunique() == 2).all()
    # The gate beside each value is the one that gave it, and the counts are of these gates.
    run = jroute.load_run(judged)
    deciding = rows[rows.gate.notna()]
    assert set(rows.arm) - set(deciding.arm) == {"random", "shuffled_prompt", "oracle"}
    of_problem = {p.id: i for i, p in enumerate(run.data.problems("ood"))}
    there = deciding[deciding.split == "ood"]
    where = [run.grid.values.index(gate) for gate in there.gate]
    paid = run.outcomes.matrix("ood")[[of_problem[name] for name in there.problem], where]
    np.testing.assert_array_equal(paid, there.value)
    for arm, each in results["other_splits"]["ood"]["gates_chosen"].items():
        for seed, counts in enumerate(each):
            row = there[(there.arm == arm) & (there.seed == seed)].gate
            assert counts == [int((row == gate).sum()) for gate in run.grid.values], arm


def test_the_noise_floor_is_told_where_it_was_measured(judged, monkeypatch, capsys) -> None:
    assert jroute.load_run(judged).results["noise_floor"] is None
    floor = {
        name: {"n": 200, "flips": 2, "share": 0.01, "ci95": [0.003, 0.04]}
        for name in ("text", "answer", "correct")
    }
    monkeypatch.setattr(RunOutcomes, "noise_floor", lambda _: floor)
    before = (judged / "results.json").read_bytes()
    try:
        results = judging.judge(jroute.load_run(judged))
        for part in (results, *results["other_splits"].values()):
            gain = part["headroom"]["noise_floor"]
            assert gain["n"] == 200 and 0 < gain["ci95"][0] < gain["value"] < gain["ci95"][1]
        assert results["noise_floor"] == floor
    finally:
        (judged / "results.json").write_bytes(before)


def test_evaluating_again_changes_nothing(judged, capsys) -> None:
    before = (judged / "results.json").read_bytes()
    stored = {p: p.stat().st_mtime_ns for p in (judged / "controls").rglob("*") if p.is_file()}
    assert main(["--run", str(judged), "--split", "ood"]) == 0
    assert (judged / "results.json").read_bytes() == before
    assert stored == {p: p.stat().st_mtime_ns for p in stored}
    printed = capsys.readouterr().out
    assert "ood: n = 16 problems" in printed and "test: n = 24" not in printed
    assert "verdict: " in printed and "exact_gradient" in printed


def test_generating_anew_agrees(judged, capsys) -> None:
    assert main(["--run", str(judged), "--split", "test", "--live", "--problems", "10"]) == 0
    printed = capsys.readouterr().out
    assert "generated again: n = 10 problems" in printed
    cells = int(printed.split("n = 10 problems, ")[1].split()[0])
    assert f"{cells} of {cells} cells agree in text, {cells} in correctness" in printed
    run = jroute.load_run(judged)
    rows = {line.split()[0]: line.split() for line in printed.splitlines()}
    for name in registry.generable():
        gates = run.gates(name, run.data.prompts("test")[:10])
        right = [
            run.outcomes.outcome("test", problem.id, gate).correct
            for problem, gate in zip(run.data.problems("test")[:10], gates, strict=True)
        ]
        assert rows[name][1] == f"{np.mean(right):.1%}" == rows[name][-1]


def test_a_cell_that_comes_out_otherwise_is_told(judged, monkeypatch, capsys) -> None:
    generate = CellGenerator.generate

    def other(generator, cells, **options):
        outcomes = generate(generator, cells, **options)
        first = dataclasses.replace(outcomes[0], completion="?", correct=not outcomes[0].correct)
        return [first, *outcomes[1:]]

    monkeypatch.setattr(CellGenerator, "generate", other)
    given = ["--run", str(judged), "--split", "test", "--live", "--problems", "3"]
    assert main([*given, "--arms", "baseline", "fixed:1"]) == 2
    printed = capsys.readouterr()
    assert "5 of 6 cells agree in text, 5 in correctness" in printed.out
    assert printed.err.startswith("error: 1 of 6 cells differ from the table, e.g. ")
    assert "synthetic/test" in printed.err and "--replicate 200" in printed.err
    # What replicates do as often is no disagreement, and what they do not is.
    for flips, status in ((50, 0), (0, 2)):
        floor = {"text": {"flips": flips, "n": 400}}
        monkeypatch.setattr(RunOutcomes, "noise_floor", lambda _, floor=floor: floor)
        assert main([*given, "--arms", "baseline", "fixed:1"]) == status
    printed = capsys.readouterr()
    p = 1 - math.comb(406 - 51, 6) / math.comb(406, 6)  # one of 51 among 406 is in the 6
    assert "1 of 6 cells differ from the table; of the noise" in printed.out
    assert f"replicates 50 of 400 did (p = {p:.2g})" in printed.out
    assert f"replicates 0 of 400 did (p = {6 / 406:.2g})" in printed.err


def test_plans_write_nothing(judged, capsys) -> None:
    before = {path: path.stat().st_mtime_ns for path in judged.rglob("*")}
    assert main(["--run", str(judged), "--plan"]) == 0
    plan = capsys.readouterr().out
    assert "0 cells to make (240 of 240 are there)" in plan  # train: 48 problems, 5 gates
    assert "memory" in plan and "random rewards" not in plan  # these controllers are there
    given = ["--run", str(judged), "--split", "test", "--live", "--plan"]
    assert main([*given, "--arms", "baseline", "rl", "--problems", "7"]) == 0
    plan = capsys.readouterr().out
    assert "14 cells to make (0 of 14 are there)" in plan
    assert "time" in plan and "cells/s" in plan
    assert main([*given, "--arms", "oracle"]) == 2
    assert before == {path: path.stat().st_mtime_ns for path in judged.rglob("*")}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--split", "train"], "'train' is not judged"),
        (["--problems", "5"], "belong to --live"),
        (["--live", "--problems", "1"], "--problems: '1' is not a whole number at least 2"),
        (["--live", "--arms", "oracle"], "'oracle' cannot be generated"),
    ],
    ids=["split", "table", "problems", "arm"],
)
def test_bad_commands(judged, arguments, message, capsys) -> None:
    assert main(["--run", str(judged), *arguments]) == 2
    assert message in capsys.readouterr().err
