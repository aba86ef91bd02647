"""Map Qwen3 weights between Hugging Face names and shapes and jroute's nested dictionary.

One table serves both directions. Hugging Face stores the weight of a linear layer as
``[outputs, inputs]``; jroute stores ``[*inputs, *outputs]`` with heads as an axis of their own, and
the blocks stacked on a leading ``layers`` axis.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from converters.safetensors import DTYPES, WEIGHTS, Checkpoint, write
from jroute.model.config import Qwen3Config
from jroute.model.params import abstract_params, logical_axes
from jroute.utils.errors import UserError
from jroute.utils.files import write_text
from jroute.utils.trees import flatten, unflatten


class Rule(NamedTuple):
    """How one array of ours is stored by Hugging Face.

    Attributes:
        path: Path in the nested dictionary.
        hf: Name in the checkpoint; ``{layer}`` stands for the block's index.
        inputs: How many leading axes of ours (after ``layers``) are inputs of a linear layer;
            0 means that the array is stored as it is.
    """

    path: str
    hf: str
    inputs: int = 0


TABLE = (
    Rule("embed_tokens", "model.embed_tokens.weight"),
    Rule("blocks/input_norm", "model.layers.{layer}.input_layernorm.weight"),
    Rule("blocks/attention/q_proj", "model.layers.{layer}.self_attn.q_proj.weight", inputs=1),
    Rule("blocks/attention/k_proj", "model.layers.{layer}.self_attn.k_proj.weight", inputs=1),
    Rule("blocks/attention/v_proj", "model.layers.{layer}.self_attn.v_proj.weight", inputs=1),
    Rule("blocks/attention/o_proj", "model.layers.{layer}.self_attn.o_proj.weight", inputs=2),
    Rule("blocks/attention/q_norm", "model.layers.{layer}.self_attn.q_norm.weight"),
    Rule("blocks/attention/k_norm", "model.layers.{layer}.self_attn.k_norm.weight"),
    Rule("blocks/post_attention_norm", "model.layers.{layer}.post_attention_layernorm.weight"),
    Rule("blocks/mlp/gate_proj", "model.layers.{layer}.mlp.gate_proj.weight", inputs=1),
    Rule("blocks/mlp/up_proj", "model.layers.{layer}.mlp.up_proj.weight", inputs=1),
    Rule("blocks/mlp/down_proj", "model.layers.{layer}.mlp.down_proj.weight", inputs=1),
    Rule("final_norm", "model.norm.weight"),
    Rule("lm_head", "lm_head.weight", inputs=1),
)

IGNORED_IF_TIED = "lm_head.weight"
"""With tied embeddings some checkpoints repeat the token table here."""


class Entry(NamedTuple):
    """One array of ours, and the Hugging Face tensors that it is made of.

    Attributes:
        rule: How it is stored by Hugging Face.
        shape: Its shape.
        axes: Logical names of its axes.
        names: Of the tensors: one per block, or one.
    """

    rule: Rule
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    names: tuple[str, ...]

    @property
    def stacked(self) -> bool:
        """Whether the leading axis counts blocks."""
        return "{layer}" in self.rule.hf

    @property
    def inner(self) -> tuple[int, ...]:
        """Shape of what one of the tensors becomes."""
        return self.shape[1:] if self.stacked else self.shape

    @property
    def hf_shape(self) -> tuple[int, ...]:
        """Shape of every one of the tensors."""
        shape = self.inner
        if not self.rule.inputs:
            return shape
        rows, columns = shape[: self.rule.inputs], shape[self.rule.inputs :]
        return int(np.prod(columns)), int(np.prod(rows))


def layout(config: Qwen3Config) -> dict[str, Entry]:
    """Return all arrays of a model of this shape, by path, in the order of ``TABLE``."""
    shapes = {path: leaf.shape for path, leaf in flatten(abstract_params(config)).items()}
    axes = flatten(logical_axes(config))
    entries = {}
    for rule in TABLE:
        if rule.path in shapes:
            layers = range(config.num_hidden_layers) if "{layer}" in rule.hf else range(1)
            names = tuple(rule.hf.format(layer=layer) for layer in layers)
            entries[rule.path] = Entry(rule, shapes[rule.path], axes[rule.path], names)
    if entries.keys() != shapes.keys():
        raise AssertionError(f"the table does not name {sorted(shapes.keys() - entries.keys())}")
    return entries


def check(checkpoint: Checkpoint, config: Qwen3Config) -> None:
    """Check every header of a checkpoint against the shapes that its config implies.

    Raises:
        UserError: A tensor is missing, unknown, or of another shape or type.
    """
    where = checkpoint.directory
    expected = {name: entry.hf_shape for entry in layout(config).values() for name in entry.names}
    for name, shape in expected.items():
        tensor = checkpoint.tensors.get(name)
        if tensor is None:
            raise UserError(
                f"{where}: tensor {name} is missing from the weights; download the checkpoint again"
            )
        if tensor.shape != shape:
            raise UserError(
                f"{tensor.file}: {name} has shape {list(tensor.shape)}, "
                f"but config.json implies {list(shape)}; "
                "take weights and config.json from the same release"
            )
        if tensor.dtype not in DTYPES:
            raise UserError(
                f"{tensor.file}: {name} is stored as {tensor.dtype}, "
                f"jroute reads {', '.join(DTYPES)}; choose a checkpoint that is not quantized"
            )
    allowed = {IGNORED_IF_TIED} if config.tie_word_embeddings else set()
    extra = sorted(checkpoint.tensors.keys() - expected.keys() - allowed)
    if extra:
        more = f" and {len(extra) - 1} more" if len(extra) > 1 else ""
        raise UserError(
            f"{checkpoint.tensors[extra[0]].file}: {extra[0]:.200}{more} is in no Qwen3 model "
            "of this config.json; take weights and config.json from the same release"
        )


def check_repeated_head(checkpoint: Checkpoint, config: Qwen3Config) -> None:
    """Check that an output layer stored beside tied embeddings repeats the token table.

    Raises:
        UserError: It differs, so the embeddings are not really tied.
    """
    head, table = IGNORED_IF_TIED, "model.embed_tokens.weight"
    if not config.tie_word_embeddings or head not in checkpoint.tensors:
        return
    output, embedding = checkpoint.read(head), checkpoint.read(table)
    rows = max(1, 2**24 // max(output.shape[-1], 1))  # compared at a time, to save memory
    if output.shape != embedding.shape or not all(
        np.array_equal(output[i : i + rows], embedding[i : i + rows])
        for i in range(0, len(output), rows)
    ):
        raise UserError(
            f"{checkpoint.tensors[head].file}: {head} differs from {table}, though config.json "
            "says that they are tied; take weights and config.json from the same release"
        )


def stored_dtype(checkpoint: Checkpoint, config: Qwen3Config) -> np.dtype:
    """Return the one type in which all tensors are stored.

    Raises:
        UserError: The types are mixed, or float16, in which Qwen3 overflows.
    """
    names = [name for entry in layout(config).values() for name in entry.names]
    dtypes = sorted({checkpoint.tensors[name].dtype for name in names})
    if dtypes not in (["F32"], ["BF16"]):
        raise UserError(
            f"{checkpoint.directory}: the weights are stored as {' and '.join(dtypes)}; "
            "say what to convert them to with --dtype float32 or --dtype bfloat16"
        )
    return DTYPES[dtypes[0]]


def place(entry: Entry, tensor: np.ndarray, out: np.ndarray, start: int = 0) -> None:
    """Transpose and cast a Hugging Face tensor to our orientation, into ``out``.

    Args:
        entry: The array of ours that the tensor is a part of.
        tensor: The tensor, as Hugging Face orients it.
        out: Destination: contiguous, of shape ``entry.inner`` except for the first axis, which may
            be shorter.
        start: Position on the first axis of ``entry.inner`` of the first row of ``out``.
    """
    if not entry.rule.inputs:
        out[...] = tensor[start : start + len(out)].astype(out.dtype, copy=False)
        return
    width = int(np.prod(entry.inner[1 : entry.rule.inputs]))  # rows of ours per step of that axis
    rows = out.reshape(len(out) * width, len(tensor))
    _transpose(tensor[:, start * width : (start + len(out)) * width], rows)


def take(entry: Entry, inner: np.ndarray) -> np.ndarray:
    """Return the contiguous Hugging Face tensor of one block of ours: the inverse of ``place``."""
    if not entry.rule.inputs:
        return np.ascontiguousarray(inner)
    tensor = np.empty(entry.hf_shape, inner.dtype)
    _transpose(np.ascontiguousarray(inner).reshape(tensor.shape[::-1]), tensor)
    return tensor


_STRIP = 64


def _transpose(matrix: np.ndarray, out: np.ndarray) -> None:
    """Assign ``out[...] = matrix.T`` by strips of rows, several times as fast as numpy's copy."""
    word = np.dtype(f"u{out.itemsize}")  # numpy copies its own types faster than bfloat16
    words = out.view(word)
    for row in range(0, len(matrix), _STRIP):
        strip = matrix[row : row + _STRIP].astype(out.dtype, copy=False)
        words[:, row : row + _STRIP] = strip.view(word).T


