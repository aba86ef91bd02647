"""The adapter gives what lm-eval's own Hugging Face model gives."""

import copy
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.models.huggingface import HFLM
from transformers import Qwen3ForCausalLM

from jroute.harness.foreign_prompts import is_foreign
from jroute.harness.model import JaxLM
from jroute.harness.policy import ArmPolicy, constant
from jroute.lm import LanguageModel
from jroute.tasks.synthetic import problems
from jroute.tasks.tokenizer import load_tokenizer
from jroute.utils.errors import UserError
from tests.harness.lm_eval_requests import assert_scores_equal, chat, generate, requests
from tests.model.tiny import ASSET

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
def model(tiny_directory: Path) -> Path:
    return tiny_directory


@pytest.fixture(scope="module")
def lm(tiny_lm: LanguageModel) -> LanguageModel:
    return tiny_lm


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


def by_length(prompts: list[str]) -> np.ndarray:
    """A policy that looks at the prompt and nothing else."""
    return np.array([len(prompt) % 3 / 2 for prompt in prompts])


# Log-likelihoods ----------------------------------------------------------------------------------


def test_loglikelihoods_are_those_of_the_reference(lm, reference) -> None:
    hf, ours = reference(), JaxLM(lm, special_tokens="control", slots=SLOTS)
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
    hf, ours = reference(SHORT), JaxLM(lm, special_tokens="control", slots=SLOTS, max_length=SHORT)
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
    hf, ours = reference(SHORT), JaxLM(lm, special_tokens="control", slots=SLOTS, max_length=SHORT)
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
    return [
        *(chat(JaxLM(lm, special_tokens="control"), question) for question in QUESTIONS[:2]),
        TEXTS[1] * 2,
        "5" * 40,
    ]


def test_generations_are_those_of_the_reference(lm, reference, prompts) -> None:
    hf, ours = reference(), JaxLM(lm, special_tokens="control", slots=SLOTS)
    everything: dict[str, Any] = {"until": [], "max_gen_toks": 40}
    whole = generate(hf, *((prompt, everything) for prompt in prompts))
    assert any("\n#### " in text for text in whole) and len({*whole}) == len(prompts)
    middle = whole[0][3:5]  # two tokens of a sum
    options: list[dict[str, Any]] = [
        {"until": ["never", middle, "\n"], "max_gen_toks": 40, "do_sample": False},
        {"until": "####", "max_gen_toks": 40},
        {"until": ["<|im_end|>", whole[0][0], "<|im_end|>\n"], "max_gen_toks": 40},  # at once
        {"until": ["####"], "max_new_tokens": 7, "temperature": 0.0},
    ]
    cases = [(prompt, each) for prompt in prompts for each in options]  # interleaved
    expected = generate(hf, *cases)
    assert generate(ours, *((prompt, everything) for prompt in prompts), *cases) == whole + expected
    assert expected[0] == whole[0].split(middle)[0] != "" == expected[2]
    ended = (prompts[0] + whole[0], everything)  # nothing is left to say
    assert generate(ours, ended) == generate(hf, ended) == [""]
    assert ours.records.pop().tokens == 1
    assert ours.records[-1].tokens == 7 and ours.records[-1].truncated
    assert [record.truncated for record in ours.records[:2]] == [False] * 2
    assert [record.doc_id for record in ours.records] == list(range(len(prompts) + len(cases)))


def test_an_empty_stop_means_nothing(lm, prompts) -> None:
    cases = [(prompts[0], {"until": until, "max_gen_toks": 40}) for until in ([], [""], "")]
    assert len(set(generate(JaxLM(lm, slots=SLOTS), *cases))) == 1


def test_long_prompts_lose_their_beginning_like_the_reference(lm, reference) -> None:
    hf, ours = reference(SHORT), JaxLM(lm, special_tokens="control", slots=SLOTS, max_length=SHORT)
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
    texts = generate(expected, *arguments)
    assert generate(ours, *arguments) == texts
    assert ours.get_model_info()["truncation_rate"] == 0.0
    assert [r.tokens for r in ours.records] == [r.tokens for r in expected.records]  # at once
    # A stop string can hold one besides other text.
    stop = f"{texts[0][-1]}<|im_end|>"
    assert generate(ours, (prompts[0], {**options, "until": stop})) == [texts[0][:-1]]
    assert not ours.records[-1].truncated and ours.records[-1].tokens > ours.records[0].tokens


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


