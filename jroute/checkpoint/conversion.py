"""From a checkpoint in Hugging Face layout to a model directory: checked, planned, carried out."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from converters import qwen3
from converters.safetensors import Checkpoint, fetch, read_json
from jroute.checkpoint import arrays, staging
from jroute.checkpoint.model import (
    companion_digests,
    companions,
    digest,
    fingerprint,
    has_tokenizer,
    read_manifest,
)
from jroute.checkpoint.writer import (
    ModelWriter,
    disk_bytes,
    free_bytes,
    refuse_to_replace,
    refuse_without_room,
    weight_bytes,
)
from jroute.model.config import Qwen3Config
from jroute.utils.errors import UserError

Dtype = Literal["float32", "bfloat16"]

NO_TOKENIZER = (
    "the source has no tokenizer, which jroute.load needs; add tokenizer_config.json and "
    "tokenizer.json, or vocab.json and merges.txt, to it"
)
"""What is said of a source that converts, but to a model that cannot be asked anything."""

_PROCESS_BYTES = 128 * 2**20  # of the interpreter with its libraries, before the first weight


class Conversion(NamedTuple):
    """What a conversion did.

    Attributes:
        manifest: Of the model.
        written: Whether it was written just now.
        folder: Where the source lies on this machine.
    """

    manifest: dict[str, Any]
    written: bool
    folder: Path


class Source(NamedTuple):
    """A checkpoint that was found to be convertible, and the type to convert it to."""

    checkpoint: Checkpoint
    config: Qwen3Config
    dtype: np.dtype


def open_source(folder: Path, dtype: Dtype | None = None) -> Source:
    """Open a checkpoint folder and check it whole, without reading a weight.

    Args:
        folder: A folder in Hugging Face layout.
        dtype: Type to store the weights in; by default as in the source.

    Raises:
        UserError: It is incomplete, damaged, or not a model that jroute can run.
    """
    config = Qwen3Config.from_hf(
        read_json(folder / "config.json"), where=str(folder / "config.json")
    )
    checkpoint = Checkpoint(folder)
    qwen3.check(checkpoint, config)
    return Source(
        checkpoint,
        config,
        qwen3.stored_dtype(checkpoint, config) if dtype is None else np.dtype(dtype),
    )


def convert(
    source: str,
    out: str | Path,
    *,
    revision: str | None = None,
    dtype: Dtype | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Conversion:
    """Convert a checkpoint; converting the same one to the same place again changes nothing.

    Args:
        source: A local folder or a Hugging Face hub id.
        out: Where the model directory is to stand.
        revision: Branch, tag or commit on the hub.
        dtype: Type to store the weights in; by default as in the source.
        overwrite: Replace another model that stands at ``out``.
        progress: Called with bytes of weights dealt with so far and in all.

    Raises:
        UserError: Anything is wrong with the source, ``out`` is taken, or the disk is full.
    """
    found = fetch(source, revision)
    opened = open_source(found.folder, dtype)
    qwen3.check_repeated_head(opened.checkpoint, opened.config)
    out = Path(out).absolute()
    staging.recover(out)
    if not overwrite and (out / staging.MANIFEST).is_file():
        manifest = read_manifest(out)
        same = manifest["fingerprint"] == _fingerprint(opened, progress)
        if same and manifest["companions"] == companion_digests(companions(found.folder)):
            return Conversion(manifest, written=False, folder=found.folder)
        refuse_to_replace(out, overwrite=False)
    writer = ModelWriter(
        out,
        opened.config,
        opened.dtype,
        source={"name": source, "revision": found.revision},
        source_files=companions(found.folder),
        overwrite=overwrite,
        progress=progress,
    )
    with writer:
        for path in qwen3.layout(opened.config):
            writer.add(path, opened.checkpoint.read)
    return Conversion(writer.manifest, written=True, folder=found.folder)


def _fingerprint(source: Source, progress: Callable[[int, int], None]) -> str:
    """The fingerprint that a conversion would give, from the source alone."""
    total, done = weight_bytes(source.config, source.dtype), 0
    digests = {}
    for entry in qwen3.layout(source.config).values():
        for name in entry.names:
            digests[name] = digest(source.checkpoint.read(name), source.dtype)
            done += math.prod(entry.hf_shape) * source.dtype.itemsize
            progress(done, total)
    return fingerprint(source.config, source.dtype, digests)


class PlannedArray(NamedTuple):
    """One array that a conversion would store.

    Attributes:
        path: Where in the nested dictionary.
        shape: Of the array, ``layers`` first if it is stacked.
        layers: How many blocks are stacked in it; 0 if it belongs to none.
        nbytes: Of its values.
        files: How many files it is stored in.
        tile: Shape of the smallest part that can be read.
    """

    path: str
    shape: tuple[int, ...]
    layers: int
    nbytes: int
    files: int
    tile: tuple[int, ...]


class Plan(NamedTuple):
    """What a conversion would do.

    Attributes:
        out: Where the model directory is to stand.
        dtype: Type to store the weights in.
        arrays: What is stored.
        shards: The source's weight files and their sizes.
        parameters: Number of values.
        weights: Bytes of them: what the devices must hold in all.
        disk: Bytes needed on disk.
        free: Bytes free there.
        memory: Bytes of host memory that the conversion is expected to need.
        tokenizer: Whether the source has one.
        refusal: Why the conversion would be refused, if it would be.
    """

    out: Path
    dtype: np.dtype
    arrays: list[PlannedArray]
    shards: dict[Path, int]
    parameters: int
    weights: int
    disk: int
    free: int
    memory: int
    tokenizer: bool
    refusal: str | None


def plan(
    source: str,
    out: str | Path,
    *,
    revision: str | None = None,
    dtype: Dtype | None = None,
    overwrite: bool = False,
) -> Plan:
    """Says what ``convert`` would do with these arguments; reads headers and writes nothing.

    Raises:
        UserError: Anything is wrong with the source.
    """
    folder = fetch(source, revision).folder
    opened = open_source(folder, dtype)
    itemsize = opened.dtype.itemsize
    planned, largest = [], 0
    for path, entry in qwen3.layout(opened.config).items():
        cut = arrays.tiling(entry.shape, entry.axes, itemsize)
        largest = max(largest, math.prod(cut.piece) * itemsize)
        planned.append(
            PlannedArray(
                path,
                entry.shape,
                len(entry.names) if entry.stacked else 0,
                math.prod(entry.shape) * itemsize,
                arrays.stored(entry.shape, cut, itemsize).files,
                cut.tile,
            )
        )
    out = Path(out).absolute()
    disk = disk_bytes(opened.config, opened.dtype, companions(folder))
    refusal = None
    try:
        refuse_without_room(out, disk)
        if not (out / staging.MANIFEST).is_file():
            refuse_to_replace(out, overwrite=overwrite)
    except UserError as error:
        refusal = str(error)
    weights = weight_bytes(opened.config, opened.dtype)
    files = {tensor.file for tensor in opened.checkpoint.tensors.values()}
    return Plan(
        out=out,
        dtype=opened.dtype,
        arrays=planned,
        shards={file: file.stat().st_size for file in sorted(files)},
        parameters=weights // itemsize,
        weights=weights,
        disk=disk,
        free=free_bytes(out),
        memory=_PROCESS_BYTES + 3 * arrays.PIECES_IN_FLIGHT * largest,
        tokenizer=has_tokenizer(folder),
        refusal=refusal,
    )


def describe(plan: Plan) -> str:
    """A plan as a table for people."""
    rows = [("array", "shape", "bytes", "files", "smallest read")]
    for array in plan.arrays:
        stacked = f" ({array.layers} layers stacked)" if array.layers else ""
        shape = f"{list(array.shape)}{stacked}"
        rows.append(
            (array.path, shape, f"{array.nbytes:,}", f"{array.files:,}", str(list(array.tile)))
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [f"source: {len(plan.shards)} weight files, {sum(plan.shards.values()):,} bytes"]
    lines += [f"  {file.name}  {size:,}" for file, size in plan.shards.items()]
    lines += [f"arrays, all {plan.dtype}:"]
    for path, shape, *numbers, tile in rows:
        cells = [path.ljust(widths[0]), shape.ljust(widths[1])]
        cells += [number.rjust(width) for number, width in zip(numbers, widths[2:4], strict=True)]
        lines.append("  " + "  ".join([*cells, tile]).rstrip())
    free = "enough" if plan.free >= plan.disk else "too little"
    stands = (plan.out / staging.MANIFEST).is_file()
    lines += [
        f"parameters      {plan.parameters:,}",
        f"device memory   {plan.weights:,} bytes for the parameters, over all devices",
        f"host memory     {plan.memory:,} bytes expected at the peak of the conversion",
        f"disk            {plan.disk:,} bytes needed, {plan.free:,} free at {plan.out}: {free}",
    ]
    if not plan.tokenizer:
        lines.append(f"warning: {NO_TOKENIZER}")
    if plan.refusal:
        lines.append(f"would refuse: {plan.refusal}")
    elif stands:
        lines.append(
            f"{plan.out} holds a model already: unchanged if it is this one, replaced only with "
            "--overwrite"
        )
    return "\n".join(lines)
