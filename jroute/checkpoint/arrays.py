"""The arrays of a model on disk: one Orbax tree of Zarr arrays, written and read in parts.

Orbax lays the tree out and writes its metadata; the values go through tensorstore, which lies
beneath it. Every array is a folder in Zarr version 3. A file holds a *piece* of it, some blocks or
some rows, uncompressed; within the file the piece is cut into *tiles* along the axes that a mesh
may cut, so that a device reads its part of the file by byte ranges and nothing else. Every tile has
a checksum, which is verified whenever the tile is read, and so has the index of tiles. No host
holds more of an array at once than the pieces in flight when it writes, or its own part when it
reads.
"""

import itertools
import json
import math
import re
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from jax.sharding import Sharding

from jroute.checkpoint.storage import quiet
from jroute.distributed.mesh import RULES
from jroute.utils.disk import system_message
from jroute.utils.trees import unflatten

PIECE_BYTES = 64 * 2**20
"""Most bytes of a file, unless a single row is larger."""

PIECES_IN_FLIGHT = 4
"""How many pieces may wait for the disk; the encoder holds up to two more copies of each."""

_TILE_BYTES = 16 * 2**10  # smaller reads cost more than what they leave out
_CHECKSUM = 4  # bytes of a CRC-32C, which ends every tile and every index
_PARTS = 8  # every axis that a mesh may cut is cut into this many tiles per piece, if it can be


class Tiling(NamedTuple):
    """How an array is cut: the shape of a file's content, and of the smallest part to read."""

    piece: tuple[int, ...]
    tile: tuple[int, ...]


