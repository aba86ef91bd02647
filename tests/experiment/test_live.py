"""Gates per layer and per band, trained on completions that are generated as they are asked for."""

import json
import math
import shutil
from pathlib import Path

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

import jroute
from jroute.checkpoint import load_state
from jroute.compare import main as compare
from jroute.controller.features import Featurizer
from jroute.envs.functional import LiveEnv, TableEnv
from jroute.evaluate import main as evaluate
from jroute.experiment.config import Experiment
from jroute.experiment.environments import environment_data, environment_of
from jroute.experiment.pipeline import fill_outcomes
from jroute.experiment.run import Run
from jroute.experiment.training import train_ppo_of
from jroute.observe.scalars import read_curves
from jroute.outcomes.cells import Cell
from jroute.outcomes.generation import CellGenerator
from jroute.train import main as train
from jroute.utils.config import load as load_config
from jroute.utils.errors import UserError

SMALL = {
    "gates": [0.0, 0.5, 1.0],
    "rollouts": "live",
    "task": {"name": "synthetic", "train": 12, "validation": 8, "test": 12},
    "decoding": {"max_new_tokens": 16},
    "engine": {"slots": 16},
    "features": {"components": 4},
    "ppo": {"updates": 3, "batch_size": 8, "minibatches": 2, "seeds": 2, "hidden": [8]},
    "judge": {"replicates": 200},
}


def write_config(folder: Path, model: Path, **changes) -> Path:
    path = folder / "live.yaml"
    content = {"model": str(model), "run": str(folder / "run"), **SMALL, **changes}
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture(scope="module")
def per_layer(tiny_directory, tmp_path_factory) -> Path:
    """A finished run with a gate per layer."""
    config = write_config(tmp_path_factory.mktemp("layers"), tiny_directory, gate_per="layer")
    assert train(["--config", str(config)]) == 0
    return config


