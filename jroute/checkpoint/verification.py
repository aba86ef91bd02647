"""Holds a model directory against its source: every bit, and the logits of transformers' torch."""

import gc
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from converters.safetensors import Checkpoint
from jroute.checkpoint.export import StoredTensors
from jroute.checkpoint.model import has_tokenizer, load_model, read_manifest
from jroute.model.config import Qwen3Config
from jroute.model.decoder import forward, unembed
from jroute.model.params import Params
from jroute.tasks.tokenizer import load_tokenizer
from jroute.utils.errors import UserError


class LogitComparison(NamedTuple):
    """How far next-token logits are from transformers' on the same tokens.

    Attributes:
        max_error: Largest absolute difference of a logit.
        agreement: Share of positions at which both have the same most likely token.
        positions: How many positions were compared.
        dtype: Type in which both computed.
        bound: What ``max_error`` should stay below: ``BOUNDS`` times the largest logit.
    """

    max_error: float
    agreement: float
    positions: int
    dtype: str
    bound: float


BOUNDS = {"float32": 1e-4, "bfloat16": 0.1}
"""Largest error of a logit as a share of the largest one. Sound conversions stay far below (2e-6
and 0.03); a wrong constant or a tensor in a wrong place is far above."""


class Verification(NamedTuple):
    """What a comparison with the source found.

    Attributes:
        tensors: How many tensors were compared bit for bit.
        differing: Names of those that differ.
        logits: ``None`` if they were not compared.
        why: Why they were not.
    """

    tensors: int
    differing: tuple[str, ...]
    logits: LogitComparison | None
    why: str = ""


def verify(
    source: Path,
    directory: Path,
    prompts: Sequence[str],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Verification:
    """Compare a model directory with the folder that it was converted from.

    Args:
        source: The folder in Hugging Face layout.
        directory: The model directory.
        prompts: Texts whose logits to compare.
        progress: Called with bytes compared so far and bytes to compare.

    Raises:
        UserError: Either is not whole, the source lacks tensors, or a prompt is empty.
    """
    stored = StoredTensors(directory)
    differing = tuple(differing_tensors(Checkpoint(source), stored, progress))
    logits, why = None, ""
    if differing:
        why = "tensors differ"
    elif find_spec("torch") is None:
        why = "torch is not installed"
    elif not has_tokenizer(directory):
        why = "there is no tokenizer"
    else:
        logits = compare_logits(source, directory, prompts)
    return Verification(len(stored.shapes), differing, logits, why)


def differing_tensors(
    checkpoint: Checkpoint,
    stored: StoredTensors,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[str]:
    """Names of the tensors whose bits differ from the source's, cast to the stored type.

    Raises:
        UserError: The source lacks a tensor.
    """
    differing = []
    done, sizes = 0, stored.sizes
    for name in stored.shapes:
        if name not in checkpoint.tensors:
            raise UserError(
                f"{checkpoint.directory} has no tensor {name}; "
                "name the folder that the model was converted from"
            )
        ours = stored.read(name)
        theirs = checkpoint.read(name).astype(stored.dtype, copy=False)
        if ours.shape != theirs.shape or not np.array_equal(_bits(ours), _bits(theirs)):
            differing.append(name)
        done += sizes[name]
        progress(done, sum(sizes.values()))
    return differing


def compare_logits(source: Path, directory: Path, prompts: Sequence[str]) -> LogitComparison:
    """Run prompts through transformers, then, with that model gone, through jroute.

    Both compute in the type in which the model directory is stored. Needs torch.

    Raises:
        UserError: There is no prompt, or one is empty or longer than the context.
    """
    manifest = read_manifest(directory)
    dtype = manifest["dtype"]
    rows = encode_prompts(directory, prompts, manifest["config"]["max_position_embeddings"])
    expected = _torch_logits(source, rows, dtype)
    params, config = load_model(directory)
    width = max(map(len, rows))
    error, largest, agreed = 0.0, 0.0, 0
    for row, theirs in zip(rows, expected, strict=True):
        tokens = np.zeros((1, width), np.int32)
        positions = np.full((1, width), -1, np.int32)
        tokens[0, : len(row)], positions[0, : len(row)] = row, np.arange(len(row))
        ours = np.asarray(_logits(params, config, tokens, positions))[0, : len(row)]
        # A NaN on either side is an error without bound.
        error = max(error, float(np.nan_to_num(np.abs(ours - theirs).max(), nan=np.inf)))
        largest = max(largest, float(np.abs(theirs).max()))
        agreed += int((ours.argmax(-1) == theirs.argmax(-1)).sum())
    positions_compared = sum(map(len, rows))
    bound = BOUNDS[dtype] * largest
    return LogitComparison(error, agreed / positions_compared, positions_compared, dtype, bound)


def encode_prompts(directory: Path, prompts: Sequence[str], context: int) -> list[list[int]]:
    """Token ids of the prompts, by the tokenizer of a model directory or a source.

    Raises:
        UserError: There is no prompt, or one is empty or longer than the context.
    """
    tokenizer = load_tokenizer(directory)
    rows = [list(tokenizer.encode(prompt, add_special_tokens=False)) for prompt in prompts]
    if not rows or not all(0 < len(row) <= context for row in rows):
        raise UserError(
            f"prompts to compare must be of 1 to {context:,} tokens each; give at least one"
        )
    return rows


def _logits_of(
    params: Params,
    config: Qwen3Config,
    tokens: Int[Array, "batch seq"],
    positions: Int[Array, "batch seq"],
) -> Float[Array, "batch seq vocab"]:
    return unembed(params, config, forward(params, config, tokens, positions).hidden)


# On a CPU this pass would move the conversion of bfloat16 weights to float32 out of the loop over
# blocks, and so hold all of them a second time, twice as large.
_FRUGAL = {"xla_disable_hlo_passes": "while-loop-invariant-code-motion"}

_logits = jax.jit(_logits_of, static_argnums=1, compiler_options=_FRUGAL)


def _torch_logits(source: Path, rows: Sequence[Sequence[int]], dtype: str) -> list[np.ndarray]:
    import torch  # the one place that needs it, and it may be missing
    from transformers import Qwen3ForCausalLM
    from transformers.utils import logging

    bar = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model = Qwen3ForCausalLM.from_pretrained(
            str(source), dtype=getattr(torch, dtype), local_files_only=True
        )
    finally:
        if bar:
            logging.enable_progress_bar()
    model.eval()
    with torch.no_grad():
        found = [model(torch.tensor([row])).logits[0].float().numpy() for row in rows]
    del model
    gc.collect()  # gigabytes, and jroute's are to take their place
    return found


def _bits(tensor: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(tensor).view(np.dtype(f"u{tensor.dtype.itemsize}"))
