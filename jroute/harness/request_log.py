"""What was done for each request, kept beside the answers that lm-eval caches.

A request that is answered from the cache never reaches the model; what gate it ran under and how
many tokens it took is read from here.
"""

from collections.abc import MutableMapping, Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import hash_args

from jroute.harness.records import Record
from jroute.utils.errors import UserError
from jroute.utils.keys import stored

_OWNER = "jroute: whose answers these are"


class RequestLog:
    """Records by request, in memory and in lm-eval's cache, if there is one."""

    def __init__(self) -> None:
        self._done: dict[str, Record] = {}
        self._stored: MutableMapping[str, Any] | None = None

    def store(self, stored: Any, owner: str) -> None:
        """Take the database of lm-eval's cache.

        Args:
            stored: The database, or ``None``.
            owner: Whose answers it is to hold.

        Raises:
            UserError: It holds another's.
        """
        if stored is not None:
            if len(stored) and stored.get(_OWNER) != owner:
                raise UserError(
                    f"the cache {stored.filename} holds answers of another model, routing or arm; "
                    "give each its own with use_cache, as scripts/lm_eval_jax.py does"
                )
            stored[_OWNER] = owner
        self._stored = stored

    def keep(self, args: Any, record: Record) -> None:
        """Files what was done for a request."""
        key = _key(record.kind, args, record.sample)
        self._done[key] = record
        if self._stored is not None:
            self._stored[key] = stored(record)

    def records_of(self, instances: Sequence[Instance], repeats: int | None = None) -> list[Record]:
        """What was done for requests, by this process or by the one that cached their answers.

        Args:
            instances: The requests.
            repeats: How often each was asked; by default as often as it says.
        """
        found = []
        for request in instances:
            for sample in range(repeats or request.repeats or 1):
                key = _key(request.request_type, request.args, sample)
                record = self._done.get(key)
                if record is None and self._stored is not None and key in self._stored:
                    record = Record.of(self._stored[key])
                if record is not None:
                    about = (request.task_name, request.doc_id, request.idx)
                    found.append(record.about(*about))
        return found


def _key(kind: str, args: Any, sample: int) -> str:
    return f"jroute: {sample} {hash_args(kind, args)}"
