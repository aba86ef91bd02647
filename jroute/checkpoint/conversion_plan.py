"""What a conversion would store and need: ``python -m jroute.convert --dry-run``."""

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from converters import mapping
from converters.hub import fetch
from jroute.checkpoint import arrays
from jroute.checkpoint.companions import companions, has_tokenizer
from jroute.checkpoint.conversion import NO_TOKENIZER, Dtype, Source, open_source
from jroute.checkpoint.replacing import is_free, obstacle, refuse_to_replace
from jroute.checkpoint.staging import destination
from jroute.checkpoint.writer import disk_bytes, free_bytes, refuse_without_room, weight_bytes
from jroute.utils.errors import UserError

_PROCESS_BYTES = 128 * 2**20  # of the interpreter with its libraries, before the first weight


class PlannedArray(NamedTuple):
    """One array that a conversion would store.

    Attributes:
        path: Its path in the nested dictionary.
        shape: Its shape, ``layers`` first if it is stacked.
        layers: Number of blocks stacked in it; 0 if it belongs to no block.
        nbytes: Bytes of its values.
        piece_bytes: Bytes of the largest part that is written at once.
        files: Number of files that store it.
        tile: Shape of the smallest part that can be read.
    """

    path: str
    shape: tuple[int, ...]
    layers: int
    nbytes: int
    piece_bytes: int
    files: int
    tile: tuple[int, ...]


class ConversionPlan(NamedTuple):
    """What a conversion would do.

    Attributes:
        out: The model directory to write.
        dtype: Type in which the weights are stored.
        arrays: What is stored.
        shards: Sizes of the source's weight files, in bytes.
        parameters: Number of values.
        weights: Their size in bytes, which the devices together must hold.
        disk: Bytes needed on disk.
        free: Bytes free there.
        memory: Bytes of host memory that the conversion is expected to need.
        tokenizer: Whether the source has one.
        refusal: Why the conversion would be refused, or ``None``.
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


def plan_conversion(
    source: str,
    out: str | Path,
    *,
    revision: str | None = None,
    dtype: Dtype | None = None,
    overwrite: bool = False,
) -> ConversionPlan:
    """Return what ``convert`` would do with these arguments; read headers only, write nothing.

    Raises:
        UserError: The source cannot be converted.
    """
    folder = fetch(source, revision).folder
    opened = open_source(folder, dtype)
    planned = _planned_arrays(opened)
    out = destination(out)
    disk = disk_bytes(opened.config, opened.dtype, companions(folder))
    weights = weight_bytes(opened.config, opened.dtype)
    files = {tensor.file for tensor in opened.checkpoint.tensors.values()}
    largest = max(array.piece_bytes for array in planned)
    return ConversionPlan(
        out=out,
        dtype=opened.dtype,
        arrays=planned,
        shards={file: file.stat().st_size for file in sorted(files)},
        parameters=weights // opened.dtype.itemsize,
        weights=weights,
        disk=disk,
        free=free_bytes(out),
        memory=_PROCESS_BYTES + 3 * arrays.PIECES_IN_FLIGHT * largest,
        tokenizer=has_tokenizer(folder),
        refusal=_refusal(out, disk, overwrite=overwrite),
    )


def _planned_arrays(source: Source) -> list[PlannedArray]:
    planned, itemsize = [], source.dtype.itemsize
    for path, entry in mapping.layout(source.config).items():
        tiling = arrays.tiling(entry.shape, entry.axes, itemsize)
        planned.append(
            PlannedArray(
                path=path,
                shape=entry.shape,
                layers=len(entry.names) if entry.stacked else 0,
                nbytes=math.prod(entry.shape) * itemsize,
                piece_bytes=math.prod(tiling.piece) * itemsize,
                files=arrays.disk_usage(entry.shape, tiling, itemsize).files,
                tile=tiling.tile,
            )
        )
    return planned


def _refusal(out: Path, disk: int, *, overwrite: bool) -> str | None:
    try:
        refuse_without_room(out, disk)
        if overwrite or obstacle(out) is not None:
            refuse_to_replace(out, overwrite=overwrite)
    except UserError as error:
        return str(error)
    return None


def describe(plan: ConversionPlan) -> str:
    """Return a plan as text, with a table of its arrays."""
    free = "enough" if plan.free >= plan.disk else "too little"
    lines = [
        f"source: {len(plan.shards)} weight files, {sum(plan.shards.values()):,} bytes",
        *(f"  {file.name}  {size:,}" for file, size in plan.shards.items()),
        f"arrays, all {plan.dtype}:",
        *_array_table(plan.arrays),
        f"parameters      {plan.parameters:,}",
        f"device memory   {plan.weights:,} bytes for the parameters, over all devices",
        f"host memory     {plan.memory:,} bytes expected at the peak of the conversion",
        f"disk            {plan.disk:,} bytes needed, {plan.free:,} free at {plan.out}: {free}",
    ]
    if not plan.tokenizer:
        lines.append(f"warning: {NO_TOKENIZER}")
    if plan.refusal:
        lines.append(f"would refuse: {plan.refusal}")
    elif not is_free(plan.out):
        lines.append(
            f"{plan.out} holds a model already: unchanged if it is this one, replaced only with "
            "--overwrite"
        )
    return "\n".join(lines)


def _array_table(planned: list[PlannedArray]) -> list[str]:
    rows = [("array", "shape", "bytes", "files", "smallest read")]
    for array in planned:
        stacked = f" ({array.layers} layers stacked)" if array.layers else ""
        shape = f"{list(array.shape)}{stacked}"
        rows.append(
            (array.path, shape, f"{array.nbytes:,}", f"{array.files:,}", str(list(array.tile)))
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for path, shape, *numbers, tile in rows:
        cells = [path.ljust(widths[0]), shape.ljust(widths[1])]
        cells += [number.rjust(width) for number, width in zip(numbers, widths[2:4], strict=True)]
        lines.append("  " + "  ".join([*cells, tile]).rstrip())
    return lines