def test_a_gate_per_layer_is_trained_end_to_end(per_layer, capsys, tmp_path):
    run = jroute.load_run(per_layer.parent / "run")
    results = run.results
    assert run.grid.num_gate_dims == 6 and results["parts"] == 6 and results["n"] == 12
    assert set(results["arms"]) == {"rl", "rl_selected", "baseline", "fixed:0.5"}
    assert set(results["not_available"]) >= {"oracle", "best_fixed"}
    assert [c["b"] for c in results["contrasts"]] == ["fixed:0.5", "baseline"]
    assert not list((per_layer.parent / "run").glob("outcomes/*/*"))  # there is no table
    # What is judged is what the memo holds, under the gates that the controllers choose.
    ids, prompts = [p.id for p in run.data.problems("test")], run.data.prompts("test")
    gates = run.gates("rl", prompts)
    assert gates.shape == (12, 6)
    cells = [
        run.outcomes.memo.outcome(i, tuple(g)) for i, g in zip(ids, gates.tolist(), strict=True)
    ]
    expected = np.mean([cell.correct for cell in cells])
    assert results["arms"]["rl_selected"]["accuracy"] == pytest.approx(expected)
    counts = [[int((part == g).sum()) for g in (0.0, 0.5, 1.0)] for part in gates.T]
    chosen = results["gates_chosen"]["rl"]
    assert chosen[results["selected_seed"]] == np.sum(counts, axis=0).tolist()
    by_part = np.array(results["gates_chosen_by_part"]["rl"])
    assert by_part.sum(axis=0).tolist() == np.sum(chosen, axis=0).tolist()
    assert (by_part >= counts).all() and (by_part.sum(axis=1) == 2 * 12).all()  # of two seeds
    (made,) = results["generation"].values()
    assert (
        made["cells"] == len(run.outcomes.memo) == results["cells_generated"]
        and made["seconds"] > 0
    )
    rows = pq.read_table(run.directory / "items.parquet", filters=[("arm", "=", "rl_selected")])
    assert rows["problem"].to_pylist() == ids and rows["gate"].to_pylist() == gates.tolist()
    assert np.mean(rows["value"].to_pylist()) == pytest.approx(expected)
    for name in ("results.json", "items.parquet"):
        shutil.copy(run.directory / name, tmp_path)
    assert compare([str(run.directory), str(tmp_path)]) == 0
    # Both seeds together revealed what the memo holds of train.
    revealed = read_curves(run.directory / "tensorboard")[0]["charts/cells_revealed"][:, -1]
    train_ids = {p.id for p in run.data.problems("train")}
    there = sum(cell.problem_id in train_ids for cell in run.outcomes.memo.cells())
    assert 0 < max(revealed) <= there <= sum(revealed)
    plain = [run.outcomes.memo.outcome(i, (0.0,) * 6).completion for i in ids]
    assert plain == [c.text for c in run.generate(prompts, arm="baseline")]
    why = run.explain(prompts[0])
    assert why["gate"] == gates[0].tolist() and len(why["probabilities"]) == 6
    # Once more: everything is there.
    size = len(run.outcomes.memo)
    before = (per_layer.parent / "run" / "results.json").read_bytes()
    assert train(["--config", str(per_layer)]) == 0
    printed = capsys.readouterr().out
    assert "not available without a table:" in printed and "oracle: needs" in printed
    assert len(jroute.load_run(per_layer.parent / "run").outcomes.memo) == size
    assert (per_layer.parent / "run" / "results.json").read_bytes() == before
    # Judged again it is the same, and generated again it agrees with the memo.
    folder = ["--run", str(run.directory)]
    assert evaluate(folder) == 0 and (run.directory / "results.json").read_bytes() == before
    assert evaluate([*folder, "--live", "--problems", "3", "--split", "test"]) == 0
    printed = capsys.readouterr().out
    live = [line.split() for line in printed.splitlines() if line.startswith(("rl ", "baseline "))]
    right = np.mean([cell.correct for cell in cells[:3]])
    assert ["rl", f"{right:.1%}"] == live[-1][:2] and live[-1][-1] == f"{right:.1%}"
    assert evaluate([*folder, "--plan"]) == 0
    assert "        0 cells to make" in capsys.readouterr().out
    assert evaluate([*folder, "--live", "--arms", "oracle"]) == 2
    for arm in ("best_fixed", "supervised"):
        with pytest.raises(UserError, match=f"arm {arm} learns from the rewards of all gates"):
            run.gates(arm, prompts)


def test_an_interrupted_training_repeats_itself_from_the_memo(per_layer, tmp_path, monkeypatch):
    """The learner is lost, the memo is not: nothing is generated and the controllers are equal."""
    done = jroute.load_run(per_layer.parent / "run")
    config = write_config(tmp_path, Path(done.experiment.model), gate_per="layer")
    started = Run.start(load_config(Experiment, config))
    (tmp_path / "run" / "memo").symlink_to(done.directory / "memo")
    (tmp_path / "run" / "features").symlink_to(done.directory / "features")
    monkeypatch.setattr(CellGenerator, "generate", lambda *_, **__: pytest.fail("generated"))
    assert train(["--config", str(config)]) == 0
    one, other = (
        load_state(run.directory / "controller" / run.controllers.training)[1]
        for run in (done, started)
    )
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_gymnasium_environment_of_the_run_is_live(per_layer):
    run = jroute.load_run(per_layer.parent / "run")
    data = environment_data(run, "test", live=True)
    actions = np.tile([0, 1, 2, 0, 1, 2], (4, 1))
    size = len(run.outcomes.memo)
    rewards = LiveEnv(data).rewards(np.array([0, 1, 2, 0]), actions)
    gate = (0.0, 0.5, 1.0, 0.0, 0.5, 1.0)
    expected = [run.outcomes.memo.outcome(data.problems[i].id, gate).reward for i in (0, 1, 2, 0)]
    np.testing.assert_array_equal(rewards, expected)
    assert len(run.outcomes.memo) - size <= 3
    direct = run.outcomes.generator.generate([Cell(data.problems[1], gate)])
    assert direct == [run.outcomes.memo.outcome(data.problems[1].id, gate)]
    # The model's six blocks are all mixing sites: it takes these very numbers.
    (completion,) = run.lm.generate(
        run.data.prompts("test")[1:2], [gate], max_new_tokens=16, slots=16, logprobs="raw"
    )
    assert (direct[0].completion, direct[0].logprob) == (
        completion.text,
        math.fsum(completion.logprobs),
    )


