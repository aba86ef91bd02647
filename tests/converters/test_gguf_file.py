"""A GGUF file in jroute gives what transformers' own reader of GGUF makes of it."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType, quants

from converters import gguf_file
from converters.gguf_file import GGUFModel, gguf_name, halves_from_neighbours
from converters.mapping import from_hf, layout
from jroute.model.config import DecoderConfig
from jroute.tasks.special_tokens import encode_prompt
from jroute.tasks.tokenizer import load_tokenizer
from jroute.utils.errors import UserError
from scripts.real_model import write_hf_folder
from tests.converters.tiny import random_tensors
from tests.model.parity import batch, difference, jroute_states, torch_states

CONFIG = DecoderConfig(
    vocab_size=300,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    rms_norm_eps=1e-5,
    rope_theta=1e5,
    tie_word_embeddings=True,
    max_position_embeddings=128,
    family="llama",
)
WIDE = dataclasses.replace(
    CONFIG, head_dim=24, tie_word_embeddings=False, rms_norm_eps=1e-6, rope_theta=5e5
)
"""Heads that are not width / heads, and an output layer."""

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
TEXT = "In 1999 it was 12345, don't you see?  Two   spaces."
NORMAL = 1
MARKER = "[mark er]"
"""A token that is found before any splitting, and is not special."""


def neighbours_from_halves(values: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp's converter does to the rows of q and k (``LlamaModel.permute``)."""
    halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return halves.swapaxes(1, 2).reshape(values.shape)


def trained_tokenizer() -> tokenizers.Tokenizer:
    """Byte pairs of a few sentences, merged across digits if they are not split off first."""
    built = tokenizers.Tokenizer(tokenizers.models.BPE())
    built.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=CONFIG.vocab_size - 1,
        special_tokens=list(SPECIAL),
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    built.train_from_iterator([TEXT, "12345 1999 12 1234 the theory then there"] * 9, trainer)
    return built


def write_gguf(
    file: Path,
    tensors: dict[str, np.ndarray],
    kind: str = "Q4_1",
    config: DecoderConfig = CONFIG,
    **changes: Any,
) -> Path:
    """Writes what llama.cpp's converter writes: projections quantised, norms in float32.

    ``changes`` are arguments of some keys of the metadata, or further keys.
    """
    content = json.loads(trained_tokenizer().to_str())["model"]
    vocabulary = sorted(content["vocab"], key=content["vocab"].get)
    vocabulary += [f"[unused{i}]" for i in range(config.vocab_size - len(vocabulary))]
    vocabulary[-1] = MARKER
    writer = GGUFWriter(file, changes.pop("architecture", "llama"))
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    if config is WIDE:
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(changes.pop("rotated", config.head_dim))
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(LlamaFileType.MOSTLY_Q4_1)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(changes.pop("splitter", "smollm"))
    writer.add_token_list(vocabulary)
    kinds = [3 if token in SPECIAL else 4 if token == MARKER else NORMAL for token in vocabulary]
    writer.add_token_types(changes.pop("kinds", kinds))
    merges = [" ".join(pair) for pair in content["merges"]]
    writer.add_token_merges(changes.pop("merges", merges))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(changes.pop("end", 2))
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template(TEMPLATE)
    for key, value in changes.items():
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}
        add[type(value)](key, value)
    for name, tensor in tensors.items():
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        part = name.split(".")[-2]
        values = neighbours_from_halves(tensor, heads[part]) if part in heads else tensor
        of = GGMLQuantizationType[kind if tensor.ndim == 2 else "F32"]
        writer.add_tensor(gguf_name(name), quants.quantize(values, of), raw_dtype=of)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def tensors_of(config: DecoderConfig) -> dict[str, np.ndarray]:
    return {
        name: tensor * np.float32(1 if tensor.ndim == 1 else 0.2)
        for name, tensor in random_tensors(config).items()
    }


@pytest.fixture(scope="module")
def tensors() -> dict[str, np.ndarray]:
    return tensors_of(CONFIG)


FILES = [("Q4_1", CONFIG), ("Q8_0", WIDE), ("F16", CONFIG), ("F32", WIDE)]


@pytest.fixture(scope="module", params=FILES, ids=[kind for kind, _ in FILES])
def written(request, tmp_path_factory) -> tuple[Path, DecoderConfig]:
    kind, config = request.param
    file = tmp_path_factory.mktemp("gguf") / "model.gguf"
    return write_gguf(file, tensors_of(config), kind, config), config


def logits_of_transformers(file: Path, config: DecoderConfig) -> tuple[Any, Any]:
    model = transformers.LlamaForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    )
    # Transformers keeps the float32 of the file, which is not what was trained with.
    assert model.config.rms_norm_eps != config.rms_norm_eps
    inputs = batch(config.vocab_size, (40, 17))
    return inputs, torch_states(model.eval(), inputs)


def test_logits_are_those_of_transformers_reader(written) -> None:
    file, config = written
    model = GGUFModel(file)
    assert model.config == config  # among it the epsilon, 1e-5 and not 9.99e-6
    params = from_hf({name: model.read(name) for name in model.shapes}, model.config)
    inputs, expected = logits_of_transformers(file, config)
    deviation = difference(expected, jroute_states(params, model.config, inputs))
    assert deviation.largest <= 1e-4 and deviation.agreement == 1.0


