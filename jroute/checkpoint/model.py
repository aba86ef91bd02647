"""Model directories.

A model directory holds one Orbax array per parameter under ``params/``, the files that came with
the weights (``config.json``, tokenizer, chat template, ``generation_config.json``,
``routing.yaml``) and, written last, ``manifest.json``: what the source was, the SHA-256 of every
tensor as Hugging Face would store it, and the fingerprint of weights and config that outcomes are
filed under. Arrays are written one by one, so a conversion never holds more than one of them.
"""

import hashlib
import json
import os
import shutil
import socket
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Sharding
from jax.typing import DTypeLike

from converters import qwen3
from converters.safetensors import read_json
from jroute.checkpoint.storage import quiet, restore_args
from jroute.errors import UserError
from jroute.model.config import Qwen3Config

MANIFEST = "manifest.json"
FORMAT = 1
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

_CHUNK_BYTES = 64 * 2**20
_PACKAGES = ("jroute", "jax", "flax", "orbax-checkpoint", "numpy", "ml_dtypes", "safetensors")


def digest(tensor: np.ndarray) -> str:
    """SHA-256 of the values of a tensor, in row-major order."""
    values = np.ascontiguousarray(tensor).reshape(-1).view(np.uint8)
    return hashlib.sha256(values.data).hexdigest()


def fingerprint(config: Qwen3Config, dtype: DTypeLike, digests: Mapping[str, str]) -> str:
    """One name for these weights in this type with this config: a SHA-256 in hexadecimal.

    Args:
        config: Shape of the model.
        dtype: The type in which the weights are stored.
        digests: ``digest`` of every tensor under its Hugging Face name, in that orientation.
    """
    content = {"config": asdict(config), "dtype": str(np.dtype(dtype)), "tensors": dict(digests)}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def companions(folder: Path) -> list[Path]:
    """The files of a checkpoint folder that travel with its weights."""
    return [folder / name for name in COMPANIONS if (folder / name).is_file()]


def companion_digests(files: Sequence[Path]) -> dict[str, str]:
    """SHA-256 of each file, by name."""
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


class ModelWriter:
    """Writes a model directory array by array; it appears under its name when all is there.

    Use it as a context manager, and ``add`` every array once. If the block raises, nothing stays.

    Attributes:
        manifest: What ``manifest.json`` holds, once the block has ended.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        config: Qwen3Config,
        *,
        source: Mapping[str, Any] | None = None,
        source_files: Sequence[Path] = (),
        overwrite: bool = False,
    ):
        """Prepares to write; nothing is touched yet.

        Args:
            directory: Where the finished model is to stand.
            config: Shape of the model.
            source: Where the weights came from, for the manifest.
            source_files: Files to copy beside them (see ``companions``).
            overwrite: Replace a model that already stands there.

        Raises:
            UserError: Something stands there that may not be replaced.
        """
        self.directory = Path(directory).absolute()
        self.config = config
        self.manifest: dict[str, Any] = {}
        self._source = dict(source or {})
        self._files = list(source_files)
        self._entries = qwen3.layout(config)
        self._digests: dict[str, str] = {}
        self._dtype: np.dtype | None = None
        self._bytes = 0
        self._partial = self.directory.with_name(f"{_partial_prefix(self.directory)}{os.getpid()}")
        refuse_to_replace(self.directory, overwrite=overwrite)

    def __enter__(self) -> "ModelWriter":
        _remove_leftovers(self.directory)
        try:
            (self._partial / "params").mkdir(parents=True)
        except OSError as error:
            raise UserError(
                f"cannot write to {self.directory.parent} ({error.strerror}); choose another --out"
            ) from None
        return self

    def add(self, path: str, value: np.ndarray) -> None:
        """Writes one array of the nested dictionary; arrays of blocks are stacked over layers."""
        entry = self._entries.pop(path)
        if value.shape != entry.shape:
            raise ValueError(f"{path} has shape {value.shape}, its config implies {entry.shape}")
        if self._dtype not in (None, value.dtype):
            raise ValueError(f"{path} is {value.dtype}, the arrays before it {self._dtype}")
        self._dtype = value.dtype
        self._bytes += value.nbytes
        self._digests.update((name, digest(tensor)) for name, tensor in qwen3.split(entry, value))
        with quiet(), ocp.Checkpointer(ocp.ArrayCheckpointHandler()) as checkpointer:
            args = ocp.args.ArraySave(value, save_args=ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES))
            checkpointer.save(_array_folder(self._partial, path), args=args)

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            shutil.rmtree(self._partial, ignore_errors=True)

    def _finish(self) -> None:
        if self._entries or self._dtype is None:
            raise ValueError(f"these arrays were never added: {', '.join(self._entries)}")
        for file in self._files:
            shutil.copyfile(file, self._partial / file.name)
        if not (self._partial / "config.json").exists():
            _write_json(self._partial / "config.json", self.config.to_hf())
        stored = sorted(file for file in (self._partial / "params").rglob("*") if file.is_file())
        self.manifest = {
            "format": FORMAT,
            "fingerprint": fingerprint(self.config, self._dtype, self._digests),
            "source": self._source,
            "config": asdict(self.config),
            "dtype": str(self._dtype),
            "parameters": self._bytes // self._dtype.itemsize,
            "bytes": self._bytes,
            "tensors": self._digests,
            "companions": companion_digests(companions(self._partial)),
            "stored": {
                file.relative_to(self._partial).as_posix(): file.stat().st_size for file in stored
            },
            "versions": {name: _version(name) for name in _PACKAGES},
        }
        _write_json(self._partial / MANIFEST, self.manifest)
        replaced = None
        if self.directory.exists():
            replaced = self._partial.with_name(self._partial.name + ".replaced")
            os.rename(self.directory, replaced)
        os.rename(self._partial, self.directory)
        if replaced is not None:
            shutil.rmtree(replaced)


def save_model(
    directory: str | os.PathLike[str],
    params: Mapping[str, Any],
    config: Qwen3Config,
    source_files: Sequence[Path] = (),
    *,
    source: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Writes a model directory from parameters in memory and returns its manifest.

    Args:
        directory: Where the finished model is to stand.
        params: Parameters as ``forward`` takes them, with ``blocks`` stacked, all of one type.
        config: Their shape.
        source_files: Files to copy beside them (see ``companions``).
        source: Where the weights came from, for the manifest.
        overwrite: Replace a model that already stands there.

    Raises:
        UserError: Something stands there that may not be replaced.
    """
    writer = ModelWriter(
        directory, config, source=source, source_files=source_files, overwrite=overwrite
    )
    with writer:
        for path, leaf in qwen3.flatten(params).items():
            writer.add(path, np.asarray(leaf))
    return writer.manifest


