"""The adapter gives what lm-eval's own Hugging Face model gives; arms are judged item by item."""

import copy
import dataclasses
import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import lm_eval.tasks
import numpy as np
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import CachingLM
from lm_eval.api.registry import get_model
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import Qwen3ForCausalLM

import jroute
from jroute.convert import convert
from jroute.envs.outcomes import Outcome
from jroute.errors import UserError
from jroute.evaluation import lm_eval_tasks
from jroute.evaluation.harness import JaxLM
from jroute.experiment import Experiment
from jroute.generate.decoding import Decoding
from jroute.generate.engine import EngineConfig
from jroute.lm import LanguageModel
from jroute.run import Run
from jroute.stages import fill_outcomes
from jroute.tasks import TaskConfig
from jroute.tasks.synthetic import problems
from jroute.tasks.tokenizer import load_tokenizer
from scripts import lm_eval_jax
from tests.support import data_dir

ASSET = Path(jroute.__file__).parent / "assets" / "tiny-gated"
SLOTS = 4
SHORT = 48
"""A context short enough for windows and truncation to matter."""

QUESTIONS = [problem.question for problem in problems("test", 6, 0)]
TEXTS = [
    "Tom has 5 pens.",
    "Ünïcode — 数学 🙂 and\n\nlines",
    " ".join(QUESTIONS),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "model"
    convert(str(ASSET), folder)
    return folder


@pytest.fixture(scope="module")
def lm(model: Path) -> LanguageModel:
    return jroute.load(model)


@pytest.fixture(scope="module")
def reference() -> Callable[..., Any]:
    """Makes lm-eval's own model of the same weights, one row at a time."""
    torch.set_num_threads(1)
    weights = Qwen3ForCausalLM.from_pretrained(ASSET, dtype=torch.float32).eval()
    tokenizer = load_tokenizer(ASSET)

    def make(max_length: int | None = None) -> Any:
        options = {"tokenizer": tokenizer, "batch_size": 1, "max_length": max_length}
        return cast(Any, HFLM)(pretrained=weights, backend="causal", **options)

    return make


def requests(kind: Any, *arguments: tuple) -> list[Instance]:
    """Requests as lm-eval builds them, one document each."""
    return [
        Instance(kind, {}, each, 0, metadata=("task", i, 1)) for i, each in enumerate(arguments)
    ]


def chat(lm: Any, question: str) -> str:
    return lm.apply_chat_template([{"role": "user", "content": question}])


def generate(model: Any, *arguments: tuple) -> list[str]:
    return [str(text) for text in model.generate_until(requests("generate_until", *arguments))]


def by_length(prompts: list[str]) -> np.ndarray:
    """A policy that looks at the prompt and nothing else."""
    return np.array([len(prompt) % 3 / 2 for prompt in prompts])


# Log-likelihoods ----------------------------------------------------------------------------------


def assert_scores_equal(ours: list, theirs: list) -> None:
    np.testing.assert_allclose([o[0] for o in ours], [t[0] for t in theirs], rtol=1e-5, atol=2e-3)
    assert [o[1] for o in ours] == [t[1] for t in theirs]


def test_loglikelihoods_are_those_of_the_reference(lm, reference) -> None:
    hf, ours = reference(), JaxLM(lm, slots=SLOTS)
    prompts = [chat(hf, question) for question in QUESTIONS[:3]]
    greedy = generate(hf, *((prompt, {"max_gen_toks": 12}) for prompt in prompts))
    pairs = [
        *((p + text[:2], text[2:]) for p, text in zip(prompts, greedy, strict=True)),
        *((prompts[0], f"{n}") for n in range(4)),  # choices of one question
        *(("", text) for text in TEXTS),
        ("Tom has 5 ", "pens."),  # the space moves to the continuation
        ("Tom has   ", "5 pens"),
        ("数学 🙂", " — ünï"),
        ("<|im_end|>", "Tom"),
        (TEXTS[2], " How"),
    ]
    scores = ours.loglikelihood(requests("loglikelihood", *pairs), disable_tqdm=True)
    expected = hf.loglikelihood(requests("loglikelihood", *pairs), disable_tqdm=True)
    assert_scores_equal(scores, expected)
    assert {greedy for _, greedy in scores} == {True, False}


def test_what_is_too_long_loses_its_beginning_like_the_reference(lm, reference) -> None:
    hf, ours = reference(SHORT), JaxLM(lm, slots=SLOTS, max_length=SHORT)
    ids = hf.tok_encode(TEXTS[2])[: 3 * SHORT]
    pairs = [
        (("", ""), ids[:size], ids[size : size + scored])
        for size, scored in [
            (SHORT - 1, 1),
            (SHORT, 1),  # the last token is not read, so this still fits
            (SHORT + 1, 1),
            (2 * SHORT, 5),
            (5, SHORT),
            (2 * SHORT, SHORT),
        ]
    ]
    expected = hf._loglikelihood_tokens(pairs, disable_tqdm=True)
    assert_scores_equal(ours._loglikelihood_tokens(pairs, disable_tqdm=True), expected)
    assert len({score for score, _ in expected}) == len(pairs)
    with pytest.raises(UserError, match=f"continuation of {SHORT + 1} tokens"):
        ours._loglikelihood_tokens([(("", ""), ids[:3], ids[: SHORT + 1])], disable_tqdm=True)


def test_rolling_loglikelihoods_are_those_of_the_reference(lm, reference) -> None:
    hf, ours = reference(SHORT), JaxLM(lm, slots=SLOTS, max_length=SHORT)
    ids = hf.tok_encode(TEXTS[2])
    texts = ["", "5", *(hf.tok_decode(ids[:n]) for n in (SHORT - 1, SHORT, SHORT + 1)), *TEXTS]
    windows = [-(-len(hf.tok_encode(text)) // SHORT) for text in texts]
    assert windows[:5] == [0, 1, 1, 1, 2] and windows[-1] >= 3
    rolling = requests("loglikelihood_rolling", *((text,) for text in texts))
    scores = ours.loglikelihood_rolling(rolling, disable_tqdm=True)
    np.testing.assert_allclose(
        scores, hf.loglikelihood_rolling(rolling, disable_tqdm=True), rtol=1e-5, atol=2e-3
    )
    assert [record.tokens for record in ours.records] == [len(hf.tok_encode(t)) for t in texts]


# Generation ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prompts(lm) -> list[str]:
    """Of different lengths: chats, which the model answers, and texts as it has never seen."""
    return [*(chat(JaxLM(lm), question) for question in QUESTIONS[:2]), TEXTS[1] * 2, "5" * 40]


def test_generations_are_those_of_the_reference(lm, reference, prompts) -> None:
    hf, ours = reference(), JaxLM(lm, slots=SLOTS)
    everything: dict[str, Any] = {"until": [], "max_gen_toks": 40}
    whole = generate(hf, *((prompt, everything) for prompt in prompts))
    assert any("\n#### " in text for text in whole) and len({*whole}) == len(prompts)
    middle = whole[0][3:5]  # two tokens of a sum
    options: list[dict[str, Any]] = [
        {"until": ["never", middle, "\n"], "max_gen_toks": 40, "do_sample": False},
        {"until": "####", "max_gen_toks": 40},
        {"until": ["####"], "max_new_tokens": 7, "temperature": 0.0},
    ]
    cases = [(prompt, each) for prompt in prompts for each in options]  # interleaved
    expected = generate(hf, *cases)
    assert generate(ours, *((prompt, everything) for prompt in prompts), *cases) == whole + expected
    assert expected[0] == whole[0].split(middle)[0] != ""
    assert ours.records[-1].tokens == 7 and ours.records[-1].truncated
    assert [record.truncated for record in ours.records[:2]] == [False] * 2
    assert [record.doc_id for record in ours.records] == list(range(len(prompts) + len(cases)))


def test_an_empty_stop_means_nothing(lm, prompts) -> None:
    cases = [(prompts[0], {"until": until, "max_gen_toks": 40}) for until in ([], [""], "")]
    assert len(set(generate(JaxLM(lm, slots=SLOTS), *cases))) == 1


def test_long_prompts_lose_their_beginning_like_the_reference(lm, reference) -> None:
    hf, ours = reference(SHORT), JaxLM(lm, slots=SLOTS, max_length=SHORT)
    long = chat(hf, TEXTS[2])
    cases = [(long, {"max_gen_toks": n}) for n in (8, 20)]
    assert generate(ours, *cases) == generate(hf, *cases)
    assert [record.prompt_cut for record in ours.records] == [True, True]
    assert ours.get_model_info()["prompts_cut"] == 2


def test_neither_order_nor_neighbours_matter(lm, prompts) -> None:
    arguments = [(p, {"until": [], "max_gen_toks": 20}) for p in prompts]
    together = JaxLM(lm, by_length, slots=SLOTS)
    texts = generate(together, *arguments)
    order = list(range(len(prompts)))
    random.Random(0).shuffle(order)
    shuffled = generate(JaxLM(lm, by_length, slots=SLOTS), *(arguments[i] for i in order))
    assert shuffled == [texts[i] for i in order]
    alone = [generate(JaxLM(lm, by_length, slots=SLOTS), each)[0] for each in arguments[:2]]
    assert alone == texts[:2]
    assert [r.gate for r in together.records] == by_length(prompts).tolist()
    assert [r.doc_id for r in together.records] == list(range(len(prompts)))


def test_a_special_token_is_a_stop(lm, prompts) -> None:
    """Also where the model itself does not end at it, and the text does not show it."""
    endless = copy.copy(lm)
    endless.end_token_ids = (lm.config.vocab_size - 1,)
    options = {"until": ["<|im_end|>", "Question:"], "max_gen_toks": 60}
    arguments = [(prompt, options) for prompt in prompts[:2]]
    expected, ours = JaxLM(lm, slots=SLOTS), JaxLM(endless, slots=SLOTS)
    assert generate(ours, *arguments) == generate(expected, *arguments)
    assert ours.get_model_info()["truncation_rate"] == 0.0
    assert all(record.tokens > 40 for record in ours.records)  # so it was the text that stopped


def test_sampling_depends_on_the_prompt_and_the_repeat_only(lm, prompts) -> None:
    options = {"do_sample": True, "temperature": 9.0, "until": [], "max_gen_toks": 12}
    request = requests("generate_until", (prompts[0], options))[0]
    other = requests("generate_until", (prompts[1], options))[0]
    first = JaxLM(lm, slots=SLOTS).generate_until([request, request, request])
    assert len(set(first)) == 3
    mixed = JaxLM(lm, slots=SLOTS)
    again = mixed.generate_until([other, request, other, request, request])
    assert [again[i] for i in (1, 3, 4)] == first
    assert [record.sample for record in mixed.records] == [0, 0, 1, 1, 2]
    assert JaxLM(lm, slots=SLOTS, seed=1).generate_until([request]) != first[:1]
    greedy = requests("generate_until", (prompts[0], {**options, "do_sample": False}))
    assert len(set(JaxLM(lm, slots=SLOTS).generate_until(greedy * 2))) == 1


def test_what_cannot_be_done_is_said(lm) -> None:
    with pytest.raises(UserError, match=r"'num_beams' is not implemented.*max_gen_toks"):
        generate(JaxLM(lm), ("5", {"num_beams": 2}))
    with pytest.raises(UserError, match=r"max_gen_toks is 256, .* context of 48 tokens"):
        generate(JaxLM(lm, max_length=48), ("5", {}))
    with pytest.raises(UserError, match="max_length is 9999"):
        JaxLM(lm, max_length=9999)


# Gates --------------------------------------------------------------------------------------------


class Policy:
    """Gate 1 for everything; remembers what it was shown."""

    def __init__(self) -> None:
        self.shown: list[str] = []

    def __call__(self, shown: list[str]) -> np.ndarray:
        self.shown += shown
        return np.ones(len(shown))


def test_a_gate_comes_from_the_context_alone(lm, prompts) -> None:
    policy = Policy()
    ours = JaxLM(lm, policy, slots=SLOTS)
    pairs = [(context, answer) for context in prompts[:2] for answer in ("1", "2+3=5", "####")]
    scores = ours.loglikelihood(requests("loglikelihood", *pairs), disable_tqdm=True)
    assert policy.shown == prompts[:2]
    encoded = [ours._encode_pair(*pair) for pair in pairs]
    np.testing.assert_allclose(
        [s[0] for s in scores], [s[0] for s in lm.loglikelihood(encoded, gate=1.0)], rtol=1e-5
    )
    plain = JaxLM(lm, slots=SLOTS).loglikelihood(requests("loglikelihood", *pairs))
    assert min(abs(a[0] - b[0]) for a, b in zip(scores, plain, strict=True)) > 1e-2
    assert {record.gate for record in ours.records} == {1.0}
    ours.generate_until(requests("generate_until", (prompts[0], {"max_gen_toks": 1})))
    assert policy.shown == prompts[:2]


def test_without_a_context_the_gate_is_zero(lm) -> None:
    policy = Policy()
    ours, plain = JaxLM(lm, policy, slots=SLOTS), JaxLM(lm, slots=SLOTS)
    empty = requests("loglikelihood", *(("", text) for text in TEXTS))
    rolling = requests("loglikelihood_rolling", *((text,) for text in TEXTS))
    assert ours.loglikelihood(empty) == plain.loglikelihood(empty)
    assert ours.loglikelihood_rolling(rolling) == plain.loglikelihood_rolling(rolling)
    assert policy.shown == []
    assert ours.get_model_info()["gate_histogram"] == {"0": 6}
    assert plain.get_model_info()["gate_histogram"] == {"none": 6}


def test_a_policy_is_shown_what_the_model_reads(lm) -> None:
    policy = Policy()
    ours = JaxLM(lm, policy, slots=SLOTS, max_length=SHORT)
    text = "🙂" * 3 + TEXTS[2] + "🙂"
    generate(ours, (text, {"max_gen_toks": 8}))
    (shown,) = policy.shown
    assert text.endswith(shown) and SHORT - 16 <= len(ours.tok_encode(shown)) <= SHORT - 8


# What lm-eval asks about --------------------------------------------------------------------------


def test_prompts_of_chats_are_those_of_the_reference(lm, reference) -> None:
    hf, ours = reference(), JaxLM(lm)
    user = {"role": "user", "content": "Tom has {{5}} pens — 🙂."}
    turns = [{"role": "system", "content": "Be brief."}, user]
    begun = [*turns, {"role": "assistant", "content": "The answer"}]
    for history, open_turn in [([user], True), (turns, True), (begun, False)]:
        text = ours.apply_chat_template(history, add_generation_prompt=open_turn)
        assert text == hf.apply_chat_template(history, add_generation_prompt=open_turn)
        assert ours.tok_encode(text) == hf.tok_encode(text)
    assert text.endswith("The answer")
    assert ours.chat_template(True) == hf.chat_template(True)
    for name in ("eot_token_id", "prefix_token_id", "max_length", "max_gen_toks"):
        assert getattr(ours, name) == getattr(hf, name), name


def test_the_tokenizer_name_tells_chat_templates_apart(lm) -> None:
    other = copy.copy(lm)
    other.tokenizer = copy.deepcopy(lm.tokenizer)
    other.tokenizer.chat_template += " "
    assert JaxLM(other).tokenizer_name != JaxLM(lm).tokenizer_name


def test_the_model_is_registered_beside_lm_evals_own(model) -> None:
    assert get_model("jroute") is JaxLM and get_model("hf") is HFLM
    arguments = f"pretrained={model},gate=1,max_gen_toks=5"
    made = get_model("jroute").create_from_arg_string(arguments, {"batch_size": "3"})
    assert isinstance(made, JaxLM)
    assert len(generate(made, ("Tom has 5", {}))) == 1
    info = made.get_model_info()
    assert (info["slots"], info["gate_histogram"], made.max_gen_toks) == (3, {"1": 1}, 5)
    assert info["model_fingerprint"] == made.lm.fingerprint
    with pytest.raises(UserError, match="name no model"):
        get_model("jroute").create_from_arg_string("gate=1")
    with pytest.raises(UserError, match="an arm brings its own"):
        get_model("jroute").create_from_arg_string(f"pretrained={model},arm=rl,gate=1")


def test_answers_are_cached_under_what_was_asked(lm, tmp_path) -> None:
    ours = JaxLM(lm, slots=SLOTS)
    cached: Any = CachingLM(ours, str(tmp_path / "cache.db"))
    asked = {
        "generate_until": requests("generate_until", ("Tom", {"until": [], "max_gen_toks": 3})),
        "loglikelihood": requests("loglikelihood", ("Tom has ", "5"), ("", "5")),
        "loglikelihood_rolling": requests("loglikelihood_rolling", ("Tom has 5",)),
    }
    for kind, reqs in asked.items():
        answers = getattr(ours, kind)(reqs)  # the adapter alone, as in a run that is killed then
        count = len(ours.records)
        assert getattr(cached, kind)(reqs) == answers
        assert len(ours.records) == count


# A run's own splits -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with outcomes but without trained controllers."""
    experiment = Experiment(
        run=str(tmp_path_factory.mktemp("runs") / "run"),
        model=str(model),
        gates=(0.0, 0.5, 1.0),
        task=TaskConfig(test=9, ood=3),
        decoding=Decoding(max_new_tokens=24, stop=("Question:",)),
        engine=EngineConfig(slots=SLOTS),
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
