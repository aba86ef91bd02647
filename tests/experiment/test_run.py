"""The whole road on the bundled model, small: interrupted, resumed, and asked questions."""

import dataclasses
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import yaml
from tensorboardX.proto.event_pb2 import Event

import jroute
from jroute.checkpoint import latest_step, load_state
from jroute.convert import main as convert
from jroute.envs.gymnasium import RoutingVectorEnv
from jroute.experiment.config import Experiment
from jroute.experiment.environments import environment_data, make_vector_env
from jroute.experiment.feature_store import FeatureStore
from jroute.experiment.results_file import read_results
from jroute.experiment.run import Run
from jroute.outcomes.backends import LiveBackend
from jroute.report.__main__ import main as report
from jroute.train import main as train
from jroute.utils.config import load as load_config
from jroute.utils.errors import UserError

ASSET = Path(jroute.__file__).parent / "assets" / "tiny-gated"
UPDATES = 600
SMALL = {
    "judged": ["test", "ood"],
    "task": {"name": "synthetic", "train": 96, "validation": 48, "test": 64, "ood": 32},
    "decoding": {"max_new_tokens": 40},
    "engine": {"slots": 32},
    "features": {"components": 16},
    "ppo": {"updates": UPDATES, "batch_size": 64, "seeds": 2},
    "supervised": {"steps": 100},
    "judge": {"replicates": 500},
}


