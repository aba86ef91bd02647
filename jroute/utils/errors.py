"""The one exception whose message is meant for users, and how messages show what users gave."""

import reprlib
from typing import Any

MAX_SHOWN = 80
"""Characters of the longest value that a message shows in full."""


class UserError(Exception):
    """Invalid input. The message says in one sentence what is wrong, where, and what to do.

    Commands print it as ``error: ...`` and exit with status 2. Any other exception is a defect of
    jroute and keeps its traceback.
    """


FOREIGN_ERRORS = (Exception, SystemExit)
"""What code that is not jroute's may raise; ``sys.exit`` there must not end a command silently."""


class UserTypeError(UserError, TypeError):
    """A ``UserError`` where Python's convention, or Gymnasium's, is a ``TypeError``."""


class UserValueError(UserError, ValueError):
    """A ``UserError`` where Python's convention, or Gymnasium's, is a ``ValueError``."""


class _Shown(reprlib.Repr):
    """Show at most some items of some levels, and never a number of thousands of digits."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring = 3, MAX_SHOWN

    def repr_int(self, x: int, level: int) -> str:
        """Show an integer; Python refuses to print one of more than 4,300 digits."""
        bits = x.bit_length()
        return repr(x) if bits < 4 * MAX_SHOWN else f"a number of {bits:,} bits"


def shown(value: Any) -> str:
    """Return a value that a user gave as a message shows it: its ``repr``, never long.

    Every message that quotes a value of unknown size uses this; a few hundred bytes of YAML or JSON
    can hold a value whose full ``repr`` fills the memory.
    """
    text = _SHOWN.repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 4]} ..."


def one_line(text: Any, most: int = 300) -> str:
    """Return what foreign code says as part of a message: one line, not long, printable."""
    words = " ".join(str(text)[: 10 * most].split())
    line = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in words)
    return line if len(line) <= most else f"{line[: most - 4]} ..."


_SHOWN = _Shown()
