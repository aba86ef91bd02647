"""Model directories.

A model directory holds the parameters as one Orbax tree under ``params/`` (see ``arrays``), the
files that came with the weights (see ``companions``) and, written last, ``manifest.json`` (see
``manifest``): the source, the SHA-256 of every tensor as Hugging Face stores it, and the
fingerprint of weights and config under which outcomes are filed. Arrays are written piece by piece
and read one by one. Whatever is read is checked: arrays by checksums in their files, everything
else by digests in the manifest.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jax.sharding import Sharding
from jax.typing import DTypeLike

from converters import mapping
from jroute.checkpoint import arrays
from jroute.checkpoint.companions import check_companions
from jroute.checkpoint.manifest import read_manifest
from jroute.checkpoint.replacing import convert_again
from jroute.model.config import DecoderConfig
from jroute.utils.errors import UserError
from jroute.utils.trees import flatten, unflatten


def load_model(
    directory: str | os.PathLike[str],
    *,
    dtype: DTypeLike | None = None,
    shardings: Sharding | Mapping[str, Any] | None = None,
) -> tuple[dict[str, Any], DecoderConfig]:
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
    check_companions(directory, manifest["companions"], convert_again(directory))
    config = DecoderConfig.restore(manifest["config"])
    target = None if dtype is None else jnp.dtype(dtype)
    entries = mapping.layout(config)
    placed: Mapping[str, Sharding | None]
    if shardings is None or isinstance(shardings, Sharding):
        placed = dict.fromkeys(entries, shardings)
    else:
        placed = flatten(shardings)
    params = {}
    for path in entries:
        with damage(directory, path):
            store = arrays.open_array(directory / "params", path)
            params[path] = arrays.read_array(store, placed[path], target)
    return unflatten(params), config


@contextmanager
def damage(directory: Path, name: str) -> Iterator[None]:
    """Turn what tensorstore raises for a damaged array into a ``UserError``.

    Args:
        directory: The model directory.
        name: What is read from it.
    """
    try:
        yield
    except ValueError as error:  # tensorstore's only kind
        raise UserError(
            f"{directory} is damaged: {name} cannot be read ({arrays.reason(error)}); "
            f"{convert_again(directory)}"
        ) from error
