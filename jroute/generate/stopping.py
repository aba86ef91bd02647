"""Stop strings: found in text that grows token by token, and cut from it."""

import bisect
from collections.abc import Sequence

from transformers import PreTrainedTokenizerFast


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

    A string may begin in one token and end in another. A completion ends with the token that makes
    one of the strings whole; which one, and where it begins, is told by the text up to that token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, strings: Sequence[str], minimum: int):
        self._tokenizer = tokenizer
        self._strings = tuple(strings)
        self._longest = max(map(len, strings), default=0)
        self._minimum = minimum

    def __bool__(self) -> bool:
        return bool(self._strings)

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """Texts of rows of tokens, without special tokens."""
        if not rows:
            return []  # the library would take it for one row
        return self._tokenizer.batch_decode(list(map(list, rows)), skip_special_tokens=True)

    def look(self, watches: Sequence[Watch]) -> list[bool]:
        """Whether a stop string may have become whole in what was added since the last look.

        Only the new tokens are decoded, after those of the look before, on which their text may
        depend (a character can span tokens).
        """
        windows = [w.ids[w._from : w._read] for w in watches] + [w.ids[w._from :] for w in watches]
        texts = self.decode(windows)
        found = []
        for watch, before, now in zip(watches, texts, texts[len(watches) :], strict=False):
            new = now[len(before) :] if now.startswith(before) else now
            text = watch._tail + new
            found.append(any(stop in text for stop in self._strings))
            if new and not new.endswith("\ufffd"):  # else a character is not whole yet
                watch._from, watch._read = watch._read, len(watch.ids)
                watch._tail = text[-self._longest :]
        return found

    def cut(self, ids: Sequence[int]) -> tuple[list[int], str] | None:
        """Tokens up to the one that completes a stop string, and the text before that string.

        ``None`` if there is no stop string, or none that ends after the first ``minimum`` tokens.
        """
        decoded: dict[int, str] = {}

        def text(count: int) -> str:
            if count not in decoded:
                (decoded[count],) = self.decode([ids[:count]])
            return decoded[count]

        offset = len(text(self._minimum)) if self._minimum else 0

        def begins(count: int) -> int:
            """Where the first stop string begins in the text of so many tokens, or -1."""
            spots = [text(count).find(s, max(0, offset - len(s) + 1)) for s in self._strings]
            return min((spot for spot in spots if spot >= 0), default=-1)

        if begins(len(ids)) < 0:
            return None
        counts = range(1, len(ids) + 1)
        count = counts[bisect.bisect_left(counts, True, key=lambda n: begins(n) >= 0)]
        return list(ids[:count]), text(count)[: begins(count)]
