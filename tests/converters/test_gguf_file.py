"""A GGUF file in jroute gives what transformers' own reader of GGUF makes of it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from gguf import GGMLQuantizationType, GGUFWriter, quants

from converters import gguf_file
from converters.gguf_file import GGUFModel, gguf_name, halves_from_neighbours
from converters.mapping import from_hf, layout
from jroute.model.config import DecoderConfig
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
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
TEXT = "In 1999 it was 12345, don't you see?  Two   spaces."
NORMAL = 1


def neighbours_from_halves(values: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp's converter does to the rows of q and k (``LlamaModel.permute``)."""
    halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return halves.swapaxes(1, 2).reshape(values.shape)


def trained_tokenizer() -> tokenizers.Tokenizer:
    """Byte pairs of a few sentences, merged across digits if they are not split off first."""
    built = tokenizers.Tokenizer(tokenizers.models.BPE())
    built.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=CONFIG.vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    built.train_from_iterator([TEXT, "12345 1999 12 1234 the theory then there"] * 9, trainer)
    return built


def write_gguf(
    file: Path, tensors: dict[str, np.ndarray], kind: str = "Q4_1", **changes: Any
) -> Path:
    """Writes what llama.cpp's converter writes: projections quantised, norms in float32."""
    import json

    content = json.loads(trained_tokenizer().to_str())["model"]
    vocabulary = sorted(content["vocab"], key=content["vocab"].get)
    vocabulary += [f"[unused{i}]" for i in range(CONFIG.vocab_size - len(vocabulary))]
    writer = GGUFWriter(file, changes.pop("architecture", "llama"))
    writer.add_block_count(CONFIG.num_hidden_layers)
    writer.add_context_length(CONFIG.max_position_embeddings)
    writer.add_embedding_length(CONFIG.hidden_size)
    writer.add_feed_forward_length(CONFIG.intermediate_size)
    writer.add_head_count(CONFIG.num_attention_heads)
    writer.add_head_count_kv(CONFIG.num_key_value_heads)
    writer.add_rope_dimension_count(changes.pop("rotated", CONFIG.head_dim))
    writer.add_rope_freq_base(CONFIG.rope_theta)
    writer.add_layer_norm_rms_eps(CONFIG.rms_norm_eps)
    writer.add_vocab_size(CONFIG.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(changes.pop("splitter", "smollm"))
    writer.add_token_list(vocabulary)
    writer.add_token_types([3 if token in SPECIAL else NORMAL for token in vocabulary])
    writer.add_token_merges([" ".join(pair) for pair in content["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template(TEMPLATE)
    for name, tensor in tensors.items():
        heads = {"q_proj": CONFIG.num_attention_heads, "k_proj": CONFIG.num_key_value_heads}
        part = name.split(".")[-2]
        values = neighbours_from_halves(tensor, heads[part]) if part in heads else tensor
        of = GGMLQuantizationType[kind if tensor.ndim == 2 else "F32"]
        writer.add_tensor(gguf_name(name), quants.quantize(values, of), raw_dtype=of)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert not changes
    return file


@pytest.fixture(scope="module")
def tensors() -> dict[str, np.ndarray]:
    return {
        name: tensor * np.float32(1 if tensor.ndim == 1 else 0.2)
        for name, tensor in random_tensors(CONFIG).items()
    }


@pytest.fixture(scope="module", params=["Q4_1", "Q8_0", "F16", "F32"])
def file(request, tensors, tmp_path_factory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "model.gguf", tensors, request.param)


def logits_of_transformers(file: Path) -> tuple[Any, Any]:
    model = transformers.LlamaForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    )
    # Transformers keeps the float32 of the file, which is not what was trained with.
    assert model.config.rms_norm_eps != CONFIG.rms_norm_eps
    inputs = batch(CONFIG.vocab_size, (40, 17))
    return inputs, torch_states(model.eval(), inputs)


def test_logits_are_those_of_transformers_reader(file: Path) -> None:
    model = GGUFModel(file)
    assert model.config == CONFIG  # among it the epsilon, 1e-5 and not 9.99e-6
    params = from_hf({name: model.read(name) for name in model.shapes}, model.config)
    inputs, expected = logits_of_transformers(file)
    deviation = difference(expected, jroute_states(params, model.config, inputs))
    assert deviation.largest <= 1e-4 and deviation.agreement == 1.0


def test_they_are_not_if_the_permutation_stays(file: Path, monkeypatch) -> None:
    monkeypatch.setattr(gguf_file, "halves_from_neighbours", lambda values, heads: values)
    model = GGUFModel(file)
    params = from_hf({name: model.read(name) for name in model.shapes}, model.config)
    inputs, expected = logits_of_transformers(file)
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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "qwen2"}, "general.architecture"),
        ({"splitter": "deepseek-llm"}, "splits text as 'deepseek-llm'"),
        ({"rotated": 8}, "8 of 16 dimensions of a head are rotated"),
    ],
    ids=str,
)
def test_what_it_cannot_be_is_one_sentence(tensors, tmp_path: Path, changes, message) -> None:
    with pytest.raises(UserError, match=message):
        GGUFModel(write_gguf(tmp_path / "model.gguf", tensors, "F32", **changes))


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
