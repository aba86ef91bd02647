"""Reading a checkpoint folder, and what is said when something is wrong with it."""

import json
from pathlib import Path

import huggingface_hub
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from converters.hub import fetch
from converters.safetensors import INDEX, Checkpoint, write
from jroute.utils.errors import UserError
from jroute.utils.files import atomic_write
from tests.converters.tiny import CONFIG, random_tensors, write_source


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_reads_every_tensor_exactly(tmp_path: Path, shards: int, dtype: str) -> None:
    tensors = random_tensors(CONFIG, dtype)
    checkpoint = Checkpoint(write_source(tmp_path, CONFIG, tensors, shards))
    assert checkpoint.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        header = checkpoint.tensors[name]
        assert header.shape == tensor.shape
        assert header.nbytes == tensor.nbytes
        read = checkpoint.read(name)
        assert read.dtype == tensor.dtype
        assert read.tobytes() == tensor.tobytes()


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no folder .*nowhere"):
        Checkpoint(tmp_path / "nowhere")


def test_folder_without_weights(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds neither model\.safetensors nor"):
        Checkpoint(tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(UserError, match="does not unpickle"):
        Checkpoint(tmp_path)


def test_missing_shard(tmp_path: Path) -> None:
    write_source(tmp_path, CONFIG, random_tensors(CONFIG), shards=3)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(UserError, match=r"model-00002-of-00003\.safetensors is missing"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize("keep", [0, 5, 200, -1])
@pytest.mark.parametrize("shards", [1, 2])
def test_truncated_file(tmp_path: Path, keep: int, shards: int) -> None:
    write_source(tmp_path, CONFIG, random_tensors(CONFIG), shards)
    file = sorted(tmp_path.glob("*.safetensors"))[-1]
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(UserError, match=rf"{file.name} \(.* bytes\) is truncated or damaged"):
        Checkpoint(tmp_path)


def test_a_git_lfs_pointer_is_named_as_such(tmp_path: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    (tmp_path / "model.safetensors").write_text(pointer)
    with pytest.raises(UserError, match="Git LFS pointer"):
        Checkpoint(tmp_path)


def test_index_that_disagrees_with_its_shards(tmp_path: Path) -> None:
    write_source(tmp_path, CONFIG, random_tensors(CONFIG), shards=2)
    index = json.loads((tmp_path / INDEX).read_text())
    first, second = sorted(set(index["weight_map"].values()))
    index["weight_map"]["model.norm.weight"] = (
        first if index["weight_map"]["model.norm.weight"] == second else second
    )
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"holds model\.norm\.weight, but it does not"):
        Checkpoint(tmp_path)


def test_tensor_in_two_shards(tmp_path: Path) -> None:
    tensors = random_tensors(CONFIG)
    write_source(tmp_path, CONFIG, tensors, shards=2)
    save_file(tensors, tmp_path / "model-00002-of-00002.safetensors")
    with pytest.raises(UserError, match="stored twice"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize("weight_map", [None, {}, []])
def test_index_without_a_map(tmp_path: Path, weight_map: object) -> None:
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(UserError, match=r"weight_map must .*; download it again"):
        Checkpoint(tmp_path)


def test_index_may_not_point_outside_the_folder(tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    save_file({"a": np.zeros(1)}, tmp_path / "outside.safetensors")
    (inside / INDEX).write_text(json.dumps({"weight_map": {"a": "../outside.safetensors"}}))
    with pytest.raises(UserError, match=r"weight_map\.a must match pattern"):
        Checkpoint(inside)


def test_fetch_of_a_local_folder(tmp_path: Path) -> None:
    assert fetch(str(tmp_path)) == (tmp_path, None)
    with pytest.raises(UserError, match="has no revisions"):
        fetch(str(tmp_path), revision="main")
    for nowhere in ("./nowhere", str(tmp_path / "nowhere"), "a/b/c"):
        with pytest.raises(UserError, match="there is no folder"):
            fetch(nowhere)


def test_fetch_of_a_hub_id_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"no folder nobody/nothing, and the .* hub gave no such"):
        fetch("nobody/nothing")


def test_fetch_of_a_hub_id_asks_for_the_revision_and_for_no_pickles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = {}

    def snapshot_download(name: str, **options: object) -> str:
        request.update(options, name=name)
        return str(tmp_path / "snapshots" / "0123abcd")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    fetched = fetch("Qwen/Qwen3-4B", revision="main")
    assert fetched == (tmp_path / "snapshots" / "0123abcd", "0123abcd")
    assert request["name"] == "Qwen/Qwen3-4B"
    assert request["revision"] == "main"
    assert "*.safetensors" in request["allow_patterns"]
    assert not any(".bin" in pattern for pattern in request["allow_patterns"])


def test_write_keeps_values_of_views_and_leaves_nothing_when_it_fails(tmp_path: Path) -> None:
    view = np.arange(6, dtype=ml_dtypes.bfloat16).reshape(2, 3).T
    write(tmp_path / "model.safetensors", {"a": view})
    assert np.array_equal(load_file(tmp_path / "model.safetensors")["a"], view)
    before = (tmp_path / "model.safetensors").read_bytes()
    with (
        pytest.raises(RuntimeError),
        atomic_write(tmp_path / "model.safetensors") as partial,
    ):
        partial.write_bytes(b"half")
        raise RuntimeError
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]
    assert (tmp_path / "model.safetensors").read_bytes() == before
