"""Compare a model directory with its source: every bit, and the logits of transformers."""

import gc
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from converters.hub import fetch
from converters.safetensors import Checkpoint
from jroute.checkpoint.companions import has_tokenizer
from jroute.checkpoint.conversion import Conversion, open_source
from jroute.checkpoint.manifest import read_manifest
from jroute.checkpoint.model import load_model
from jroute.checkpoint.replacing import convert_again
from jroute.checkpoint.stored_tensors import StoredTensors
from jroute.model.config import DecoderConfig
from jroute.model.decoder import forward, unembed
from jroute.model.families import Family
from jroute.model.params import Params
from jroute.tasks.special_tokens import encode_prompt
from jroute.tasks.tokenizer import load_tokenizer
from jroute.utils.errors import UserError

PROMPTS = (
    "The capital of France is",
    "Question: A farmer has 17 sheep and buys 25 more. He sells 9 of them. "
    "How many sheep does he have now?\nAnswer:",
    "def fibonacci(n):\n",
    "一年有十二个月,",
)
"""The prompts that ``--verify`` compares by default."""


class LogitComparison(NamedTuple):
    """How far next-token logits are from transformers' on the same tokens.

    Attributes:
        max_error: Largest absolute difference of a logit.
        agreement: Share of positions at which both have the same most likely token.
        prompts: Number of prompts compared.
        positions: Number of their positions.
        dtype: Type in which both computed.
        bound: Limit on ``max_error`` from rounding alone: ``BOUNDS`` times the largest logit.
    """

    max_error: float
    agreement: float
    prompts: int
    positions: int
    dtype: str
    bound: float


BOUNDS = {"float32": 1e-4, "bfloat16": 0.1}
"""Largest error of a logit as a share of the largest one. Correct conversions stay far below (2e-6
and 0.03); a wrong constant or a misplaced tensor is far above."""


class Verification(NamedTuple):
    """The result of a comparison with the source.

    Attributes:
        tensors: Number of tensors compared bit for bit.
        differing: Names of those that differ.
        logits: Comparison of logits, or ``None``.
        why: Why logits were not compared.
    """

    tensors: int
    differing: tuple[str, ...]
    logits: LogitComparison | None
    why: str = ""


