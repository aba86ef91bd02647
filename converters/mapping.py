"""Map weights between Hugging Face names and shapes and jroute's nested dictionary.

One table for each family (``converters.rules``) serves both directions. Hugging Face stores the
weight of a linear layer as ``[outputs, inputs]``; jroute stores ``[*inputs, *outputs]`` with heads
as an axis of their own, and the blocks stacked on a leading ``layers`` axis.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from converters.hf_config import config_to_hf
from converters.rules import HEAD, TABLES, TOKENS, Rule
from converters.safetensors import DTYPES, WEIGHTS, Checkpoint, write
from jroute.model.config import DecoderConfig
from jroute.model.params import abstract_params, logical_axes
from jroute.utils.errors import UserError
from jroute.utils.files import write_text
from jroute.utils.trees import flatten, unflatten


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
        if self.rule.inputs is None:
            return shape
        rows, columns = shape[: self.rule.inputs], shape[self.rule.inputs :]
        if not rows:
            return (math.prod(columns),)
        return math.prod(columns), math.prod(rows)


def layout(config: DecoderConfig) -> dict[str, Entry]:
    """Return all arrays of a model of this shape, by path, in the order of its table."""
    shapes = {path: leaf.shape for path, leaf in flatten(abstract_params(config)).items()}
    axes = flatten(logical_axes(config))
    entries = {}
    for rule in TABLES[config.family]:
        if rule.path in shapes:
            layers = range(config.num_hidden_layers) if "{layer}" in rule.hf else range(1)
            names = tuple(rule.hf.format(layer=layer) for layer in layers)
            entries[rule.path] = Entry(rule, shapes[rule.path], axes[rule.path], names)
    if entries.keys() != shapes.keys():
        raise AssertionError(f"the table does not name {sorted(shapes.keys() - entries.keys())}")
    return entries


def check(checkpoint: Checkpoint, config: DecoderConfig) -> None:
    """Check every header of a checkpoint against the shapes that its config implies.

    Raises:
        UserError: A tensor is missing, unknown, or of another shape or type.
    """
    where = checkpoint.directory
    expected = {name: entry.hf_shape for entry in layout(config).values() for name in entry.names}
    for name, shape in expected.items():
        tensor = checkpoint.tensors.get(name)
        if tensor is None and name == HEAD:
            raise UserError(
                f"{where}: {name} is missing, and config.json does not tie it to the embeddings: "
                "the output layer of a language model, which an embedding model lacks; download "
                "the checkpoint again, or choose a model that generates text"
            )
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
    allowed = {HEAD} if config.tie_word_embeddings else set()  # some repeat the token table
    for name in expected.keys() | (allowed & checkpoint.tensors.keys()):
        tensor = checkpoint.tensors[name]
        if tensor.dtype not in DTYPES:
            raise UserError(
                f"{tensor.file}: {name} is stored as {tensor.dtype}, "
                f"jroute reads {', '.join(DTYPES)}; choose a checkpoint that is not quantised"
            )
    extra = sorted(checkpoint.tensors.keys() - expected.keys() - allowed)
    if extra:
        more = f" and {len(extra) - 1} more" if len(extra) > 1 else ""
        raise UserError(
            f"{checkpoint.tensors[extra[0]].file}: {extra[0]:.200}{more} is in no {config.family} "
            "model of this config.json; take weights and config.json from the same release"
        )


def check_repeated_head(checkpoint: Checkpoint, config: DecoderConfig) -> None:
    """Check that an output layer stored beside tied embeddings repeats the token table.

    Raises:
        UserError: It differs, so the embeddings are not really tied.
    """
    head, table = HEAD, TOKENS
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


def stored_dtype(checkpoint: Checkpoint, config: DecoderConfig) -> np.dtype:
    """Return the type to convert to: the one in which all tensors are stored.

    Double precision becomes float32, the widest type that jroute stores.

    Raises:
        UserError: The types are mixed, or float16, in which large models overflow.
    """
    names = [name for entry in layout(config).values() for name in entry.names]
    dtypes = sorted({checkpoint.tensors[name].dtype.replace("F64", "F32") for name in names})
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
        ours = tensor.reshape(entry.inner)[start : start + len(out)]
        out[...] = ours.astype(out.dtype, copy=False)
        return
    width = math.prod(entry.inner[1 : entry.rule.inputs])  # rows of ours per step of that axis
    rows = out.reshape(len(out) * width, len(tensor))
    _transpose(tensor[:, start * width : (start + len(out)) * width], rows)


def take(entry: Entry, inner: np.ndarray) -> np.ndarray:
    """Return the contiguous Hugging Face tensor of one block of ours: the inverse of ``place``."""
    if not entry.rule.inputs:
        return np.ascontiguousarray(inner).reshape(entry.hf_shape)
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
    tensors: Mapping[str, np.ndarray], config: DecoderConfig, dtype: np.dtype | None = None
) -> dict[str, Any]:
    """Convert a whole checkpoint in memory, by default to the type of its token table."""
    entries = layout(config)
    dtype = tensors[entries["embed_tokens"].names[0]].dtype if dtype is None else dtype
    return unflatten(
        {path: assemble(entry, tensors.__getitem__, dtype) for path, entry in entries.items()}
    )


def to_hf(params: Mapping[str, Any], config: DecoderConfig) -> dict[str, np.ndarray]:
    """Return a nested dictionary of parameters as a checkpoint, in the types they have."""
    flat = flatten(params)
    tensors: dict[str, np.ndarray] = {}
    for path, entry in layout(config).items():
        tensors.update(split(entry, np.asarray(flat[path])))
    return tensors


def write_hf(
    directory: Path,
    params: Mapping[str, Any],
    config: DecoderConfig,
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
    dtype = str(tensors[TOKENS].dtype)
    content = {**config_to_hf(config), "torch_dtype": dtype, **(extra or {})}
    text = json.dumps(content, indent=2, sort_keys=True)
    write_text(directory / "config.json", f"{text}\n")
