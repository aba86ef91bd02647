"""The manifest of a model directory: what was converted, and checks of everything beside it."""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, StringConstraints

from converters import mapping
from jroute.checkpoint import staging
from jroute.checkpoint.companions import COMPANIONS, sha256
from jroute.checkpoint.digests import fingerprint
from jroute.checkpoint.replacing import MANIFEST, Digest, convert_again, looks_like_a_model
from jroute.model.config import DecoderConfig
from jroute.utils.errors import UserError
from jroute.utils.json_files import Record, check, read_json

FORMAT = 3
"""Format of new model directories. 3: the arrays have checksums, and so has the manifest."""

WITHOUT_CHECKSUMS = 2
"""The earlier format, whose arrays can be checked only as a whole, by the digests of tensors."""

StoredFile = Annotated[str, StringConstraints(pattern=r"^params(/\w[\w.-]*){1,2}$")]
Companion = Annotated[
    str, StringConstraints(pattern=rf"^({'|'.join(map(re.escape, COMPANIONS))})$")
]


class Format(Record):
    """The one field that every format has."""

    format: int


class Manifest(Record):
    """The content of ``manifest.json``.

    Attributes:
        format: ``FORMAT``, or ``WITHOUT_CHECKSUMS``.
        fingerprint: The name of weights and config (see ``digests.fingerprint``).
        source: Where the weights came from.
        config: The model's shape under stored keys.
        dtype: Type in which all arrays are stored.
        parameters: Number of values.
        bytes: Their size.
        tensors: ``digests.digest`` of every tensor, under its Hugging Face name.
        companions: SHA-256 of the files beside the weights.
        stored: Sizes of the files under ``params/``.
        metadata: SHA-256 of those that have no checksums of their own.
        versions: Of the packages that wrote it.
        digest: SHA-256 of all other fields (see ``manifest_digest``).
    """

    format: int
    fingerprint: Digest
    source: dict[str, Any]
    config: dict[str, Any]
    dtype: Literal["float32", "bfloat16"]
    parameters: PositiveInt
    bytes: PositiveInt
    tensors: dict[str, Digest]
    companions: dict[Companion, Digest]
    stored: Annotated[dict[StoredFile, NonNegativeInt], Field(min_length=1)]
    metadata: dict[StoredFile, Digest] | None = None
    versions: dict[str, Any]
    digest: Digest = ""


def manifest_digest(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a manifest's fields other than ``digest``."""
    fields = {key: value for key, value in content.items() if key != "digest"}
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def has_checksums(name: str) -> bool:
    """Return whether a stored file is a piece of an array, which has checksums inside."""
    return name.rpartition("/")[2].split(".")[0] == "c"


def metadata_digests(folder: Path, names: list[str]) -> dict[str, str]:
    """Return the SHA-256 of the stored files that have no checksums of their own, by name."""
    return {name: sha256(folder / name, "") for name in names if not has_checksums(name)}


def model_fingerprint(directory: str | os.PathLike[str]) -> str:
    """Return the ``fingerprint`` of the weights and config of a model directory."""
    return str(read_manifest(Path(directory))["fingerprint"])


def read_manifest(directory: Path, *, earlier: bool = False) -> dict[str, Any]:
    """Read the manifest of a model directory, and check that what it describes is there.

    The files under ``params/`` must have their sizes, and those without checksums of their own
    their digests; the fingerprint must follow from config, type and tensors.

    Args:
        directory: The model directory.
        earlier: Accept the format ``WITHOUT_CHECKSUMS`` too. Then the caller must compare what it
            reads with the digests of the tensors.

    Returns:
        The fields of ``Manifest``.

    Raises:
        UserError: The directory is missing, unfinished, not a model, of another format, or damaged.
    """
    _refuse_other_folders(directory)
    file, remedy = directory / MANIFEST, convert_again(directory)
    content = read_json(file, dict[str, Any], remedy)
    number = check(content, Format, str(file), remedy).format
    if number != FORMAT and not (earlier and number == WITHOUT_CHECKSUMS):
        if number == WITHOUT_CHECKSUMS:
            remedy += ", or, if the source is lost, export it with --to-hf and convert that"
        raise UserError(
            f"{directory} was written in format {number!r} of model directories, "
            f"this jroute reads format {FORMAT}; {remedy}"
        )
    check(content, Manifest, str(file), remedy)
    defect = (
        _digest_defect(content) or _fingerprint_defect(content) or _file_defect(directory, content)
    )
    if defect is not None:
        raise UserError(f"{directory} is damaged: {defect}; {remedy}")
    return content


def _refuse_other_folders(directory: Path) -> None:
    convert = "python -m jroute.convert --source … --out …"
    try:
        missing = not directory.is_dir()
    except OSError as error:  # a name that is too long
        raise UserError(
            f"{str(directory)!r:.300} cannot be read ({error.strerror}); make a model directory "
            f"with {convert}"
        ) from None
    if missing and "\0" not in str(directory):
        aside = staging.set_aside(directory)
        if aside is not None:
            raise UserError(
                f"{directory} was being replaced when its conversion was killed; the model that "
                f"stood there is now {aside}, and converting again puts it back first"
            )
    if missing:
        raise UserError(f"there is no model directory {directory}; make one with {convert}")
    if looks_like_a_model(directory):
        return
    if any(directory.glob("*.safetensors")):
        raise UserError(
            f"{directory} is a Hugging Face folder, not a jroute model directory; "
            f"convert it with python -m jroute.convert --source {directory} --out …"
        )
    if (directory / MANIFEST).exists():
        raise UserError(
            f"{directory} is not a jroute model directory, though it has a {MANIFEST}; "
            f"make one with {convert}"
        )
    raise UserError(
        f"{directory} is not a finished jroute model directory (it has no {MANIFEST}); "
        f"make one with {convert}"
    )


def _digest_defect(content: Mapping[str, Any]) -> str | None:
    if content["format"] == FORMAT and manifest_digest(content) != content.get("digest"):
        return f"the digest in {MANIFEST} is not that of its content"
    return None


def _fingerprint_defect(content: Mapping[str, Any]) -> str | None:
    try:
        config = DecoderConfig.restore(content["config"])
    except (TypeError, UserError) as error:
        return f"the config in {MANIFEST} is impossible ({error})"
    names = [name for entry in mapping.layout(config).values() for name in entry.names]
    expected = fingerprint(config, content["dtype"], content["tensors"])
    if sorted(names) != sorted(content["tensors"]) or expected != content["fingerprint"]:
        return f"the fingerprint in {MANIFEST} does not follow from its config, dtype and tensors"
    return None


def _file_defect(directory: Path, content: Mapping[str, Any]) -> str | None:
    for name, size in content["stored"].items():
        file = directory / name
        actual = file.stat().st_size if file.is_file() else None
        if actual is None:
            return f"{name} is missing"
        if actual != size:
            return f"{name} has {actual:,} bytes instead of {size:,}"
    for name, digest in content.get("metadata", {}).items():
        if sha256(directory / name, convert_again(directory)) != digest:
            return f"{name} has changed"
    return None
