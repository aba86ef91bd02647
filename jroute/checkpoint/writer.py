"""Writing model directories."""

import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
from jax.typing import DTypeLike

from converters import mapping
from converters.hf_config import config_to_hf
from jroute.checkpoint import arrays, staging
from jroute.checkpoint.companions import companion_digests, companions
from jroute.checkpoint.digests import digest, fingerprint
from jroute.checkpoint.manifest import FORMAT, manifest_digest, metadata_digests
from jroute.checkpoint.replacing import MANIFEST, refuse_to_replace
from jroute.model.config import DecoderConfig
from jroute.utils.disk import disk_errors
from jroute.utils.errors import UserError
from jroute.utils.files import sync, sync_tree, write_json
from jroute.utils.keys import stored
from jroute.utils.machine import version
from jroute.utils.trees import flatten

_PACKAGES = (
    "jroute",
    "jax",
    "flax",
    "orbax-checkpoint",
    "tensorstore",
    "numpy",
    "ml_dtypes",
    "safetensors",
)
_SMALL_FILES = 2**20  # manifest and metadata


class ModelWriter:
    """Write a model directory array by array; it gets its name when it is complete.

    Use it as a context manager, and ``add`` every array once. If the block raises, nothing remains.

    Attributes:
        manifest: Content of ``manifest.json``, once the block has ended.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        config: DecoderConfig,
        dtype: DTypeLike,
        *,
        source: Mapping[str, Any] | None = None,
        source_files: Sequence[Path] = (),
        overwrite: bool = False,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ):
        """Prepare to write, and clean up after killed writers of the same directory.

        Args:
            directory: The model directory to write.
            config: Shape of the model.
            dtype: Type in which to store the weights.
            source: Where the weights came from, for the manifest.
            source_files: Files to copy beside them (see ``companions``).
            overwrite: Whether to replace a model in ``directory``.
            progress: Called with the bytes of weights written so far and in total.

        Raises:
            UserError: ``directory`` holds something that may not be replaced.
        """
        self.directory = staging.destination(directory)
        self.config = config
        self.manifest: dict[str, Any] = {}
        self._dtype = np.dtype(dtype)
        self._source = dict(source or {})
        self._files = list(source_files)
        self._overwrite = overwrite
        self._progress = progress
        self._entries = mapping.layout(config)
        self._bytes = weight_bytes(config, self._dtype)
        self._done = 0
        self._digests: dict[str, str] = {}
        self._staging = staging.Staging(self.directory)
        self._params = self._staging.partial / "params"
        self._disk = disk_bytes(config, self._dtype, self._files)
        self._hashing = ThreadPoolExecutor(1, "sha256")
        self._hashes = arrays.Pipeline(arrays.PIECES_IN_FLIGHT)
        self._writes = arrays.Pipeline(arrays.PIECES_IN_FLIGHT)
        staging.recover(self.directory)
        refuse_to_replace(self.directory, overwrite=overwrite)

    def __enter__(self) -> "ModelWriter":
        refuse_without_room(self.directory, self._disk)
        self._staging.begin()
        try:
            refuse_to_replace(self.directory, overwrite=self._overwrite)  # if another was faster
            with self._disk_errors():
                arrays.write_tree(self._params, self._entries)
        except BaseException:
            self._clean_up()
            raise
        return self

    def add(self, path: str, read: Callable[[str], np.ndarray]) -> None:
        """Write one array of the nested dictionary, and hash its tensors.

        Args:
            path: Path in the nested dictionary.
            read: Returns the tensors that make up the array, by their Hugging Face names. Views of
                mapped files are best: they are never copied as a whole.
        """
        entry = self._entries.pop(path)
        cut = arrays.tiling(entry.shape, entry.axes, self._dtype.itemsize)
        with self._disk_errors():
            store = arrays.create(self._params, path, entry.shape, self._dtype, cut)
        lead = cut.piece[:1] if entry.stacked else (1,)
        inner = cut.piece[1:] if entry.stacked else cut.piece
        for blocks in arrays.pieces((len(entry.names),), lead):
            names = entry.names[blocks[0]]
            tensors = [self._checked(entry, name, read(name)) for name in names]
            for name, tensor in zip(names, tensors, strict=True):
                self._digests[name] = ""  # keeps the order
                hashed = self._hashing.submit(digest, tensor, self._dtype)
                self._hashes.add(hashed, lambda value, name=name: self._set_digest(name, value))
            for part in arrays.pieces(entry.inner, inner):
                shape = tuple(one.stop - one.start for one in part)
                piece = np.empty((len(names), *shape), self._dtype)
                for i, tensor in enumerate(tensors):
                    mapping.place(entry, tensor, piece[i], part[0].start)
                where, value = (blocks + part, piece) if entry.stacked else (part, piece[0])
                written = store[where].write(value, can_reference_source_data_indefinitely=True)
                with self._disk_errors():
                    self._writes.add(written, lambda _, size=piece.nbytes: self._advance(size))

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                with self._disk_errors():
                    self._finish()
        finally:
            self._clean_up()

    def _disk_errors(self) -> AbstractContextManager[None]:
        return disk_errors(self.directory.parent, self._disk, staging.ROOM)

    def _clean_up(self) -> None:
        try:
            self._hashes.abandon()
            self._writes.abandon()  # otherwise it would go on creating files
            self._hashing.shutdown()
        finally:
            self._staging.discard()

    def _checked(self, entry: mapping.Entry, name: str, tensor: np.ndarray) -> np.ndarray:
        if tensor.shape != entry.hf_shape:
            raise ValueError(
                f"{name} has shape {tensor.shape}, its config implies {entry.hf_shape}"
            )
        return tensor

    def _set_digest(self, name: str, value: str) -> None:
        self._digests[name] = value

    def _advance(self, size: int) -> None:
        self._done += size
        self._progress(self._done, self._bytes)

    def _finish(self) -> None:
        if self._entries:
            raise ValueError(f"these arrays were never added: {', '.join(self._entries)}")
        self._hashes.drain()
        self._writes.drain()
        partial = self._staging.partial
        for file in self._files:
            shutil.copyfile(file, partial / file.name)
        if not (partial / "config.json").exists():
            write_json(partial / "config.json", config_to_hf(self.config))
        files = sorted(file for file in self._params.rglob("*") if file.is_file())
        stored_files = {file.relative_to(partial).as_posix(): file.stat().st_size for file in files}
        content = {
            "format": FORMAT,
            "fingerprint": fingerprint(self.config, self._dtype, self._digests),
            "source": self._source,
            "config": stored(self.config),
            "dtype": str(self._dtype),
            "parameters": self._bytes // self._dtype.itemsize,
            "bytes": self._bytes,
            "tensors": self._digests,
            "companions": companion_digests(companions(partial)),
            "stored": stored_files,
            "metadata": metadata_digests(partial, list(stored_files)),
            "versions": {name: version(name) for name in _PACKAGES},
        }
        self.manifest = {**content, "digest": manifest_digest(content)}
        sync_tree(partial)
        write_json(partial / MANIFEST, self.manifest)
        sync(partial)
        self._staging.publish(overwrite=self._overwrite)


def save_model(
    directory: str | os.PathLike[str],
    params: Mapping[str, Any],
    config: DecoderConfig,
    source_files: Sequence[Path] = (),
    *,
    source: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write a model directory from parameters in memory and return its manifest.

    Args:
        directory: The model directory to write.
        params: Parameters as ``forward`` takes them, with ``blocks`` stacked, all of one type.
        config: Their shape.
        source_files: Files to copy beside them (see ``companions``).
        source: Where the weights came from, for the manifest.
        overwrite: Whether to replace a model in ``directory``.

    Raises:
        UserError: ``directory`` holds something that may not be replaced.
    """
    leaves = flatten(params)
    dtypes = {np.dtype(leaf.dtype) for leaf in leaves.values()}
    if len(dtypes) != 1:
        raise ValueError(f"parameters are of several types: {sorted(map(str, dtypes))}")
    writer = ModelWriter(
        directory,
        config,
        dtypes.pop(),
        source=source,
        source_files=source_files,
        overwrite=overwrite,
    )
    entries = mapping.layout(config)
    with writer:
        for path, leaf in sorted(leaves.items()):
            entry, value = entries[path], np.asarray(leaf)
            if value.shape != entry.shape:
                raise ValueError(f"{path} has shape {value.shape}, not {entry.shape}")
            blocks = dict(zip(entry.names, value if entry.stacked else [value], strict=True))
            writer.add(path, lambda name, e=entry, b=blocks: mapping.take(e, b[name]))
    return writer.manifest


