"""Configurations of models: read exactly, and refused where no model can have them."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converters.hf_config import config_from_hf, config_to_hf, read_config
from converters.safetensors import INDEX, Checkpoint
from jroute.generate.stopping import GenerationConfig
from jroute.utils.errors import UserError
from jroute.utils.json_files import read_json
from tests.converters.tiny import CONFIG, random_tensors, write_source

SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
)
IMPOSSIBLE: dict[str, list[Any]] = {
    **{size: [0, -1, 96.7, "8", True, None, 10**12, 10**40] for size in SIZES},
    "rope_theta": [0, -1, 0.5, float("inf"), float("nan"), "1e6", None, 1e300],
    "rms_norm_eps": [0, -1e-6, float("inf"), float("nan"), "1e-6", 1e-300],
    "tie_word_embeddings": ["false", 0, None, []],
}
ONLY_IN_FILES: dict[str, list[Any]] = {
    "rope_scaling": ["yarn", 7, [1], {"rope_type": 3}, {"rope_theta": -1}, {"rope_theta": "x"}],
    "rope_parameters": ["default", {"rope_theta": float("nan")}],
    "layer_types": ["full_attention", [1]],
    "use_sliding_window": ["false", 0],
    "attention_bias": ["no"],
    "hidden_act": [None, 1],
    "model_type": [None, 3, ["qwen3"], "x" * 10_000],
}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (key, value)
        for key, values in {**IMPOSSIBLE, **ONLY_IN_FILES}.items()
        for value in values
        if (key, value) != ("num_key_value_heads", None)  # as many as there are heads
    ],
)
def test_impossible_values_are_one_sentence(tmp_path: Path, key: str, value: Any) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config_to_hf(CONFIG) | {key: value}))
    with pytest.raises(UserError) as raised:
        read_config(file)
    message = str(raised.value)
    assert message.startswith(str(file)) and len(message) < 400 + len(str(file))
    assert key.removesuffix("_parameters").removesuffix("_scaling") in message
    if key in IMPOSSIBLE and type(value) is type(getattr(CONFIG, key)):
        with pytest.raises(UserError, match=f"the model's configuration: {key}"):
            dataclasses.replace(CONFIG, **{key: value})


def test_whole_numbers_and_missing_keys_are_read_as_transformers_does() -> None:
    content = config_to_hf(CONFIG) | {"rope_theta": 5_000_000, "rope_parameters": {}}
    del content["head_dim"], content["tie_word_embeddings"]
    config = config_from_hf(content)
    assert (config.rope_theta, type(config.rope_theta)) == (5e6, float)
    assert (config.head_dim, config.tie_word_embeddings) == (128, False)
    moved = content | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}
    assert config_from_hf(moved).rope_theta == 1e6
    with pytest.raises(UserError, match="'yarn' is not implemented"):
        config_from_hf(content | {"rope_scaling": {"type": "yarn"}})


@pytest.mark.parametrize("ends", [[], "2", 2.5, -1, True, [1, "2"], {}, [[1]], 10**30])
def test_end_tokens_are_token_ids(tmp_path: Path, ends: Any) -> None:
    file = tmp_path / "generation_config.json"
    file.write_text(json.dumps({"eos_token_id": ends}))
    with pytest.raises(UserError, match=r"generation_config\.json: eos_token_id.*; mend it"):
        read_json(file, GenerationConfig, "mend it")


def corrupt(header: bytes, values: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + values


NESTED = b"[" * 100_000
WEIGHTS = [
    b"",
    b"12345678",
    corrupt(b"{"),
    corrupt(NESTED),
    corrupt(b"[]"),
    corrupt(b'{"a": 3}'),
    corrupt(b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}', b"1234"),
    corrupt(b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 99]}}', b"1234"),
    corrupt(b'{"a": {"dtype": 7, "shape": [1], "data_offsets": [0, 4]}}', b"1234"),
    corrupt(b'{"a": {"dtype": "F32", "shape": [9999999999, 9999999999], "data_offsets": [0, 4]}}'),
    corrupt(b"\xff\xfe{}"),
    b"\xff" * 8 + b"{}",
]


@pytest.mark.parametrize("content", WEIGHTS, ids=range(len(WEIGHTS)))
def test_headers_of_weights(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=r"model\.safetensors .*download it again"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize(
    "shard", ["", ".", "..", "../x", "a/b", "/etc/passwd", "a\0", "x" * 256, "x" * 255, 3, None, []]
)
def test_names_of_shards(tmp_path: Path, shard: Any) -> None:
    write_source(tmp_path, CONFIG, random_tensors(CONFIG), shards=2)
    index = json.loads((tmp_path / INDEX).read_text())
    index["weight_map"]["model.norm.weight"] = shard
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(UserError, match="download it again"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["config.json", INDEX])
@pytest.mark.parametrize("content", [b"", b"\xff", NESTED, b'{"a":' * 100_000, b"[]", b"1", None])
def test_files_that_are_no_json_objects(tmp_path: Path, name: str, content: bytes | None) -> None:
    write_source(tmp_path, CONFIG, {"a": np.zeros(1)}, shards=2)
    (tmp_path / name).unlink(missing_ok=True)
    if content is None:
        (tmp_path / name).mkdir()
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as raised:
        _ = read_config(tmp_path / name) if name == "config.json" else Checkpoint(tmp_path)
    assert len(str(raised.value)) < 500