def tiling(shape: tuple[int, ...], axes: tuple[str, ...], itemsize: int) -> Tiling:
    """Cut an array into pieces and tiles.

    Args:
        shape: Shape of the array.
        axes: Logical names of its axes; only those that ``jroute.distributed.mesh`` lays on a
            mesh axis are cut into tiles, and ``layers``.
        itemsize: Bytes of a value.
    """
    stacked = axes[0] == "layers"
    inner = list(shape[1:] if stacked else shape)
    size = math.prod(inner) * itemsize
    if size > PIECE_BYTES:
        inner[0] = _part(inner[0], max(1, PIECE_BYTES * inner[0] // size))
    blocks = max(1, min(shape[0], PIECE_BYTES // size)) if stacked else 1
    tile, size = list(inner), math.prod(inner) * itemsize
    for axis, name in enumerate(axes[1:] if stacked else axes):
        for parts in (_PARTS, 4, 2):
            if RULES[name] and tile[axis] % parts == 0 and size // parts >= _TILE_BYTES:
                tile[axis] //= parts
                size //= parts
                break
    if not stacked:
        return Tiling(tuple(inner), tuple(tile))
    return Tiling((blocks, *inner), (1 if size >= _TILE_BYTES else blocks, *tile))


def _part(length: int, most: int) -> int:
    """Return the length of an axis's parts: at most ``most``, and all equal where possible."""
    equal = (part for part in range(most, most // 2, -1) if length % part == 0)
    return next(equal, most)


class DiskUsage(NamedTuple):
    """The files and bytes that an array takes on disk."""

    files: int
    nbytes: int


def disk_usage(shape: tuple[int, ...], cut: Tiling, itemsize: int) -> DiskUsage:
    """Return files and bytes of an array without its metadata: whole tiles, an index per file."""
    slots = math.prod(a // b for a, b in zip(cut.piece, cut.tile, strict=True))
    files = tiles = 0
    for part in pieces(shape, cut.piece):
        files += 1
        tiles += math.prod(
            math.ceil((one.stop - one.start) / size)
            for one, size in zip(part, cut.tile, strict=True)
        )
    index = 16 * slots + _CHECKSUM  # offset and length of every tile
    return DiskUsage(files, tiles * (math.prod(cut.tile) * itemsize + _CHECKSUM) + files * index)


def pieces(shape: tuple[int, ...], piece: tuple[int, ...]) -> Iterator[tuple[slice, ...]]:
    """Iterate over the pieces of an array in row-major order."""
    cuts = (
        [slice(start, min(start + part, size)) for start in range(0, size, part)]
        for size, part in zip(shape, piece, strict=True)
    )
    return itertools.product(*cuts)


def write_tree(folder: Path, paths: Iterable[str]) -> None:
    """Let Orbax write a tree with these leaves; ``create`` then puts the real arrays into it."""
    tree = unflatten({path: np.zeros(1, np.int8) for path in paths})
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False, use_zarr3=True)
    with quiet(), ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(folder, args=ocp.args.PyTreeSave(tree))
    for array in folder.iterdir():
        if array.is_dir():
            shutil.rmtree(array)
    # It names this folder by its temporary name, and matters on object stores only.
    (folder / "commit_success.txt").unlink(missing_ok=True)
    # It notes the time, but the same source should give the same files.
    notes = folder / "_CHECKPOINT_METADATA"
    content = json.loads(notes.read_text(encoding="utf-8"))
    content |= dict.fromkeys(("init_timestamp_nsecs", "commit_timestamp_nsecs"))
    notes.write_text(json.dumps(content), encoding="utf-8")


def create(
    folder: Path, path: str, shape: tuple[int, ...], dtype: np.dtype, cut: Tiling
) -> ts.TensorStore:
    """Create one array of the tree."""
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    checked = [little, {"name": "crc32c"}]
    tiles = {"chunk_shape": cut.tile, "codecs": checked, "index_codecs": checked}
    metadata = {
        "shape": shape,
        "data_type": str(dtype),
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": cut.piece}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "codecs": [{"name": "sharding_indexed", "configuration": tiles}],
    }
    return ts.open({**_spec(folder, path), "metadata": metadata}, create=True).result()


def open_array(folder: Path, path: str) -> ts.TensorStore:
    """Open one array of the tree for reading; a missing part raises."""
    return ts.open({**_spec(folder, path), "fill_missing_data_reads": False}, open=True).result()


def _spec(folder: Path, path: str) -> dict[str, Any]:
    file = {"driver": "file", "path": str(folder / path.replace("/", "."))}
    return {"driver": "zarr3", "kvstore": file}


@runtime_checkable
class Future(Protocol):
    """What Python's executors and tensorstore return for background work."""

    def result(self) -> Any:
        """Wait for the work."""


class Pipeline:
    """A bounded amount of background work, whose results come in order."""

    def __init__(self, limit: int):
        """Allow up to ``limit`` unfinished tasks."""
        self._limit = limit
        self._tasks: deque[tuple[Future, Callable[[Any], None] | None]] = deque()

    def add(self, future: Future, then: Callable[[Any], None] | None = None) -> None:
        """Add a task; while there are too many, wait for the oldest and call its ``then``."""
        self._tasks.append((future, then))
        while len(self._tasks) > self._limit:
            self._finish_one()

    def drain(self) -> None:
        """Wait for all tasks."""
        while self._tasks:
            self._finish_one()

    def abandon(self) -> None:
        """Wait until no task runs any more, and ignore the results and errors."""
        while self._tasks:
            future, _ = self._tasks.popleft()
            with suppress(Exception):  # only the first error is reported
                future.result()

    def _finish_one(self) -> None:
        future, then = self._tasks.popleft()
        result = future.result()
        if then is not None:
            then(result)


def read_array(
    store: ts.TensorStore, sharding: Sharding | None, dtype: np.dtype | None = None
) -> jax.Array:
    """Read an array straight to its devices, and wait for it.

    The host holds the parts of this process's devices, each once, and a few pieces.

    Args:
        store: The array.
        sharding: Where its parts go; ``None`` puts it uncommitted on the default device.
        dtype: Type to cast to while reading; by default as stored.
    """
    dtype = store.dtype.numpy_dtype if dtype is None else dtype
    if sharding is None:
        return jax.block_until_ready(jax.device_put(_read_part(store, (), dtype)))
    parts: dict[str, np.ndarray] = {}

    def part(index: tuple[slice, ...] | None) -> np.ndarray:
        if str(index) not in parts:  # several devices may hold the same part
            parts[str(index)] = _read_part(store, index or (), dtype)
        return parts[str(index)]

    array = jax.make_array_from_callback(store.shape, sharding, part, dtype)
    return jax.block_until_ready(array)


def _read_part(store: ts.TensorStore, index: tuple[slice, ...], dtype: np.dtype) -> np.ndarray:
    """Read a part of an array piece by piece, so the decoder never holds all of it."""
    wanted = [
        range(*(index[axis] if index else slice(None)).indices(size))
        for axis, size in enumerate(store.shape)
    ]
    result = _aligned_empty(tuple(map(len, wanted)), dtype)
    target = ts.array(result)[ts.d[:].translate_to[[one.start for one in wanted]]]
    typed = store if dtype == store.dtype.numpy_dtype else ts.cast(store, str(dtype))
    reads = Pipeline(PIECES_IN_FLIGHT)
    for piece in pieces(store.shape, cast(tuple[int, ...], store.chunk_layout.write_chunk.shape)):
        overlap = tuple(
            slice(max(part.start, one.start), min(part.stop, one.stop))
            for part, one in zip(piece, wanted, strict=True)
        )
        if all(part.start < part.stop for part in overlap):
            reads.add(target[overlap].write(typed[overlap]))
    reads.drain()
    return result


_ALIGNMENT = 64  # on a CPU, JAX takes over memory aligned like this instead of copying it


def _aligned_empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


_DIGEST = re.compile(r'in local file "([^"]+)".*Digest mismatch', re.DOTALL)


def reason(error: Exception) -> str:
    """Return why an array cannot be read, from the error of tensorstore or of the system."""
    damaged = _DIGEST.search(str(error))
    if damaged:
        return f"a checksum in {damaged[1]} does not match"
    return system_message(error) or str(error).splitlines()[0]