def test_they_are_not_if_the_permutation_stays(written, monkeypatch) -> None:
    file, config = written
    monkeypatch.setattr(gguf_file, "halves_from_neighbours", lambda values, heads: values)
    model = GGUFModel(file)
    params = from_hf({name: model.read(name) for name in model.shapes}, model.config)
    inputs, expected = logits_of_transformers(file, config)
    deviation = difference(expected, jroute_states(params, model.config, inputs))
    assert deviation.logits > 0.1


def test_unquantised_weights_are_the_original_ones(tensors, tmp_path: Path) -> None:
    model = GGUFModel(write_gguf(tmp_path / "model.gguf", tensors, "F32"))
    assert model.shapes.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(model.read(name), tensor)


def test_the_permutation_is_undone_head_by_head() -> None:
    """Spelled out: of a head of six, rows 0 3 1 4 2 5 become 0 1 2 3 4 5."""
    rows = np.array([0, 3, 1, 4, 2, 5, 10, 13, 11, 14, 12, 15], np.float32)[:, None]
    expected = [0, 1, 2, 3, 4, 5, 10, 11, 12, 13, 14, 15]
    assert halves_from_neighbours(rows, 2)[:, 0].tolist() == expected


def test_the_folder_is_read_by_transformers_and_splits_digits(tensors, tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "model.gguf", tensors, "F32")
    write_hf_folder(GGUFModel(file), tmp_path / "hf")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    assert isinstance(loaded, transformers.LlamaForCausalLM)
    assert loaded.generation_config.eos_token_id == 2
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    pieces = tokenizer.convert_ids_to_tokens(tokenizer.encode("In 1999: 12345"))
    digits = [piece for piece in pieces if any(char.isdigit() for char in piece)]
    assert digits == list("199912345")
    whole = trained_tokenizer().encode("In 1999: 12345").tokens
    assert [piece for piece in whole if any(map(str.isdigit, piece))] != digits
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert chat == "<|im_start|>hi<|im_end|>"
    ids = tokenizer.encode(chat)
    assert (ids[0], ids[-1]) == (1, 2)
    assert (tokenizer.bos_token, tokenizer.eos_token) == SPECIAL[1:]
    assert CONFIG.vocab_size - 1 in tokenizer.encode(f"see{MARKER}here")
    assert GGUFModel(file).quantisation == "Q4_1"


def test_another_splitter_and_a_first_token(tmp_path: Path) -> None:
    changes = {"splitter": "gpt-2", "tokenizer.ggml.add_bos_token": True}
    file = write_gguf(tmp_path / "model.gguf", tensors_of(WIDE), "F32", WIDE, **changes)
    write_hf_folder(GGUFModel(file), tmp_path / "hf")
    tokenizer = load_tokenizer(tmp_path / "hf")
    expected = trained_tokenizer().encode(TEXT).ids
    assert encode_prompt(TEXT, tokenizer) == tokenizer.encode(TEXT) == [1, *expected]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "qwen2"}, "general.architecture"),
        ({"splitter": "deepseek-llm"}, "splits text as 'deepseek-llm'"),
        ({"rotated": 8}, "8 of 16 dimensions of a head are rotated"),
        ({"rotated": 7, "llama.attention.key_length": 7}, r"model\.gguf: .*head_dim"),
        ({"llama.attention.causal": False}, "llama.attention.causal"),
        ({"llama.attention.sliding_window": 8}, "llama.attention.sliding_window"),
        ({"llama.rope.scaling.factor": 4.0}, "llama.rope.scaling.factor"),
        ({"llama.rope.scale_linear": 4.0}, "llama.rope.scale_linear"),
        ({"tokenizer.ggml.add_space_prefix": True}, "tokenizer.ggml.add_space_prefix"),
        ({"end": 300}, "300 tokens, and a special one has a number beyond them"),
        ({"kinds": [NORMAL] * 4}, "some have no kind"),
    ],
    ids=str,
)
def test_what_it_cannot_be_is_one_sentence(tensors, tmp_path: Path, changes, message) -> None:
    with pytest.raises(UserError, match=message):
        GGUFModel(write_gguf(tmp_path / "model.gguf", tensors, "F32", **changes))


@pytest.mark.parametrize("merges", [["a"], ["nowhere tobefound"]], ids=str)
def test_merges_that_do_not_fit_leave_nothing(tensors, tmp_path: Path, merges) -> None:
    model = GGUFModel(write_gguf(tmp_path / "model.gguf", tensors, "F32", merges=merges))
    with pytest.raises(UserError, match="the tokenizer cannot be built"):
        write_hf_folder(model, tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


def test_missing_and_foreign_tensors(tensors, tmp_path: Path) -> None:
    some = {name: tensor for name, tensor in tensors.items() if "layers.1.mlp.up" not in name}
    with pytest.raises(UserError, match=r"blk\.1\.ffn_up\.weight is missing"):
        GGUFModel(write_gguf(tmp_path / "missing.gguf", some, "F32"))
    names = [name for entry in layout(CONFIG).values() for name in entry.names]
    assert names == list(tensors)
    file = write_gguf(tmp_path / "cut.gguf", tensors, "F32")
    for content in (b"", b"GGUF", file.read_bytes()[:2000]):
        (tmp_path / "damaged.gguf").write_bytes(content)
        with pytest.raises(UserError, match="damaged"):
            GGUFModel(tmp_path / "damaged.gguf")
    with pytest.raises(UserError, match="there is no file"):
        GGUFModel(tmp_path / "absent.gguf")
