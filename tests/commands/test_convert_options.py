"""``--dry-run``, ``--verify``, ``--to-hf``, and the benchmark of conversions."""

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from converters.hf_config import config_to_hf
from converters.safetensors import Checkpoint
from jroute import convert
from jroute.checkpoint import load_model, read_manifest, verification
from jroute.checkpoint.conversion_plan import plan_conversion
from scripts.bench import bench_convert
from tests.converters.tiny import COMPANIONS, CONFIG, TIED, random_tensors, write_source
from tests.model.tiny import ASSET


def run(*arguments: object) -> int:
    return convert.main([str(argument) for argument in arguments])


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A sharded checkpoint in bfloat16."""
    return write_source(tmp_path / "hf", CONFIG, random_tensors(CONFIG, "bfloat16"), shards=2)


def test_a_dry_run_says_what_would_be_and_writes_nothing(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "model"
    before = sorted(tmp_path.rglob("*"))
    assert run("--source", source, "--out", out, "--dtype", "float32", "--dry-run") == 0
    printed = capsys.readouterr().out
    assert sorted(tmp_path.rglob("*")) == before
    lines = {line.split()[0]: " ".join(line.split()) for line in printed.splitlines()}
    expected = "blocks/mlp/gate_proj [3, 12, 20] (3 layers stacked) 2,880 1 [3, 12, 20]"
    assert lines["blocks/mlp/gate_proj"] == expected
    assert lines["embed_tokens"] == "embed_tokens [29, 12] 1,392 1 [29, 12]"
    assert "arrays, all float32:" in printed
    for shard in source.glob("*.safetensors"):
        assert f"  {shard.name}  {shard.stat().st_size:,}\n" in printed
    parameters = sum(tensor.size for tensor in random_tensors(CONFIG).values())
    assert lines["parameters"] == f"parameters {parameters:,}"
    assert f"device memory   {4 * parameters:,} bytes" in printed
    assert f"free at {out}: enough" in printed
    assert "refuse" not in printed
    assert run("--source", source, "--out", out, "--dtype", "float32") == 0
    planned = plan_conversion(str(source), out, dtype="float32")
    manifest = read_manifest(out)
    assert sum(array.nbytes for array in planned.arrays) == planned.weights == manifest["bytes"]
    files = [name for name in manifest["stored"] if "/c." in name]
    assert sum(array.files for array in planned.arrays) == len(files)


def test_a_dry_run_says_what_stands_in_the_way(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dry = ("--source", source, "--dry-run", "--out")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").touch()
    assert run(*dry, tmp_path / "thesis") == 2
    printed = capsys.readouterr().out
    assert f"would refuse: {tmp_path / 'thesis'} exists and is not a jroute model" in printed
    assert run("--source", source, "--out", tmp_path / "model") == 0
    capsys.readouterr()
    assert run(*dry, tmp_path / "model") == 0
    assert "holds a model already: unchanged if it is this one" in capsys.readouterr().out


def test_verify_compares_with_the_source_and_with_torch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("2 + 2 =\n\n17 - 9 =\n")
    arguments = ("--source", ASSET, "--out", tmp_path / "model", "--verify")
    assert run(*arguments, "--prompts", prompts) == 0
    printed = capsys.readouterr().out
    assert "wrote" in printed
    assert "verified\n  tensors      68 equal to the source's in float32, bit for bit\n" in printed
    assert "of 2 prompts, float32" in printed
    assert "100.00% agree" in printed
    error = float(printed.partition("max error")[2].split()[0])
    assert 0 < error < 1e-4
    assert run(*arguments) == 0  # on a model that is already there, with prompts of its own
    printed = capsys.readouterr().out
    assert "already there" in printed
    assert f"of {len(verification.PROMPTS)} prompts" in printed


def test_verify_without_torch_compares_tensors(
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        verification, "find_spec", lambda name: None if name == "torch" else find(name)
    )
    assert run("--source", source, "--out", tmp_path / "model", "--verify") == 0
    printed = capsys.readouterr().out
    assert "tensors      36 equal to the source's in bfloat16, bit for bit" in printed
    assert "not compared: torch is not installed" in printed


def test_verify_finds_a_single_bit(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "model"
    assert run("--source", source, "--out", out) == 0
    (file,) = (out / "params" / "blocks.mlp.up_proj").glob("c.*")
    content = bytearray(file.read_bytes())
    block = 12 * 20 * 2
    content[block + 7] ^= 1  # in the second block
    file.write_bytes(content)
    capsys.readouterr()
    assert run("--source", source, "--out", out, "--verify") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == (
        f"error: {out} is damaged: model.layers.0.mlp.up_proj.weight cannot be read "
        f"(a checksum in {file} does not match); convert again with --overwrite"
    )


def test_prompts_that_cannot_be_used(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--source", source, "--out", tmp_path / "model")
    (tmp_path / "empty").write_text("\n \n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    for options, message in [
        (("--prompts", tmp_path / "empty"), "--prompts is for --verify"),
        (("--verify", "--prompts", tmp_path / "nowhere"), "cannot read prompts from"),
        (("--verify", "--prompts", tmp_path / "binary"), "cannot read prompts from"),
        (("--verify", "--prompts", tmp_path / "empty"), "holds no prompt"),
    ]:
        assert run(*arguments, *options) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("config", [CONFIG, TIED], ids=["untied", "tied"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_way_back_gives_every_bit(
    tmp_path: Path, config, dtype: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = random_tensors(config, dtype)
    source = write_source(tmp_path / "hf", config, tensors, shards=3)
    assert run("--source", source, "--out", tmp_path / "model") == 0
    capsys.readouterr()
    assert run("--to-hf", tmp_path / "model", "--out", tmp_path / "back") == 0
    assert f"wrote {tmp_path / 'back'}\n" in capsys.readouterr().out
    back = Checkpoint(tmp_path / "back")
    for name in back.tensors:
        assert back.read(name).tobytes() == tensors[name].tobytes()
    for name, content in COMPANIONS.items():
        assert (tmp_path / "back" / name).read_text() == content
    assert run("--source", tmp_path / "back", "--out", tmp_path / "again") == 0
    there = read_manifest(tmp_path / "model")["fingerprint"]
    assert read_manifest(tmp_path / "again")["fingerprint"] == there


def test_the_way_back_has_no_other_options(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--source", source, "--out", tmp_path / "model") == 0
    for option in (["--dtype", "float32"], ["--overwrite"], ["--dry-run"], ["--revision", "main"]):
        assert run("--to-hf", tmp_path / "model", "--out", tmp_path / "back", *option) == 2
        assert f"{option[0]} does not apply with --to-hf" in capsys.readouterr().err
    assert run("--to-hf", tmp_path / "model", "--source", source, "--out", tmp_path / "back") == 2
    assert "not allowed with argument" in capsys.readouterr().err
    assert not (tmp_path / "back").exists()
    assert run("--to-hf", tmp_path / "nowhere", "--out", tmp_path / "back") == 2
    assert "there is no model directory" in capsys.readouterr().err


def test_a_model_directory_stands_alone(source: Path, tmp_path: Path) -> None:
    assert run("--source", source, "--out", tmp_path / "model") == 0
    shutil.rmtree(source)
    shutil.move(tmp_path / "model", tmp_path / "elsewhere")
    text = [file for file in (tmp_path / "elsewhere").rglob("*") if not file.name.startswith("c.")]
    for file in text:
        if file.is_file() and file.name != "manifest.json":  # which says what the source was
            assert str(tmp_path) not in file.read_text()
    params, _ = load_model(tmp_path / "elsewhere")
    expected = random_tensors(CONFIG, "bfloat16")["model.norm.weight"]
    np.testing.assert_array_equal(params["final_norm"], expected)


def test_the_benchmark_measures_both_sides(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "like").mkdir()
    (tmp_path / "like" / "config.json").write_text(json.dumps(config_to_hf(CONFIG)))
    out = tmp_path / "results.json"
    arguments = ["--like", tmp_path / "like", "--layers", 2, "--work", tmp_path / "work"]
    arguments += ["--repeats", 1, "--out", out]
    assert bench_convert.main([str(argument) for argument in arguments]) == 0
    assert list((tmp_path / "work").iterdir()) == []
    results = json.loads(out.read_text())
    largest = 2 * 12 * (4 * 6) * 2  # the queries' projection in two blocks
    assert results["source"]["layers"] == 2
    assert results["memory"]["largest_array_bytes"] == largest
    assert results["memory"]["bound_bytes"] == 1.5 * largest + 2**30
    (peak,) = results["memory"]["peak_anonymous_bytes"]
    assert 2**25 < peak < 2**30  # an interpreter with JAX in it, and next to no weights
    assert results["memory"]["met"]
    (copied,), (converted,) = results["copy_seconds"], results["conversion_seconds"]
    assert results["ratio"]["each"] == [converted / copied]
    assert results["ratio"]["met"] == (converted <= 4 * copied)
    assert str(tmp_path) not in out.read_text()
    assert "peak RssAnon" in capsys.readouterr().out
    assert bench_convert.main(["--source", str(tmp_path / "none"), "--out", str(out)]) == 2
    assert "error: " in capsys.readouterr().err
