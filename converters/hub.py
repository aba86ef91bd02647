"""Find a checkpoint in a local folder or download it from the Hugging Face hub."""

import re
from pathlib import Path
from typing import NamedTuple

from jroute.utils.errors import UserError

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+|[\w.-]+")
_HUB_FILES = ["*.safetensors", "*.json", "*.txt", "*.yaml", "*.jinja"]


class SourceFolder(NamedTuple):
    """The local folder of a checkpoint, and its commit if it came from the hub."""

    folder: Path
    revision: str | None


def fetch(source: str, revision: str | None = None) -> SourceFolder:
    """Find the folder of a checkpoint, downloading it if ``source`` is a hub id.

    Args:
        source: A local folder, or a Hugging Face hub id like ``Qwen/Qwen3-4B``.
        revision: Branch, tag or commit on the hub; not for a local folder.

    Raises:
        UserError: No such folder, no such repository or revision, or the hub cannot be reached.
    """
    try:
        folder = Path(source).expanduser()
        is_folder, exists = folder.is_dir(), folder.exists()
    except (OSError, ValueError, RuntimeError) as error:  # NUL, too long, an unknown ~user
        raise UserError(
            f"there is no folder {source!r:.300} ({getattr(error, 'strerror', None) or error}); "
            "give a folder in Hugging Face layout or a hub id"
        ) from None
    if is_folder:
        if revision is not None:
            raise UserError(
                f"{source} is a local folder, which has no revisions; leave out --revision"
            )
        return SourceFolder(folder, None)
    if exists or not _HUB_ID.fullmatch(source):
        raise UserError(
            f"there is no folder {source}; give a folder in Hugging Face layout or a hub id"
        )
    import huggingface_hub  # a second of import that a local folder does not need
    from huggingface_hub.errors import HFValidationError

    try:
        snapshot = huggingface_hub.snapshot_download(
            source, revision=revision, allow_patterns=_HUB_FILES, ignore_patterns=["*/*"]
        )
    except (OSError, HFValidationError) as error:  # errors of hub and network are OSErrors
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"there is no folder {source}, and the Hugging Face hub gave no such model "
            f"({reason[0]}); check the name, the revision, the network and your access, "
            "or give a local folder"
        ) from None
    return SourceFolder(Path(snapshot), Path(snapshot).name)  # the folder is named by the commit
