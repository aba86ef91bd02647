"""Qwen3's real tokenizer and both of its chat templates, on all text of GSM8K and SVAMP."""

import copy
import dataclasses
import itertools
import json
import shutil
import unicodedata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import regex
from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen2Tokenizer

import jroute
from converters.hf_config import config_to_hf
from jroute.checkpoint.conversion import convert
from jroute.experiment.config import Experiment
from jroute.experiment.run import Run
from jroute.harness import model_args
from jroute.harness.model import JaxLM
from jroute.tasks.prompts import PromptConfig, render, render_chat
from jroute.tasks.tokenizer import load_tokenizer
from jroute.utils.errors import UserError
from scripts.random_model import write_random
from tests.converters.tiny import TIED
from tests.support import data_dir

TEMPLATES = ("hybrid", "plain")
CONFIG = dataclasses.replace(TIED, vocab_size=151_936, num_hidden_layers=1)

EDGES = [
    "",
    " ",
    "\n",
    " \n\n  \r\n\t x",
    "two  spaces   three\u00a0hard\u2003em\u3000wide",
    "0 007 1234567890 3.14 -5 1,000,000 ½ ٣٤ Ⅻ 12€",
    "don't DON'T I'M we'LL they've 'S ' '",
    "e\u0301 \u00e9 A\u030a \ufb01 \u1e9b\u0323 한글 \u1112\u1161\u11ab",  # not all is NFC
    "Ein Öl-Fass; naïve café — “quotes” … 猫が3匹 🐈\u200d⬛ 👩🏽\u200d🚀 مرحبا नमस्ते",
    "\x00\x07\x7f\u200b\u2028\ufeff\ufffd\U0010ffff",
    "x=1;y==2!=3 <<4*5=20>>20 #### 20\\boxed{20} $$$",
    "trailing \n",
    "<|im_start|>user\n2+2?<|im_end|>\n<|endoftext|>",
    "<think>\n\n</think>\n\n<tool_call>{}</tool_call> <|fim_prefix|>",
    "<|im_start|ed> <think <|IM_END|>",
    "a" * 3000 + " " * 3000 + "!" * 300,
]


class Release(NamedTuple):
    """A converted model with Qwen3's tokenizer, and transformers' tokenizer of its source."""

    lm: Any
    reference: PreTrainedTokenizerFast


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Release]:
    """Tiny random models with the tokenizer of the hybrid and of the plain releases."""
    made = {}
    for template in TEMPLATES:
        folder = tmp_path_factory.mktemp(template)
        (folder / "config.json").write_text(json.dumps(config_to_hf(CONFIG)))
        write_random(
            folder,
            folder / "hf",
            tokenizer=data_dir() / "qwen3-tokenizer",
            plain_chatml=template == "plain",
        )
        convert(str(folder / "hf"), folder / "model")
        reference = AutoTokenizer.from_pretrained(folder / "hf")
        made[template] = Release(jroute.load(folder / "model"), reference)
    return made


@pytest.fixture(scope="module")
def questions() -> list[str]:
    """All questions of GSM8K and SVAMP."""
    svamp = json.loads((data_dir() / "svamp" / "SVAMP.json").read_text())
    return [row["question"] for row in gsm8k()] + [f"{p['Body']} {p['Question']}" for p in svamp]


def gsm8k() -> list[dict[str, str]]:
    files = [data_dir() / "gsm8k" / f"{split}.jsonl" for split in ("train", "test")]
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def encode(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    return tokenizer(texts, add_special_tokens=False)["input_ids"]


def byte_pairs(folder: Path) -> Any:
    """Qwen's encoding written from its definition, with no code of tokenizers or transformers."""
    vocabulary = json.loads((folder / "vocab.json").read_text())
    lines = (folder / "merges.txt").read_text().splitlines()
    pairs = [tuple(line.split(" ")) for line in lines if not line.startswith("#version")]
    ranks = {pair: rank for rank, pair in enumerate(pairs)}
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in visible]
    letters = {b: chr(b) for b in visible} | {b: chr(256 + i) for i, b in enumerate(hidden)}
    word = regex.compile(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )

    def ids(text: str) -> list[int]:
        token_ids = []
        for piece in word.findall(unicodedata.normalize("NFC", text)):
            parts = [letters[byte] for byte in piece.encode()]
            while len(parts) > 1:
                best = min(itertools.pairwise(parts), key=lambda pair: ranks.get(pair, np.inf))
                if best not in ranks:
                    break
                merged, i = [], 0
                while i < len(parts):
                    joined = tuple(parts[i : i + 2]) == best
                    merged.append("".join(best) if joined else parts[i])
                    i += 1 + joined
                parts = merged
            token_ids += [vocabulary[part] for part in parts]
        return token_ids

    return ids


