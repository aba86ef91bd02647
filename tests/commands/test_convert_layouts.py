"""Checkpoints as they lie about: whatever the layout, the same weights become the same model."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import tokenizers
import transformers
from safetensors.numpy import load_file, save_file

from converters.hf_config import config_to_hf
from converters.safetensors import INDEX
from jroute import convert
from jroute.checkpoint import verification
from jroute.checkpoint.manifest import model_fingerprint
from jroute.checkpoint.verification import PROMPTS
from jroute.model.families import FAMILIES
from tests.converters.tiny import CONFIGS, random_tensors, write_source

NAMES = [name for name in CONFIGS if name.endswith("untied")]


def converted(source: Path, out: Path) -> str:
    assert convert.main(["--source", str(source), "--out", str(out)]) == 0
    return model_fingerprint(out)


def write_tokenizer(folder: Path, vocab: int) -> None:
    """A tokenizer of words that reads the prompts of ``--verify``."""
    words = dict.fromkeys(" ".join(PROMPTS).split())
    numbers = {word: i for i, word in enumerate(["?", *words][:vocab])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(numbers, unk_token="?"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)


def renamed(tensors: Mapping[str, np.ndarray], new: Callable[[str], str]) -> dict[str, np.ndarray]:
    return {new(name): tensor for name, tensor in tensors.items()}


WRAPPED: Mapping[str, Callable[[str], str]] = {
    "compiled": lambda name: f"_orig_mod.{name}",
    "DataParallel": lambda name: f"module.{name}",
    "both": lambda name: f"module._orig_mod.{name}",
    "a compiled block": lambda name: name.replace("layers.1.", "layers.1._orig_mod."),
    "FSDP": lambda name: name.replace(
        ".mlp.", "._fsdp_wrapped_module.mlp._checkpoint_wrapped_module."
    ),
}


@pytest.mark.parametrize("config", [CONFIGS[name] for name in NAMES], ids=NAMES)
@pytest.mark.parametrize("new", WRAPPED.values(), ids=WRAPPED)
def test_wrapped_names(config, new: Callable[[str], str], tmp_path: Path) -> None:
    tensors = random_tensors(config)
    plain = converted(write_source(tmp_path / "plain", config, tensors), tmp_path / "a")
    wrapped = renamed(tensors, new)
    assert wrapped.keys() != tensors.keys()
    source = write_source(tmp_path / "wrapped", config, wrapped, shards=2)
    assert converted(source, tmp_path / "b") == plain


@pytest.mark.parametrize("family", FAMILIES)
def test_without_the_prefix_of_the_decoder(family: str, tmp_path: Path) -> None:
    """As Qwen3-Embedding is stored: the decoder alone, its output layer tied."""
    config = CONFIGS[f"{family}, tied"]
    tensors = random_tensors(config)
    plain = converted(write_source(tmp_path / "plain", config, tensors), tmp_path / "a")
    bare = renamed(tensors, lambda name: name.removeprefix("model."))
    assert not any(name.startswith("model.") for name in bare)
    assert converted(write_source(tmp_path / "bare", config, bare), tmp_path / "b") == plain


def test_an_untied_decoder_without_an_output_layer_is_called_one(tmp_path: Path, capsys) -> None:
    config = CONFIGS["qwen3, untied"]
    tensors = random_tensors(config)
    del tensors["lm_head.weight"]
    source = write_source(tmp_path / "bare", config, tensors)
    assert convert.main(["--source", str(source), "--out", str(tmp_path / "out")]) == 2
    assert "an embedding model lacks" in capsys.readouterr().err


def test_stray_buffers_are_left_out(tmp_path: Path) -> None:
    config = CONFIGS["llama, untied"]
    tensors = random_tensors(config)
    plain = converted(write_source(tmp_path / "plain", config, tensors), tmp_path / "a")
    frequencies = np.ones(3, np.float32)
    strays = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": frequencies for i in range(3)}
    strays |= {"model.rotary_emb.inv_freq": frequencies, "rotary_emb.cos_cached": frequencies}
    source = write_source(tmp_path / "strays", config, {**tensors, **strays}, shards=2)
    assert converted(source, tmp_path / "b") == plain


def test_a_name_that_two_tensors_have_is_refused(tmp_path: Path, capsys) -> None:
    config = CONFIGS["llama, untied"]
    tensors = random_tensors(config)
    tensors["_orig_mod.model.norm.weight"] = tensors["model.norm.weight"] + 1
    source = write_source(tmp_path / "twice", config, tensors)
    assert convert.main(["--source", str(source), "--out", str(tmp_path / "out")]) == 2
    assert "model.norm.weight is stored twice" in capsys.readouterr().err


def test_shards_named_from_the_folder(tmp_path: Path) -> None:
    config = CONFIGS["qwen2, untied"]
    tensors = random_tensors(config)
    plain = converted(write_source(tmp_path / "plain", config, tensors), tmp_path / "a")
    source = write_source(tmp_path / "dots", config, tensors, shards=2)
    name_shards_from_the_folder(source)
    assert converted(source, tmp_path / "b") == plain


@pytest.mark.parametrize("shard", ["model-00001-of-00002.safetensors", "model-00003.safetensors"])
def test_an_index_that_lists_a_tied_output_layer(tmp_path: Path, shard: str, capsys) -> None:
    """It is not stored; the file that is named for it may be missing, too."""
    for tied in ("tied", "untied"):
        config = CONFIGS[f"llama, {tied}"]
        tensors = random_tensors(config)
        tensors.pop("lm_head.weight", None)
        source = write_source(tmp_path / tied, config, tensors, shards=2)
        index = json.loads((source / INDEX).read_text())
        index["weight_map"]["lm_head.weight"] = shard
        (source / INDEX).write_text(json.dumps(index))
        status = convert.main(["--source", str(source), "--out", str(tmp_path / f"{tied}-out")])
        assert status == (0 if tied == "tied" else 2)
    assert "lm_head.weight is missing" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_double_precision_is_read_and_cast(tmp_path: Path, dtype: str) -> None:
    config = CONFIGS["llama, tied"]
    doubles = {name: tensor.astype(np.float64) for name, tensor in random_tensors(config).items()}
    doubles = {name: tensor + 1e-12 for name, tensor in doubles.items()}
    source = write_source(tmp_path / "doubles", config, doubles)
    options = [] if dtype == "float32" else ["--dtype", dtype]
    out = tmp_path / "out"
    assert convert.main(["--source", str(source), "--out", str(out), *options]) == 0
    assert convert.main(["--to-hf", str(out), "--out", str(tmp_path / "hf")]) == 0
    back = load_file(tmp_path / "hf" / "model.safetensors")
    kind = np.float32 if dtype == "float32" else ml_dtypes.bfloat16
    for name, tensor in doubles.items():
        assert back[name].dtype == kind
        np.testing.assert_array_equal(back[name], tensor.astype(kind))


@pytest.mark.parametrize("whole", [False, True], ids=["adapter alone", "beside a model"])
def test_an_adapter_is_called_one(tmp_path: Path, whole: bool, capsys) -> None:
    folder = tmp_path / "adapter"
    if whole:
        config = CONFIGS["llama, tied"]
        write_source(folder, config, random_tensors(config))
    folder.mkdir(exist_ok=True)
    settings = {"peft_type": "LORA", "base_model_name_or_path": "HuggingFaceTB/SmolLM2-135M"}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    matrix = {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": np.ones((2, 2))}
    save_file(matrix, folder / "adapter_model.safetensors")
    assert convert.main(["--source", str(folder), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "adapter (LoRA) of HuggingFaceTB/SmolLM2-135M" in error and "merge it" in error
    assert not (tmp_path / "out").exists()


def untouched(source: Path) -> None:
    pass


def list_a_head(source: Path) -> None:
    index = json.loads((source / INDEX).read_text())
    index["weight_map"]["lm_head.weight"] = "model-00009.safetensors"
    (source / INDEX).write_text(json.dumps(index))


def name_shards_from_the_folder(source: Path) -> None:
    index = json.loads((source / INDEX).read_text())
    index["weight_map"] = {name: f"./{file}" for name, file in index["weight_map"].items()}
    (source / INDEX).write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("name", "new", "change"),
    [
        ("qwen3, untied", lambda name: name, untouched),
        ("qwen2, untied", lambda name: f"module._orig_mod.{name}", untouched),
        ("llama, untied", WRAPPED["FSDP"], untouched),
        ("qwen3, tied", lambda name: name.removeprefix("model."), untouched),
        ("qwen2, tied", lambda name: name, list_a_head),
        ("llama, tied", lambda name: name, name_shards_from_the_folder),
    ],
    ids=["plain", "wrapped", "FSDP", "bare", "a listed head", "./shard"],
)
def test_verify_compares_with_the_family_s_own_class(
    name: str, new, change, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Transformers must load the same weights, or it would compare random ones."""
    config, family = CONFIGS[name], name.split(",")[0]
    tensors = {name: tensor * 0.3 for name, tensor in random_tensors(config).items()}
    if name == "llama, tied":
        tensors = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
    source = write_source(tmp_path / "hf", config, renamed(tensors, new), shards=2)
    change(source)
    (source / "config.json").write_text(json.dumps(config_to_hf(config)))
    write_tokenizer(source, config.vocab_size)
    loaded = []
    cls = getattr(transformers, FAMILIES[family].transformers_class)
    forward = cls.forward
    monkeypatch.setattr(cls, "forward", lambda *a, **k: loaded.append(1) or forward(*a, **k))
    options = ["--source", str(source), "--out", str(tmp_path / "model"), "--verify"]
    assert convert.main(options) == 0
    assert loaded and "max error" in capsys.readouterr().out


def test_verify_shows_weights_that_transformers_lacks(
    tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = CONFIGS["llama, untied"]
    source = write_source(tmp_path / "hf", config, random_tensors(config))
    (source / "config.json").write_text(json.dumps(config_to_hf(config)))
    write_tokenizer(source, config.vocab_size)
    options = ["--source", str(source), "--out", str(tmp_path / "model"), "--verify"]
    monkeypatch.setattr(
        verification,
        "_torch_model",
        lambda *_: transformers.LlamaForCausalLM(transformers.LlamaConfig.from_pretrained(source)),
    )
    assert convert.main(options) == 2
    assert "logits differ" in capsys.readouterr().err
