"""What jroute may delete: its own model directories, and nothing that anybody else wrote.

A folder is a jroute model if it has a manifest and ``params/``, and the manifest has a format and a
fingerprint or, where it is damaged, ``params/`` holds arrays of ours. It may be replaced if it also
holds nothing that a conversion does not write.
"""

import re
from pathlib import Path
from typing import Annotated

from pydantic import Field, StringConstraints

from converters.rules import TABLES
from converters.safetensors import INDEX
from jroute.checkpoint.companions import COMPANIONS
from jroute.utils.errors import UserError
from jroute.utils.json_files import Record, read_json

MANIFEST = "manifest.json"
"""A folder with this file is complete."""

Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]

_ARRAYS = {rule.path.replace("/", ".") for table in TABLES.values() for rule in table}
_OF_A_MODEL = re.compile(
    rf"(?:{'|'.join(map(re.escape, (MANIFEST, *COMPANIONS)))})|\..+\.\d+(-\d+-\d+)?\.tmp|params"
)
_OF_AN_EXPORT = re.compile(
    rf"{_OF_A_MODEL.pattern}|model(-\d+-of-\d+)?\.safetensors|{re.escape(INDEX)}"
)
_IN_PARAMS = re.compile(  # also what Orbax and Zarr wrote there in earlier formats
    rf"{'|'.join(map(re.escape, _ARRAYS))}|zarr\.json|\.zarray|c|(c\.)?\d+(\.\d+)*|d|[0-9a-f]{{32}}"
    r"|_METADATA|_CHECKPOINT_METADATA|_sharding|array_metadatas|process_\d+|checkpoint"
    r"|commit_success\.txt|manifest\.ocdbt|ocdbt\.process_\d+"
)


class Card(Record):
    """What the manifests of all formats have."""

    format: Annotated[int, Field(ge=1)]
    fingerprint: Digest


def looks_like_a_model(folder: Path) -> bool:
    """Return whether a folder is a jroute model of any format, perhaps damaged."""
    params = folder / "params"
    if not (folder / MANIFEST).is_file() or not params.is_dir():
        return False
    try:
        read_json(folder / MANIFEST, Card, "")
    except UserError:
        return any((params / name / "zarr.json").is_file() for name in _ARRAYS)
    return True


def foreign(folder: Path, *, unfinished: bool = False) -> Path | None:
    """Return something in a folder that no conversion writes, if there is any.

    Args:
        folder: A folder.
        unfinished: Allow what a conversion or an export writes on the way.
    """
    allowed = _OF_AN_EXPORT if unfinished else _OF_A_MODEL
    for entry in sorted(folder.iterdir()):
        name = entry.name
        if unfinished:
            name = re.sub(r"(?<=^params)\.orbax-checkpoint-tmp.*", "", name)
        if name == "params":
            other = _foreign_params(entry)
            if other is not None:
                return other
        elif not allowed.fullmatch(name) or (entry.is_dir() and not entry.is_symlink()):
            return entry
    return None


def _foreign_params(params: Path) -> Path | None:
    for entry in sorted(params.rglob("*")) if params.is_dir() else [params]:
        if not _IN_PARAMS.fullmatch(
            entry.name.removesuffix(".__lock")
        ):  # tensorstore's, on the way
            return entry
    return None


def obstacle(folder: Path) -> str | None:
    """Return why a folder that is not empty may not be replaced, as a clause, or ``None``."""
    if not looks_like_a_model(folder):
        return f"{folder} exists and is not a jroute model directory"
    other = foreign(folder)
    if other is None:
        return None
    return f"{folder} holds {other.relative_to(folder)}, which is not part of a jroute model"


def convert_again(directory: Path) -> str:
    """Return what to do about a damaged model: advice that will not be refused."""
    if obstacle(directory) is None:
        return "convert again with --overwrite"
    return "convert again to another --out"


def is_free(directory: Path) -> bool:
    """Return whether a path does not exist or is an empty folder."""
    return not directory.exists() or (directory.is_dir() and not any(directory.iterdir()))


def refuse_to_replace(directory: Path, *, overwrite: bool) -> None:
    """Raise a ``UserError`` if ``directory`` may not become a model directory.

    An empty folder may, and with ``overwrite`` an earlier model too; other files never.
    """
    if is_free(directory):
        return
    reason = obstacle(directory)
    if reason is not None:
        raise UserError(f"{reason}; choose another --out or remove it")
    if not overwrite:
        raise UserError(
            f"{directory} already holds another model; "
            "choose another --out or pass --overwrite to replace it"
        )
