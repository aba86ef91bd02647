"""Completions are compared token by token; a near-tie is named, other differences are errors."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from scripts import compare_greedy
from scripts.compare_greedy import CLOSE, first_difference, main
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
    difference = first_difference(tiny_lm, tiny_torch, 7, ids, [other, 5], [first, 5])
    assert difference and (difference.prompt, difference.position) == (7, 0)
    assert difference.margin == pytest.approx(best - second, abs=1e-5) and difference.margin > CLOSE
    assert not difference.is_near_tie and difference.theirs == tiny_lm.tokenizer.decode([first])
    ended = first_difference(tiny_lm, tiny_torch, 7, ids, [first], [first, 5])
    assert ended and ended.position == 1 and not ended.is_near_tie
    assert "one ends" in str(ended)


def test_a_near_tie_is_named_and_no_error(tiny_directory, tmp_path, capsys, monkeypatch) -> None:
    """Of logits that differ by less than rounding; here all are taken for that close."""
    other = Path(shutil.copytree(ASSET, tmp_path / "other"))
    (weights,) = other.glob("*.safetensors")
    tensors = load_file(weights)
    name = "model.layers.0.self_attn.v_proj.weight"
    save_file(tensors | {name: -tensors[name]}, weights, {"format": "pt"})
    monkeypatch.setattr(compare_greedy, "CLOSE", 1e3)
    out = tmp_path / "greedy.json"
    arguments = ["--model", str(tiny_directory), "--hf", str(other), *SHORT, "--out", str(out)]
    assert main(arguments) == 0
    figures = json.loads(out.read_text())
    assert figures["near_ties"] and not figures["different"]
    assert figures["equal"] + len(figures["near_ties"]) == 3
    first = figures["near_ties"][0]
    assert f"near-tie: prompt {first['prompt']}" in capsys.readouterr().out
    assert main([*figures["command"].split()[2:]]) == 0  # it can be given again


def test_another_folder_is_refused_before_a_model_is_read(tiny_directory, tmp_path, capsys) -> None:
    model = ["--model", str(tiny_directory), *SHORT]
    assert main([*model, "--hf", str(tmp_path)]) == 2
    assert "config.json" in capsys.readouterr().err
    other = Path(shutil.copytree(ASSET, tmp_path / "other"))
    content = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**content, "rms_norm_eps": 1e-5}))
    assert main([*model, "--hf", str(other)]) == 2
    assert "was not converted from" in capsys.readouterr().err
