"""Export: a model directory as a folder in Hugging Face layout, bit for bit."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

from converters import qwen3
from converters.safetensors import INDEX, WEIGHTS, read_json, write
from jroute.checkpoint.arrays import disk_errors, open_array, reason
from jroute.checkpoint.digests import digest
from jroute.checkpoint.model import read_manifest
from jroute.checkpoint.staging import Staging, is_free, recover
from jroute.model.config import Qwen3Config
from jroute.utils.errors import UserError
from jroute.utils.files import sync_tree
from jroute.utils.keys import restored

SHARD_BYTES = 2**30
"""Weight files are at most this large, unless a single tensor is larger."""


class StoredTensors:
    """The tensors of a model directory under their Hugging Face names, read one at a time.

    Attributes:
        manifest: The manifest of the model directory.
        dtype: Type in which all of them are stored.
        shapes: Their shapes as Hugging Face orients them, in the order of releases.
    """

    def __init__(self, directory: Path):
        """Open the model directory.

        Raises:
            UserError: It is missing, unfinished, not a model directory, or damaged.
        """
        self._directory = Path(directory).absolute()
        self.manifest = read_manifest(self._directory)
        self.dtype = np.dtype(self.manifest["dtype"])
        entries = qwen3.layout(Qwen3Config(**restored(Qwen3Config, self.manifest["config"])))
        self._places = {
            name: (path, entry, layer)
            for path, entry in entries.items()
            for layer, name in enumerate(entry.names)
        }
        names = sorted(self._places, key=published_order)
        self.shapes = {name: self._places[name][1].hf_shape for name in names}
        self._open: dict[str, Any] = {}

    @property
    def sizes(self) -> dict[str, int]:
        """The bytes of every tensor, by name."""
        return {
            name: int(np.prod(shape)) * self.dtype.itemsize for name, shape in self.shapes.items()
        }

    def read(self, name: str) -> np.ndarray:
        """Read one tensor as Hugging Face orients it.

        Raises:
            UserError: A part of it is missing, or cannot be read.
        """
        path, entry, layer = self._places[name]
        try:
            if path not in self._open:
                self._open[path] = open_array(self._directory / "params", path)
            stored = self._open[path]
            inner = (stored[layer] if entry.stacked else stored).read().result()
        except ValueError as error:  # tensorstore's only kind
            raise UserError(
                f"{self._directory} is damaged: {name} cannot be read ({reason(error)}); "
                "convert again with --overwrite"
            ) from error
        return qwen3.take(entry, inner)


def export(
    model_dir: Path,
    out: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Path]:
    """Write a model directory as a folder that transformers loads.

    The tensors have the bits that the conversion stored; the files that came with the weights are
    copied, and ``config.json`` differs from the source's only where the conversion changed the
    type of the weights. With tied embeddings an output layer that the source repeated is left out.
    Host memory holds one weight file at a time.

    Args:
        model_dir: A finished model directory.
        out: The folder to write; missing or empty.
        progress: Called with the bytes written so far and in total.

    Returns:
        The files written.

    Raises:
        UserError: The model directory is damaged, or ``out`` is taken or cannot be written.
    """
    model_dir, stored = Path(model_dir), StoredTensors(model_dir)
    sizes = stored.sizes
    done = 0

    def read(names: Sequence[str]) -> dict[str, np.ndarray]:
        nonlocal done
        tensors = {}
        for name in names:
            tensors[name] = stored.read(name)
            if digest(tensors[name]) != stored.manifest["tensors"][name]:
                raise UserError(
                    f"{model_dir} is damaged: {name} is not what was converted; "
                    "convert again with --overwrite"
                )
            done += sizes[name]
            progress(done, sum(sizes.values()))
        return tensors

    with new_folder(out) as partial:
        for name in stored.manifest["companions"]:
            if not (model_dir / name).is_file():
                raise UserError(f"{model_dir} is damaged: {name} is missing; convert again")
            shutil.copyfile(model_dir / name, partial / name)
        content = read_json(partial / "config.json")
        changed = {
            key: str(stored.dtype)
            for key in ("torch_dtype", "dtype")
            if content.get(key, str(stored.dtype)) != str(stored.dtype)
        }
        if changed:
            text = json.dumps(content | changed, indent=2, ensure_ascii=False) + "\n"
            (partial / "config.json").write_text(text, encoding="utf-8")
        write_shards(partial, sizes, read, SHARD_BYTES)
        names = sorted(file.name for file in partial.iterdir())
        sync_tree(partial)
    return [Path(out) / name for name in names]


def listing(out: Path, files: Sequence[Path]) -> str:
    """Return the files of an export and their sizes, as text."""
    sizes = (f"  {file.name}  {file.stat().st_size:,} bytes" for file in files)
    return "\n".join([f"wrote {out}", *sizes])


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes ``out`` when the block succeeds.

    Raises:
        UserError: ``out`` exists and is not an empty folder, or cannot be written.
    """
    out = Path(out).absolute()
    recover(out)
    if not is_free(out):
        raise UserError(f"{out} exists and is not an empty folder; choose another --out")
    staging = Staging(out)
    staging.begin()
    try:
        with disk_errors(out.parent):
            try:
                yield staging.partial
            except SafetensorError as error:  # a full disk, while writing
                raise OSError(str(error)) from error
            staging.publish()
    finally:
        staging.discard()


def published_order(name: str) -> tuple[bool, list[tuple[int, str]]]:
    """Return a key that sorts tensor names as releases do: block by block, output layer last."""
    parts = [(int(part), "") if part.isdecimal() else (-1, part) for part in name.split(".")]
    return name.startswith("lm_head"), parts


def plan_shards(sizes: Mapping[str, int], limit: int) -> list[list[str]]:
    """Spread tensors over weight files in the given order, and return the names per file.

    Args:
        sizes: Bytes of every tensor, by name.
        limit: Most bytes of a file; a larger tensor gets its own file.
    """
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > limit:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def write_shards(
    folder: Path,
    sizes: Mapping[str, int],
    read: Callable[[Sequence[str]], Mapping[str, np.ndarray]],
    limit: int,
) -> list[Path]:
    """Write weights in the published layout: one file, or numbered shards with an index.

    Args:
        folder: Where to write.
        sizes: Bytes of every tensor, by name, in the order of storage.
        read: Returns the tensors of one file; host memory holds no more than these.
        limit: Most bytes of a file.

    Returns:
        The files, the index last.
    """
    shards = plan_shards(sizes, limit)
    count = len(shards)
    files, weight_map = [], {}
    for number, names in enumerate(shards, 1):
        name = f"model-{number:05}-of-{count:05}.safetensors" if count > 1 else WEIGHTS
        write(folder / name, read(names))
        files.append(folder / name)
        weight_map.update(dict.fromkeys(names, name))
    if count > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        files.append(folder / INDEX)
    return files
