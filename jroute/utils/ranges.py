"""The ranges of settings: each stated once, beside its dataclass, and checked by one function."""

import numbers
from typing import Any, NamedTuple

from jroute.utils.errors import UserError

MAX_WHOLE = 2**31 - 1
"""Largest whole number of a setting: the largest that a program takes."""

MAX_NUMBER = 1e6
"""Largest number of a setting that has no smaller limit."""


class Range(NamedTuple):
    """The numbers that a setting may be.

    Attributes:
        low: The smallest.
        high: The largest.
        whole: Whether only whole numbers count.
        above: Exclude ``low`` itself.
        below: Exclude ``high`` itself.
        zero: Also allow 0, below ``low``.
        words: Words that are allowed too.
    """

    low: float
    high: float = MAX_NUMBER
    whole: bool = False
    above: bool = False
    below: bool = False
    zero: bool = False
    words: tuple[str, ...] = ()

    def holds(self, value: Any) -> bool:
        """Return whether a value is a number of the range; Booleans, NaN and infinity are none."""
        if isinstance(value, str):
            return value in self.words
        kind: Any = numbers.Integral if self.whole else numbers.Real
        if not isinstance(value, kind) or isinstance(value, bool):
            return False
        inside = self.low <= value <= self.high
        at_end = (self.above and value == self.low) or (self.below and value == self.high)
        return (inside and not at_end) or (self.zero and value == 0)

    def __str__(self) -> str:
        """Say which numbers they are."""
        kind = "a whole number" if self.whole else "a number"
        words = "".join(f"{word}, or " for word in (*self.words, *(["0"] if self.zero else [])))
        low, high = (f"{x:d}" if isinstance(x, int) else f"{x:g}" for x in (self.low, self.high))
        first = f"above {low}" if self.above else f"at least {low}"
        return f"{words}{kind} {first} and {'below' if self.below else 'at most'} {high}"


def whole(low: int, high: int = MAX_WHOLE, *, words: tuple[str, ...] = ()) -> Range:
    """Return the range of the whole numbers from ``low`` to ``high``."""
    return Range(low, high, whole=True, words=words)


def check_ranges(section: str, settings: Any, ranges: dict[str, Range]) -> None:
    """Refuse settings outside their ranges.

    Args:
        section: Name of the settings in messages, such as ``decoding``.
        settings: An object with one attribute for each range, a number or a tuple of numbers.
        ranges: The range of each attribute.

    Raises:
        UserError: A value is not a number of its range.
    """
    for name, allowed in ranges.items():
        value = getattr(settings, name)
        several = isinstance(value, (tuple, list))
        if not all(map(allowed.holds, value if several else (value,))):
            raise UserError(f"{section}.{name} is {value!r:.60}; give {allowed}{' each' * several}")
