"""A model directory held against its source."""

import gc
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from jroute.checkpoint import load_model, verification
from jroute.checkpoint.conversion import convert
from jroute.checkpoint.export import StoredTensors
from jroute.checkpoint.verification import verify
from jroute.convert import main as convert_command
from jroute.model import rope
from jroute.utils.errors import UserError
from tests.converters.tiny import CONFIG, random_tensors, write_source
from tests.model.tiny import ASSET, chat_prompts, torch_logits, torch_tiny

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def prompts(tiny_lm) -> list[str]:
    return [*chat_prompts(tiny_lm.tokenizer, 3), "5"]


def test_the_bundled_model_is_what_it_was_made_of(tiny_directory: Path, tiny_lm, prompts) -> None:
    seen: list[tuple[int, int]] = []
    result = verify(ASSET, tiny_directory, prompts, lambda *args: seen.append(args))
    assert (result.tensors, result.differing) == (len(load_file(ASSET / "model.safetensors")), ())
    assert result.logits is not None
    rows = [tiny_lm.encode(prompt) for prompt in prompts]
    assert result.logits.positions == sum(map(len, rows)) > 150
    assert result.logits.dtype == "float32"
    assert result.logits.agreement == 1.0
    errors = [
        np.abs(np.asarray(tiny_lm.logits([row]))[0] - torch_logits(torch_tiny(), row)).max()
        for row in rows
    ]
    assert 0 < result.logits.max_error < min(1e-4, result.logits.bound)
    assert result.logits.max_error == pytest.approx(max(errors), rel=0.5)
    assert seen[-1][0] == seen[-1][1] == sum(StoredTensors(tiny_directory).sizes.values())


def test_bfloat16_is_compared_in_bfloat16(tmp_path: Path, prompts) -> None:
    convert(str(ASSET), tmp_path / "model", dtype="bfloat16")
    result = verify(ASSET, tmp_path / "model", prompts)
    assert result.differing == () and result.logits is not None
    assert result.logits.dtype == "bfloat16"
    assert result.logits.agreement > 0.95
    assert 1e-3 < result.logits.max_error < min(0.5, result.logits.bound)


def changed(source: Path, folder: Path, name: str, change: Any) -> Path:
    """A copy of a source in which one tensor is another."""
    shutil.copytree(source, folder)
    tensors = load_file(folder / "model.safetensors")
    bits = tensors[name].view(np.uint32)
    change(bits)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def flip_the_last_bit(bits: np.ndarray) -> None:
    bits[-1, -1] ^= 1


def zero_to_minus_zero(bits: np.ndarray) -> None:
    assert bits[0, 0] == 0
    bits[0, 0] = 1 << 31


def nan_to_other_nan(bits: np.ndarray) -> None:
    bits[0, 1] ^= 1


@pytest.mark.parametrize("change", [flip_the_last_bit, zero_to_minus_zero, nan_to_other_nan])
def test_one_bit_is_found(tmp_path: Path, change: Any) -> None:
    name = "model.layers.2.mlp.down_proj.weight"
    tensors = random_tensors(CONFIG)
    tensors[name][0, :2] = [0.0, np.nan]
    source = write_source(tmp_path / "hf", CONFIG, tensors)
    convert(str(source), tmp_path / "model")
    other = changed(source, tmp_path / "other", name, change)
    result = verify(other, tmp_path / "model", ["5"])
    assert (result.tensors, result.differing, result.logits) == (len(tensors), (name,), None)


def test_two_equal_shapes_swapped_are_found(tmp_path: Path) -> None:
    tensors = random_tensors(CONFIG)
    source = write_source(tmp_path / "hf", CONFIG, tensors)
    convert(str(source), tmp_path / "model")
    names = [f"model.layers.1.mlp.{part}_proj.weight" for part in ("gate", "up")]
    tensors[names[0]], tensors[names[1]] = tensors[names[1]], tensors[names[0]]
    other = write_source(tmp_path / "other", CONFIG, tensors)
    assert sorted(verify(other, tmp_path / "model", ["5"]).differing) == names


def test_a_wrong_model_shows_in_the_logits(
    tiny_directory: Path,
    prompts,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tables = rope.rope_tables
    monkeypatch.setattr(
        "jroute.model.decoder.rope_tables",
        lambda at, config, dtype: tables(at, replace(config, rope_theta=3.0), dtype),
    )
    monkeypatch.setattr(
        verification, "_logits", jax.jit(lambda *a: verification._logits_of(*a), static_argnums=1)
    )
    result = verify(ASSET, tiny_directory, prompts)
    assert result.differing == () and result.logits is not None
    assert result.logits.agreement < 0.9 and result.logits.max_error > 0.1
    assert result.logits.max_error > 10 * result.logits.bound
    model = ["--source", str(ASSET), "--out", str(tiny_directory), "--verify"]
    assert convert_command(model) == 2
    assert "rounding stays below" in capsys.readouterr().err


def test_another_model_is_told(tmp_path: Path, tiny_directory: Path) -> None:
    other = write_source(tmp_path / "hf", CONFIG, random_tensors(CONFIG))
    with pytest.raises(UserError, match=r"has no tensor .*; name the folder"):
        verify(other, tiny_directory, ["5"])


def test_prompts_that_cannot_be_compared_are_told(tiny_directory: Path, tiny_lm) -> None:
    too_long = "5 " * tiny_lm.context
    for prompts, message in (
        ([], "there are no prompts to compare"),
        (["5", ""], "prompt 2 to compare has 0 tokens, but the model reads 1 to"),
        ([too_long], rf"prompt 1 to compare has [\d,]+ tokens, .* 1 to {tiny_lm.context:,};"),
    ):
        with pytest.raises(UserError, match=message):
            verify(ASSET, tiny_directory, prompts)


def test_it_works_without_torch(tiny_directory: Path) -> None:
    """Where torch cannot be found the bits are compared, and torch is never imported."""
    program = f"""
import importlib.util, json, sys
from pathlib import Path
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *others: None if name == "torch" else find(name, *others)
from jroute.checkpoint.verification import verify
result = verify(Path({str(ASSET)!r}), Path({str(tiny_directory)!r}), ["5"])
print(json.dumps([result.tensors, result.differing, result.logits, "torch" in sys.modules]))
"""
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, check=False, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    count = len(load_file(ASSET / "model.safetensors"))
    assert json.loads(result.stdout) == [count, [], None, False]


def test_torch_is_gone_before_jroute_comes(
    tiny_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two models of gigabytes are never held at once."""

    def alive() -> int:
        return sum(type(thing) is torch.nn.Embedding for thing in gc.get_objects())

    def load(directory: Path) -> Any:
        seen.append(alive())
        return load_model(directory)

    seen: list[int] = []
    before = alive()
    monkeypatch.setattr(verification, "load_model", load)
    assert verify(ASSET, tiny_directory, ["5"]).logits is not None
    assert seen == [before]
