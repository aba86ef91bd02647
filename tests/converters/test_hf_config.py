"""``config.json`` of every family: what is read is what transformers' own classes read."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import transformers

from converters.hf_config import config_from_hf, config_to_hf, read_config
from jroute.model.config import DecoderConfig, Llama3Rope
from jroute.model.families import FAMILIES
from jroute.utils.errors import UserError
from jroute.utils.keys import stored
from tests.converters.tiny import CONFIGS

LLAMA3 = Llama3Rope(
    factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64
)
SCALED = dataclasses.replace(CONFIGS["llama, tied"], rope_scaling=LLAMA3)
EVERY = {**CONFIGS, "llama, llama3": SCALED}


def of_transformers(config: DecoderConfig) -> Any:
    """Transformers' own class of configurations."""
    model = getattr(transformers, FAMILIES[config.family].transformers_class)
    return model.config_class


@pytest.mark.parametrize("config", EVERY.values(), ids=EVERY)
def test_what_we_write_transformers_reads_and_the_other_way_round(
    config: DecoderConfig, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config_to_hf(config)))
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    assert type(theirs) is of_transformers(config)
    assert theirs.architectures == [FAMILIES[config.family].transformers_class]
    for name in ("hidden_size", "num_key_value_heads", "head_dim", "tie_word_embeddings"):
        assert getattr(theirs, name) == getattr(config, name)
    theirs.save_pretrained(tmp_path / "saved")
    content = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert "rope_theta" not in content  # transformers 5 writes it under ``rope_parameters``
    assert read_config(tmp_path / "saved" / "config.json") == config
    assert config_from_hf(config_to_hf(config)) == config


@pytest.mark.parametrize("config", EVERY.values(), ids=EVERY)
def test_stored_and_restored(config: DecoderConfig) -> None:
    content = stored(config)
    assert DecoderConfig.restore(json.loads(json.dumps(content))) == config
    assert ("family" in content) == (config.family != "qwen3")  # fingerprints of old models stay
    assert ("rope_scaling" in content) == (config.rope_scaling is not None)


@pytest.mark.parametrize("family", FAMILIES)
def test_head_dim_is_what_the_family_s_own_code_makes_of_its_absence(family: str) -> None:
    config = dataclasses.replace(CONFIGS[f"{family}, untied"], hidden_size=32)
    content = config_to_hf(config)
    del content["head_dim"]
    theirs = of_transformers(config).from_dict(content)
    quotient = config.hidden_size // config.num_attention_heads
    assert config_from_hf(content).head_dim == getattr(theirs, "head_dim", quotient)
    assert config_from_hf(content).head_dim == {"qwen3": 128}.get(family, quotient)


def test_a_llama_may_leave_out_or_null_what_follows_from_the_rest() -> None:
    content = config_to_hf(CONFIGS["llama, untied"]) | {"hidden_size": 32}
    for missing in ({}, {"head_dim": None, "num_key_value_heads": None}):
        given = {k: v for k, v in content.items() if k not in ("head_dim", "num_key_value_heads")}
        given |= missing
        del given["rope_theta"]
        config, theirs = config_from_hf(given), transformers.LlamaConfig.from_dict(given)
        assert (config.head_dim, config.num_key_value_heads) == (8, 4)
        assert config.head_dim == theirs.head_dim
        assert config.num_key_value_heads == theirs.num_key_value_heads
        assert config.rope_theta == theirs.rope_parameters["rope_theta"] == 10_000.0
    with pytest.raises(UserError, match="head_dim"):  # an odd one cannot be rotated
        config_from_hf(given | {"hidden_size": 36})
    for family in ("qwen2", "qwen3"):  # releases of Qwen differ in the base of the rotation
        content = config_to_hf(CONFIGS[f"{family}, untied"])
        del content["rope_theta"]
        with pytest.raises(UserError, match="has no rope_theta"):
            config_from_hf(content)


def test_the_original_context_of_llama3_defaults_as_in_transformers() -> None:
    content = config_to_hf(SCALED)
    del content["rope_scaling"]["original_max_position_embeddings"]
    scaling = config_from_hf(content).rope_scaling
    theirs = transformers.LlamaConfig.from_dict(json.loads(json.dumps(content)))
    assert scaling is not None
    original = theirs.rope_parameters["original_max_position_embeddings"]
    assert scaling.original_max_position_embeddings == original == 128


