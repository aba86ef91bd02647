"""A cache for the finished parts of a long command."""

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jroute.utils.disk import make_folder
from jroute.utils.files import write_json


class ResultCache:
    """Finished parts of a calibration in a JSON file, keyed by a digest of their inputs.

    Attributes:
        file: The file.
        entries: Digest of a description -> ``found`` and ``seconds``.
    """

    def __init__(self, file: Path):
        self.file = file
        self.entries: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}

    def get(self, description: Any, compute: Callable[[], Any]) -> Any:
        """Return the cached result for a description, computing and storing it if it is missing."""
        name = hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:16]
        if name not in self.entries:
            started = time.perf_counter()
            result = compute()
            self.entries[name] = {"found": result, "seconds": time.perf_counter() - started}
            make_folder(self.file.parent)
            write_json(self.file, self.entries, indent=None)
        return self.entries[name]["found"]