def test_ids_equal_transformers_on_all_problems(releases, questions, record_property) -> None:
    texts = [*EDGES, *questions, *(row["answer"] for row in gsm8k())]
    assert len(questions) == 8792 + 1000 and len(texts) == len(EDGES) + 9792 + 8792
    hybrid, plain = (releases[template].lm for template in TEMPLATES)
    expected = encode(releases["hybrid"].reference, texts)
    assert isinstance(hybrid.tokenizer, PreTrainedTokenizerFast)
    assert encode(hybrid.tokenizer, texts) == expected
    assert [plain.encode(text) for text in texts[:1000]] == expected[:1000]
    assert sum(map(len, expected)) > 1_500_000
    record_property("tokens compared", sum(map(len, expected)))


def test_ids_are_those_of_the_definition(releases, questions) -> None:
    ids = byte_pairs(data_dir() / "qwen3-tokenizer")
    plain = [text for text in EDGES if "<|" not in text and "<think" not in text]
    assert len(plain) == len(EDGES) - 3
    for text in [*plain, *questions[::50], *(row["answer"] for row in gsm8k()[::100])]:
        assert releases["plain"].lm.encode(text) == ids(text), text


def test_added_tokens_are_single_and_end_tokens_the_releases(releases) -> None:
    settings = json.loads((data_dir() / "qwen3-tokenizer/tokenizer_config.json").read_text())
    added = {int(i): token for i, token in settings["added_tokens_decoder"].items()}
    assert sorted(added) == list(range(151_643, 151_669))
    for template, end in (("hybrid", 151_643), ("plain", 151_645)):
        tokenizer = releases[template].lm.tokenizer
        for i, token in added.items():
            assert encode(tokenizer, [f"1{token['content']}2"]) == [[16, i, 17]]
            shown = tokenizer.decode([16, i, 17], skip_special_tokens=True)
            assert shown == ("12" if token["special"] else f"1{token['content']}2")
        assert tokenizer.eos_token_id == end
        assert len(tokenizer) == 151_669


def test_every_text_round_trips_through_nfc(releases) -> None:
    tokenizer = releases["plain"].lm.tokenizer
    for text, ids in zip(EDGES, encode(tokenizer, EDGES), strict=True):
        assert tokenizer.decode(ids) == unicodedata.normalize("NFC", text)


def test_a_tokenizer_json_gives_the_same_ids(releases, questions, tmp_path) -> None:
    """Releases hold one as well; it is read by another class."""
    releases["plain"].lm.tokenizer.save_pretrained(tmp_path)
    assert not (tmp_path / "vocab.json").exists()
    tokenizer = load_tokenizer(tmp_path)
    assert type(tokenizer) is PreTrainedTokenizerFast
    assert not isinstance(tokenizer, Qwen2Tokenizer)
    texts = [*EDGES, *questions[::10]]
    assert encode(tokenizer, texts) == encode(releases["plain"].lm.tokenizer, texts)


