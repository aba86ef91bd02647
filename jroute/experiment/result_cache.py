"""A cache for the finished parts of a long command."""

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydantic

from jroute.utils.disk import make_folder
from jroute.utils.errors import UserError
from jroute.utils.files import write_json
from jroute.utils.json_files import Record, read_json

logger = logging.getLogger(__name__)


class _Entry(Record):
    """A finished part.

    Attributes:
        found: Its result.
        seconds: How long it took.
        digest: Digest of the result; earlier versions wrote none.
    """

    found: Any
    seconds: float
    digest: str | None = None


class _Entries(pydantic.RootModel[dict[str, _Entry]]):
    """The content of a cache's file."""


class ResultCache:
    """Finished parts of a calibration in a JSON file, keyed by a digest of their inputs.

    Parts that are damaged are computed again, with a warning.

    Attributes:
        file: The file.
        entries: Digest of a description -> ``found``, ``seconds`` and ``digest``.
    """

    def __init__(self, file: Path):
        self.file = file
        self.entries: dict[str, Any] = {}
        if not os.path.lexists(file):
            return
        try:
            entries = read_json(file, _Entries, "all its parts are computed again").root
        except UserError as error:
            logger.warning("%s", error)
            return
        for name, entry in entries.items():
            if entry.digest in (None, _digest(entry.found)):
                self.entries[name] = entry.model_dump()
            else:
                logger.warning("%s: part %s is damaged; it is computed again", file, name)

    def get(self, description: Any, compute: Callable[[], Any]) -> Any:
        """Return the cached result for a description, computing and storing it if it is missing."""
        name = _digest(description)[:16]
        if name not in self.entries:
            started = time.perf_counter()
            result = compute()
            seconds = time.perf_counter() - started
            stored = json.loads(json.dumps(result))  # as it will be read again
            self.entries[name] = {"found": result, "seconds": seconds, "digest": _digest(stored)}
            make_folder(self.file.parent)
            write_json(self.file, self.entries, indent=None)
        return self.entries[name]["found"]


def _digest(content: Any) -> str:
    """Return the SHA-256 of a value as JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