def load_model(
    directory: str | os.PathLike[str],
    *,
    dtype: DTypeLike | None = None,
    shardings: Sharding | Mapping[str, Any] | None = None,
) -> tuple[dict[str, Any], Qwen3Config]:
    """Reads a model directory.

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
    if asdict(config) != manifest["config"]:
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
    with quiet(), ocp.Checkpointer(ocp.ArrayCheckpointHandler()) as checkpointer:
        for path in entries:
            restore = ocp.args.ArrayRestore(restore_args=restore_args(placed[path], to))
            params[path] = jnp.asarray(
                checkpointer.restore(_array_folder(directory, path), args=restore)
            )
    return qwen3.nest(params), config


def model_fingerprint(directory: str | os.PathLike[str]) -> str:
    """The fingerprint of the weights and config of a model directory (see ``fingerprint``)."""
    return str(read_manifest(Path(directory))["fingerprint"])


def read_manifest(directory: Path) -> dict[str, Any]:
    """Reads the manifest of a model directory, and sees that no part of the weights is missing.

    Raises:
        UserError: The directory is missing, unfinished, not a model, or damaged.
    """
    convert = "python -m jroute.convert --source … --out …"
    if not directory.is_dir():
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
            f"{directory / MANIFEST} has format {manifest.get('format')!r}, "
            f"this jroute reads {FORMAT}; convert again with --overwrite"
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


def refuse_to_replace(directory: Path, *, overwrite: bool) -> None:
    """Raises a ``UserError`` if ``directory`` may not become a model directory.

    An empty folder may; with ``overwrite`` so may an earlier model. Foreign files never.
    """
    if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
        return
    if not (directory / MANIFEST).is_file():
        raise UserError(
            f"{directory} exists and is not a jroute model directory; "
            "choose another --out or remove it"
        )
    if not overwrite:
        raise UserError(
            f"{directory} already holds another model; "
            "choose another --out or pass --overwrite to replace it"
        )


def _array_folder(directory: Path, path: str) -> Path:
    return directory / "params" / path.replace("/", ".")


def _partial_prefix(directory: Path) -> str:
    return f"{directory.name}.partial-{socket.gethostname()}-"


def _remove_leftovers(directory: Path) -> None:
    """Removes what killed conversions of this machine left beside ``directory``."""
    prefix = _partial_prefix(directory)
    for leftover in directory.parent.glob(f"{prefix}*"):
        process = leftover.name.removeprefix(prefix)
        ours = process == str(os.getpid())  # of an earlier process with our number
        if process.isdecimal() and (ours or not _is_running(int(process))):
            shutil.rmtree(leftover, ignore_errors=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)  # signal 0 only asks
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