def test_live_rollouts_learn_what_the_table_teaches(tiny_directory, tmp_path):
    """One gate per prompt: the same cells, the same draws, so the same controllers."""
    config = write_config(tmp_path, tiny_directory, gate_per="prompt")
    run = Run.start(load_config(Experiment, config))
    fill_outcomes(run, "train")
    assert len(run.outcomes.table) == 36 and run.outcomes.table is run.outcomes.memo
    raw = run.features.raw("train")
    featurizer = Featurizer.fit(raw, run.experiment.features)
    backend = run.outcomes.backend(live=True)
    data = environment_of("train", run.data, run.features, featurizer, run.grid, backend)
    live = train_ppo_of(run, LiveEnv(data))
    assert len(run.outcomes.table) == 36  # all was remembered
    (tmp_path / "run" / "learner").rename(tmp_path / "run" / "of_live")
    observations = featurizer(raw).astype(np.float32)
    tabled = train_ppo_of(
        run, TableEnv.create(observations, run.outcomes.matrix("train", "reward"))
    )
    for a, b in zip(jax.tree.leaves(live), jax.tree.leaves(tabled), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-4, atol=1e-6)
    assert int(live.revealed.sum()) > 0


def test_gates_per_band(tiny_directory, tmp_path, capsys):
    stored = yaml.safe_load((tiny_directory / "routing.yaml").read_text())
    routing = tmp_path / "bands.yaml"
    routing.write_text(yaml.safe_dump({**stored, "bands": 2}))
    config = write_config(tmp_path, tiny_directory, gate_per="band", routing=str(routing))
    run = Run.start(load_config(Experiment, config))
    assert run.grid.num_gate_dims == 2
    problems = run.data.problems("test")[:6]
    backend = run.outcomes.backend(live=True)
    low, high, both = (
        backend.outcomes(problems, [g] * 6) for g in ((1.0, 0.0), (0.0, 1.0), (1.0, 1.0))
    )
    options = {"max_new_tokens": 16, "slots": 16, "logprobs": "raw"}
    for outcomes, gate in ((low, [[1.0, 0.0]] * 6), (high, [[0.0, 1.0]] * 6), (both, 1.0)):
        whole = run.lm.generate(run.data.prompts("test")[:6], gate, **options)
        assert [o.completion for o in outcomes] == [c.text for c in whole]
        assert [o.logprob for o in outcomes] == [math.fsum(c.logprobs) for c in whole]
    for outcomes in (low, high):  # each band moves the model, and both move it elsewhere
        assert all(a.logprob != b.logprob for a, b in zip(outcomes, both, strict=True))
    assert all(a.logprob != b.logprob for a, b in zip(low, high, strict=True))
    bad = write_config(tmp_path, tiny_directory, gate_per="band")
    assert train(["--config", str(bad), "--run", str(tmp_path / "other")]) == 2
    assert "this routing has no bands" in capsys.readouterr().err
    assert train(["--config", str(bad), "--rollouts", "table"]) == 2
    assert "a gate per band has too many values for a table" in capsys.readouterr().err


def test_a_live_plan_bounds_what_is_generated(per_layer, tmp_path, capsys):
    assert train(["--config", str(per_layer), "--run", str(tmp_path / "run"), "--plan"]) == 0
    printed = capsys.readouterr().out
    bounds = (
        "48 episodes, at most 48 different cells on train, and 64 to choose a seed and to judge"
    )
    assert f"{bounds}: 1792 tokens" in printed and "device-hours" in printed
    assert not (tmp_path / "run").exists()
    assert json.loads((per_layer.parent / "run" / "results.json").read_text())["parts"] == 6