PLAIN, YARN = {"rope_type": "default"}, {"rope_type": "yarn", "factor": 4.0}
LLAMA3_KEYS = {"rope_type": "llama3", **stored(LLAMA3)}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("parameters", "scaling"),
    [
        ({**PLAIN, "rope_theta": 5e6}, YARN),
        ({**PLAIN, "rope_theta": 5e6}, {"type": "linear", "factor": 2.0}),
        ({**PLAIN, "rope_theta": 5e6}, LLAMA3_KEYS),
        ({**LLAMA3_KEYS, "rope_theta": 5e6}, LLAMA3_KEYS),
        ({"rope_theta": 5e6}, {**PLAIN, "rope_theta": 1e6}),
        ({**PLAIN, "rope_theta": 5e5}, PLAIN),  # whose base is that beside it
        ({**LLAMA3_KEYS, "rope_theta": 5e6}, PLAIN),
        ({**PLAIN, "rope_theta": 5e5}, {"factor": 4.0}),
        ({**PLAIN, "rope_theta": 1e6}, {**PLAIN, "rope_theta": 1e6, "partial_rotary_factor": 0.5}),
    ],
    ids=[
        *("yarn", "linear", "llama3", "llama3 twice", "two bases"),
        *("the base beside it", "plain beside llama3", "no type", "partial"),
    ],
)
def test_two_descriptions_of_the_rotation_are_refused(
    family: str, parameters: dict, scaling: dict
) -> None:
    content = config_to_hf(CONFIGS[f"{family}, tied"])
    content |= {"rope_parameters": parameters, "rope_scaling": scaling}
    with pytest.raises(UserError, match=r"both rope_parameters \(.*\) and rope_scaling"):
        config_from_hf(content)


@pytest.mark.parametrize("trivial", [None, {}, {**PLAIN, "rope_theta": 1e6}], ids=str)
def test_a_trivial_scaling_beside_the_parameters_is_read(trivial: dict | None) -> None:
    """As transformers reads it."""
    config = CONFIGS["qwen3, tied"]
    content = config_to_hf(config)
    content |= {"rope_parameters": {**PLAIN, "rope_theta": 1e6}, "rope_scaling": trivial}
    assert config_from_hf(content) == dataclasses.replace(config, rope_theta=1e6)
    theirs = transformers.Qwen3Config.from_dict(content).rope_parameters
    assert theirs is not None and theirs["rope_theta"] == 1e6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"factor": None}, r"rope_scaling: factor must be a valid number"),
        ({"factor": 0.5}, "factor"),
        ({"low_freq_factor": 4.0}, r"low_freq_factor \(4.0\) must be below high_freq_factor"),
        ({"high_freq_factor": "4"}, "high_freq_factor"),
        ({"original_max_position_embeddings": 8192.5}, "original_max_position_embeddings"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is not implemented"),
    ],
    ids=str,
)
def test_constants_of_llama3_that_no_model_has(change: dict, message: str) -> None:
    content = config_to_hf(SCALED)
    content["rope_scaling"] |= change
    with pytest.raises(UserError, match=message) as raised:
        config_from_hf(content)
    assert str(raised.value).startswith("config.json") and len(str(raised.value)) < 300


@pytest.mark.parametrize(
    ("family", "switch"),
    [(name, switch) for name, family in FAMILIES.items() for switch in family.unsupported],
)
def test_what_a_family_can_switch_on_and_we_lack_is_refused(family: str, switch: str) -> None:
    content = config_to_hf(CONFIGS[f"{family}, tied"]) | {switch: True}
    with pytest.raises(UserError, match=f"{switch} is not implemented"):
        config_from_hf(content)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"is_causal": False}, "is_causal"),
        ({"rope_scaling": {"factor": 4.0}}, "scaled by 4.0 without a type"),
        ({"layer_types": ["full_attention", "chunked_attention"]}, "type 'chunked_attention'"),
        (
            {"rope_parameters": {"full_attention": {**PLAIN, "rope_theta": 1e6}}},
            r"rope_parameters differs between kinds of layers \(full_attention\)",
        ),
    ],
    ids=["is_causal", "no type", "layer_types", "rotation of a kind of layers"],
)
def test_what_no_family_of_ours_does_is_refused(family: str, change: dict, message: str) -> None:
    content = config_to_hf(CONFIGS[f"{family}, tied"]) | change
    with pytest.raises(UserError, match=message):
        config_from_hf(content)


def test_null_means_what_it_means_to_transformers() -> None:
    for family in FAMILIES:
        content = config_to_hf(CONFIGS[f"{family}, tied"]) | {"num_key_value_heads": None}
        theirs = of_transformers(CONFIGS[f"{family}, tied"]).from_dict(content)
        assert config_from_hf(content).num_key_value_heads == theirs.num_key_value_heads == 4
    content = config_to_hf(CONFIGS["qwen3, tied"])
    del content["num_key_value_heads"]
    with pytest.raises(UserError, match="num_key_value_heads"):  # 32 to transformers
        config_from_hf(content)
    content = config_to_hf(CONFIGS["llama, tied"])
    for key in ("rms_norm_eps", "max_position_embeddings"):
        del content[key]
        theirs = transformers.LlamaConfig.from_dict(content)
        assert getattr(config_from_hf(content), key) == getattr(theirs, key)


@pytest.mark.parametrize("kind", ["mistral", "gemma2", "phi3", "qwen2_moe", None, 3, ["llama"]])
def test_another_architecture_is_refused_with_the_families_that_we_have(kind: Any) -> None:
    content = config_to_hf(CONFIGS["llama, tied"]) | {"model_type": kind}
    with pytest.raises(UserError, match=r"model_type is .* qwen3, qwen2, llama only"):
        config_from_hf(content)
