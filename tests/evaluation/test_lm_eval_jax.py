"""The command judges arms item by item, and hands lm-eval's own tasks through."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import lm_eval.tasks
import numpy as np
import pytest
from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager

from jroute.envs.outcomes import Outcome
from jroute.evaluation import lm_eval_tasks
from jroute.evaluation.harness import JaxLM
from jroute.experiment import Experiment
from jroute.generate.decoding import Decoding
from jroute.generate.planning import EngineConfig
from jroute.run import Run
from jroute.stages import fill_outcomes
from jroute.tasks import TaskConfig
from scripts import lm_eval_jax
from tests.support import data_dir

# A run's own splits -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tiny_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with outcomes but without trained controllers."""
    experiment = Experiment(
        run=str(tmp_path_factory.mktemp("runs") / "run"),
        model=str(tiny_directory),
        gates=(0.0, 0.5, 1.0),
        task=TaskConfig(test=9, ood=3),
        decoding=Decoding(max_new_tokens=24, stop=("Question:",)),
        engine=EngineConfig(slots=4),
    )
    started = Run.start(experiment)
    fill_outcomes(started, "test")
    return started


def command(run: Run, *arguments: str) -> list[str]:
    return ["--run", str(run.directory), *arguments]


def test_every_item_of_every_arm_is_trainings_own(run, capsys) -> None:
    arms = ["baseline", "fixed:0.5", "random"]
    assert lm_eval_jax.main(command(run, "--arm", ",".join(arms), "--tasks", "test,ood")) == 0
    printed = capsys.readouterr().out
    assert "27 of 27 items agree with training's own outcomes" in printed
    assert "every arm was asked the same" in printed
    assert (
        "baseline is not compared with training: training generated no outcomes of ood" in printed
    )
    out = run.directory / "lm_eval"
    summary = json.loads((out / "summary_test_ood.json").read_text())
    assert summary["tasks"]["test"]["n"] == 9 and summary["tasks"]["ood"]["n"] == 3
    correct = run.matrix("test")
    for arm in arms:
        found = summary["arms"][arm]["test"]
        gates = run.gates(arm, run.prompts("test"))
        columns = [run.gate_values.index(gate) for gate in gates]
        expected = correct[np.arange(9), columns].mean()
        assert found["metrics"]["exact_match,jroute"]["value"] == pytest.approx(expected)
        assert found["equal_to_training"] == 9
        folder = out / lm_eval_jax.folder_name(arm)
        (results,) = folder.glob("results_*.json")
        stored = json.loads(results.read_text())
        assert stored["results"]["test"]["exact_match,jroute"] == pytest.approx(expected)
        assert stored["config"]["arm"] == arm
        assert stored["config"]["model_fingerprint"] == run.lm.fingerprint
        assert stored["task_hashes"]["test"] == summary["tasks"]["test"]["task_hash"]
        assert stored["configs"]["test"]["generation_kwargs"]["max_gen_toks"] == 24
        assert stored["configs"]["test"]["generation_kwargs"]["until"] == ["Question:"]
        (samples,) = folder.glob("samples_test_*.jsonl")
        rows = [json.loads(line) for line in samples.read_text().splitlines()]
        assert [r["arguments"]["gen_args_0"]["arg_0"] for r in rows[:9]] == run.prompts("test")
        (side,) = folder.glob("gates_test_*.jsonl")
        chosen = [json.loads(line) for line in side.read_text().splitlines()]
        assert [row["gate"] for row in chosen] == gates.tolist()
    assert 0 < summary["arms"]["random"]["test"]["mean_gate"] < 1
    assert not [path for path in out.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("field", ["completion", "correct", "stop_reason"])
def test_one_differing_item_is_an_error(run, capsys, monkeypatch, field) -> None:
    truth, target = Run.outcome, run.problems("test")[1].id
    changes = {"completion": "#### 1", "correct": None, "stop_reason": "length"}

    def tampered(self, split, problem_id, gate) -> Outcome:
        outcome = truth(self, split, problem_id, gate)
        changed = not outcome.correct if field == "correct" else changes[field]
        return dataclasses.replace(outcome, **{field: changed}) if problem_id == target else outcome

    monkeypatch.setattr(Run, "outcome", tampered)
    arguments = command(run, "--arm", "baseline", "--tasks", "test", "--limit", "3")
    assert lm_eval_jax.main(arguments) == 2
    assert f"error: {target} at gate 0" in capsys.readouterr().err


def test_another_prompt_than_trainings_is_an_error(run, capsys, monkeypatch) -> None:
    render = JaxLM.apply_chat_template
    monkeypatch.setattr(JaxLM, "apply_chat_template", lambda *a, **k: render(*a, **k) + " ")
    assert lm_eval_jax.main(command(run, "--arm", "baseline", "--tasks", "test")) == 2
    assert "is not training's" in capsys.readouterr().err


def test_arms_that_were_asked_something_else_are_not_compared(run, capsys, monkeypatch) -> None:
    evaluate = lm_eval_jax.evaluate_arm

    def tampered(run, arm, *rest) -> Any:
        verdicts = evaluate(run, arm, *rest)
        verdicts["test"].asked["prompts"] = arm
        return verdicts

    monkeypatch.setattr(lm_eval_jax, "evaluate_arm", tampered)
    arguments = command(run, "--arm", "baseline,random", "--tasks", "test", "--limit", "2")
    assert lm_eval_jax.main(arguments) == 2
    assert (
        "baseline and random were not asked the same in test (prompts)" in capsys.readouterr().err
    )


def test_mistakes_on_the_command_line_are_told_in_a_sentence(run, capsys, tmp_path) -> None:
    cases = {
        "no arm is named 'rll'": command(run, "--arm", "rll", "--tasks", "test"),
        "did you mean gsm8k?": command(run, "--arm", "baseline", "--tasks", "gsm8q"),
        "has no config.yaml": ["--run", str(tmp_path), "--arm", "baseline", "--tasks", "test"],
        "for tasks of lm-eval only": command(
            run, "--arm", "baseline", "--tasks", "test", "--num_fewshot", "1"
        ),
        "train.jsonl is missing": command(
            run, "--arm", "baseline", "--tasks", "gsm8k", "--data", str(tmp_path)
        ),
        "has no controller trained": command(run, "--arm", "rl", "--tasks", "test"),
        "--limit is 0": command(run, "--arm", "rl", "--tasks", "test", "--limit", "0"),
    }
    for message, arguments in cases.items():
        assert lm_eval_jax.main(arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and message in error and error.count("\n") == 1


def test_torch_is_not_needed(run, tmp_path) -> None:
    """Not by the whole command, not even where it is installed."""
    arguments = command(run, "--arm", "baseline", "--tasks", "test", "--limit", "1")
    code = (
        "import sys; from scripts.lm_eval_jax import main; "
        f"assert main({[*arguments, '--output_path', str(tmp_path)]!r}) == 0; "
        "sys.exit('torch' in sys.modules)"
    )
    root = Path(__file__).parent.parent.parent
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True, capture_output=True)


# lm-eval's own tasks ------------------------------------------------------------------------------


def test_the_official_gsm8k_runs_unmodified(run, tmp_path, capsys) -> None:
    data = data_dir()
    options = ["--num_fewshot", "1", "--limit", "2", "--gen_kwargs", "max_gen_toks=8"]
    options += ["--batch_size", "2", "--data", str(data), "--output_path", str(tmp_path / "out")]
    arguments = command(run, "--arm", "baseline,fixed:1", "--tasks", "gsm8k", *options)
    assert lm_eval_jax.main(arguments) == 0
    summary = json.loads((tmp_path / "out" / "summary_gsm8k_limit2.json").read_text())
    task = summary["tasks"]["gsm8k"]
    assert (task["n"], task["version"], task["num_fewshot"]) == (2, 3.0, 1)
    assert summary["arms"]["fixed:1"]["gsm8k"]["gates"] == {"1": 2}
    assert summary["arms"]["baseline"]["gsm8k"]["metrics"].keys() == {
        "exact_match,strict-match",
        "exact_match,flexible-extract",
    }
    # Without any of our doing lm-eval makes the same prompts and targets.
    with lm_eval_tasks.local_data(data, tmp_path / "reference"):
        theirs = simple_evaluate(
            "dummy",
            tasks=[str(Path(lm_eval.tasks.__file__).parent / "gsm8k" / "gsm8k.yaml")],
            num_fewshot=1,
            limit=2,
            task_manager=TaskManager(include_defaults=False),
        )
    rows = cast(dict[str, Any], theirs)["samples"]["gsm8k"]
    (samples,) = (tmp_path / "out" / "baseline").glob("samples_gsm8k_*.jsonl")
    ours = [json.loads(line) for line in samples.read_text().splitlines()]
    for key in ("doc_hash", "prompt_hash", "target_hash", "filter"):
        assert [row[key] for row in ours] == [row[key] for row in rows]
