"""A model directory back as a Hugging Face folder: every bit, every file, or nothing."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors import SafetensorError

from converters.hf_config import config_to_hf
from converters.safetensors import Checkpoint
from jroute.checkpoint import export as exporting
from jroute.checkpoint.conversion import convert
from jroute.checkpoint.export import StoredTensors, export, plan_shards
from jroute.utils.errors import UserError
from tests.converters.tiny import COMPANIONS, CONFIG, CONFIGS, TIED, random_tensors, write_source

FILES = {"config.json", *COMPANIONS}


def contents(folder: Path) -> dict[str, str]:
    """SHA-256 of every file but the weights."""
    files = [file for file in folder.iterdir() if file.suffix != ".safetensors"]
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def tensors_of(folder: Path) -> dict[str, np.ndarray]:
    checkpoint = Checkpoint(folder)
    return {name: checkpoint.read(name) for name in checkpoint.tensors}


def assert_same_bits(tensors: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> None:
    assert tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (tensors[name].dtype, tensors[name].shape) == (tensor.dtype, tensor.shape), name
        assert tensors[name].tobytes() == tensor.tobytes(), name


def special_values(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """With values that arithmetic, or a comparison of values, would lose."""
    flat = tensors["model.layers.1.self_attn.o_proj.weight"].reshape(-1)
    bits = flat.view(f"u{flat.dtype.itemsize}")
    flat[:4] = [np.nan, -0.0, np.inf, np.finfo(np.float32).tiny]
    bits[4] = bits[0] + 1  # another NaN
    bits[5] = 1  # the smallest subnormal
    return tensors


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", list(CONFIGS))
def test_the_way_there_and_back_keeps_every_bit(tmp_path: Path, name: str, dtype: str) -> None:
    tensors = special_values(random_tensors(CONFIGS[name], dtype))
    source = write_source(tmp_path / "hf", CONFIGS[name], tensors, shards=2)
    convert(str(source), tmp_path / "model")
    seen: list[tuple[int, int]] = []
    files, _ = export(tmp_path / "model", tmp_path / "back", lambda *args: seen.append(args))
    assert {file.name for file in files} == FILES | {"model.safetensors"}
    assert set(files) == set((tmp_path / "back").iterdir())
    assert_same_bits(tensors_of(tmp_path / "back"), tensors)
    index = "model.safetensors.index.json"
    expected = contents(source)
    assert contents(tmp_path / "back") == {k: v for k, v in expected.items() if k != index}
    total = sum(tensor.nbytes for tensor in tensors.values())
    assert seen[-1] == (total, total) and seen == sorted(seen)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "hf", "model"]


def test_large_weights_are_sharded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = random_tensors(CONFIG)
    source = write_source(tmp_path / "hf", CONFIG, tensors)
    convert(str(source), tmp_path / "model")
    limit = 3000
    write = exporting.write
    most = 0

    def counted(file: Path, tensors: Mapping[str, np.ndarray]) -> None:
        nonlocal most
        most = max(most, sum(tensor.nbytes for tensor in tensors.values()))
        write(file, tensors)

    monkeypatch.setattr(exporting, "write", counted)
    monkeypatch.setattr(exporting, "SHARD_BYTES", limit)
    files, _ = export(tmp_path / "model", tmp_path / "back")
    shards = [file for file in files if file.suffix == ".safetensors"]
    assert len(shards) > 5 and most <= limit
    names = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    assert [file.name for file in shards] == names
    index = json.loads((tmp_path / "back" / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": sum(tensor.nbytes for tensor in tensors.values())}
    assert index["weight_map"].keys() == tensors.keys()
    assert index["weight_map"]["model.embed_tokens.weight"] == names[0]
    assert index["weight_map"]["lm_head.weight"] == names[-1]
    assert_same_bits(tensors_of(tmp_path / "back"), tensors)


def test_shards_are_filled_in_order() -> None:
    sizes = {"a": 5, "b": 6, "c": 20, "d": 1, "e": 9, "f": 1}
    assert plan_shards(sizes, 10) == [["a"], ["b"], ["c"], ["d", "e"], ["f"]]
    assert plan_shards(sizes, 100) == [list(sizes)]


def test_tensors_lie_block_after_block(tmp_path: Path) -> None:
    source = write_source(tmp_path / "hf", CONFIG, random_tensors(CONFIG))
    convert(str(source), tmp_path / "model")
    names = list(StoredTensors(tmp_path / "model").shapes)
    indices = [re.findall(r"\d+", name) for name in names]
    blocks = [int(numbers[0]) for numbers in indices if numbers]
    assert blocks == sorted(blocks) and set(blocks) == {0, 1, 2}
    assert (names[0], *names[-2:]) == (
        "model.embed_tokens.weight",
        "model.norm.weight",
        "lm_head.weight",
    )


@pytest.mark.parametrize("key", ["torch_dtype", "dtype"])
def test_the_config_names_the_type_of_the_weights(tmp_path: Path, key: str) -> None:
    source = write_source(tmp_path / "hf", TIED, random_tensors(TIED))
    content = {**config_to_hf(TIED), key: "float32", "of_the_release": ["é", 1e-6]}
    (source / "config.json").write_text(json.dumps(content))
    convert(str(source), tmp_path / "model", dtype="bfloat16")
    export(tmp_path / "model", tmp_path / "back")
    exported = json.loads((tmp_path / "back" / "config.json").read_text())
    assert exported == {**content, key: "bfloat16"}
    assert list(exported) == list(content)


@pytest.mark.parametrize("name", list(CONFIGS))
def test_transformers_loads_it_with_the_same_logits(tmp_path: Path, name: str) -> None:
    source = write_source(tmp_path / "hf", CONFIGS[name], random_tensors(CONFIGS[name]))
    (source / "generation_config.json").unlink()
    convert(str(source), tmp_path / "model")
    export(tmp_path / "model", tmp_path / "back")
    tokens = torch.arange(20).reshape(2, 10)
    logits = []
    for folder in (source, tmp_path / "back"):
        family = getattr(transformers, CONFIGS[name].architecture.transformers_class)
        model, report = family.from_pretrained(folder, dtype="auto", output_loading_info=True)
        assert not report["missing_keys"] and not report["unexpected_keys"]
        with torch.no_grad():
            logits.append(model.eval()(tokens).logits)
    assert logits[0].dtype == torch.float32
    assert torch.equal(*logits)


# What can go wrong --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    source = write_source(folder / "hf", CONFIG, random_tensors(CONFIG))
    convert(str(source), folder / "model")
    return folder / "model"


def test_a_taken_place_is_refused(tmp_path: Path, model: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="exists and is not an empty folder"):
        export(model, tmp_path)
    with pytest.raises(UserError, match="exists and is not an empty folder"):
        export(model, tmp_path / "notes.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    (tmp_path / "empty").mkdir()
    assert export(model, tmp_path / "empty")


def test_no_model_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no model directory"):
        export(tmp_path / "model", tmp_path / "out")


@pytest.mark.parametrize(
    ("error", "raised", "message"),
    [
        (OSError(28, "No space left on device"), UserError, r"cannot write .*No space left"),
        (SafetensorError("I/O error: disk quota"), UserError, r"cannot write .*disk quota"),
        (KeyboardInterrupt(), KeyboardInterrupt, None),
    ],
)
def test_nothing_stays_behind(
    tmp_path: Path,
    model: Path,
    error: BaseException,
    raised: type[BaseException],
    message: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(file: Path, tensors: Any) -> None:
        file.write_bytes(b"half")
        raise error

    monkeypatch.setattr(exporting, "write", fail)
    with pytest.raises(raised, match=message):
        export(model, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_damage_is_found(tmp_path: Path) -> None:
    """A stored value that changed since the conversion, in a file of the right size."""
    source = write_source(tmp_path / "hf", CONFIG, random_tensors(CONFIG))
    convert(str(source), tmp_path / "model")
    files = [file for file in (tmp_path / "model" / "params").rglob("*") if file.is_file()]
    largest = max(files, key=lambda file: file.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    with pytest.raises(UserError, match=r"is damaged: .*; convert again with --overwrite"):
        export(tmp_path / "model", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_lost_companion_is_told(tmp_path: Path) -> None:
    source = write_source(tmp_path / "hf", CONFIG, random_tensors(CONFIG))
    convert(str(source), tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"damaged: tokenizer\.json is missing"):
        export(tmp_path / "model", tmp_path / "out")
    assert not (tmp_path / "out").exists()
