"""The files that travel with the weights: configuration, tokenizer, chat template, routing."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from jroute.utils.errors import UserError
from jroute.utils.json_files import read_bytes

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

_MAX_BYTES = 2**30


def companions(folder: Path) -> list[Path]:
    """Return the files of a checkpoint folder that travel with its weights."""
    return [folder / name for name in COMPANIONS if (folder / name).is_file()]


def has_tokenizer(folder: Path) -> bool:
    """Return whether a folder holds the files from which ``jroute.load`` builds a tokenizer."""
    names = {file.name for file in companions(folder)}
    vocabularies = ({"tokenizer.json"}, {"vocab.json", "merges.txt"})
    return "tokenizer_config.json" in names and any(files <= names for files in vocabularies)


def companion_digests(files: Sequence[Path]) -> dict[str, str]:
    """Return the SHA-256 of each file's content, by file name.

    Raises:
        UserError: A file cannot be read.
    """
    return {file.name: sha256(file, "make it readable") for file in files}


def check_companions(directory: Path, digests: Mapping[str, str], remedy: str) -> None:
    """Check that the files beside the weights are those that were converted.

    Files that were added since are left alone: they cannot be damaged files of the conversion.

    Args:
        directory: A model directory.
        digests: What ``companion_digests`` gave when it was converted.
        remedy: What the user should do about damage.

    Raises:
        UserError: A file is missing, or has changed.
    """
    for name, digest in digests.items():
        file = directory / name
        if not file.is_file():
            raise UserError(f"{directory} is damaged: {name} is missing; {remedy}")
        if sha256(file, remedy) != digest:
            raise UserError(
                f"{file} was changed after the conversion, by hand or by damage; {remedy} "
                "(to change it on purpose, change it in the source first)"
            )


def sha256(file: Path, remedy: str) -> str:
    """Return the SHA-256 of a file's content; ``remedy`` is for the message if it is unreadable."""
    return hashlib.sha256(read_bytes(file, remedy, max_bytes=_MAX_BYTES)).hexdigest()