def write_config(folder: Path, model: Path, **changes) -> Path:
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump({"model": str(model), "run": "", **SMALL, **changes}))
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    assert convert(["--source", str(ASSET), "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def interrupted(model, tmp_path_factory) -> tuple[Path, list[str]]:
    """A run that was killed twice, each time provably mid-way, and then completed."""
    folder = tmp_path_factory.mktemp("interrupted")
    config = write_config(folder, model)
    run = folder / "run"
    command = [sys.executable, "-m", "jroute.train", "--config", str(config), "--run", str(run)]
    cells = 5 * sum(SMALL["task"][split] for split in ("train", "validation", "test", "ood"))
    notes = []

    def parts() -> int:
        return sum(1 for _ in run.glob("outcomes/*/part-*.parquet"))

    kill_when(command, lambda: parts() >= 3)
    stored = len(jroute.load_run(run).outcomes.table)
    assert 0 < stored < cells
    assert not (run / "controller").exists() and not (run / "learner").exists()
    notes.append(f"killed with {stored} of {cells} cells")

    kill_when(command, lambda: learnt(run) >= 50)
    step = learnt(run)
    assert 50 <= step < UPDATES
    assert not (run / "controller").exists() and not (run / "results.json").exists()
    assert len(jroute.load_run(run).outcomes.table) == cells
    notes.append(f"killed at update {step} of {UPDATES}")

    subprocess.run(command, check=True, env=one_device(), capture_output=True, timeout=300)
    return run, notes


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory) -> Path:
    """The same experiment, never interrupted, and tracked, which changes nothing."""
    folder = tmp_path_factory.mktemp("whole")
    run = folder / "run"
    command = ["-m", "jroute.train", "--config", str(write_config(folder, model))]
    if find_spec("wandb"):
        command += ["--track", "wandb"]
    subprocess.run(
        [sys.executable, *command, "--run", str(run)],
        check=True,
        env={**one_device(), "WANDB_MODE": "offline", "WANDB_SILENT": "true"},
        capture_output=True,
        timeout=300,
    )
    return run


def learnt(run: Path) -> int:
    """Updates in the newest checkpoint of the learner."""
    folders = list(run.glob("learner/*"))
    return (latest_step(folders[0]) or 0) if folders else 0


def one_device() -> dict[str, str]:
    return {**os.environ, "JAX_NUM_CPU_DEVICES": "1"}


def kill_when(command: list[str], reached: Callable[[], bool]) -> None:
    process = subprocess.Popen(
        command, env=one_device(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 300
    while not reached():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def test_a_killed_run_ends_like_an_uninterrupted_one(interrupted, whole):
    run, notes = interrupted
    assert len(notes) == 2
    name = jroute.load_run(run).controllers.training
    a, b = (load_state(folder / "controller" / name)[1] for folder in (run, whole))
    assert learnt(run) == learnt(whole) == UPDATES
    flat_a, flat_b = flatten(a), flatten(b)
    assert flat_a.keys() == flat_b.keys() and len(flat_a) > 30
    for name, value in flat_a.items():
        np.testing.assert_array_equal(value, flat_b[name], err_msg=name)
    results = [read_results(folder / "results.json") for folder in (run, whole)]
    # But for how long it took; the cells are as many.
    made = [list(result.pop("generation").values()) for result in results]
    assert [one["cells"] for (one,) in made] == [1200, 1200] and results[0] == results[1]


def flatten(tree, prefix="") -> dict[str, np.ndarray]:
    if not isinstance(tree, dict):
        return {prefix: np.asarray(tree)}
    return {
        k: v for name, part in tree.items() for k, v in flatten(part, f"{prefix}/{name}").items()
    }


def test_a_plan_tells_of_the_table_and_of_the_learner(whole, capsys):
    before = {p: p.stat().st_mtime_ns for p in whole.rglob("*")}
    assert train(["--config", str(whole / "config.yaml"), "--plan"]) == 0
    plan = capsys.readouterr().out
    assert re.search(r"^train +0 cells to make \(480 of 480 are there\)$", plan, re.M)
    assert re.search(r"^ood +0 cells to make \(160 of 160 are there\)$", plan, re.M)
    assert re.search(r"^memory +about .+ on each device, of ", plan, re.M)
    assert re.search(r"^ppo +600 updates x 2 seeds = 76800 episodes, about ", plan, re.M)
    assert before == {p: p.stat().st_mtime_ns for p in whole.rglob("*")}


def test_a_finished_run_has_nothing_left_to_do(whole):
    before = {p: p.stat().st_mtime_ns for p in whole.rglob("part-*.parquet")}
    items = (whole / "items.parquet").read_bytes()
    experiment = jroute.load_run(whole).experiment
    Run.start(experiment)
    results = jroute.load_run(whole).results
    from jroute.experiment.pipeline import train as stages

    assert stages(Run.start(experiment)) == results
    assert before == {p: p.stat().st_mtime_ns for p in before}
    assert (whole / "items.parquet").read_bytes() == items  # judged again, and alike


def test_results_are_what_the_table_says(whole):
    run = jroute.load_run(whole)
    results = run.results
    correct = run.outcomes.matrix("test")
    assert results["n"] == 64 and results["other_splits"]["ood"]["n"] == 32
    arms = results["arms"]
    for i, gate in enumerate(run.grid.values):
        assert arms[f"fixed:{gate:g}"]["accuracy"] == pytest.approx(correct[:, i].mean())
    assert arms["random"]["accuracy"] == pytest.approx(correct.mean())
    assert arms["oracle"]["accuracy"] == pytest.approx(correct.max(axis=1).mean())
    best = run.grid.values[int(run.outcomes.matrix("train").mean(axis=0).argmax())]
    assert results["best_fixed_gate"] == best
    rows = np.arange(64)
    for arm, name in (("supervised", "supervised"), ("rl", "rl_selected")):
        gates = run.gates(arm, run.data.prompts("test"))
        columns = [run.grid.values.index(gate) for gate in gates]
        assert arms[name]["accuracy"] == pytest.approx(correct[rows, columns].mean())
    assert {(c["a"], c["b"]) for c in results["contrasts"]} >= {
        ("rl", b) for b in ("baseline", "fixed:0.5", "supervised", "best_fixed", "random")
    }
    # By construction of the bundled model; tiny as this run is, it must show.
    assert arms["oracle"]["accuracy"] - arms["best_fixed"]["accuracy"] > 0.15
    assert arms["rl"]["accuracy"] - arms["best_fixed"]["accuracy"] > 0.05


def test_generation_repeats_what_the_table_holds(whole):
    run = jroute.load_run(whole)
    problems, prompts = run.data.problems("test")[:16], run.data.prompts("test")[:16]
    for arm in ("baseline", "fixed:0.5", "random", "rl"):
        gates = run.gates(arm, prompts)
        completions = run.generate(prompts, arm=arm)
        for problem, gate, completion in zip(problems, gates, completions, strict=True):
            assert completion.text == run.outcomes.outcome("test", problem.id, gate).completion
    assert len(set(run.gates("random", run.data.prompts("test")))) > 1
    np.testing.assert_array_equal(
        run.gates("random", prompts[::-1]), run.gates("random", prompts)[::-1]
    )


def test_explain_tells_the_gate_that_is_used(whole):
    run = jroute.load_run(whole)
    for prompt in run.data.prompts("test")[:4]:
        why = run.explain(prompt)
        assert sum(why["probabilities"].values()) == pytest.approx(1)
        assert why["gate"] == max(why["probabilities"], key=why["probabilities"].get)
        assert run.gates("rl", [prompt])[0] == why["gate"]
        assert list(why["features"])[:2] == ["prompt_length", "length_bucket"]
        assert np.isfinite(why["value"])


def test_scalars_have_cleanrls_names(whole):
    steps: dict[str, list[int]] = {}
    for path in (whole / "tensorboard").glob("events.*"):
        data = path.read_bytes()
        while data:  # length, checksum, event, checksum
            size = int.from_bytes(data[:8], "little")
            event = Event.FromString(data[12 : 12 + size])
            data = data[16 + size :]
            for value in event.summary.value:
                steps.setdefault(value.tag, []).append(event.step)
    names = "value_loss policy_loss entropy old_approx_kl approx_kl clipfrac explained_variance"
    expected = {f"losses/{name}" for name in names.split()}
    expected |= {"charts/episodic_return", "charts/learning_rate", "charts/SPS"}
    assert expected <= steps.keys()
    assert steps["charts/episodic_return"] == list(range(UPDATES))


def test_environments_of_a_run_pay_what_the_table_says(whole):
    data = environment_data(whole, "validation")
    env = RoutingVectorEnv(8, data=data)
    _, infos = env.reset(seed=1)
    ids = list(infos["problem_id"])
    actions = np.arange(8) % 5
    _, rewards, terminated, _, _ = env.step(actions)
    assert terminated.all()
    run = jroute.load_run(whole)
    gates = [run.grid.values[a] for a in actions]
    expected = [
        run.outcomes.outcome("validation", i, g).reward for i, g in zip(ids, gates, strict=True)
    ]
    np.testing.assert_array_equal(rewards, expected)


def test_table_and_model_agree_on_a_sample(whole):
    """The environment over the table and the one that generates go the same way."""
    run = jroute.load_run(whole)
    data = environment_data(run, "test", live=True)
    assert isinstance(data.backend, LiveBackend)
    forgetful = dataclasses.replace(data.backend, memo=None)
    lively = RoutingVectorEnv(8, data=dataclasses.replace(data, backend=forgetful))
    tabled = make_vector_env(8, run=whole)
    actions = np.arange(8) % 5
    first = [envs.reset(seed=5)[0] for envs in (tabled, lively)]
    np.testing.assert_array_equal(*first)
    (_, paid, *_, table_infos), (_, also, *_, infos) = (
        envs.step(actions) for envs in (tabled, lively)
    )
    np.testing.assert_array_equal(paid, also)
    for name in ("completion", "parsed", "tokens", "stop_reason", "problem_id", "gate"):
        assert list(table_infos["final_info"][name]) == list(infos["final_info"][name])


def test_features_of_another_configuration_are_not_served(whole, tmp_path, monkeypatch):
    """The cache is keyed by all that decides features; what is stored is not computed again."""
    run = jroute.load_run(whole)
    raw = run.features.raw("test")
    computed = []
    monkeypatch.setattr(
        FeatureStore, "read", lambda _, prompts, **__: computed.append(len(prompts)) or raw
    )
    own = run.experiment.features
    others = [dataclasses.replace(own, **c) for c in ({"streams": False}, {"depths": (1,)})]
    elsewhere = dataclasses.replace(
        run.features, folder=dataclasses.replace(run.folder, path=tmp_path)
    )
    for config in (own, *others, own, others[1]):
        stored = dataclasses.replace(elsewhere, config=config).raw("test")
        np.testing.assert_array_equal(stored.scalars, raw.scalars)
        assert stored.names == raw.names
    assert computed == [64] * 3
    run.data._prompts["test"] = ["another", *run.data.prompts("test")[1:]]
    elsewhere.raw("test")
    assert computed == [64] * 4


def test_report_prints_every_arm(whole, tmp_path, capsys):
    assert report(["--run", str(whole), "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    page = (tmp_path / "report.html").read_text()
    assert "cannot be shown" not in page and "bands hold 90 %" in page
    for arm in ("baseline", "fixed:0.5", "random", "supervised", "rl", "best_fixed", "oracle"):
        assert f"\n{arm} " in printed
    assert "n = 64 problems" in printed and str(whole / "results.json") in printed


def test_a_tracked_run_is_stored_and_not_remembered(whole):
    pytest.importorskip("wandb")
    assert len(list(whole.glob("tensorboard/wandb/offline-run-*/*.wandb"))) == 1
    assert yaml.safe_load((whole / "config.yaml").read_text())["track"] == ""


def test_the_demos_cells_keep_their_name(model, tmp_path):
    """What a cell means has not changed by accident: tables that were filled before are found."""
    config = Path(__file__).parents[2] / "configs" / "tiny.yaml"
    experiment = load_config(Experiment, config, ["--model", str(model)])
    fingerprint = Run(tmp_path, experiment).outcomes.table.fingerprint
    assert fingerprint == "6bb36f70aaf11a4bdf55d78ea6b6c151340a1724c207cdc0ebd6c8224f8842b3"


def test_controllers_are_not_carried_over_to_another_model(whole, tmp_path):
    """A model that was replaced under the same path has no controller yet."""
    run = jroute.load_run(whole)
    run.lm.fingerprint = "0" * 64
    (tmp_path / "controller").symlink_to(whole / "controller")
    run = Run(tmp_path, run.experiment, run.lm)
    assert run.controllers.training != jroute.load_run(whole).controllers.training
    trained = jroute.load_run(whole).controllers.training
    message = (
        f"no controller trained on this model .*; {trained}, which it has, differs in outcomes\\)"
    )
    with pytest.raises(UserError, match=message):
        run.gates("rl", ["x"])


def test_a_run_opens_from_any_directory(model, tmp_path, monkeypatch):
    place = tmp_path / "project"
    (place / "runs" / "demo").mkdir(parents=True)
    (place / "runs" / "demo" / "model").symlink_to(model)
    config = {"model": "runs/demo/model", "run": "runs/demo", **SMALL}
    (place / "runs" / "demo" / "config.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.chdir(tmp_path)
    run = jroute.load_run(place / "runs" / "demo")
    assert run.lm.fingerprint == jroute.load(model).fingerprint


def test_a_prompt_that_does_not_fit_leaves_nothing_behind(model, tmp_path, capsys):
    config = write_config(tmp_path, model)
    run = tmp_path / "run"
    arguments = ["--config", str(config), "--run", str(run), "--decoding.max_new_tokens", "1000"]
    assert train(arguments) == 2
    error = capsys.readouterr().err
    assert "problem synthetic/train/0: a prompt of" in error and "context of 1024" in error
    assert not run.exists()


def test_another_experiment_does_not_enter_a_run_folder(whole, capsys):
    config = str(whole / "config.yaml")
    assert train(["--config", config, "--ppo.learning_rate", "1e-4"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "different: ppo" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
        (["--run", "x", "--model", "no/such/model"], "no/such/model"),
        (["--run", "x", "--model", "m", "--ppo.learning_rat", "1"], "ppo.learning_rate"),
        (["--run", "x", "--model", "m", "--gates", "[0.0, 1.0]"], "0.5"),
        (["--run", "x", "--model", "m", "--ppo.minibatches", "3"], "equal minibatches"),
    ],
)
def test_bad_commands_end_in_one_sentence(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert train(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("error: ") and message in error
    assert not list(tmp_path.iterdir())


def test_what_is_no_run_or_arm_is_refused(tmp_path, whole):
    with pytest.raises(UserError, match="is not a run folder"):
        jroute.load_run(tmp_path)
    with pytest.raises(UserError, match="no arm is named 'luck'"):
        jroute.load_run(whole).gates("luck", ["x"])


def test_training_in_several_processes_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("JROUTE_COORDINATOR", "127.0.0.1:1")
    assert train(["--run", str(tmp_path / "run"), "--model", "none"]) == 2
    assert "fill the table with python -m jroute.outcomes" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
