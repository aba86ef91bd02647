"""The command judges arms item by item, and hands lm-eval's own tasks through."""

import argparse
import dataclasses
import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import scipy.stats
from lm_eval._cli import HarnessCLI
from lm_eval.evaluator import simple_evaluate
from lm_eval.loggers import EvaluationTracker
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from jroute.arms.supervised import SupervisedConfig
from jroute.checkpoint.conversion import convert
from jroute.checkpoint.manifest import model_fingerprint
from jroute.controller.features import FeatureConfig
from jroute.experiment.config import Experiment
from jroute.experiment.pipeline import fill_outcomes, train
from jroute.experiment.run import Run
from jroute.experiment.run_outcomes import RunOutcomes
from jroute.generate.config import EngineConfig
from jroute.generate.decoding import Decoding
from jroute.harness import command, policy
from jroute.harness.agreement import compare_samples
from jroute.harness.cache_names import folder_name
from jroute.harness.foreign_prompts import is_foreign
from jroute.harness.model import JaxLM
from jroute.harness.options import OWN_OPTIONS, parser
from jroute.harness.suites import BOXED
from jroute.outcomes.outcome import Outcome
from jroute.ppo.config import PPOConfig
from jroute.statistics.config import JudgeConfig
from jroute.tasks import TaskConfig, benchmarks
from jroute.tasks.prompts import PromptConfig
from jroute.utils.errors import UserError
from tests.model.tiny import ASSET
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


def arguments_for(run: Run, *arguments: str) -> list[str]:
    return ["--run", str(run.directory), *arguments]


