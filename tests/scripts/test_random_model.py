"""Random checkpoints in the published layout."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from converters.hf_config import config_from_hf, config_to_hf
from converters.mapping import check, layout
from converters.safetensors import Checkpoint
from jroute.model.families import FAMILIES, Family
from jroute.utils.errors import UserError
from scripts import random_model
from scripts.random_model import write_random
from tests.converters.tiny import CONFIG

ROOT = Path(__file__).parent.parent.parent
WIDE = {"vocab_size": 3000, "hidden_size": 64, "num_attention_heads": 4, "head_dim": 32}


@pytest.fixture
def like(tmp_path: Path) -> Path:
    """The config files of a release."""
    folder = tmp_path / "like"
    folder.mkdir()
    content = {**config_to_hf(CONFIG), **WIDE, "torch_dtype": "bfloat16", "max_window_layers": 3}
    (folder / "config.json").write_text(json.dumps(content))
    (folder / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    return folder


def test_it_looks_like_a_release(tmp_path: Path, like: Path) -> None:
    files = write_random(like, tmp_path / "out", shard_bytes=200_000)
    shards = [file for file in files if file.suffix == ".safetensors"]
    assert len(shards) >= 3 and all(file.is_file() for file in files)
    assert [file.name for file in shards] == [
        f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)
    ]
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    checkpoint = Checkpoint(tmp_path / "out")
    sizes = {name: tensor.nbytes for name, tensor in checkpoint.tensors.items()}
    assert index["metadata"]["total_size"] == sum(sizes.values())
    assert max(size for size in sizes.values() if size != 3000 * 64 * 2) < 200_000
    for name in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / "out" / name).read_text()) == json.loads(
            (like / name).read_text()
        )
    config = config_from_hf(json.loads((like / "config.json").read_text()))
    check(checkpoint, config)
    assert {tensor.dtype for tensor in checkpoint.tensors.values()} == {"BF16"}
    assert len(sizes) == sum(len(entry.names) for entry in layout(config).values())


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_values_are_of_a_models_size_and_all_different(
    tmp_path: Path, like: Path, family: Family
) -> None:
    config = dataclasses.replace(CONFIG, family=family.name)
    (like / "config.json").write_text(json.dumps({**config_to_hf(config), **WIDE}))
    write_random(like, tmp_path / "out")
    checkpoint = Checkpoint(tmp_path / "out")
    tensors = {n: checkpoint.read(n).astype(np.float32) for n in checkpoint.tensors}
    for name, tensor in tensors.items():
        if tensor.ndim == 1:
            mean = 0 if name.endswith("bias") else 1
            assert abs(tensor.mean() - mean) < 0.1 and 0.05 < tensor.std() < 0.2, name
        else:
            assert abs(tensor.mean()) < 0.1 * tensor.std(), name
            assert tensor.std() * tensor.shape[1] ** 0.5 == pytest.approx(1, rel=0.1), name
            assert len(np.unique(tensor, axis=0)) == len(tensor), name
    beginnings = {tensor.reshape(-1)[:6].tobytes() for tensor in tensors.values()}
    assert len(beginnings) == len(tensors)
    cls = getattr(transformers, family.transformers_class)
    model = cls.from_pretrained(tmp_path / "out", dtype=torch.float32)
    with torch.no_grad():
        logits = model.eval()(torch.arange(0, 640, 10)[None]).logits
    assert 0.5 < logits.std() < 2.0


def test_the_seed_decides(tmp_path: Path, like: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_random(like, tmp_path / name, seed=seed)
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b and a != c


def test_layers_and_type_can_be_changed(tmp_path: Path, like: Path) -> None:
    write_random(like, tmp_path / "out", layers=2, dtype="float32")
    content = json.loads((like / "config.json").read_text())
    figures = json.loads((tmp_path / "out/config.json").read_text())
    assert figures == {**content, "num_hidden_layers": 2, "torch_dtype": "float32"}
    checkpoint = Checkpoint(tmp_path / "out")
    check(checkpoint, config_from_hf(figures))
    assert {tensor.dtype for tensor in checkpoint.tensors.values()} == {"F32"}


def test_plain_chatml_changes_the_tokenizer_only_there(tmp_path: Path, like: Path) -> None:
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    settings = {"chat_template": "{{ thoughts }}", "eos_token": "<|endoftext|>", "errors": "é"}
    (tokenizer / "tokenizer_config.json").write_text(json.dumps(settings))
    (tokenizer / "vocab.json").write_text("{}")
    with pytest.raises(UserError, match="holds no tokenizer"):
        write_random(like, tmp_path / "hybrid", tokenizer=tokenizer)
    assert not (tmp_path / "hybrid").exists()
    (tokenizer / "merges.txt").write_text("")
    write_random(like, tmp_path / "hybrid", tokenizer=tokenizer)
    write_random(like, tmp_path / "plain", tokenizer=tokenizer, plain_chatml=True)
    hybrid, plain = (
        json.loads((tmp_path / name / "tokenizer_config.json").read_text())
        for name in ("hybrid", "plain")
    )
    assert hybrid == settings
    assert plain["eos_token"] == "<|im_end|>" and plain["errors"] == "é"
    assert "think" not in plain["chat_template"] and "<|im_start|>" in plain["chat_template"]
    with pytest.raises(UserError, match="name its folder with --tokenizer"):
        write_random(like, tmp_path / "out", plain_chatml=True)
    (tokenizer / "vocab.json").unlink()
    with pytest.raises(UserError, match="holds no tokenizer"):
        write_random(like, tmp_path / "out", tokenizer=tokenizer)
    assert not (tmp_path / "out").exists()


def test_the_command(tmp_path: Path, like: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--like", str(like), "--out", str(tmp_path / "out"), "--shard-bytes", "200000"]
    assert random_model.main(arguments) == 0
    assert "model-00001-of-" in capsys.readouterr().out
    assert random_model.main(arguments) == 2
    assert "exists and is not an empty folder" in capsys.readouterr().err
    arguments[3] = str(tmp_path / "other")
    assert random_model.main([*arguments, "--layers", "0"]) == 2
    assert "--layers is 0" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["like"]


def test_the_script_runs_from_the_root(tmp_path: Path, like: Path) -> None:
    command = [sys.executable, "scripts/random_model.py", "--like", str(like)]
    result = subprocess.run(
        [*command, "--out", str(tmp_path / "out")], cwd=ROOT, check=False, capture_output=True
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "out" / "model.safetensors").is_file()
