"""Loading a tokenizer, and what the bundled one does with text."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from jroute.tasks.prompts import PromptConfig, render
from jroute.tasks.tokenizer import load_tokenizer
from jroute.utils.errors import UserError
from tests.model.tiny import ASSET

TOKENIZER = load_tokenizer(ASSET)


def ids(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]  # type: ignore[return-value]


def test_it_is_the_fast_class() -> None:
    assert type(TOKENIZER) is PreTrainedTokenizerFast
    assert (TOKENIZER.eos_token, TOKENIZER.eos_token_id) == ("<|im_end|>", 2)
    assert (TOKENIZER.pad_token, TOKENIZER.pad_token_id) == ("<|endoftext|>", 0)
    assert TOKENIZER.convert_tokens_to_ids("<|im_start|>") == 1


@given(st.text())
@example("Ein Öl-Fass, 12½ €; naïve\r\n\t ... 猫が3匹 🐈\u200d⬛ \x00\x7f  two  spaces ")
@example("<|im_start|>user\n1 ?<|im_end|>")
@example("don't stop . , : it 's")
@example("\ud7ff\ue000\ufffd\U0010ffff")
def test_any_text_round_trips(text: str) -> None:
    assert TOKENIZER.decode(ids(text)) == text


def test_every_digit_is_a_token() -> None:
    digits = [ids(str(digit)) for digit in range(10)]
    assert all(len(each) == 1 for each in digits)
    assert len({each[0] for each in digits}) == 10
    for number in ("20", "1234567890", "007", "3.14", "x99y", "12-5=7"):
        split = [str(TOKENIZER.decode([token])) for token in ids(number)]
        assert [part for part in split if part.isdigit()] == [c for c in number if c.isdigit()]
        assert "".join(split) == number


def test_words_of_the_problems_are_single_tokens() -> None:
    for word in (" has", " apples", " Omar", "Tom", " stamps", "####", "user", "assistant"):
        assert len(ids(word)) == 1, word


def test_the_chat_template_is_chatml() -> None:
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "1 + 1?\n"},
        {"role": "assistant", "content": "#### 2"},
        {"role": "user", "content": "And {{ 2 }} < 3?"},
    ]
    text = (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\n1 + 1?\n<|im_end|>\n"
        "<|im_start|>assistant\n#### 2<|im_end|>\n"
        "<|im_start|>user\nAnd {{ 2 }} < 3?<|im_end|>\n"
    )
    assert TOKENIZER.apply_chat_template(turns, tokenize=False) == text
    prompt = TOKENIZER.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert prompt == text + "<|im_start|>assistant\n"
    assert render("1 + 1?", PromptConfig(), TOKENIZER) == (
        "<|im_start|>user\n1 + 1?<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("missing", ["tokenizer.json", "tokenizer_config.json"])
def test_a_missing_file_is_told(tmp_path: Path, missing: str) -> None:
    for name in {"tokenizer.json", "tokenizer_config.json"} - {missing}:
        shutil.copy(ASSET / name, tmp_path)
    with pytest.raises(UserError, match=f"{tmp_path.name} has no {missing}; copy it"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("damaged", ["tokenizer.json", "tokenizer_config.json"])
def test_a_damaged_file_is_told(tmp_path: Path, damaged: str) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(ASSET / name, tmp_path)
    content = (ASSET / damaged).read_text()
    (tmp_path / damaged).write_text(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"cannot be read .* copy it there again"):
        load_tokenizer(tmp_path)


def test_loading_leaves_torch_alone() -> None:
    program = (
        "import sys; from jroute.tasks.tokenizer import load_tokenizer; "
        f"load_tokenizer({str(ASSET)!r}); sys.exit('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=ASSET.parents[2], check=False)
    assert result.returncode == 0