def test_every_item_of_every_arm_is_trainings_own(run, capsys) -> None:
    arms = ["baseline", "fixed:0.5", "random"]
    assert command.main(arguments_for(run, "--arm", ",".join(arms), "--tasks", "test,ood")) == 0
    printed = capsys.readouterr().out
    assert "27 of 27 items agree with training's own outcomes" in printed
    assert "every arm was asked the same" in printed
    assert (
        "baseline is not compared with training: training generated no outcomes of ood" in printed
    )
    out = run.directory / "lm_eval"
    summary = json.loads((out / "summary_test_ood.json").read_text())
    assert summary["tasks"]["test"]["n"] == 9 and summary["tasks"]["ood"]["n"] == 3
    correct = run.outcomes.matrix("test")
    for arm in arms:
        result = summary["arms"][arm]["test"]
        gates = run.gates(arm, run.data.prompts("test"))
        columns = [run.grid.values.index(gate) for gate in gates]
        expected = correct[np.arange(9), columns].mean()
        assert result["metrics"]["exact_match,jroute"]["value"] == pytest.approx(expected)
        assert result["equal_to_training"] == 9
        folder = out / folder_name(arm)
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
        assert [r["arguments"]["gen_args_0"]["arg_0"] for r in rows[:9]] == run.data.prompts("test")
        (side,) = folder.glob("gates_test_*.jsonl")
        chosen = [json.loads(line) for line in side.read_text().splitlines()]
        assert [row["gate"] for row in chosen] == gates.tolist()
    assert 0 < summary["arms"]["random"]["test"]["mean_gate"] < 1
    assert not [path for path in out.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("field", ["completion", "correct", "stop_reason"])
def test_one_differing_item_is_an_error(run, capsys, monkeypatch, field) -> None:
    truth, target = RunOutcomes.outcome, run.data.problems("test")[1].id
    changes = {"completion": "#### 1", "correct": None, "stop_reason": "length"}

    def tampered(self, split, problem_id, gate) -> Outcome:
        outcome = truth(self, split, problem_id, gate)
        changed = not outcome.correct if field == "correct" else changes[field]
        return dataclasses.replace(outcome, **{field: changed}) if problem_id == target else outcome

    monkeypatch.setattr(RunOutcomes, "outcome", tampered)
    arguments = arguments_for(run, "--arm", "baseline", "--tasks", "test", "--limit", "3")
    assert command.main(arguments) == 2
    assert f"error: {target} at gate 0" in capsys.readouterr().err


def test_another_prompt_than_trainings_is_an_error(run, capsys, monkeypatch) -> None:
    render = JaxLM.apply_chat_template
    monkeypatch.setattr(JaxLM, "apply_chat_template", lambda *a, **k: render(*a, **k) + " ")
    assert command.main(arguments_for(run, "--arm", "baseline", "--tasks", "test")) == 2
    assert "is not training's" in capsys.readouterr().err


def test_arms_that_were_asked_something_else_are_not_compared(run, capsys, monkeypatch) -> None:
    evaluate = command.evaluate_arm

    def tampered(subject, arm_policy, *inputs) -> Any:
        results = evaluate(subject, arm_policy, *inputs)
        results.tasks["test"].conditions["generation_kwargs"] = arm_policy.name
        return results

    monkeypatch.setattr(command, "evaluate_arm", tampered)
    arguments = arguments_for(run, "--arm", "baseline,random", "--tasks", "test", "--limit", "2")
    assert command.main(arguments) == 2
    message = "were not evaluated under the same conditions in test (generation_kwargs)"
    assert f"baseline and random {message}" in capsys.readouterr().err


def test_mistakes_on_the_command_line_are_told_in_a_sentence(run, capsys, tmp_path) -> None:
    preset = tmp_path / "preset.yaml"
    preset.write_text("tasks: [test]\nlimitt: 3\n")
    arm_and_tasks = ["--arm", "baseline", "--tasks", "test"]
    model = ["--model-dir", str(run.lm.directory)]
    cases = {
        "no arm is named 'rll'": arguments_for(run, "--arm", "rll", "--tasks", "test"),
        "did you mean gsm8k?": arguments_for(run, "--arm", "baseline", "--tasks", "gsm8q"),
        "has no config.yaml": ["--run", str(tmp_path), *arm_and_tasks],
        "for tasks of lm-eval only": arguments_for(run, *arm_and_tasks, "--num_fewshot", "1"),
        "train.jsonl is missing": arguments_for(
            run, "--arm", "baseline", "--tasks", "gsm8k", "--data", str(tmp_path)
        ),
        "has no controller trained": arguments_for(run, "--arm", "rl", "--tasks", "test"),
        "--limit is 0": arguments_for(run, "--arm", "rl", "--tasks", "test", "--limit", "0"),
        "either --run or --model-dir": arm_and_tasks,
        "--arm is missing": arguments_for(run, "--tasks", "test"),
        "arms with commas": [*model, "--routing", "histories", "--tasks", "tiny_test"],
        "--tasks is missing": arguments_for(run, "--arm", "baseline"),
        "unrecognized arguments: --limitt": arguments_for(run, *arm_and_tasks, "--limitt", "3"),
        "unexpected keyword argument 'limitt'": arguments_for(
            run, "--arm", "baseline", "--config", str(preset)
        ),
        "then --limit must be None": arguments_for(
            run, *arm_and_tasks, "--limit", "1", "--samples", '{"test": [0]}'
        ),
        "for others there is lm-eval itself": arguments_for(run, *arm_and_tasks, "--model", "hf"),
        "arm 'rl' belongs to a run": [
            *(*model, "--arm", "rl", "--tasks", "tiny_test"),
            *("--output_path", str(tmp_path)),
        ],
        "--routing and --dtype go with": arguments_for(run, *arm_and_tasks, "--dtype", "float32"),
        "unexpected keyword argument 'gates'": arguments_for(
            run, *arm_and_tasks, "--model_args", "gates=1"
        ),
    }
    for message, arguments in cases.items():
        assert command.main(arguments) == 2, message
        error = capsys.readouterr().err
        assert error.startswith("error: ") and message in error and error.count("\n") == 1


def test_every_option_of_lm_eval_is_an_option_here() -> None:
    def by_name(arguments: argparse.ArgumentParser) -> dict[str, Any]:
        return {name: a for a in arguments._actions for name in a.option_strings}

    theirs = by_name(HarnessCLI()._subparsers.choices["run"])
    ours = by_name(parser())
    assert len(theirs) > 40 and theirs.keys() < ours.keys()
    for name, action in theirs.items():
        assert vars(ours[name]).keys() == vars(action).keys()
        assert (ours[name].dest, ours[name].nargs) == (action.dest, action.nargs)
    names = {option.removeprefix("--") for option in ours.keys() - theirs.keys()}
    assert names == {*OWN_OPTIONS, "arms", "model-dir"} - {"model_dir"}


def test_another_version_of_lm_eval_is_refused(monkeypatch, capsys) -> None:
    monkeypatch.setattr("lm_eval.__version__", "0.5.0")
    assert command.main(["--help"]) == 2
    error = capsys.readouterr().err
    assert "lm-eval 0.5.0 is installed" in error and "pip install lm-eval==0.4.13" in error


OTHER_VERSION = """
import importlib.metadata, runpy, sys
version = importlib.metadata.version
importlib.metadata.version = lambda name: "0.5.0" if name == "lm_eval" else version(name)
try:
    runpy.run_path("scripts/lm_eval_jax.py", run_name="__main__")
finally:
    assert "lm_eval" not in sys.modules
"""


def test_another_version_is_refused_before_it_is_imported() -> None:
    result = python(OTHER_VERSION, text=True)
    assert result.returncode == 2
    assert result.stderr == (
        "error: lm-eval 0.5.0 is installed, and jroute.harness is written for 0.4.13; "
        "run pip install lm-eval==0.4.13\n"
    )


BLOCK_TORCH = """
import importlib.abc, importlib.machinery, sys
class Block(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):  # torch is there, as far as one can see
        return importlib.machinery.ModuleSpec(name, self) if name == "torch" else None
    def create_module(self, spec):
        raise RuntimeError("torch was imported")
sys.meta_path.insert(0, Block())
"""


def python(code: str, **options: Any) -> subprocess.CompletedProcess:
    root = Path(__file__).parent.parent.parent
    return subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, **options)


