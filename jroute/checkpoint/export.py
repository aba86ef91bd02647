"""Export: a model directory as a folder in Hugging Face layout, bit for bit."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError

from converters.safetensors import DTYPES, INDEX, WEIGHTS, Checkpoint, write
from jroute.checkpoint.companions import check_companions
from jroute.checkpoint.digests import digest
from jroute.checkpoint.replacing import convert_again, is_free
from jroute.checkpoint.staging import ROOM, Staging, destination, recover
from jroute.checkpoint.stored_tensors import StoredTensors
from jroute.checkpoint.writer import refuse_without_room
from jroute.utils.disk import disk_errors
from jroute.utils.errors import UserError
from jroute.utils.files import sync_tree
from jroute.utils.json_files import read_bytes, read_json

SHARD_BYTES = 2**30
"""Weight files are at most this large, unless a single tensor is larger."""

_SMALL_FILES = 2**20  # headers and index


class Export(NamedTuple):
    """What an export did.

    Attributes:
        files: The files of the folder.
        written: Whether this export wrote them; otherwise they were there already.
    """

    files: list[Path]
    written: bool


def export(
    model_dir: Path,
    out: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Export:
    """Write a model directory as a folder that transformers loads; a second time changes nothing.

    The tensors have the bits that the conversion stored; the files that came with the weights are
    copied, and ``config.json`` differs from the source's only where the conversion changed the
    type of the weights. With tied embeddings an output layer that the source repeated is left out.
    Host memory holds one weight file at a time.

    Args:
        model_dir: A finished model directory.
        out: The folder to write; missing, empty, or what an earlier export of the model wrote.
        progress: Called with the bytes written so far and in total.

    Raises:
        UserError: The model directory is damaged, or ``out`` is taken or cannot be written.
    """
    stored, out = StoredTensors(model_dir), destination(out)
    files, sizes = _companion_contents(Path(model_dir), stored), stored.sizes
    recover(out)
    exported = _exported(out, stored, files)
    if exported is not None:
        return Export(exported, written=False)
    total, done = sum(sizes.values()), 0

    def read(names: Sequence[str]) -> dict[str, np.ndarray]:
        nonlocal done
        tensors = {}
        for name in names:
            tensors[name] = stored.read(name)
            done += sizes[name]
            progress(done, total)
        return tensors

    with new_folder(out, total + sum(map(len, files.values())) + _SMALL_FILES) as partial:
        for name, content in files.items():
            (partial / name).write_bytes(content)
        write_shards(partial, sizes, read, SHARD_BYTES)
        names = sorted(file.name for file in partial.iterdir())
        sync_tree(partial)
    return Export([out / name for name in names], written=True)


def _companion_contents(model_dir: Path, stored: StoredTensors) -> dict[str, bytes]:
    """Return the files beside the weights; ``config.json`` names the type that is stored."""
    remedy = convert_again(model_dir)
    recorded = stored.manifest["companions"]
    check_companions(model_dir, recorded, remedy)
    files = {name: read_bytes(model_dir / name, remedy, max_bytes=2**30) for name in recorded}
    content = read_json(model_dir / "config.json", dict[str, Any], remedy)
    changed = {
        key: str(stored.dtype)
        for key in ("torch_dtype", "dtype")
        if content.get(key, str(stored.dtype)) != str(stored.dtype)
    }
    if changed:
        text = json.dumps(content | changed, indent=2, ensure_ascii=False) + "\n"
        files["config.json"] = text.encode()
    return files


def _exported(out: Path, stored: StoredTensors, files: Mapping[str, bytes]) -> list[Path] | None:
    """Return the files of a finished export of the same model, if it stands there whole."""
    if is_free(out) or not out.is_dir():
        return None
    try:
        same = all(read_bytes(out / name, "", max_bytes=2**30) == files[name] for name in files)
        checkpoint = Checkpoint(out) if same else None
    except UserError:  # a file is missing or damaged
        return None
    if checkpoint is None or checkpoint.tensors.keys() != stored.shapes.keys():
        return None
    digests = stored.manifest["tensors"]
    if any(checkpoint.tensors[name].dtype not in DTYPES for name in digests) or any(
        digest(checkpoint.read(name)) != digests[name] for name in digests
    ):
        return None
    weights = {tensor.file.name for tensor in checkpoint.tensors.values()}
    index = {INDEX} if len(weights) > 1 else set()
    return [out / name for name in sorted({*files, *weights, *index})]


def listing(out: Path, result: Export) -> str:
    """Return the files of an export and their sizes, as text."""
    sizes = (f"  {file.name}  {file.stat().st_size:,} bytes" for file in result.files)
    return "\n".join([f"{'wrote' if result.written else 'already there:'} {out}", *sizes])


@contextmanager
def new_folder(out: Path, needed: int) -> Iterator[Path]:
    """Yield a temporary folder that becomes ``out`` when the block succeeds.

    Args:
        out: The folder to write.
        needed: Bytes that it takes.

    Raises:
        UserError: ``out`` exists and is not an empty folder, or cannot be written.
    """
    out = destination(out)
    recover(out)
    _refuse_taken(out)
    refuse_without_room(out, needed)
    staging = Staging(out)
    staging.begin()
    try:
        _refuse_taken(out)  # another process was faster
        with disk_errors(out.parent, needed, ROOM):
            try:
                yield staging.partial
            except SafetensorError as error:  # a full disk, while writing
                raise OSError(str(error)) from error
            _refuse_taken(out)
            staging.publish()
    finally:
        staging.discard()


def _refuse_taken(out: Path) -> None:
    if not is_free(out):
        raise UserError(
            f"{out} exists and is not an empty folder; choose another --out or remove it"
        )


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