def verify(
    source: Path,
    directory: Path,
    prompts: Sequence[str] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Verification:
    """Compare a model directory with the folder it was converted from.

    Args:
        source: The folder in Hugging Face layout.
        directory: The model directory.
        prompts: Texts whose logits are compared; by default ``PROMPTS``.
        progress: Called with the bytes compared so far and in total.

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
        logits = compare_logits(source, directory, PROMPTS if prompts is None else prompts)
    return Verification(len(stored.shapes), differing, logits, why)


def differing_tensors(
    checkpoint: Checkpoint,
    stored: StoredTensors,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[str]:
    """Return the names of tensors whose bits differ from the source's in the stored type.

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
    """Run prompts through transformers, release that model, and run them through jroute.

    Both compute in the type in which the model directory is stored. Needs torch.

    Raises:
        UserError: There is no prompt, or one is empty or longer than the context.
    """
    manifest = read_manifest(directory)
    dtype = manifest["dtype"]
    shape = DecoderConfig.restore(manifest["config"])
    rows = encode_prompts(directory, prompts, shape.max_position_embeddings)
    expected = _torch_logits(Checkpoint(source), shape.architecture, rows, dtype)
    params, config = load_model(directory)
    width = max(map(len, rows))
    error, largest, agreed = 0.0, 0.0, 0
    for row, theirs in zip(rows, expected, strict=True):
        tokens = np.zeros((1, width), np.int32)
        positions = np.full((1, width), -1, np.int32)
        tokens[0, : len(row)], positions[0, : len(row)] = row, np.arange(len(row))
        ours = np.asarray(_logits(params, config, tokens, positions))[0, : len(row)]
        # A NaN on either side counts as an infinite error.
        error = max(error, float(np.nan_to_num(np.abs(ours - theirs).max(), nan=np.inf)))
        largest = max(largest, float(np.abs(theirs).max()))
        agreed += int((ours.argmax(-1) == theirs.argmax(-1)).sum())
    count = sum(map(len, rows))
    return LogitComparison(
        max_error=error,
        agreement=agreed / count,
        prompts=len(rows),
        positions=count,
        dtype=dtype,
        bound=BOUNDS[dtype] * largest,
    )


def encode_prompts(directory: Path, prompts: Sequence[str], context: int) -> list[list[int]]:
    """Return the token ids of prompts, with the tokenizer of a model directory or a source.

    Raises:
        UserError: There is no prompt, or one is empty or longer than the context.
    """
    tokenizer = load_tokenizer(directory)
    rows = [encode_prompt(prompt, tokenizer) for prompt in prompts]
    for number, row in enumerate(rows, start=1):
        if not 0 < len(row) <= context:
            raise UserError(
                f"prompt {number} to compare has {len(row):,} tokens, but the model reads 1 to "
                f"{context:,}; change or remove it"
            )
    if not rows:
        raise UserError("there are no prompts to compare; give at least one")
    return rows


def read_prompts(file: Path) -> list[str]:
    """Read prompts from a text file, one per line; blank lines are left out.

    Raises:
        UserError: The file cannot be read, or holds no prompt.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:  # not UTF-8, or NUL in the name
        raise UserError(
            f"cannot read prompts from {str(file)!r:.300} ({error}); give a text file"
        ) from None
    prompts = [line for line in lines if line.strip()]
    if not prompts:
        raise UserError(f"{file} holds no prompt; write one per line")
    return prompts


def check_prompts(source: str, revision: str | None, prompts: Sequence[str]) -> None:
    """Check before a conversion that its source could encode the prompts.

    Raises:
        UserError: A prompt is empty or longer than the context.
    """
    folder = fetch(source, revision).folder
    if has_tokenizer(folder):
        encode_prompts(folder, prompts, open_source(folder).config.max_position_embeddings)


def report(verification: Verification, conversion: Conversion, out: Path) -> str:
    """Return the result of a verification as text.

    Args:
        verification: The result.
        conversion: The conversion that was verified.
        out: The model directory.

    Raises:
        UserError: A tensor differs.
    """
    if verification.differing:
        first, *others = verification.differing
        which = f"{first} and {len(others)} more differ" if others else f"{first} differs"
        raise UserError(
            f"{out}: of {verification.tensors:,} tensors {which} from {conversion.folder}; "
            f"{convert_again(out)}"
        )
    dtype, compared = conversion.manifest["dtype"], verification.logits
    lines = [
        "verified",
        f"  tensors      {verification.tensors:,} equal to the source's in {dtype}, bit for bit",
    ]
    if compared is None:
        return "\n".join([*lines, f"  logits       not compared: {verification.why}"])
    lines += [
        f"  positions    {compared.positions:,} of {compared.prompts} prompts, {compared.dtype}",
        f"  max error    {compared.max_error:.3g} of a logit, against transformers "
        f"(rounding stays below {compared.bound:.2g})",
        f"  top-1        {compared.agreement:.2%} agree",
    ]
    return "\n".join(lines)


def refuse_large_error(verification: Verification, out: Path) -> None:
    """Raise a ``UserError`` if logits are further off than rounding explains."""
    compared = verification.logits
    if compared is not None and not compared.max_error <= compared.bound:
        raise UserError(
            f"{out}: logits differ from transformers' by {compared.max_error:.3g}, and rounding "
            f"stays below {compared.bound:.2g}; the weights are the source's, so its config.json "
            "or this jroute is wrong for them"
        )


def _logits_of(
    params: Params,
    config: DecoderConfig,
    tokens: Int[Array, "batch seq"],
    positions: Int[Array, "batch seq"],
) -> Float[Array, "batch seq vocab"]:
    return unembed(params, config, forward(params, config, tokens, positions).hidden)


# On a CPU this pass would move the conversion of bfloat16 weights to float32 out of the loop over
# blocks, and so hold all of them a second time, twice as large.
_FRUGAL = {"xla_disable_hlo_passes": "while-loop-invariant-code-motion"}

_logits = jax.jit(_logits_of, static_argnums=1, compiler_options=_FRUGAL)


def _torch_model(source: Checkpoint, family: Family, dtype: Any) -> Any:
    """Return transformers' model of a checkpoint, whose names need not be those of a release."""
    import torch
    import transformers

    cls = getattr(transformers, family.transformers_class)
    if source.as_released:
        return cls.from_pretrained(str(source.directory), dtype=dtype, local_files_only=True)
    config = cls.config_class.from_pretrained(str(source.directory), local_files_only=True)
    state = {
        name: torch.from_numpy(source.read(name).astype(np.float32)) for name in source.tensors
    }
    return cls.from_pretrained(None, config=config, state_dict=state, dtype=dtype)


def _torch_logits(
    source: Checkpoint, family: Family, rows: Sequence[Sequence[int]], dtype: str
) -> list[np.ndarray]:
    import torch  # only these functions need it, and it may not be installed
    from transformers.utils import logging

    bar = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model = _torch_model(source, family, getattr(torch, dtype))
    finally:
        if bar:
            logging.enable_progress_bar()
    model.eval()
    with torch.no_grad():
        logits = [model(torch.tensor([row])).logits[0].float().numpy() for row in rows]
    del model
    gc.collect()  # frees gigabytes before jroute's model takes as many
    return logits


def _bits(tensor: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(tensor).view(np.dtype(f"u{tensor.dtype.itemsize}"))
