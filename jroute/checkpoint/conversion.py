"""Convert a checkpoint in Hugging Face layout to a model directory."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from converters import mapping
from converters.hf_config import read_config
from converters.hub import fetch
from converters.safetensors import Checkpoint
from jroute.checkpoint import staging
from jroute.checkpoint.companions import (
    check_companions,
    companion_digests,
    companions,
    has_tokenizer,
)
from jroute.checkpoint.digests import digest
from jroute.checkpoint.manifest import read_manifest
from jroute.checkpoint.replacing import convert_again, looks_like_a_model, refuse_to_replace
from jroute.checkpoint.stored_tensors import StoredTensors
from jroute.checkpoint.writer import ModelWriter
from jroute.model.config import DecoderConfig
from jroute.utils.errors import UserError
from jroute.utils.json_files import Record, read_json
from jroute.utils.keys import stored

Dtype = Literal["float32", "bfloat16"]

NO_TOKENIZER = (
    "the source has no tokenizer, which jroute.load needs; add tokenizer_config.json and "
    "tokenizer.json, or vocab.json and merges.txt, to it"
)
"""Warning about a source whose conversion gives a model that cannot read text."""


class Conversion(NamedTuple):
    """What a conversion did.

    Attributes:
        manifest: The manifest of the model.
        written: Whether this conversion wrote it; otherwise it was there already.
        folder: The source's folder on this machine.
    """

    manifest: dict[str, Any]
    written: bool
    folder: Path


class Source(NamedTuple):
    """A checkpoint that can be converted, with its config and the type to convert it to."""

    checkpoint: Checkpoint
    config: DecoderConfig
    dtype: np.dtype


class Adapter(Record):
    """What ``adapter_config.json`` says about an adapter and the model that it changes."""

    peft_type: str = "LORA"
    base_model_name_or_path: str | None = None


def refuse_adapter(folder: Path) -> None:
    """Raise a ``UserError`` if a folder holds an adapter, whose changes would be left out."""
    file = folder / "adapter_config.json"
    if not file.is_file():
        return
    adapter = read_json(file, Adapter, "merge the adapter into its model")
    base, kind = adapter.base_model_name_or_path, adapter.peft_type.replace("LORA", "LoRA")
    raise UserError(
        f"{folder} holds an adapter ({kind:.100}){f' of {base:.200}' if base else ''}, not a model "
        "of its own; merge it into its model first (peft's merge_and_unload), and convert the "
        "merged model"
    )


def open_source(folder: Path, dtype: Dtype | None = None) -> Source:
    """Open a checkpoint folder and check all of it, without reading a weight.

    Args:
        folder: A folder in Hugging Face layout.
        dtype: Type to store the weights in; by default as in the source.

    Raises:
        UserError: It is incomplete, damaged, or not a model that jroute can run.
    """
    refuse_adapter(folder)
    config = read_config(folder / "config.json")
    checkpoint = Checkpoint(folder)
    mapping.check(checkpoint, config)
    return Source(
        checkpoint,
        config,
        mapping.stored_dtype(checkpoint, config) if dtype is None else np.dtype(dtype),
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
    """Convert a checkpoint; converting it to the same place again changes nothing.

    Args:
        source: A local folder or a Hugging Face hub id.
        out: The model directory to write.
        revision: Branch, tag or commit on the hub.
        dtype: Type to store the weights in; by default as in the source.
        overwrite: Whether to replace another model at ``out``.
        progress: Called with the bytes of weights processed so far and in total.

    Raises:
        UserError: The source cannot be converted, ``out`` is taken, or the disk is full.
    """
    folder, commit = fetch(source, revision)
    opened = open_source(folder, dtype)
    mapping.check_repeated_head(opened.checkpoint, opened.config)
    out = staging.destination(out)
    staging.recover(out)
    if not overwrite and looks_like_a_model(out):
        manifest = read_manifest(out)
        if _is_same(opened, companions(folder), out, progress):
            return Conversion(manifest, written=False, folder=folder)
        refuse_to_replace(out, overwrite=False)
    writer = ModelWriter(
        out,
        opened.config,
        opened.dtype,
        source={"name": os.fsencode(source).decode(errors="replace"), "revision": commit},
        source_files=companions(folder),
        overwrite=overwrite,
        progress=progress,
    )
    with writer:
        for path in mapping.layout(opened.config):
            writer.add(path, opened.checkpoint.read)
    return Conversion(writer.manifest, written=True, folder=folder)


def _is_same(
    source: Source, files: list[Path], out: Path, progress: Callable[[int, int], None]
) -> bool:
    """Return whether a model directory is what a source converts to, without converting it.

    Raises:
        UserError: It is, but damaged.
    """
    kept = StoredTensors(out)
    recorded, sizes = kept.manifest["tensors"], kept.sizes
    if (stored(source.config), source.dtype) != (kept.manifest["config"], kept.dtype):
        return False
    total, done = sum(sizes.values()), 0
    for name, size in sizes.items():
        if digest(source.checkpoint.read(name), source.dtype) != recorded[name]:
            return False
        kept.read(name)
        done += size
        progress(done, total)
    check_companions(out, kept.manifest["companions"], convert_again(out))
    return kept.manifest["companions"] == companion_digests(files)


def summary(conversion: Conversion, out: Path) -> str:
    """Return what a conversion wrote, as text."""
    manifest = conversion.manifest
    lines = [
        f"{'wrote' if conversion.written else 'already there:'} {out}",
        f"  tensors      {len(manifest['tensors']):,}",
        f"  parameters   {manifest['parameters']:,}",
        f"  bytes        {manifest['bytes']:,} ({manifest['dtype']})",
        f"  files        {', '.join(manifest['companions'])}",
        f"  fingerprint  {manifest['fingerprint']}",
    ]
    if not has_tokenizer(out):
        lines.append(f"  warning      {NO_TOKENIZER}")
    return "\n".join(lines)
