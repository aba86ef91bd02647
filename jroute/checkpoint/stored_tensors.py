"""The tensors of a model directory under their Hugging Face names, each checked by its digest."""

from pathlib import Path
from typing import Any

import numpy as np

from converters import mapping
from jroute.checkpoint.arrays import open_array
from jroute.checkpoint.digests import digest
from jroute.checkpoint.manifest import read_manifest
from jroute.checkpoint.model import damage
from jroute.checkpoint.replacing import convert_again
from jroute.model.config import DecoderConfig
from jroute.utils.errors import UserError


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
        self.manifest = read_manifest(self._directory, earlier=True)
        self.dtype = np.dtype(self.manifest["dtype"])
        entries = mapping.layout(DecoderConfig.restore(self.manifest["config"]))
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
            UserError: It is missing, cannot be read, or is not what was converted.
        """
        path, entry, layer = self._places[name]
        with damage(self._directory, name):
            if path not in self._open:
                self._open[path] = open_array(self._directory / "params", path)
            stored = self._open[path]
            inner = (stored[layer] if entry.stacked else stored).read().result()
        tensor = mapping.take(entry, inner)
        if digest(tensor) != self.manifest["tensors"][name]:
            raise UserError(
                f"{self._directory} is damaged: {name} is not what was converted; "
                f"{convert_again(self._directory)}"
            )
        return tensor


def published_order(name: str) -> tuple[bool, list[tuple[int, str]]]:
    """Return a key that sorts tensor names as releases do: block by block, output layer last."""
    parts = [(int(part), "") if part.isdecimal() else (-1, part) for part in name.split(".")]
    return name.startswith("lm_head"), parts
