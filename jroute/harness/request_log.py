"""What the model did for each request, kept beside the answers that lm-eval caches.

A request that is answered from the cache never reaches the model; what gate it ran under and how
many tokens it took is read from here.

lm-eval's caches are pickles. From one that somebody else wrote, only text, numbers and their
collections are read: no class and no function but ``ResponseText``.
"""

import contextlib
import io
import pickle
import sqlite3
from collections.abc import MutableMapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import hash_args

from jroute.harness.gen_kwargs import ResponseText
from jroute.harness.records import Record
from jroute.utils.errors import UserError
from jroute.utils.keys import stored

_OWNER = "jroute: whose answers these are"
"""Key of the cache that stores the name of its owner."""


_PICKLED_AS = {
    ("jroute.harness.gen_kwargs", "ResponseText"): ResponseText,
    ("jroute.evaluation.until", "Generated"): ResponseText,
}
"""The classes that a cache may hold, by the names under which this and earlier versions do."""


class RequestLog:
    """Records by request, in memory and in lm-eval's cache, if there is one."""

    def __init__(self) -> None:
        self._records: dict[str, Record] = {}
        self._database: MutableMapping[str, Any] | None = None

    def attach(self, database: Any, owner: str) -> None:
        """Keep records in the database of lm-eval's cache from now on.

        Args:
            database: The database, or ``None``.
            owner: Name of the model and arm whose answers it holds.

        Raises:
            UserError: It holds the answers of another owner.
        """
        if database is not None:
            database.decode = partial(_decode, file=database.filename)
            if len(database) and database.get(_OWNER) != owner:
                raise UserError(
                    f"the cache {database.filename} holds answers of another model, routing or "
                    "arm; give each its own with use_cache, as scripts/lm_eval_jax.py does"
                )
            database[_OWNER] = owner
        self._database = database

    def add(self, args: Any, record: Record) -> None:
        """Add the record of a request.

        Args:
            args: The request's arguments.
            record: What the model did.
        """
        key = request_key(record.kind, args, record.sample)
        self._records[key] = record
        if self._database is not None:
            self._database[key] = stored(record)

    def records_of(self, instances: Sequence[Instance], repeats: int | None = None) -> list[Record]:
        """Return the records of requests, by this process or by the one that cached their answers.

        Args:
            instances: The requests.
            repeats: How often each was made; by default as often as it says.
        """
        records = []
        for request in instances:
            for sample in range(repeats or request.repeats or 1):
                key = request_key(request.request_type, request.args, sample)
                record = self._records.get(key)
                if record is None and self._database is not None and key in self._database:
                    record = Record.from_json(self._database[key])
                if record is not None:
                    identity = (request.task_name, request.doc_id, request.idx)
                    records.append(record.for_request(*identity))
        return records


def request_key(kind: str, args: Any, sample: int) -> str:
    """Return what names a request, and how many equal ones came before it."""
    return f"jroute: {sample} {hash_args(kind, args)}"


class _Unpickler(pickle.Unpickler):
    """Read what ``sqlitedict`` wrote for this package, by earlier versions as well."""

    def find_class(self, module: str, name: str, /) -> Any:
        if (module, name) not in _PICKLED_AS:
            raise pickle.UnpicklingError(f"it holds {module}.{name}")
        return _PICKLED_AS[module, name]


def _decode(value: Any, *, file: str) -> Any:
    try:
        return _Unpickler(io.BytesIO(bytes(value))).load()
    except Exception as error:  # damaged pickles raise anything
        raise UserError(
            f"the cache {file} holds something that is not an answer of jroute's ({error}); "
            "delete it, or name another with --use_cache"
        ) from error


def check_database(file: Path) -> None:
    """Refuse a file that is not a sound SQLite database; lm-eval would open it all the same.

    Raises:
        UserError: It is not one.
    """
    if not file.exists():
        return
    try:
        with contextlib.closing(
            sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)
        ) as db:
            sound = db.execute("PRAGMA quick_check(1)").fetchone() == ("ok",)
    except sqlite3.Error:
        sound = False
    if not sound:
        raise UserError(
            f"the cache {file} is not a sound database; delete it, or name another with --use_cache"
        )
