"""What ``config.json`` says of the GGUF file that weights were read from, if they were."""

from pathlib import Path

from jroute.utils.json_files import Record, read_json


class GGUFOrigin(Record):
    """The GGUF file.

    Attributes:
        sha256: Its SHA-256, in hexadecimal.
        quantisation: How it stores most weights, such as ``Q4_1``.
    """

    sha256: str | None = None
    quantisation: str | None = None


class _Config(Record):
    gguf: GGUFOrigin = GGUFOrigin()


def gguf_origin(folder: Path) -> GGUFOrigin:
    """Return what a folder in Hugging Face layout, or a model directory, says of its GGUF file.

    Raises:
        UserError: Its ``config.json`` cannot be read.
    """
    return read_json(folder / "config.json", _Config, "write the folder again").gguf


def gguf_quantisation(folder: Path) -> str | None:
    """Return how the GGUF file stored the weights; ``None`` if there was none."""
    return gguf_origin(folder).quantisation
