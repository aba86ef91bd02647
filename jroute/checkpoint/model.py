"""Model directories.

A model directory holds the parameters as one Orbax tree under ``params/`` (see ``arrays``), the
files that came with the weights (``config.json``, tokenizer, chat template,
``generation_config.json``, ``routing.yaml``) and, written last, ``manifest.json``: what the source
was, the SHA-256 of every tensor as Hugging Face would store it, and the fingerprint of weights and
config that outcomes are filed under. Arrays are written piece by piece and read one by one.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding
from jax.typing import DTypeLike

from converters import qwen3
from converters.safetensors import read_json
from jroute.checkpoint import arrays, staging
from jroute.checkpoint.staging import MANIFEST
from jroute.model.config import Qwen3Config
from jroute.utils.errors import UserError
from jroute.utils.keys import stored

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

_HASH_VALUES = 2**22


def digest(tensor: np.ndarray, dtype: DTypeLike | None = None) -> str:
    """SHA-256 of the values of a tensor, in row-major order and, if given, cast to ``dtype``."""
    values = np.ascontiguousarray(tensor).reshape(-1)
    to = values.dtype if dtype is None else np.dtype(dtype)
    if values.dtype == to:
        return hashlib.sha256(values.view(np.uint8).data).hexdigest()
    sha = hashlib.sha256()
    for start in range(0, len(values), _HASH_VALUES):
        sha.update(values[start : start + _HASH_VALUES].astype(to).view(np.uint8).data)
    return sha.hexdigest()


def fingerprint(config: Qwen3Config, dtype: DTypeLike, digests: Mapping[str, str]) -> str:
    """One name for these weights in this type with this config: a SHA-256 in hexadecimal.

    Args:
        config: Shape of the model.
        dtype: The type in which the weights are stored.
        digests: ``digest`` of every tensor under its Hugging Face name, in that orientation.
    """
    content = {"config": stored(config), "dtype": str(np.dtype(dtype)), "tensors": dict(digests)}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def companions(folder: Path) -> list[Path]:
    """The files of a checkpoint folder that travel with its weights."""
    return [folder / name for name in COMPANIONS if (folder / name).is_file()]


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds the files that ``jroute.load`` makes a tokenizer of."""
    have = {file.name for file in companions(folder)}
    made_of = ({"tokenizer.json"}, {"vocab.json", "merges.txt"})
    return "tokenizer_config.json" in have and any(files <= have for files in made_of)


def companion_digests(files: Sequence[Path]) -> dict[str, str]:
    """SHA-256 of each file, by name."""
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def load_model(
    directory: str | os.PathLike[str],
    *,
    dtype: DTypeLike | None = None,
    shardings: Sharding | Mapping[str, Any] | None = None,
) -> tuple[dict[str, Any], Qwen3Config]:
    """Read a model directory.

    Args:
        directory: A finished model directory.
        dtype: Type to cast the parameters to; by default as stored.
        shardings: Where to put them: one sharding, or a tree of shardings of the shape of
            ``params``. Each device then reads its own part only. By default the arrays are
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
    to = None if dtype is None else jnp.dtype(dtype)
    entries = qwen3.layout(config)
    placed: Mapping[str, Sharding | None]
    if shardings is None or isinstance(shardings, Sharding):
        placed = dict.fromkeys(entries, shardings)
    else:
        placed = qwen3.flatten(shardings)
    params = {}
    for path in entries:
        try:
            store = arrays.open_array(directory / "params", path)
            params[path] = arrays.read_array(store, placed[path], to)
        except ValueError as error:
            raise UserError(
                f"{directory} is damaged: {path} cannot be read ({arrays.reason(error)}); "
                "convert again with --overwrite"
            ) from error
    return qwen3.nest(params), config


def model_fingerprint(directory: str | os.PathLike[str]) -> str:
    """The fingerprint of the weights and config of a model directory (see ``fingerprint``)."""
    return str(read_manifest(Path(directory))["fingerprint"])


def read_manifest(directory: Path) -> dict[str, Any]:
    """Read the manifest of a model directory, and see that no part of the weights is missing.

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
        found = file.stat().st_size if file.is_file() else None
        if found != size:
            what = "is missing" if found is None else f"has {found:,} bytes instead of {size:,}"
            raise UserError(
                f"{directory} is damaged: {name} {what}; convert again with --overwrite"
            )
    return manifest
