"""The conversion command, from a folder of safetensors to a model directory."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest

from converters import qwen3
from jroute import checkpoint, convert
from jroute.checkpoint import load_model, model_fingerprint, read_manifest
from jroute.errors import UserError
from tests.converters.tiny import COMPANIONS, CONFIG, TIED, random_tensors, write_source

ROOT = Path(__file__).parent.parent


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
    jax.tree.map(np.testing.assert_array_equal, params, qwen3.from_hf(tensors, CONFIG))


def test_shards_and_a_head_that_is_not_read_do_not_change_the_fingerprint(tmp_path: Path) -> None:
    tensors = random_tensors(CONFIG)
    one = convert.convert(str(write_source(tmp_path / "1", CONFIG, tensors)), tmp_path / "a")
    two = convert.convert(str(write_source(tmp_path / "2", CONFIG, tensors, 4)), tmp_path / "b")
    assert one.manifest["fingerprint"] == two.manifest["fingerprint"]
    tied = convert.convert(str(write_source(tmp_path / "3", TIED, tensors)), tmp_path / "c")
    del tensors["lm_head.weight"]
    bare = convert.convert(str(write_source(tmp_path / "4", TIED, tensors)), tmp_path / "d")
    assert tied.manifest["fingerprint"] == bare.manifest["fingerprint"]


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", None])
def test_dtypes(tmp_path: Path, stored: str, dtype: convert.Dtype | None) -> None:
    tensors = random_tensors(CONFIG, stored)
    source = write_source(tmp_path / "hf", CONFIG, tensors)
    if stored == "float16" and dtype is None:
        with pytest.raises(UserError, match="--dtype"):
            convert.convert(str(source), tmp_path / "model", dtype=dtype)
        return
    result = convert.convert(str(source), tmp_path / "model", dtype=dtype)
    params, _ = load_model(tmp_path / "model")
    expected = np.dtype(dtype or stored)
    assert result.manifest["dtype"] == str(expected)
    cast = {name: tensor.astype(expected) for name, tensor in tensors.items()}
    jax.tree.map(np.testing.assert_array_equal, params, qwen3.from_hf(cast, CONFIG))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {expected}


def test_bfloat16_rounds_to_nearest_even(tmp_path: Path) -> None:
    tensors = random_tensors(CONFIG)
    halfway = np.array([1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20], np.float32)
    tensors["model.norm.weight"][:3] = halfway
    source = write_source(tmp_path / "hf", CONFIG, tensors)
    convert.convert(str(source), tmp_path / "model", dtype="bfloat16")
    found = load_model(tmp_path / "model")[0]["final_norm"][:3]
    assert found.tolist() == [1.0, 1 + 2**-6, 1 + 2**-7]
    assert found.dtype == ml_dtypes.bfloat16


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
    (source / "config.json").write_text(json.dumps(other.to_hf()))


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


def break_architecture(source: Path) -> str:
    (source / "config.json").write_text(json.dumps({**CONFIG.to_hf(), "model_type": "gemma3"}))
    return "model_type is 'gemma3'"


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


@pytest.mark.parametrize(
    "damage",
    [
        break_nothing_there,
        break_config,
        break_architecture,
        break_shard,
        break_length,
        break_shape,
    ],
)
def test_bad_sources_get_one_sentence_and_leave_nothing(
    source: Path, tmp_path: Path, damage, capsys: pytest.CaptureFixture[str]
) -> None:
    message = damage(source)
    assert run("--source", source, "--out", tmp_path / "out" / "model") == 2
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

    def add(self: checkpoint.ModelWriter, path: str, value: np.ndarray) -> None:
        if len(written) == 5:
            raise KeyboardInterrupt
        written.append(path)
        original(self, path, value)

    monkeypatch.setattr(checkpoint.ModelWriter, "add", add)
    out = tmp_path / "out" / "model"
    with pytest.raises(KeyboardInterrupt):
        run("--source", source, "--out", out)
    assert list(out.parent.iterdir()) == []


HANG_MIDWAY = """
import sys, time
from jroute import checkpoint, convert
original, written = checkpoint.ModelWriter.add, []
def add(self, path, value):
    original(self, path, value)
    written.append(path)
    if len(written) == 5:
        print("midway", flush=True)
        time.sleep(600)
checkpoint.ModelWriter.add = add
convert.main(sys.argv[1:])
"""


def test_kill_midway_leaves_no_model_and_the_next_conversion_cleans_up(
    source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out" / "model"
    command = [sys.executable, "-c", HANG_MIDWAY, "--source", str(source), "--out", str(out)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "midway\n"
        process.send_signal(signal.SIGKILL)
    (partial,) = out.parent.iterdir()
    assert "partial" in partial.name
    assert len(list((partial / "params").iterdir())) == 5  # the proof that it was mid-way
    for folder in (out, partial):
        with pytest.raises(UserError, match=r"no model directory|not a finished jroute model"):
            load_model(folder)
    living = partial.with_name(f"{partial.name.rpartition('-')[0]}-{os.getppid()}")
    living.mkdir()  # as of a conversion that still runs
    assert run("--source", source, "--out", out) == 0
    assert {entry.name for entry in out.parent.iterdir()} == {"model", living.name}
    assert model_fingerprint(out) == read_manifest(out)["fingerprint"]


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