def test_vocabulary_and_merges_of_another_tokenizer_do_not_suffice(tmp_path: Path) -> None:
    """It splits text in a way that these files do not say, as GPT-2's does."""
    for name in ("merges.txt", "vocab.json"):
        shutil.copy(data_dir() / "qwen3-tokenizer" / name, tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    with pytest.raises(UserError, match=r"has no tokenizer\.json"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("missing", ["merges.txt", "vocab.json", "tokenizer_config.json"])
def test_a_missing_file_is_told(tmp_path: Path, missing: str) -> None:
    for name in {"merges.txt", "vocab.json", "tokenizer_config.json"} - {missing}:
        shutil.copyfile(data_dir() / "qwen3-tokenizer" / name, tmp_path / name)
    named = "tokenizer.json" if missing == "vocab.json" else missing
    with pytest.raises(UserError, match=f"{tmp_path.name} has no {named}; copy it"):
        load_tokenizer(tmp_path)


# Chat templates -----------------------------------------------------------------------------------

USER = {"role": "user", "content": "Tom has 5 pens.\nHow many?"}
CONVERSATIONS = {
    "user": [USER],
    "system": [{"role": "system", "content": "Be brief."}, USER],
    "turns": [
        {"role": "system", "content": "Be brief."},
        USER,
        {"role": "assistant", "content": "<think>\n5\n</think>\n\n#### 5"},
        {"role": "user", "content": "And {{ 2 }} < 3 — ½?"},
    ],
    "open": [USER, {"role": "assistant", "content": "The answer"}],
}
THOUGHTLESS = "<think>\n\n</think>\n\n"


@pytest.mark.parametrize("conversation", list(CONVERSATIONS))
@pytest.mark.parametrize("template", TEMPLATES)
def test_chats_equal_transformers(releases, template: str, conversation: str) -> None:
    lm, reference = releases[template]
    messages = CONVERSATIONS[conversation]
    for thinking in (False, True) if template == "hybrid" else (False,):
        adapter = JaxLM(lm, enable_thinking=thinking)
        for turn in (True, False) if conversation in ("user", "open") else (True,):
            keywords = {
                "add_generation_prompt": turn,
                "continue_final_message": not turn,
                "enable_thinking": thinking,
            }
            expected = reference.apply_chat_template(messages, tokenize=False, **keywords)
            ids = reference.apply_chat_template(messages, **keywords)["input_ids"]
            text = render_chat(
                messages, lm.tokenizer, enable_thinking=thinking, add_generation_prompt=turn
            )
            assert text == expected
            assert lm.encode(text) == ids
            assert adapter.apply_chat_template(messages, turn) == expected
            assert adapter.tok_encode(text) == ids
            switched_off = template == "hybrid" and turn and not thinking
            assert text.endswith("assistant\n" + THOUGHTLESS) is switched_off


@pytest.mark.parametrize("template", TEMPLATES)
def test_prompts_of_all_problems_equal_transformers(releases, questions, template: str) -> None:
    lm, reference = releases[template]
    system = "Solve it. End with #### N."
    for thinking in (False, True) if template == "hybrid" else (False,):
        config = PromptConfig(system=system, enable_thinking=thinking)
        sampled = questions[:: 10 if thinking else 1]
        prompts = [render(question, config, lm.tokenizer) for question in sampled]
        chats = [
            [{"role": "system", "content": system}, {"role": "user", "content": question}]
            for question in sampled
        ]
        expected = reference.apply_chat_template(
            chats, add_generation_prompt=True, enable_thinking=thinking
        )
        assert encode(lm.tokenizer, prompts) == expected["input_ids"]


def test_the_plain_template_is_chatml(releases) -> None:
    config = PromptConfig(system="Be brief.")
    assert render("1 + 1?", config, releases["plain"].lm.tokenizer) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n1 + 1?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_thinking_is_off_by_default_and_refused_where_it_cannot_be(releases) -> None:
    hybrid, plain = (releases[template].lm.tokenizer for template in ("hybrid", "plain"))
    assert render("1 + 1?", PromptConfig(), hybrid).endswith(THOUGHTLESS)
    thoughtful = render("1 + 1?", PromptConfig(enable_thinking=True), hybrid)
    assert thoughtful.endswith("<|im_start|>assistant\n")
    with pytest.raises(UserError, match="template does not support enable_thinking"):
        render("1 + 1?", PromptConfig(enable_thinking=True), plain)
    with pytest.raises(UserError, match="template does not support enable_thinking"):
        JaxLM(releases["plain"].lm, enable_thinking=True).apply_chat_template([USER])


def test_a_runs_adapter_thinks_as_its_prompts_do(releases, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = PromptConfig(enable_thinking=True)
    experiment = Experiment(run="run", model="model", prompt=prompt)
    run = Run(Path(experiment.run), experiment, releases["hybrid"].lm)
    monkeypatch.setattr(model_args, "load_run", lambda folder: run)
    expected = render(USER["content"], prompt, run.lm.tokenizer)
    for arguments, thinks in (("", True), (",enable_thinking=False", False)):
        adapter = JaxLM.create_from_arg_string(f"run=run,arm=baseline{arguments}")
        assert (adapter.apply_chat_template([USER]) == expected) is thinks
        assert adapter.get_model_info()["enable_thinking"] is thinks


def test_the_request_cache_tells_thinking_apart(releases) -> None:
    lm = copy.copy(releases["hybrid"].lm)
    assert JaxLM(lm, enable_thinking=True).tokenizer_name != JaxLM(lm).tokenizer_name
