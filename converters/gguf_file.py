"""Read a Llama from the file format of llama.cpp, GGUF, which also holds quantised weights.

Three things are not as in a release and are put right: llama.cpp turns the two halves of a head's
dimensions into neighbours, for its rotation pairs neighbours; numbers are float32, so an epsilon of
1e-5 reads 9.99e-6; and how text is split before the tokenizer's merges is a mere name.
"""

import re
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tokenizers
from pydantic import Field
from tokenizers import decoders, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from converters.mapping import layout
from jroute.model.config import DecoderConfig
from jroute.utils.errors import UserError, one_line
from jroute.utils.json_files import Record, check

ANOTHER_FILE = "give the GGUF file of a dense Llama whose tokenizer is of the kind gpt2"

NAMES: Mapping[str, str] = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""Names of tensors, and of the parts of a block, in Hugging Face's layout and in GGUF."""

SPLITTERS: Mapping[str, Callable[[], Any]] = {
    "smollm": lambda: pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    ),
    "gpt-2": lambda: pre_tokenizers.ByteLevel(False),
}
"""What splits a text before merging, by its name in llama.cpp; ``smollm`` takes digits singly."""

CONTROL, USER_DEFINED = 3, 4
"""Kinds of tokens that are matched before any splitting; the former are special."""

Text = Annotated[str, Field(max_length=2**20)]
NoScaling = Annotated[float, Field(ge=1, le=1)]
TokenId = Annotated[int, Field(ge=0, lt=2**24)]


class Metadata(Record):
    """The key-value pairs of a GGUF file that say what the model computes."""

    architecture: Literal["llama"] = Field(alias="general.architecture")
    blocks: int = Field(alias="llama.block_count")
    context: int = Field(alias="llama.context_length")
    embed: int = Field(alias="llama.embedding_length", ge=1)
    mlp: int = Field(alias="llama.feed_forward_length")
    heads: int = Field(alias="llama.attention.head_count", ge=1)
    kv_heads: int | None = Field(None, alias="llama.attention.head_count_kv")
    head_dim: int | None = Field(None, alias="llama.attention.key_length")
    rotary_dim: int | None = Field(None, alias="llama.rope.dimension_count")
    eps: float = Field(alias="llama.attention.layer_norm_rms_epsilon")
    theta: float = Field(10_000.0, alias="llama.rope.freq_base")
    scaling: Literal["none"] | None = Field(None, alias="llama.rope.scaling.type")
    factor: NoScaling | None = Field(None, alias="llama.rope.scaling.factor")
    old_factor: NoScaling | None = Field(None, alias="llama.rope.scale_linear")
    causal: Literal[True] = Field(True, alias="llama.attention.causal")
    window: Literal[0] | None = Field(None, alias="llama.attention.sliding_window")
    file_type: int | None = Field(None, alias="general.file_type")
    tokenizer: Literal["gpt2"] = Field(alias="tokenizer.ggml.model")
    splitter: str = Field(alias="tokenizer.ggml.pre")
    tokens: list[Text] = Field(alias="tokenizer.ggml.tokens", min_length=1)
    kinds: list[int] = Field(alias="tokenizer.ggml.token_type")
    merges: list[Text] = Field(alias="tokenizer.ggml.merges")
    bos: TokenId | None = Field(None, alias="tokenizer.ggml.bos_token_id")
    eos: TokenId = Field(alias="tokenizer.ggml.eos_token_id")
    unknown: TokenId | None = Field(None, alias="tokenizer.ggml.unknown_token_id")
    padding: TokenId | None = Field(None, alias="tokenizer.ggml.padding_token_id")
    adds_bos: bool = Field(False, alias="tokenizer.ggml.add_bos_token")
    adds_eos: Literal[False] = Field(False, alias="tokenizer.ggml.add_eos_token")
    adds_space: Literal[False] = Field(False, alias="tokenizer.ggml.add_space_prefix")
    template: Text | None = Field(None, alias="tokenizer.chat_template")


