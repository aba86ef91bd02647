"""Model directories.

A model directory holds the parameters as one Orbax tree under ``params/`` (see ``arrays``), the
files that came with the weights (``config.json``, tokenizer, chat template,
``generation_config.json``, ``routing.yaml``) and, written last, ``manifest.json``: the source, the
SHA-256 of every tensor as Hugging Face stores it, and the fingerprint of weights and config under
which outcomes are filed. Arrays are written piece by piece and read one by one.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jax.sharding import Sharding
from jax.typing import DTypeLike

from converters import qwen3
from converters.safetensors import read_json
from jroute.checkpoint import arrays, staging
from jroute.checkpoint.staging import MANIFEST
from jroute.model.config import Qwen3Config
from jroute.utils.errors import UserError
from jroute.utils.keys import stored
from jroute.utils.trees import flatten, unflatten

FORMAT = 2
COMPANIONS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "routing.yaml",
)
"""The files that travel with the weights, where the source has them."""


def companions(folder: Path) -> list[Path]:
    """Return the files of a checkpoint folder that travel with its weights."""
    return [folder / name for name in COMPANIONS if (folder / name).is_file()]


def has_tokenizer(folder: Path) -> bool:
    """Return whether a folder holds the files from which ``jroute.load`` builds a tokenizer."""
    names = {file.name for file in companions(folder)}
    vocabularies = ({"tokenizer.json"}, {"vocab.json", "merges.txt"})
    return "tokenizer_config.json" in names and any(files <= names for files in vocabularies)


def load_model(
    directory: str | os.PathLike[str],
    *,
    dtype: DTypeLike | None = None,
    shardings: Sharding | Mapping[str, Any] | None = None,
) -> tuple[dict[str, Any], Qwen3Config]:
    """Read a model directory.

    Args:
        directory: A finished model directory.
        dtype: Type to cast the parameters to; by default they stay as stored.
        shardings: Where to put them: one sharding, or a tree of shardings with the structure of
            ``params``. Each device then reads only its own part. By default the arrays are
            uncommitted on the default device.

    Returns:
        The nested dictionary of parameters, and the shape of the model.

    Raises:
        UserError: The directory is missing, unfinished, not a model, or damaged.
    """
    directory = Path(directory).absolute()
    manifest = read_manifest(directory)
    config = Qwen3Config.from_hf(
        read_json(directory / "config.json"), where=str(directory / "config.json")
    )
    if stored(config) != manifest["config"]:
        raise UserError(
            f"{directory / 'config.json'} was changed after the conversion; "
            "convert again with --overwrite"
        )
    target = None if dtype is None else jnp.dtype(dtype)
    entries = qwen3.layout(config)
    placed: Mapping[str, Sharding | None]
    if shardings is None or isinstance(shardings, Sharding):
        placed = dict.fromkeys(entries, shardings)
    else:
        placed = flatten(shardings)
    params = {}
    for path in entries:
        try:
            store = arrays.open_array(directory / "params", path)
            params[path] = arrays.read_array(store, placed[path], target)
        except ValueError as error:
            raise UserError(
                f"{directory} is damaged: {path} cannot be read ({arrays.reason(error)}); "
                "convert again with --overwrite"
            ) from error
    return unflatten(params), config


def model_fingerprint(directory: str | os.PathLike[str]) -> str:
    """Return the ``fingerprint`` of the weights and config of a model directory."""
    return str(read_manifest(Path(directory))["fingerprint"])


def read_manifest(directory: Path) -> dict[str, Any]:
    """Read the manifest of a model directory, and check that every weight file is whole.

    Raises:
        UserError: The directory is missing, unfinished, not a model, or damaged.
    """
    convert = "python -m jroute.convert --source … --out …"
    if not directory.is_dir():
        aside = staging.set_aside(directory)
        if aside is not None:
            raise UserError(
                f"{directory} was being replaced when its conversion was killed; the model that "
                f"stood there is now {aside}, and converting again puts it back first"
            )
        raise UserError(f"there is no model directory {directory}; make one with {convert}")
    if not (directory / MANIFEST).is_file():
        if any(directory.glob("*.safetensors")):
            raise UserError(
                f"{directory} is a Hugging Face folder, not a jroute model directory; "
                f"convert it with python -m jroute.convert --source {directory} --out …"
            )
        raise UserError(
            f"{directory} is not a finished jroute model directory (it has no {MANIFEST}); "
            f"make one with {convert}"
        )
    manifest = read_json(directory / MANIFEST)
    if manifest.get("format") != FORMAT:
        raise UserError(
            f"{directory} was written in format {manifest.get('format')!r} of model directories, "
            f"this jroute reads format {FORMAT}; convert again with --overwrite"
        )
    for name, size in manifest["stored"].items():
        file = directory / name
        actual = file.stat().st_size if file.is_file() else None
        if actual != size:
            defect = "is missing" if actual is None else f"has {actual:,} bytes instead of {size:,}"
            raise UserError(
                f"{directory} is damaged: {name} {defect}; convert again with --overwrite"
            )
    return manifest
