"""What the model did for each request, kept beside the answers that lm-eval caches.

A request that is answered from the cache never reaches the model; what gate it ran under and how
many tokens it took is read from here.
"""

import io
import pickle
from collections.abc import MutableMapping, Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import hash_args

from jroute.harness.gen_kwargs import ResponseText
from jroute.harness.records import Record
from jroute.utils.errors import UserError
from jroute.utils.keys import stored

_OWNER = "jroute: whose answers these are"
"""Key of the cache that stores the name of its owner."""


_PICKLED_AS = {("jroute.evaluation.until", "Generated"): ResponseText}
"""Classes by the names under which caches of earlier versions hold them."""


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
            if len(database) and database.get(_OWNER) != owner:
                raise UserError(
                    f"the cache {database.filename} holds answers of another model, routing or "
                    "arm; give each its own with use_cache, as scripts/lm_eval_jax.py does"
                )
            database.decode = _decode
            database[_OWNER] = owner
        self._database = database

    def add(self, args: Any, record: Record) -> None:
        """Add the record of a request.

        Args:
            args: The request's arguments.
            record: What the model did.
        """
        key = _key(record.kind, args, record.sample)
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
                key = _key(request.request_type, request.args, sample)
                record = self._records.get(key)
                if record is None and self._database is not None and key in self._database:
                    record = Record.from_json(self._database[key])
                if record is not None:
                    identity = (request.task_name, request.doc_id, request.idx)
                    records.append(record.for_request(*identity))
        return records


def _key(kind: str, args: Any, sample: int) -> str:
    return f"jroute: {sample} {hash_args(kind, args)}"


class _Unpickler(pickle.Unpickler):
    """Read what ``sqlitedict`` wrote, by earlier versions as well."""

    def find_class(self, module: str, name: str, /) -> Any:
        return _PICKLED_AS.get((module, name)) or super().find_class(module, name)


def _decode(value: Any) -> Any:
    return _Unpickler(io.BytesIO(bytes(value))).load()