def assemble(entry: Entry, read: Callable[[str], np.ndarray], dtype: np.dtype) -> np.ndarray:
    """Build one array of ours from the tensors that ``read`` returns by name.

    Host memory holds the result and one tensor at a time.
    """
    result = np.empty(entry.shape, dtype)
    if not entry.stacked:
        place(entry, read(entry.names[0]), result)
        return result
    for layer, name in enumerate(entry.names):
        place(entry, read(name), result[layer])
    return result


def split(entry: Entry, value: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the Hugging Face tensors of one array of ours by name: the inverse of ``assemble``."""
    for layer, name in enumerate(entry.names):
        yield name, take(entry, value[layer] if entry.stacked else value)


def from_hf(
    tensors: Mapping[str, np.ndarray], config: Qwen3Config, dtype: np.dtype | None = None
) -> dict[str, Any]:
    """Convert a whole checkpoint in memory, by default to the type of its token table."""
    entries = layout(config)
    dtype = tensors[entries["embed_tokens"].names[0]].dtype if dtype is None else dtype
    return unflatten(
        {path: assemble(entry, tensors.__getitem__, dtype) for path, entry in entries.items()}
    )


def to_hf(params: Mapping[str, Any], config: Qwen3Config) -> dict[str, np.ndarray]:
    """Return a nested dictionary of parameters as a checkpoint, in the types they have."""
    flat = flatten(params)
    tensors: dict[str, np.ndarray] = {}
    for path, entry in layout(config).items():
        tensors.update(split(entry, np.asarray(flat[path])))
    return tensors


def write_hf(
    directory: Path,
    params: Mapping[str, Any],
    config: Qwen3Config,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write ``model.safetensors`` and ``config.json`` as transformers would.

    Args:
        directory: The folder; made if it is missing.
        params: Parameters as ``forward`` takes them, with ``blocks`` stacked.
        config: Their shape.
        extra: Further keys of ``config.json``, such as ``bos_token_id`` and ``eos_token_id``.
    """
    directory.mkdir(parents=True, exist_ok=True)
    tensors = to_hf(params, config)
    write(directory / WEIGHTS, tensors)
    dtype = str(tensors["model.embed_tokens.weight"].dtype)
    content = {**config.to_hf(), "torch_dtype": dtype, **(extra or {})}
    text = json.dumps(content, indent=2, sort_keys=True)
    write_text(directory / "config.json", f"{text}\n")