def test_torch_is_not_needed(run, tmp_path) -> None:
    """Not by the whole command, own splits and others, where importing torch would fail."""
    arguments = arguments_for(run, "--arm", "baseline", "--tasks", "test,tiny_ood", "--limit", "1")
    arguments += ["--output_path", str(tmp_path)]
    code = (
        f"{BLOCK_TORCH}\nfrom jroute.harness.command import main; assert main({arguments!r}) == 0"
    )
    done = python(code)
    assert done.returncode == 0, done.stderr.decode()
    assert len(list((tmp_path / "baseline").glob("results_*.json"))) == 2


# A model without a run, and lm-eval's options -----------------------------------------------------


def judge_model(model: Path, out: Path, *arguments: str) -> list[str]:
    options = ["--model-dir", str(model), "--output_path", str(out), "--batch_size", "4"]
    return [*options, "--tasks", "tiny_test", "--apply_chat_template", *arguments]


def rows_of(folder: Path, kind: str = "samples") -> list[dict[str, Any]]:
    (file,) = folder.glob(f"{kind}_tiny_test_*.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_model_alone_is_judged_as_the_baseline(tmp_path, monkeypatch, capsys) -> None:
    """One whose weights were quantised is called so."""
    source = Path(shutil.copytree(ASSET, tmp_path / "source"))
    content = json.loads((source / "config.json").read_text())
    content["gguf"] = {"sha256": "0" * 64, "quantisation": "Q4_1"}
    (source / "config.json").write_text(json.dumps(content))
    model = tmp_path / "model"
    convert(str(source), model)
    monkeypatch.chdir(tmp_path)
    arguments = ["--model-dir", str(model), "--tasks", "tiny_test", "--limit", "2"]
    assert command.main(arguments) == 0
    assert "quantised (Q4_1), not the released ones" in capsys.readouterr().out
    (out,) = (tmp_path / "runs/lm_eval").iterdir()
    assert out.name == f"model-{model_fingerprint(model)[:8]}"
    summary = json.loads((out / "summary_tiny_test_limit2.json").read_text())
    assert list(summary["arms"]) == ["baseline"] and len(rows_of(out / "baseline")) == 2
    assert summary["gguf_quantisation"] == "Q4_1"


def test_all_arms_of_a_model_are_compared_by_document(tiny_directory, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    assert command.main(judge_model(tiny_directory, out, "--arms", "all", "--limit", "8")) == 0
    printed = capsys.readouterr().out
    arms = ["baseline", "fixed:0.25", "fixed:0.5", "fixed:0.75", "fixed:1"]
    summary = json.loads((out / "summary_tiny_test_limit8.json").read_text())
    assert list(summary["arms"]) == arms
    values, hashes = {}, set()
    for arm in arms:
        folder = out / folder_name(arm)
        rows = rows_of(folder)
        values[arm] = {row["doc_id"]: row["exact_match"] for row in rows}
        (results,) = folder.glob("results_*.json")
        stored = json.loads(results.read_text())
        hashes.add(stored["task_hashes"]["tiny_test"])
        config, gate = stored["config"], float(arm.partition(":")[2] or 0)
        assert (config["arm"], config["gate_histogram"]) == (arm, {f"{gate:g}": 8})
        assert config["generated_tokens"] == sum(row["tokens"] for row in rows_of(folder, "gates"))
        assert config["seconds"] > 0 and config["model_dtype"] == "float32"
        assert config["routing"]["streams"] and len(config["model_fingerprint"]) == 64
        assert stored["model_source"] == "jroute" and stored["chat_template_sha"]
        assert summary["arms"][arm]["tiny_test"]["truncated"] == config["truncation_rate"]
        assert [(r["doc_id"], r["gate"]) for r in rows_of(folder, "gates")] == [
            (i, gate) for i in range(8)
        ]
    assert len(hashes) == 1 and f"task hash is {hashes.pop()[:16]}" in printed
    assert values["baseline"] != values["fixed:1"]
    paired = {row["a"]: row for row in summary["paired"]["tiny_test"]}
    assert paired.keys() == set(arms[1:]) and all(row["b"] == "baseline" for row in paired.values())
    for arm, row in paired.items():
        gains = [values[arm][i] - values["baseline"][i] for i in range(8)]
        assert row["difference"] == pytest.approx(np.mean(gains))
        won, lost = gains.count(1), gains.count(-1)
        assert (row["only_a"], row["only_b"]) == (won, lost)
        exact = scipy.stats.binomtest(won, won + lost).pvalue if won + lost else 1.0
        assert row["p_mcnemar"] == pytest.approx(exact)
        assert row["p_holm"] >= row["p"]
        assert f"  {arm} - baseline: {100 * np.mean(gains):+.1f}" in printed


def test_options_of_lm_eval_do_what_they_do_there(tiny_directory, tmp_path, capsys) -> None:
    """Some of a preset, some of the command line, which wins."""
    preset = tmp_path / "preset.yaml"
    settings = {"tasks": ["tiny_ood"], "gen_kwargs": {"max_gen_toks": 5}, "seed": 7}
    preset.write_text(json.dumps(settings))
    arguments = ["--config", str(preset), "--system_instruction", "Be brief.", "--write_out"]
    arguments += ["--samples", '{"tiny_test": [6, 2]}', "--boxed", "--arm", "fixed:1"]
    assert command.main(judge_model(tiny_directory, tmp_path / "o.json", *arguments)) == 0
    (results,) = (tmp_path / "fixed_1").glob("o_*.json")
    stored = json.loads(results.read_text())
    assert stored["results"].keys() == {"tiny_test"} and stored["n-samples"]["tiny_test"]
    assert stored["config"]["gen_kwargs"] == {"max_gen_toks": 5}
    assert stored["config"]["fewshot_seed"] == 7
    assert stored["system_instruction"] == "Be brief." and stored["fewshot_as_multiturn"] is True
    assert stored["configs"]["tiny_test"]["generation_kwargs"]["max_gen_toks"] == 5
    assert f"exact_match,{BOXED}" in stored["results"]["tiny_test"]
    rows = rows_of(tmp_path / "fixed_1")
    assert {row["filter"] for row in rows} == {"jroute", BOXED}
    assert {row["doc_id"] for row in rows} == {2, 6}
    assert all("Be brief." in row["arguments"]["gen_args_0"]["arg_0"] for row in rows)
    assert all(row["tokens"] <= 5 for row in rows_of(tmp_path / "fixed_1", "gates"))


def test_a_killed_run_goes_on_from_its_cache(tiny_directory, tmp_path) -> None:
    cache = ["--limit", "6", "--use_cache", str(tmp_path / "cache")]
    arms = ["--arm", "fixed:1,baseline"]
    killed = judge_model(tiny_directory, tmp_path / "killed", *arms, *cache)
    code = f"""{BLOCK_TORCH}
import os
from jroute.harness.model import JaxLM
from scripts.lm_eval_jax import main
keep, kept = JaxLM._store_answer, []
def die(self, *facts):
    if len(kept) == 3:
        self.cache_hook.dbdict.commit(blocking=True)
        os._exit(9)
    kept.append(keep(self, *facts))
JaxLM._store_answer = die
main({killed!r})
"""
    done = python(code)
    assert done.returncode == 9, done.stderr.decode()
    assert not (tmp_path / "killed" / "fixed_1").exists()
    sizes: list[int] = []
    generate = JaxLM.generate_until

    def counted(self, requests, **options):
        sizes.append(len(requests))
        return generate(self, requests, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JaxLM, "generate_until", counted)
        assert command.main(killed) == 0
        assert sizes == [3, 6]  # what was left of the first arm; nothing of it for the second
        assert command.main(killed) == 0
        assert sizes == [3, 6]
        whole = judge_model(tiny_directory, tmp_path / "whole", *arms, "--limit", "6")
        assert command.main(whole) == 0
    names = sorted(file.name for file in tmp_path.glob("cache-*.db"))
    assert [name.split("-")[1] for name in names] == ["baseline", "fixed_1"]
    for arm in ("fixed_1", "baseline"):
        (gates,) = (tmp_path / "whole" / arm).glob("gates_*.jsonl")
        (rows,) = (tmp_path / "whole" / arm).glob("samples_*.jsonl")
        for kind, expected in (("gates", gates), ("samples", rows)):
            for file in (tmp_path / "killed" / arm).glob(f"{kind}_*.jsonl"):
                assert file.read_text() == expected.read_text()
        for results in (tmp_path / "killed" / arm).glob("results_*.json"):
            config = json.loads(results.read_text())["config"]
            assert config["requests"] == 6 and sum(config["gate_histogram"].values()) == 6


def test_cached_prompts_are_those_that_were_asked_for(
    tiny_directory, tmp_path, monkeypatch
) -> None:
    """lm-eval would serve the prompts and limits of another call."""
    monkeypatch.setattr("lm_eval.caching.cache.PATH", str(tmp_path / "requests"))
    for tokens, samples in ((3, "[0, 1]"), (4, "[0, 1]"), (4, "[5]"), (4, "[5]")):
        out = tmp_path / f"{tokens}{len(samples)}"
        arguments = ["--cache_requests", "--arm", "baseline", "--gen_kwargs"]
        arguments += [f"max_gen_toks={tokens}", "--samples", f'{{"tiny_test": {samples}}}']
        shutil.rmtree(out, ignore_errors=True)
        assert command.main(judge_model(tiny_directory, out, *arguments)) == 0
        rows = rows_of(out / "baseline")
        limits = {row["arguments"]["gen_args_0"]["arg_1"]["max_gen_toks"] for row in rows}
        assert limits == {tokens}
        assert [row["doc_id"] for row in rows] == json.loads(samples)
    assert len(list((tmp_path / "requests").glob("jroute-*/*.pickle"))) == 3


def test_it_works_from_python_under_the_name_jroute(tiny_directory, tmp_path) -> None:
    file = benchmarks.SHIPPED / "tiny_test.yaml"
    options: dict[str, Any] = {"tasks": [str(file)], "limit": 2, "batch_size": 4}
    options |= {"apply_chat_template": True, "task_manager": TaskManager(include_defaults=False)}
    responses = {}
    for gate in ("0", "1"):
        arguments = f"model_dir={tiny_directory},arm=fixed:{gate}"
        content = cast(Any, simple_evaluate("jroute", model_args=arguments, **options))
        responses[gate] = [sample["resps"] for sample in content["samples"]["tiny_test"]]
        assert content["config"]["gate_histogram"] == {gate: 2}
    assert responses["0"] != responses["1"]
    options["use_cache"] = str(tmp_path / "cache")
    simple_evaluate("jroute", model_args=f"model_dir={tiny_directory},arm=fixed:0", **options)
    with pytest.raises(UserError, match="holds answers of another model, routing or arm"):
        simple_evaluate("jroute", model_args=f"model_dir={tiny_directory},arm=fixed:1", **options)


# Training's prompt and a benchmark's --------------------------------------------------------------


def test_an_arm_is_asked_only_what_it_learnt_from(run, tmp_path, capsys, monkeypatch) -> None:
    """The run asks its questions in a chat; ``tiny_ood`` is asked raw here, then in a chat."""

    def taught(run: Run, arm: str) -> policy.ArmPolicy:
        return policy.ArmPolicy(arm, policy.constant(1.0), "taught", run.data.render)

    monkeypatch.setattr(policy, "run_policy", taught)
    raw = arguments_for(run, "--arm", "rl", "--tasks", "tiny_ood", "--limit", "2")
    raw += ["--output_path", str(tmp_path)]
    assert command.main(raw) == 2
    assert "arm rl learned from prompts in another format" in capsys.readouterr().err
    assert command.main([*raw, "--force_template"]) == 0
    assert "rl learned from prompts in another format than 2 of these" in capsys.readouterr().out
    assert command.main([*raw, "--apply_chat_template"]) == 0
    assert "in another format" not in capsys.readouterr().out


def test_a_run_can_ask_as_a_benchmark_does(tiny_directory, tmp_path, capsys) -> None:
    """The same contexts in training, as its own split, and in the benchmark itself."""
    data_dir()
    started = Run.start(
        Experiment(
            run=str(tmp_path / "run"),
            model=str(tiny_directory),
            gates=(0.0, 0.5),
            task=TaskConfig(name="gsm8k", limit=2, validation=2),
            prompt=PromptConfig(benchmark="gsm8k_cot_llama", num_fewshot=1),
            decoding=Decoding(max_new_tokens=4),
            engine=EngineConfig(slots=4),
            features=FeatureConfig(components=2),
            ppo=PPOConfig(updates=2, batch_size=8, minibatches=2, seeds=2, hidden=(8,)),
            supervised=SupervisedConfig(hidden=(8,), steps=2, networks=1),
            judge=JudgeConfig(replicates=100),
            judged=("test",),
        )
    )
    results = train(started)
    assert results["n"] == 2 and results["arms"]["rl"]["accuracy"] == 0.0
    assert results["verdict"]["name"] == "underpowered"  # nothing is solved, and there are two
    arguments = arguments_for(started, "--arm", "baseline,rl", "--limit", "2")
    assert command.main([*arguments, "--tasks", "test"]) == 0
    assert "4 of 4 items agree with training's own outcomes" in capsys.readouterr().out
    options = ["--tasks", "gsm8k_cot_llama", "--num_fewshot", "1", "--gen_kwargs", "max_gen_toks=4"]
    # What it learnt from were chats.
    assert command.main([*arguments, *options]) == 2
    assert "--force_template" in capsys.readouterr().err
    options += ["--apply_chat_template"]
    assert command.main([*arguments, *options]) == 0
    assert "every arm was asked the same" in capsys.readouterr().out
    gates = [
        json.loads(line)["gate"]
        for file in (started.directory / "lm_eval" / "rl").glob("gates_gsm8k_cot_llama_*")
        for line in file.read_text().splitlines()
    ]
    assert gates == started.gates("rl", started.data.prompts("test")).tolist()
    folder = started.directory / "lm_eval" / "baseline"
    samples = max(folder.glob("samples_gsm8k_cot_llama_*"))  # the latest
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    contexts = [
        r["arguments"]["gen_args_0"]["arg_0"] for r in rows if r["filter"] == rows[0]["filter"]
    ]
    assert contexts == started.data.prompts("test")
    for row, context in zip(rows, contexts, strict=False):
        assert not is_foreign(context, row["doc"], started.data.render)


# lm-eval's own tasks ------------------------------------------------------------------------------


def test_the_official_gsm8k_is_answered_as_the_reference_answers(
    run, tiny_torch, tmp_path, capsys
) -> None:
    """Unmodified, end to end: the same task hash, and every response the same."""
    data = data_dir()
    options = ["--num_fewshot", "1", "--limit", "3", "--gen_kwargs", "max_gen_toks=16"]
    options += ["--batch_size", "4", "--data", str(data), "--output_path", str(tmp_path / "out")]
    arguments = arguments_for(run, "--arm", "baseline,fixed:1", "--tasks", "gsm8k", *options)
    assert command.main(arguments) == 0
    summary = json.loads((tmp_path / "out" / "summary_gsm8k_limit3.json").read_text())
    task = summary["tasks"]["gsm8k"]
    assert (task["n"], task["version"], task["num_fewshot"]) == (3, 3.0, 1)
    assert summary["arms"]["fixed:1"]["gsm8k"]["gates"] == {"1": 3}
    reference: Any = cast(Any, HFLM)(
        pretrained=tiny_torch, tokenizer=run.lm.tokenizer, backend="causal", batch_size=1
    )
    tracker = EvaluationTracker(output_path=str(tmp_path / "reference"))
    with benchmarks.local_data(data, tmp_path / "data"):
        theirs = cast(Any, simple_evaluate)(
            reference,
            tasks=[str(benchmarks.OFFICIAL / "gsm8k" / "gsm8k.yaml")],
            num_fewshot=1,
            limit=3,
            gen_kwargs="max_gen_toks=16",
            task_manager=TaskManager(include_defaults=False),
            evaluation_tracker=tracker,
        )
    samples = theirs.pop("samples")
    tracker.save_results_aggregated(results=theirs, samples=samples)
    assert theirs["task_hashes"]["gsm8k"] == task["task_hash"]
    (file,) = (tmp_path / "out" / "baseline").glob("samples_gsm8k_*.jsonl")
    ours = [json.loads(line) for line in file.read_text().splitlines()]
    for key in ("doc_hash", "prompt_hash", "target_hash", "filter", "resps", "filtered_resps"):
        assert [row[key] for row in ours] == [row[key] for row in samples["gsm8k"]], key
    assert any(row["resps"][0][0] for row in ours)
    baseline = summary["arms"]["baseline"]["gsm8k"]["metrics"]
    for name, value in baseline.items():
        assert value["value"] == theirs["results"]["gsm8k"][name]
    (gated,) = (tmp_path / "out" / "fixed_1").glob("samples_gsm8k_*.jsonl")
    agreed = compare_samples(file, gated)
    assert [one.same_prompt for one in agreed] == [3, 3]


def test_what_lm_eval_could_not_write_is_one_sentence_and_leaves_nothing(
    run, capsys, monkeypatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    folder = run.directory / "lm_eval" / folder_name("fixed:0.5")
    before = sorted(folder.rglob("*")) if folder.exists() else []
    arguments = arguments_for(run, "--arm", "fixed:0.5", "--tasks", "test", "--limit", "3")
    # lm-eval logs it and goes on.
    monkeypatch.setattr("lm_eval.loggers.evaluation_tracker.open", full, raising=False)
    assert command.main(arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1].rpartition("\r")[2]
    assert error.startswith("error: lm-eval could not write ") and "it takes " in error
    assert "make room and give the same command again" in error
    assert (sorted(folder.rglob("*")) if folder.exists() else []) == before
    assert not [path for path in folder.parent.iterdir() if path.name.startswith(".")]
