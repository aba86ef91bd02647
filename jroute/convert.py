"""Hugging Face weights in, a jroute model directory out: ``python -m jroute.convert --help``."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import jax
import numpy as np
from tqdm import tqdm

from converters import qwen3
from converters.safetensors import Checkpoint, fetch, read_json
from jroute.checkpoint import (
    MANIFEST,
    ModelWriter,
    companion_digests,
    companions,
    digest,
    fingerprint,
    read_manifest,
    refuse_to_replace,
)
from jroute.door import door, enter
from jroute.model.config import Qwen3Config

Dtype = Literal["float32", "bfloat16"]


class Conversion(NamedTuple):
    """What a conversion did: the manifest of the model, and whether it was written just now."""

    manifest: dict[str, Any]
    written: bool


class Source(NamedTuple):
    """A checkpoint that was found to be convertible, and the type to convert it to."""

    checkpoint: Checkpoint
    config: Qwen3Config
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        """Bytes to read."""
        names = [name for entry in qwen3.layout(self.config).values() for name in entry.names]
        return sum(self.checkpoint.tensors[name].nbytes for name in names)


def open_source(folder: Path, dtype: Dtype | None = None) -> Source:
    """Opens a checkpoint folder and checks it whole, without reading a weight.

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
    """Converts a checkpoint; converting the same one to the same place again changes nothing.

    Args:
        source: A local folder or a Hugging Face hub id.
        out: Where the model directory is to stand.
        revision: Branch, tag or commit on the hub.
        dtype: Type to store the weights in; by default as in the source.
        overwrite: Replace another model that stands at ``out``.
        progress: Called with bytes read so far and bytes to read.

    Raises:
        UserError: Anything is wrong with the source, or ``out`` is taken.
    """
    found = fetch(source, revision)
    opened = open_source(found.folder, dtype)
    total = opened.nbytes
    done = 0

    def read(name: str) -> np.ndarray:
        nonlocal done
        tensor = opened.checkpoint.read(name)
        done += tensor.nbytes
        progress(done, total)
        return tensor

    out = Path(out)
    entries = qwen3.layout(opened.config)
    if not overwrite and (out / MANIFEST).is_file():
        manifest = read_manifest(out)
        names = [name for entry in entries.values() for name in entry.names]
        digests = {name: digest(read(name).astype(opened.dtype, copy=False)) for name in names}
        same = manifest["fingerprint"] == fingerprint(opened.config, opened.dtype, digests)
        if same and manifest["companions"] == companion_digests(companions(found.folder)):
            return Conversion(manifest, written=False)
        refuse_to_replace(out, overwrite=False)
    writer = ModelWriter(
        out,
        opened.config,
        source={"name": source, "revision": found.revision},
        source_files=companions(found.folder),
        overwrite=overwrite,
    )
    with writer:
        for path, entry in entries.items():
            writer.add(path, qwen3.assemble(entry, read, opened.dtype))
    return Conversion(writer.manifest, written=True)


@door
def main(argv: Sequence[str] | None = None) -> None:
    """Parses, converts, prints."""
    parser = argparse.ArgumentParser(prog="python -m jroute.convert", description=__doc__)
    parser.add_argument(
        "--source",
        required=True,
        help="folder in Hugging Face layout, or a hub id like Qwen/Qwen3-4B",
    )
    parser.add_argument("--out", required=True, help="the model directory to write")
    parser.add_argument("--revision", help="branch, tag or commit on the hub")
    parser.add_argument(
        "--dtype", choices=get_args(Dtype), help="type to store (default: as in the source)"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace another model that stands at --out"
    )
    arguments = parser.parse_args(argv)
    with _ProgressBar() as progress:
        result = convert(**vars(arguments), progress=progress)
    manifest = result.manifest
    print(f"{'wrote' if result.written else 'already there:'} {arguments.out}")
    print(f"  tensors      {len(manifest['tensors']):,}")
    print(f"  parameters   {manifest['parameters']:,}")
    print(f"  bytes        {manifest['bytes']:,} ({manifest['dtype']})")
    print(f"  files        {', '.join(manifest['companions'])}")
    print(f"  fingerprint  {manifest['fingerprint']}")


class _ProgressBar:
    """A bar in bytes that shows itself when the first ones are read, so not before an error."""

    def __init__(self) -> None:
        self._bar: tqdm | None = None

    def __enter__(self) -> "_ProgressBar":
        return self

    def __call__(self, done: int, total: int) -> None:
        if self._bar is None:
            self._bar = tqdm(desc="convert", total=total, unit="B", unit_scale=True)
        self._bar.update(done - self._bar.n)

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")  # an accelerator has no part in a conversion
    enter(main, "nothing was written")
