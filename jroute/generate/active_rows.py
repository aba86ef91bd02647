"""The unfinished rows of a run, as the host knows them: tokens so far, and which rows end."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jroute.generate.decoding import Completion, Decoding, StopReason
from jroute.generate.programs import Chunk
from jroute.generate.requests import FrozenModel
from jroute.generate.sampling import NOT_FINITE
from jroute.generate.stopping import Stops, Watch


class ActiveRow:
    """One request in its slot.

    Attributes:
        length: Tokens of the prompt.
        limit: Largest number of new tokens.
        ids: New tokens so far.
        logprobs: Their log-probabilities, if requested.
        margins: Their margins, if requested.
        watch: Their text, as far as it was searched for stop strings.
    """

    __slots__ = ("ids", "length", "limit", "logprobs", "margins", "watch")

    def __init__(self, length: int, limit: int):
        self.length, self.limit = length, limit
        self.ids: list[int] = []
        self.logprobs: list[float] = []
        self.margins: list[float] = []
        self.watch = Watch(self.ids)

    def append(self, chunk: Chunk, at: int, count: int) -> None:
        """Append the first ``count`` tokens of row ``at`` of a chunk."""
        self.ids += chunk.tokens[at, :count].tolist()
        if chunk.logprobs is not None:
            self.logprobs += chunk.logprobs[at, :count].tolist()
        if chunk.margins is not None:
            self.margins += chunk.margins[at, :count].tolist()

    def completion(self, ids: list[int], text: str, reason: StopReason) -> Completion:
        """Make the completion of the leading tokens ``ids``."""
        logprobs = tuple(self.logprobs[: len(ids)]) if self.logprobs else None
        margin = min(self.margins[: len(ids)], default=None)
        return Completion(tuple(ids), text, reason, logprobs, margin)


class Ended(NamedTuple):
    """A row that is finished.

    Attributes:
        request: Index of its request.
        completion: Its completion.
        on_device: Whether the device has ended the row too; otherwise only a stop string did.
    """

    request: int
    completion: Completion
    on_device: bool


class Appended(NamedTuple):
    """What became of the rows of a chunk.

    Attributes:
        tokens: Number of new tokens.
        ended: The rows that are finished.
        broken: Requests of the rows whose logits are not finite after their last token.
    """

    tokens: int
    ended: list[Ended]
    broken: list[int]


class ActiveRows:
    """Rows by the index of their request."""

    def __init__(self, model: FrozenModel, decoding: Decoding):
        self._rows: dict[int, ActiveRow] = {}
        self._ends = frozenset(model.end_token_ids)
        self._stops = Stops(model.tokenizer, decoding.stop, decoding.min_new_tokens)

    def __len__(self) -> int:
        return len(self._rows)

    def ids(self, index: int) -> list[int]:
        """Return the new tokens of an unfinished row."""
        return self._rows[index].ids

    def add(self, index: int, length: int, limit: int) -> None:
        """Add a row with a prompt of ``length`` tokens."""
        self._rows[index] = ActiveRow(length, limit)

    def longest(self, steps: int) -> int:
        """Return the most positions that a row can take after ``steps`` more tokens."""
        return max(
            (row.length + min(row.limit, len(row.ids) + steps) for row in self._rows.values()),
            default=0,
        )

    def append(self, owners: Sequence[int | None], chunk: Chunk) -> Appended:
        """Append the tokens of a chunk to their rows, and remove the rows that end.

        Args:
            owners: Index of the request of each row of the chunk; those that have ended are passed
                over.
            chunk: The tokens, on the host.
        """
        ends_broken = (np.asarray(chunk.tokens) == NOT_FINITE).any(axis=1).tolist()
        counts = (np.asarray(chunk.tokens) >= 0).sum(axis=1).tolist()
        done: dict[int, bool] = {}
        tokens, broken = 0, []
        for at, (owner, count) in enumerate(zip(owners, counts, strict=True)):
            row = None if owner is None else self._rows.get(owner)
            if owner is None or row is None:
                continue
            if ends_broken[at]:
                broken.append(owner)
            if count:
                row.append(chunk, at, count)
                tokens += count
                done[owner] = bool(chunk.done[at]) and not ends_broken[at]
        ended = self._finish(done)
        # A stop string among the tokens before the broken one ends the row as it should.
        return Appended(tokens, ended, [i for i in broken if i in self._rows])

    def _finish(self, done: dict[int, bool]) -> list[Ended]:
        """Remove the finished ones of the rows with new tokens.

        Args:
            done: By the index of a row with new tokens, whether the device has ended it.
        """
        completions = self._at_stop_strings(list(done))
        indices = [i for i, ended in done.items() if ended and i not in completions]
        texts = self._stops.decode([self._rows[i].ids for i in indices])
        for i, text in zip(indices, texts, strict=True):
            row = self._rows[i]
            reason = "end_token" if row.ids[-1] in self._ends else "length"
            completions[i] = row.completion(row.ids, text, reason)
        for i in completions:
            del self._rows[i]
        return [Ended(i, completion, done[i]) for i, completion in completions.items()]

    def _at_stop_strings(self, indices: Sequence[int]) -> dict[int, Completion]:
        """Return completions of the rows that hold a stop string, cut before it."""
        completions: dict[int, Completion] = {}
        if not self._stops or not indices:
            return completions
        hits = self._stops.search([self._rows[i].watch for i in indices])
        for i, hit in zip(indices, hits, strict=True):
            row = self._rows[i]
            cut = self._stops.cut(row.ids) if hit else None
            if cut:
                completions[i] = row.completion(*cut, "stop_string")
        return completions