class GGUFModel:
    """A Llama in a GGUF file; weights are read, and dequantised, one at a time.

    Attributes:
        file: The file.
        metadata: What it says about the model and its tokenizer.
        config: The model's shape.
    """

    def __init__(self, file: Path):
        """Open the file and check its content against the shape that it states.

        Raises:
            UserError: The package ``gguf`` is missing; the file cannot be read, or is not a dense
                Llama that jroute can run.
        """
        self.file = file
        pairs, self._tensors = _open(file)
        self.metadata = check(pairs, Metadata, str(file), ANOTHER_FILE)
        self.config = _shape(self.metadata, file, tied="output.weight" not in self._tensors)
        self.shapes = {
            name: entry.hf_shape for entry in layout(self.config).values() for name in entry.names
        }
        self._check_tensors()
        self._check_tokens()
        if self.metadata.splitter not in SPLITTERS:
            raise UserError(
                f"{file}: the tokenizer splits text as {self.metadata.splitter!r:.100}, and jroute "
                f"splits as {' or '.join(SPLITTERS)}; {ANOTHER_FILE}"
            )

    def read(self, name: str) -> np.ndarray:
        """Return a tensor by its Hugging Face name, in float32 and in Hugging Face's layout."""
        from gguf import quants

        tensor = self._tensors[gguf_name(name)]
        values = quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
        values = values.reshape(self.shapes[name])
        heads = {"q_proj": self.metadata.heads, "k_proj": self.config.num_key_value_heads}
        part = name.split(".")[-2]
        return halves_from_neighbours(values, heads[part]) if part in heads else values

    @property
    def quantisation(self) -> str | None:
        """How most weights are stored, such as ``Q4_1``, if the file says so."""
        from gguf import LlamaFileType

        try:
            return LlamaFileType(self.metadata.file_type).name.removeprefix("MOSTLY_")
        except ValueError:  # none, or one that is newer than the package
            return None

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Build the tokenizer, with its chat template and special tokens.

        Raises:
            UserError: Its merges do not fit its tokens.
        """
        try:
            return self._tokenizer()
        except Exception as error:  # the library raises only plain exceptions
            raise UserError(
                f"{self.file}: the tokenizer cannot be built ({one_line(error)}); {ANOTHER_FILE}"
            ) from error

    def _tokenizer(self) -> PreTrainedTokenizerFast:
        data = self.metadata
        vocabulary = {token: i for i, token in enumerate(data.tokens)}
        merges = [tuple(merge.split(" ", 1)) for merge in data.merges]
        built = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, merges))
        built.pre_tokenizer = SPLITTERS[data.splitter]()
        built.decoder = decoders.ByteLevel()
        if data.adds_bos and data.bos is not None:
            start = data.tokens[data.bos]
            built.post_processor = TemplateProcessing(
                single=[start, "$A"], special_tokens=[(start, data.bos)]
            )
        for kind, special in ((CONTROL, True), (USER_DEFINED, False)):
            added = [data.tokens[i] for i, of in enumerate(data.kinds) if of == kind]
            built.add_tokens(
                [tokenizers.AddedToken(token, normalized=False, special=special) for token in added]
            )
        roles = {
            "bos_token": data.bos,
            "eos_token": data.eos,
            "unk_token": data.unknown,
            "pad_token": data.padding,
        }
        named = {role: data.tokens[i] for role, i in roles.items() if i is not None}
        return PreTrainedTokenizerFast(
            tokenizer_object=built,
            chat_template=data.template,
            clean_up_tokenization_spaces=False,
            **named,
        )

    def token_ids(self) -> dict[str, int]:
        """Return the ids that ``generation_config.json`` names."""
        ids = {
            "bos_token_id": self.metadata.bos,
            "eos_token_id": self.metadata.eos,
            "pad_token_id": self.metadata.padding,
        }
        return {name: i for name, i in ids.items() if i is not None}

    def _check_tokens(self) -> None:
        data, count = self.metadata, len(self.metadata.tokens)
        ids = (data.bos, data.eos, data.unknown, data.padding)
        faults = {
            "a special one has a number beyond them": any(
                i is not None and i >= count for i in ids
            ),
            "some have no kind": len(data.kinds) != count,
            "one occurs twice": len({*data.tokens}) != count,
        }
        for fault, present in faults.items():
            if present:
                raise UserError(f"{self.file} has {count:,} tokens, and {fault}; {ANOTHER_FILE}")

    def _check_tensors(self) -> None:
        names = {gguf_name(name): name for name in self.shapes}
        other = sorted(self._tensors.keys() ^ names.keys())
        if other:
            which = "is missing" if other[0] in names else "is not of a Llama that jroute can run"
            raise UserError(f"{self.file}: tensor {other[0]:.200} {which}; {ANOTHER_FILE}")
        for name, tensor in self._tensors.items():
            shape = tuple(int(size) for size in reversed(tensor.shape))
            if shape != self.shapes[names[name]]:
                raise UserError(
                    f"{self.file}: {name} has shape {list(shape)}, but the metadata imply "
                    f"{list(self.shapes[names[name]])}; download it again"
                )


def gguf_name(name: str) -> str:
    """Return what GGUF calls a tensor of a Llama."""
    match = re.fullmatch(r"model\.layers\.(\d+)\.(.+)\.weight", name)
    return f"blk.{match[1]}.{NAMES[match[2]]}.weight" if match else NAMES[name]


def halves_from_neighbours(values: np.ndarray, heads: int) -> np.ndarray:
    """Undo llama.cpp's reordering of the rows of a projection to queries or keys.

    A rotation turns pairs of dimensions. In Hugging Face's layout dimension ``i`` of a head of
    size ``d`` is paired with ``i + d/2``, in GGUF with its neighbour; the rows of the weight are
    reordered accordingly (llama.cpp's ``LlamaModel.permute``).

    Args:
        values: ``[heads * head_dim, inputs]``, as stored in GGUF.
        heads: The number of heads.
    """
    pairs = values.reshape(heads, -1, 2, values.shape[-1])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(values.shape)


def _shape(data: Metadata, file: Path, *, tied: bool) -> DecoderConfig:
    head_dim = data.head_dim or data.embed // data.heads
    if data.rotary_dim not in (None, head_dim):
        raise UserError(
            f"{file}: {data.rotary_dim} of {head_dim} dimensions of a head are rotated, which is "
            f"not implemented in jroute; {ANOTHER_FILE}"
        )
    try:
        return DecoderConfig(
            vocab_size=len(data.tokens),
            hidden_size=data.embed,
            intermediate_size=data.mlp,
            num_hidden_layers=data.blocks,
            num_attention_heads=data.heads,
            num_key_value_heads=data.kv_heads or data.heads,
            head_dim=head_dim,
            rms_norm_eps=_shortest(data.eps),
            rope_theta=_shortest(data.theta),
            tie_word_embeddings=tied,
            max_position_embeddings=data.context,
            family="llama",
        )
    except UserError as error:
        raise UserError(f"{file}: {error}") from None


def _shortest(value: float) -> float:
    """Return the shortest decimal number that is this float32."""
    return float(str(np.float32(value)))


def require_gguf() -> None:
    """Raise a ``UserError`` if the package that reads GGUF files is not installed."""
    if find_spec("gguf") is None:
        raise UserError(
            "GGUF files need the package gguf; install it with pip install 'jroute[gguf]'"
        )


def _open(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the metadata of a file, and its tensors by name."""
    require_gguf()
    from gguf import GGUFReader

    if not file.is_file():
        raise UserError(f"there is no file {file}; {ANOTHER_FILE}")
    try:
        reader = GGUFReader(file)
        pairs = {name: field.contents() for name, field in reader.fields.items()}
        return pairs, {tensor.name: tensor for tensor in reader.tensors}
    except Exception as error:  # the reader checks nothing that it reads
        raise UserError(
            f"{file} is not a GGUF file, or damaged ({one_line(error)}); {ANOTHER_FILE}"
        ) from error