def weight_bytes(config: DecoderConfig, dtype: DTypeLike) -> int:
    """Return the bytes of all parameters."""
    values = sum(math.prod(entry.shape) for entry in mapping.layout(config).values())
    return values * np.dtype(dtype).itemsize


def disk_bytes(config: DecoderConfig, dtype: DTypeLike, files: Sequence[Path] = ()) -> int:
    """Return the bytes that a model directory takes, with ``files`` beside the weights."""
    itemsize = np.dtype(dtype).itemsize
    return (
        sum(
            arrays.disk_usage(e.shape, arrays.tiling(e.shape, e.axes, itemsize), itemsize).nbytes
            for e in mapping.layout(config).values()
        )
        + sum(file.stat().st_size for file in files)
        + _SMALL_FILES
    )


def refuse_without_room(directory: Path, needed: int) -> None:
    """Raise a ``UserError`` if the disk of ``directory`` has too little room."""
    free = free_bytes(directory)
    if free < needed:
        raise UserError(
            f"{directory} needs {needed:,} bytes of disk and {free:,} are free there; "
            "make room or choose another --out"
        )


def free_bytes(directory: Path) -> int:
    """Return the free bytes on the disk of ``directory``, which need not exist."""
    return shutil.disk_usage(
        next(path for path in [directory, *directory.parents] if path.exists())
    ).free
