"""Completions are compared token by token; a near-tie is named, other differences are errors."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from scripts.compare_greedy import NEAR_TIE, first_difference, main
from tests.model.tiny import ASSET

SHORT = ("--task", "synthetic", "--count", "3", "--new", "8", "--slots", "2")


def test_equal_completions(tiny_directory, tmp_path, capsys) -> None:
    out = tmp_path / "greedy.json"
    assert (
        main(["--model", str(tiny_directory), "--hf", str(ASSET), *SHORT, "--out", str(out)]) == 0
    )
    assert "3 of 3 completions equal, 0 part at a near-tie" in capsys.readouterr().out
    figures = json.loads(out.read_text())
    assert (figures["prompts"], figures["equal"], figures["different"]) == (3, 3, [])
    assert 3 <= figures["tokens"] <= 24


def test_other_weights_are_an_error(tiny_directory, tmp_path, capsys) -> None:
    other = Path(shutil.copytree(ASSET, tmp_path / "other"))
    (weights,) = other.glob("*.safetensors")
    tensors = load_file(weights)
    name = "model.layers.0.self_attn.v_proj.weight"
    save_file(tensors | {name: -tensors[name]}, weights, {"format": "pt"})
    assert main(["--model", str(tiny_directory), "--hf", str(other), *SHORT]) == 2
    printed = capsys.readouterr()
    assert "no near-tie explains it" in printed.err and "different: prompt 0" in printed.out


def test_the_margin_is_transformers_own(tiny_lm, tiny_torch) -> None:
    ids = tiny_lm.encode("Question: what is 3 + 4?")
    with torch.no_grad():
        logits = tiny_torch(torch.tensor([ids])).logits[0, -1]
    (best, second), (first, other) = logits.topk(2).values.tolist(), logits.topk(2).indices.tolist()
    assert first_difference(tiny_lm, tiny_torch, 7, ids, [first, 5], [first, 5]) is None
    found = first_difference(tiny_lm, tiny_torch, 7, ids, [other, 5], [first, 5])
    assert found and (found.prompt, found.position) == (7, 0)
    assert found.margin == pytest.approx(best - second, abs=1e-5) and found.margin > NEAR_TIE
    assert found.theirs == tiny_lm.tokenizer.decode([first])
    ended = first_difference(tiny_lm, tiny_torch, 7, ids, [first], [first, 5])
    assert ended and ended.position == 1 and ended.margin > NEAR_TIE
