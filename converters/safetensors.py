"""Read a Hugging Face checkpoint folder tensor by tensor from memory-mapped safetensors files."""

import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import ml_dtypes  # also teaches numpy the name "bfloat16", which safetensors asks it for
import numpy as np
from pydantic import ConfigDict, Field, NonNegativeInt, StringConstraints
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from converters.names import canonical
from converters.rules import HEAD
from jroute.utils.errors import UserError
from jroute.utils.files import atomic_write
from jroute.utils.json_files import Record, parse_json, read_json

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
DTYPES: Mapping[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
"""The floating types that weights may be stored in, by their name in a safetensors header."""

MAX_HEADER_BYTES = 100 * 10**6
"""Size of the largest header, a limit of safetensors itself."""

FileName = Annotated[
    str, StringConstraints(min_length=1, max_length=255, pattern=r"^(\./)?[^/\x00]+$")
]
"""A file of the folder itself."""


class Index(Record):
    """The content of ``model.safetensors.index.json``: the file of every tensor."""

    weight_map: Annotated[dict[str, FileName], Field(min_length=1)]


class TensorHeader(Record):
    """What the header of a weight file says about one tensor."""

    dtype: str
    shape: list[NonNegativeInt]
    data_offsets: tuple[NonNegativeInt, NonNegativeInt]


class Header(Record):
    """The header of a weight file: tensors by name, and texts that jroute does not read."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, TensorHeader]  # pyright: ignore[reportIncompatibleVariableOverride]

    metadata: dict[str, str] | None = Field(default=None, alias="__metadata__")

    @property
    def tensors(self) -> dict[str, TensorHeader]:
        """The tensors, by name."""
        return self.__pydantic_extra__


@dataclass(frozen=True)
class Tensor:
    """Where one tensor is stored, and what its header says; no value has been read."""

    file: Path
    shape: tuple[int, ...]
    dtype: str
    start: int

    @property
    def nbytes(self) -> int:
        """Bytes in the file (zero for a type that is not in ``DTYPES``)."""
        itemsize = DTYPES[self.dtype].itemsize if self.dtype in DTYPES else 0
        return int(np.prod(self.shape, dtype=np.int64)) * itemsize


class Checkpoint:
    """The weights of one folder: ``model.safetensors``, or shards and their index.

    Attributes:
        directory: The folder.
        tensors: What the headers of all its weight files say, by canonical name
            (``converters.names``).
        as_released: Whether names, and what the index lists, are as transformers writes them.
    """

    def __init__(self, directory: Path):
        """Open every weight file and read its header.

        Raises:
            UserError: The folder, its weights or one of its shards is missing; a file is truncated
                or damaged; index and shards disagree.
        """
        if not directory.is_dir():
            raise UserError(f"there is no folder {directory}; give a folder in Hugging Face layout")
        self.directory = directory
        self.tensors: dict[str, Tensor] = {}
        self._mapped: dict[Path, mmap.mmap] = {}
        files, index = _weight_files(directory)
        self.as_released = True
        for file in files:
            for stored_name, tensor in _open(file).items():
                name = canonical(stored_name)
                if name is None:
                    continue
                self.as_released &= name == stored_name
                if name in self.tensors:
                    raise UserError(
                        f"tensor {name:.200} is stored twice, in {self.tensors[name].file} "
                        f"and in {file}; remove the file that does not belong to this checkpoint"
                    )
                self.tensors[name] = tensor
        for name, shard in index.items():
            if name == HEAD and name not in self.tensors:
                self.as_released = False
                continue  # tied, listed and not stored, as some releases have it
            if name not in self.tensors or self.tensors[name].file.name != shard:
                raise UserError(
                    f"{directory / INDEX} says that {shard} holds {name:.200}, but it does not; "
                    "the files are of different releases, download them again"
                )

    def read(self, name: str) -> np.ndarray:
        """Return one tensor in its stored type: a read-only view of the mapped file."""
        tensor = self.tensors[name]
        if tensor.file not in self._mapped:
            with tensor.file.open("rb") as stream:
                self._mapped[tensor.file] = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        dtype = DTYPES[tensor.dtype]
        return np.ndarray(tensor.shape, dtype, self._mapped[tensor.file], offset=tensor.start)


def _weight_files(directory: Path) -> tuple[list[Path], dict[str, str]]:
    """Return the weight files of a folder, and the index (tensor to file name) if it is sharded."""
    if (directory / WEIGHTS).is_file():
        return [directory / WEIGHTS], {}
    if not (directory / INDEX).is_file():
        pickled = any(directory.glob("*.bin")) or any(directory.glob("*.pt*"))
        why = "jroute does not unpickle the other weights there, " if pickled else ""
        raise UserError(
            f"{directory} holds neither {WEIGHTS} nor {INDEX}; {why}download the safetensors files"
        )
    listed = read_json(directory / INDEX, Index, "download it again").weight_map
    names = {name: canonical(name) for name in listed}
    index = {name: listed[old].removeprefix("./") for old, name in names.items() if name}
    needed = {
        shard for name, shard in index.items() if name != HEAD or (directory / shard).is_file()
    }
    files = [directory / shard for shard in sorted(needed)]
    for file in files:
        if not file.is_file():
            raise UserError(f"shard {file} is missing, though {INDEX} names it; download it again")
    return files, index


def _open(file: Path) -> dict[str, Tensor]:
    """Read the header of one weight file; safetensors checks it against the file's size."""
    try:
        with file.open("rb") as stream:
            if stream.read(11) == b"version htt":
                raise UserError(
                    f"{file} is a Git LFS pointer, not the weights themselves; run git lfs pull"
                )
        with safe_open(file, framework="numpy"):
            pass
        with file.open("rb") as stream:  # the header's length in 8 bytes, the header, all values
            length = int.from_bytes(stream.read(8), "little")
            content = stream.read(min(length, MAX_HEADER_BYTES))
    except (SafetensorError, OSError) as error:
        size = f"{file.stat().st_size:,} bytes"
        raise UserError(
            f"{file} ({size}) is truncated or damaged ({error!s:.300}); download it again"
        ) from None
    header = parse_json(content, Header, f"the header of {file}", "download it again")
    return {
        name: Tensor(file, tuple(tensor.shape), tensor.dtype, 8 + length + tensor.data_offsets[0])
        for name, tensor in header.tensors.items()
    }


def write(file: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write a safetensors file as transformers does (metadata ``format: pt``), atomically."""
    with atomic_write(file) as partial:
        contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
        partial.touch()
        mode = partial.stat().st_mode
        save_file(contiguous, partial, metadata={"format": "pt"})
        partial.chmod(mode)  # safetensors gives its files to the user alone
