"""The name and shape table, in both directions."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers

from converters import mapping
from converters.hf_config import config_from_hf, config_to_hf
from converters.safetensors import Checkpoint
from jroute.model.config import DecoderConfig
from jroute.model.params import abstract_params
from jroute.utils.errors import UserError
from tests.converters.tiny import CONFIG, CONFIGS, TIED, random_tensors, write_source


def opened(
    folder: Path, tensors: dict[str, np.ndarray], config: DecoderConfig = CONFIG
) -> Checkpoint:
    return Checkpoint(write_source(folder, config, tensors))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_there_and_back_is_exact(config: DecoderConfig, dtype: str) -> None:
    tensors = random_tensors(config, dtype)
    params = mapping.from_hf(tensors, config)
    back = mapping.to_hf(params, config)
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype
        assert back[name].shape == tensor.shape
        assert back[name].tobytes() == tensor.tobytes(), name


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_tree_is_the_model_s(config: DecoderConfig) -> None:
    params = mapping.from_hf(random_tensors(config), config)
    shapes = jax.tree.map(lambda leaf: leaf.shape, params)
    assert shapes == jax.tree.map(lambda leaf: leaf.shape, abstract_params(config))


def test_where_single_numbers_go() -> None:
    """Spelled out by hand, so that a table wrong in both directions is seen."""
    tensors = random_tensors(CONFIG)
    attention = mapping.from_hf(tensors, CONFIG)["blocks"]["attention"]
    layer, embed, head, dim = 2, 7, 1, 4
    row = head * CONFIG.head_dim + dim
    prefix = f"model.layers.{layer}.self_attn."
    for name in ("q_proj", "k_proj", "v_proj"):
        expected = tensors[f"{prefix}{name}.weight"][row, embed]
        assert attention[name][layer, embed, head, dim] == expected
    expected = tensors[f"{prefix}o_proj.weight"][embed, row]
    assert attention["o_proj"][layer, head, dim, embed] == expected


def test_where_single_biases_go() -> None:
    config = CONFIGS["qwen2, tied"]
    tensors = random_tensors(config)
    attention = mapping.from_hf(tensors, config)["blocks"]["attention"]
    layer, head, dim = 2, 1, 4
    for name in ("q", "k", "v"):
        bias = tensors[f"model.layers.{layer}.self_attn.{name}_proj.bias"]
        assert attention[f"{name}_bias"][layer, head, dim] == bias[head * config.head_dim + dim]


def test_a_model_of_jroute_s_own_is_exported_as_transformers_reads_it(tmp_path: Path) -> None:
    tensors = random_tensors(CONFIG, "bfloat16")
    params = jax.tree.map(jnp.asarray, mapping.from_hf(tensors, CONFIG))
    mapping.write_hf(tmp_path, params, CONFIG, extra={"eos_token_id": 3})
    assert {file.name for file in tmp_path.iterdir()} == {"model.safetensors", "config.json"}
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == "bfloat16"
    read = transformers.AutoConfig.from_pretrained(tmp_path)
    assert isinstance(read, transformers.Qwen3Config)
    assert read.to_dict()["rope_parameters"]["rope_theta"] == CONFIG.rope_theta
    assert (read.head_dim, read.rms_norm_eps, read.eos_token_id) == (6, 1e-5, 3)
    assert config_from_hf(json.loads((tmp_path / "config.json").read_text())) == CONFIG
    checkpoint = Checkpoint(tmp_path)
    mapping.check(checkpoint, CONFIG)
    assert checkpoint.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert checkpoint.read(name).tobytes() == tensor.tobytes()


def test_transformers_own_config_is_read(tmp_path: Path) -> None:
    """Transformers 5 writes the base of the rotation under ``rope_parameters``."""
    sizes = {
        name: value for name, value in dataclasses.asdict(CONFIG).items() if name != "rope_theta"
    }
    rope = {"rope_type": "default", "rope_theta": 5e6}
    transformers.Qwen3Config(**sizes, rope_parameters=rope).save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    assert "rope_theta" not in content
    assert config_from_hf(content) == CONFIG


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mistral"}, "model_type is 'mistral'"),
        ({"model_type": "qwen3_moe"}, "model_type is 'qwen3_moe'"),
        ({"model_type": None}, "model_type"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "type 'sliding_attention'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "yarn"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "linear"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6}}, "yarn"),
        ({"rope_parameters": {"rope_theta": 1e6, "partial_rotary_factor": 0.5}}, "partial_rotary"),
        ({"partial_rotary_factor": 0.25}, "partial_rotary_factor"),
        ({"attention_bias": True}, "attention_bias"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"rope_theta": None}, "rope_theta"),
        ({"hidden_size": None}, "hidden_size"),
        ({"hidden_size": "wide"}, "hidden_size must be a valid integer, not 'wide'"),
    ],
    ids=str,
)
def test_unsupported_configs_are_refused(change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        config_from_hf({**config_to_hf(CONFIG), **change})


def test_missing_tensor(tmp_path: Path) -> None:
    tensors = random_tensors(CONFIG)
    del tensors["model.layers.1.self_attn.q_norm.weight"]
    with pytest.raises(UserError, match=r"layers\.1\.self_attn\.q_norm\.weight is missing"):
        mapping.check(opened(tmp_path, tensors), CONFIG)


def test_extra_tensor(tmp_path: Path) -> None:
    tensors = random_tensors(CONFIG)
    tensors["model.layers.0.self_attn.q_proj.bias"] = np.zeros(24, np.float32)
    with pytest.raises(UserError, match=r"q_proj\.bias is in no qwen3 model"):
        mapping.check(opened(tmp_path, tensors), CONFIG)


def test_more_layers_than_the_config_says(tmp_path: Path) -> None:
    deeper = dataclasses.replace(CONFIG, num_hidden_layers=4)
    with pytest.raises(UserError, match=r"model\.layers\.3\..* and 10 more"):
        mapping.check(opened(tmp_path, random_tensors(deeper)), CONFIG)


def test_wrong_shape(tmp_path: Path) -> None:
    tensors = random_tensors(CONFIG)
    tensors["model.layers.0.mlp.down_proj.weight"] = np.zeros((20, 12), np.float32)
    with pytest.raises(UserError, match=r"down_proj\.weight has shape \[20, 12\], .*\[12, 20\]"):
        mapping.check(opened(tmp_path, tensors), CONFIG)


def test_wrong_dtype(tmp_path: Path) -> None:
    tensors = random_tensors(CONFIG)
    tensors["model.norm.weight"] = np.ones(12, np.int8)
    with pytest.raises(UserError, match="stored as I8"):
        mapping.check(opened(tmp_path, tensors), CONFIG)


def test_mixed_and_half_types_ask_for_one(tmp_path: Path) -> None:
    tensors = random_tensors(CONFIG, "bfloat16")
    assert mapping.stored_dtype(opened(tmp_path / "one", tensors), CONFIG) == jnp.bfloat16
    tensors["model.norm.weight"] = np.ones(12, np.float32)
    with pytest.raises(UserError, match=r"BF16 and F32.*--dtype"):
        mapping.stored_dtype(opened(tmp_path / "mixed", tensors), CONFIG)
    with pytest.raises(UserError, match="stored as F16"):
        half = random_tensors(CONFIG, "float16")
        mapping.stored_dtype(opened(tmp_path / "half", half), CONFIG)


def test_a_head_beside_tied_embeddings_is_allowed_and_not_read(tmp_path: Path) -> None:
    tensors = random_tensors(CONFIG)
    checkpoint = opened(tmp_path / "tied", tensors, TIED)
    mapping.check(checkpoint, TIED)
    assert "lm_head" not in mapping.from_hf(tensors, TIED)
    quantised = tensors | {"lm_head.weight": tensors["lm_head.weight"].astype(np.int8)}
    with pytest.raises(UserError, match=r"lm_head\.weight is stored as I8"):
        mapping.check(opened(tmp_path / "quantised", quantised, TIED), TIED)
    del tensors["lm_head.weight"]
    with pytest.raises(UserError, match=r"lm_head\.weight is missing"):
        mapping.check(opened(tmp_path / "untied", tensors), CONFIG)
