"""The conversion command, from a folder of safetensors to a model directory."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest

from converters import mapping
from converters.hf_config import config_to_hf
from jroute import checkpoint, convert
from jroute.checkpoint import conversion, load_model, read_manifest
from jroute.utils.errors import UserError
from tests.converters.tiny import COMPANIONS, CONFIG, TIED, random_tensors, write_source

ROOT = Path(__file__).parent.parent.parent


def run(*arguments: object) -> int:
    return convert.main([str(argument) for argument in arguments])


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A sharded checkpoint."""
    return write_source(tmp_path / "hf", CONFIG, random_tensors(CONFIG), shards=2)


def test_converts_and_says_what_it_did(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "runs" / "model"
    assert run("--source", source, "--out", out) == 0
    printed = capsys.readouterr().out
    manifest = read_manifest(out)
    tensors = random_tensors(CONFIG)
    assert f"wrote {out}" in printed
    assert f"{len(tensors):,}" in printed
    assert f"{sum(tensor.size for tensor in tensors.values()):,}" in printed
    assert manifest["fingerprint"] in printed
    assert manifest["source"] == {"name": str(source), "revision": None}
    assert manifest["tensors"].keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert manifest["tensors"][name] == checkpoint.digest(tensor)
    for name, content in COMPANIONS.items():
        assert (out / name).read_text() == content
    params, config = load_model(out)
    assert config == CONFIG
    jax.tree.map(np.testing.assert_array_equal, params, mapping.from_hf(tensors, CONFIG))


def test_the_bundled_model_keeps_its_fingerprint(tiny_directory: Path) -> None:
    """Outcomes are filed under it: how weights are stored may change, their name may not."""
    manifest = read_manifest(tiny_directory)
    expected = "9aaee5eaadea011e19b250fd7074e3618fb82bd4e94d14b7383521d916984153"
    assert manifest["fingerprint"] == expected
    embedding = "376c33401d5b4286c4883b4f9bd0efbb9851f6ee9b341006e0f45fd12973ceee"
    assert manifest["tensors"]["model.embed_tokens.weight"] == embedding


def test_progress_is_told_in_stored_bytes(source: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    for _ in range(2):  # the second one only compares
        result = conversion.convert(
            str(source),
            tmp_path / "model",
            dtype="bfloat16",
            progress=lambda *now: seen.append(now),
        )
        total = result.manifest["bytes"]
        assert {end for _, end in seen} == {total}
        done = [now for now, _ in seen]
        assert done == sorted(done)
        assert done[-1] == total
        assert len(done) >= len(mapping.layout(CONFIG))
        seen.clear()


def test_shards_and_a_repeated_head_do_not_change_the_fingerprint(tmp_path: Path) -> None:
    tensors = random_tensors(CONFIG)
    one = conversion.convert(str(write_source(tmp_path / "1", CONFIG, tensors)), tmp_path / "a")
    two = conversion.convert(str(write_source(tmp_path / "2", CONFIG, tensors, 4)), tmp_path / "b")
    assert one.manifest["fingerprint"] == two.manifest["fingerprint"]
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    tied = conversion.convert(str(write_source(tmp_path / "3", TIED, tensors)), tmp_path / "c")
    del tensors["lm_head.weight"]
    bare = conversion.convert(str(write_source(tmp_path / "4", TIED, tensors)), tmp_path / "d")
    assert tied.manifest["fingerprint"] == bare.manifest["fingerprint"]


def test_a_head_that_is_not_the_token_table_is_refused_where_they_are_tied(tmp_path: Path) -> None:
    tensors = random_tensors(TIED)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    tensors["lm_head.weight"][-1, -1] *= 1.01
    source = write_source(tmp_path / "hf", TIED, tensors)
    with pytest.raises(UserError, match=r"lm_head\.weight differs from model"):
        conversion.convert(str(source), tmp_path / "model")
    assert [entry.name for entry in tmp_path.iterdir()] == ["hf"]


def test_a_source_without_tokenizer_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_source(tmp_path / "hf", CONFIG, random_tensors(CONFIG))
    (source / "tokenizer.json").unlink()
    arguments = ["--source", str(source), "--out", str(tmp_path / "model")]
    for extra, said in ((["--dry-run"], "warning: the source"), ([], "warning      the source")):
        assert convert.main([*arguments, *extra]) == 0
        assert f"{said} has no tokenizer" in capsys.readouterr().out
    assert convert.main([*arguments, "--verify"]) == 0
    printed = capsys.readouterr().out
    assert "bit for bit\n  logits       not compared: there is no tokenizer" in printed


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", None])
def test_dtypes(tmp_path: Path, stored: str, dtype: conversion.Dtype | None) -> None:
    tensors = random_tensors(CONFIG, stored)
    source = write_source(tmp_path / "hf", CONFIG, tensors)
    if stored == "float16" and dtype is None:
        with pytest.raises(UserError, match="--dtype"):
            conversion.convert(str(source), tmp_path / "model", dtype=dtype)
        return
    result = conversion.convert(str(source), tmp_path / "model", dtype=dtype)
    params, _ = load_model(tmp_path / "model")
    expected = np.dtype(dtype or stored)
    assert result.manifest["dtype"] == str(expected)
    cast = {name: tensor.astype(expected) for name, tensor in tensors.items()}
    jax.tree.map(np.testing.assert_array_equal, params, mapping.from_hf(cast, CONFIG))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {expected}


def test_bfloat16_rounds_to_nearest_even(tmp_path: Path) -> None:
    tensors = random_tensors(CONFIG)
    halfway = np.array([1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20], np.float32)
    tensors["model.norm.weight"][:3] = halfway
    source = write_source(tmp_path / "hf", CONFIG, tensors)
    conversion.convert(str(source), tmp_path / "model", dtype="bfloat16")
    rounded = load_model(tmp_path / "model")[0]["final_norm"][:3]
    assert rounded.tolist() == [1.0, 1 + 2**-6, 1 + 2**-7]
    assert rounded.dtype == ml_dtypes.bfloat16


def test_converting_again_changes_nothing(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "model"
    assert run("--source", source, "--out", out) == 0
    times = {file: file.stat().st_mtime_ns for file in out.rglob("*")}
    capsys.readouterr()
    assert run("--source", source, "--out", out) == 0
    assert f"already there: {out}" in capsys.readouterr().out
    assert {file: file.stat().st_mtime_ns for file in out.rglob("*")} == times


def change_weight(source: Path) -> None:
    write_source(source, CONFIG, random_tensors(CONFIG, seed=1), shards=2)


def change_config(source: Path) -> None:
    other = dataclasses.replace(CONFIG, rope_theta=1e6)
    (source / "config.json").write_text(json.dumps(config_to_hf(other)))


def change_routing(source: Path) -> None:
    (source / "routing.yaml").write_text("preset: mvp\n")


@pytest.mark.parametrize("change", [change_weight, change_config, change_routing])
def test_another_model_is_replaced_only_when_asked(
    source: Path, tmp_path: Path, change, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "model"
    assert run("--source", source, "--out", out) == 0
    before = read_manifest(out)
    change(source)
    assert run("--source", source, "--out", out) == 2
    assert "error: " in capsys.readouterr().err
    assert read_manifest(out) == before
    assert run("--source", source, "--out", out, "--overwrite") == 0
    assert read_manifest(out) != before
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["hf", "model"]


def break_nothing_there(source: Path) -> str:
    source.rename(source.with_name("elsewhere"))
    return "there is no folder"


def break_config(source: Path) -> str:
    (source / "config.json").unlink()
    return "config.json is missing"


def changed_config(source: Path, **change: object) -> None:
    (source / "config.json").write_text(json.dumps({**config_to_hf(CONFIG), **change}))


def break_architecture(source: Path) -> str:
    changed_config(source, model_type="gemma3")
    return "model_type is 'gemma3'"


def break_experts(source: Path) -> str:
    changed_config(source, model_type="qwen3_moe", num_experts=8)
    return "model_type is 'qwen3_moe'"


def break_window(source: Path) -> str:
    changed_config(source, use_sliding_window=True, sliding_window=64)
    return "use_sliding_window is not implemented"


def break_rope(source: Path) -> str:
    changed_config(source, rope_scaling={"rope_type": "yarn", "factor": 4.0})
    return "rotary scaling of type 'yarn' is not implemented"


def break_shard(source: Path) -> str:
    next(source.glob("*-00002-*")).unlink()
    return "is missing"


def break_length(source: Path) -> str:
    file = next(source.glob("*-00001-*"))
    file.write_bytes(file.read_bytes()[:-100])
    return "truncated or damaged"


def break_shape(source: Path) -> str:
    tensors = random_tensors(CONFIG)
    tensors["lm_head.weight"] = tensors["lm_head.weight"][1:]
    write_source(source, CONFIG, tensors, shards=2)
    return "has shape [28, 12]"


def break_missing_tensor(source: Path) -> str:
    tensors = random_tensors(CONFIG)
    del tensors["model.layers.2.mlp.up_proj.weight"]
    write_source(source, CONFIG, tensors, shards=2)
    return "model.layers.2.mlp.up_proj.weight is missing"


def break_extra_tensor(source: Path) -> str:
    tensors = random_tensors(CONFIG)
    tensors["model.layers.0.mlp.gate.weight"] = tensors["model.norm.weight"]
    write_source(source, CONFIG, tensors, shards=2)
    return "model.layers.0.mlp.gate.weight is in no qwen3 model"


@pytest.mark.parametrize(
    "damage",
    [
        break_nothing_there,
        break_config,
        break_architecture,
        break_experts,
        break_window,
        break_rope,
        break_shard,
        break_length,
        break_shape,
        break_missing_tensor,
        break_extra_tensor,
    ],
)
@pytest.mark.parametrize("dry", [(), ("--dry-run",)], ids=["convert", "dry run"])
def test_bad_sources_get_one_sentence_and_leave_nothing(
    source: Path, tmp_path: Path, damage, dry: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    message = damage(source)
    assert run("--source", source, "--out", tmp_path / "out" / "model", *dry) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert message in printed.err
    assert not (tmp_path / "out").exists()


def test_interrupt_leaves_nothing(
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original, written = checkpoint.ModelWriter.add, []

    def add(self: checkpoint.ModelWriter, path: str, read: Any) -> None:
        if len(written) == 5:
            raise KeyboardInterrupt
        written.append(path)
        original(self, path, read)

    monkeypatch.setattr(checkpoint.ModelWriter, "add", add)
    out = tmp_path / "out" / "model"
    with pytest.raises(KeyboardInterrupt):
        run("--source", source, "--out", out)
    assert list(out.parent.iterdir()) == []


def test_the_command_itself(source: Path, tmp_path: Path) -> None:
    """A fresh process: it is quick to start, imports no torch, and exits with the right status."""
    script = (
        "import runpy, sys\n"
        "sys.argv[0] = 'convert'\n"
        "try:\n"
        "    runpy.run_module('jroute.convert', run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    heavy = {'torch', 'transformers', 'datasets'} & set(sys.modules)\n"
        "    assert not heavy, heavy\n"
        "    sys.exit(end.code)\n"
    )
    command = [sys.executable, "-W", "error", "-c", script, "--source", str(source)]
    out = tmp_path / "model"
    done = subprocess.run(
        [*command, "--out", str(out)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "fingerprint" in done.stdout
    assert "100%" in done.stderr
    assert "WARNING" not in done.stderr
    load_model(out)
    refused = subprocess.run(
        [*command, "--out", str(source)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert refused.returncode == 2
    assert "is not a jroute model directory" in refused.stderr