def test_gates_per_band_are_handed_on_whole(lm) -> None:
    """Also beside an empty context, which has gate 0 in every part."""
    bands = lm.config.num_hidden_layers

    def policy(shown: list[str]) -> np.ndarray:
        return np.array([[len(text) % 2, *[0.0] * (bands - 1)] for text in shown], float)

    ours = JaxLM(lm, policy, slots=SLOTS)
    pairs = [("Tom has", " 5"), ("Tom had", " 5 pens"), ("", "Tom")]
    scores = ours.loglikelihood(requests("loglikelihood", *pairs), disable_tqdm=True)
    encoded = [ours._encode_pair(*pair) for pair in pairs[:2]]
    expected = lm.loglikelihood(encoded, gate=policy([context for context, _ in pairs[:2]]))
    np.testing.assert_allclose([s[0] for s in scores[:2]], [e[0] for e in expected], rtol=1e-5)
    off = ",0" * (bands - 1)
    assert ours.get_model_info()["gate_histogram"] == {"0": 1, f"1{off}": 2}


def test_prompts_that_an_arm_has_not_learnt_from_are_told(lm) -> None:
    doc = {"question": " 1 + 1?", "answer": "#### 2", "id": 7}

    def render(question: str) -> str:
        return f"Solve: {question}\nA:"

    assert not is_foreign("Solve:  1 + 1?\nA:", doc, render)
    assert not is_foreign("Solve: 1 + 1?\nA:", doc, render)  # stripped
    assert not is_foreign("Solve: A b. C?\nA:", {"Body": "A b", "Question": "C?"}, render)
    assert is_foreign("Solve: 1 + 1?\nB:", doc, render)
    assert is_foreign("Solve: 1 + 1?\nA: 2\n\nSolve: 1 + 1?\nA:", {"question": "1 + 1?"}, render)
    assert is_foreign("Solve: Problem: 1 + 1?\nA:", doc, render)  # other wording around it
    assert is_foreign("Solve:\nA:", doc, render)

    def twice(question: str) -> str:
        return f"{question} Again: {question}"

    assert not is_foreign("1 + 1? Again: 1 + 1?", doc, twice)
    assert is_foreign("1 + 1? Again: 1 + 2?", doc, twice)

    requests = [
        Instance(
            "generate_until",
            doc,
            (text, {"until": [], "max_gen_toks": 2}),
            0,
            metadata=("task", 0, 1),
        )
        for text in ("Solve:  1 + 1?\nA:", "What is 1 + 1?")
    ]
    arm = ArmPolicy("rl", constant(1.0), "one", render)
    with pytest.raises(UserError, match=r"arm rl learned .* of task .*--force_template"):
        JaxLM(lm, arm, slots=SLOTS).generate_until(requests)
    ours = JaxLM(lm, arm, slots=SLOTS, force_template=True)
    ours.generate_until(requests)
    assert [record.foreign for record in ours.records] == [False, True]
    assert ours.get_model_info()["foreign_prompts"] == 1
    untaught = ArmPolicy("random", constant(1.0), "one")
    assert len(JaxLM(lm, untaught, slots=SLOTS).generate_until(requests)) == 2


# What lm-eval asks about --------------------------------------------------------------------------


def test_prompts_of_chats_are_those_of_the_reference(lm, reference) -> None:
    hf, ours = reference(), JaxLM(lm, special_tokens="control")
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


def test_the_tokenizer_name_tells_templates_and_limits_apart(lm) -> None:
    other = copy.copy(lm)
    other.tokenizer = copy.deepcopy(lm.tokenizer)
    other.tokenizer.chat_template += " "
    models = [JaxLM(lm), JaxLM(other), JaxLM(lm, max_gen_toks=9), JaxLM(lm, max_length=99)]
    assert len({model.tokenizer_name for model in models}) == len(models)


def test_a_thinking_model_is_not_asked_to_score(lm) -> None:
    with pytest.raises(UserError, match="cannot be scored before"):
        JaxLM(lm, enable_thinking=True).loglikelihood(requests("loglikelihood", ("Tom", "5")))


def test_the_model_is_registered_beside_lm_evals_own(model) -> None:
    assert get_model("jroute") is JaxLM and get_model("hf") is HFLM
    arguments = f"pretrained={model},arm=fixed:1,max_gen_toks=5"
    made = get_model("jroute").create_from_arg_string(arguments, {"batch_size": "3"})
    assert isinstance(made, JaxLM)
    assert len(generate(made, ("Tom has 5", {}))) == 1
    info = made.get_model_info()
    assert (info["slots"], info["gate_histogram"], made.max_gen_toks) == (3, {"1": 1}, 5)
    assert info["model_fingerprint"] == made.lm.fingerprint
    wrong = {
        "must name one folder": "arm=fixed:1",
        "must name one folder: run": f"run={model},model_dir={model}",
        "hold 'gate', which a model does not take": f"model_dir={model},gate=1",
        "arm 'rl' belongs to a run": f"model_dir={model},arm=rl",
        "has no config.yaml": f"run={model},arm=rl",
    }
    for message, arguments in wrong.items():
        with pytest.raises(UserError, match=message):
            get_model("jroute").create_from_arg_string(arguments)
