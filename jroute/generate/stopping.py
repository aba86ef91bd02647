"""What ends a completion: end tokens, and stop strings in text that grows token by token."""

import bisect
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field
from transformers import PreTrainedTokenizerFast

from jroute.utils.errors import UserError
from jroute.utils.json_files import Record, read_json

TokenId = Annotated[int, Field(ge=0, lt=2**24)]


class GenerationConfig(Record):
    """What ``generation_config.json`` and ``config.json`` say about the end of a text."""

    eos_token_id: TokenId | Annotated[list[TokenId], Field(min_length=1)] | None = None


class Watch:
    """The text of one row as it grows.

    Attributes:
        ids: Tokens so far; the row appends to it.
    """

    __slots__ = ("_from", "_read", "_tail", "ids")

    def __init__(self, ids: list[int]):
        self.ids = ids
        self._from = self._read = 0
        self._tail = ""


class Stops:
    """Strings that end a completion.

    A string may begin in one token and end in another. A completion ends with the token that
    completes one of the strings; the text up to that token decides which one, and where it begins.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, strings: Sequence[str], minimum: int):
        self._tokenizer = tokenizer
        self._strings = tuple(strings)
        self._longest = max(map(len, strings), default=0)
        self._minimum = minimum

    def __bool__(self) -> bool:
        return bool(self._strings)

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """Decode rows of tokens, without special tokens."""
        if not rows:
            return []  # which the tokenizer would take for one row
        return self._tokenizer.batch_decode(list(map(list, rows)), skip_special_tokens=True)

    def search(self, watches: Sequence[Watch]) -> list[bool]:
        """Return whether a stop string may have been completed since the last search.

        Only the new tokens are decoded, after those of the search before, on which their text may
        depend (a character can span tokens).
        """
        windows = [w.ids[w._from : w._read] for w in watches] + [w.ids[w._from :] for w in watches]
        texts = self.decode(windows)
        hits = []
        for watch, before, now in zip(watches, texts, texts[len(watches) :], strict=False):
            new = now[len(before) :] if now.startswith(before) else now
            text = watch._tail + new
            hits.append(any(stop in text for stop in self._strings))
            if new and not new.endswith("\ufffd"):  # else a character is incomplete
                watch._from, watch._read = watch._read, len(watch.ids)
                watch._tail = text[-self._longest :]
        return hits

    def cut(self, ids: Sequence[int]) -> tuple[list[int], str] | None:
        """Return the tokens up to the one that completes a stop string, and the text before it.

        Return ``None`` if no stop string ends after the first ``minimum`` tokens.
        """
        decoded: dict[int, str] = {}

        def text(count: int) -> str:
            if count not in decoded:
                (decoded[count],) = self.decode([ids[:count]])
            return decoded[count]

        offset = len(text(self._minimum)) if self._minimum else 0

        def begins(count: int) -> int:
            """Return where the first stop string begins in the text of ``count`` tokens, or -1."""
            starts = [text(count).find(s, max(0, offset - len(s) + 1)) for s in self._strings]
            return min((start for start in starts if start >= 0), default=-1)

        if begins(len(ids)) < 0:
            return None
        counts = range(1, len(ids) + 1)
        count = counts[bisect.bisect_left(counts, True, key=lambda n: begins(n) >= 0)]
        return list(ids[:count]), text(count)[: begins(count)]


def end_tokens(directory: Path, tokenizer: PreTrainedTokenizerFast, vocab_size: int) -> list[int]:
    """Read the end tokens: ``generation_config.json``, else ``config.json``, else the tokenizer.

    Raises:
        UserError: There is none, or the vocabulary has no such token.
    """
    for name in ("generation_config.json", "config.json"):
        file = directory / name
        remedy = f"correct {name} in the model's source and convert again"
        ends = read_json(file, GenerationConfig, remedy).eos_token_id if file.is_file() else None
        ends = [ends] if isinstance(ends, int) else ends
        if ends is not None and max(ends) >= vocab_size:
            raise UserError(
                f"{file}: eos_token_id is {max(ends)}, but the model has {vocab_size:,} tokens; "
                f"{remedy}"
            )
        if ends is not None:
            return ends
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"{directory} names no end token; add eos_token_id to generation_config.json in the "
            "model's source and convert again"
        )
    return [int(str(tokenizer.eos_token_id))]
