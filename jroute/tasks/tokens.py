"""A text as tokens: numbers, signs, brackets, words."""

import re
from dataclasses import dataclass
from typing import Literal, NamedTuple

# Commands that are no part of a formula.
_DECORATION = r"boxed|fbox|hspace|vspace|checkmark|square|blacksquare|qed|therefore|because|newline"
_DECORATION += r"|hfill|tag|label|item|begin|end|centering|noindent|par|smallskip|medskip|bigskip"
_TOKEN = re.compile(
    rf"""
    (?P<number>(?:[0-9]+(?:\.[0-9]+)?|(?<![0-9A-Za-z])\.[0-9]+)(?:[eE][+-]?[0-9]+(?![0-9A-Za-z]))?)
  | (?P<fraction>\\frac(?![A-Za-z]))
  | (?P<other>\\(?:{_DECORATION})(?![A-Za-z])|\\[{{}}])
  | (?P<symbol>\\[A-Za-z]+|[\u03c0\u03c4\u221a\u221b\u221e\u2211\u00b1])
  | (?P<word>[A-Za-z][A-Za-z0-9_]*|[^\W0-9_A-Za-z]+)
  | (?P<operator>[-+*/^])
  | (?P<open>[(\[{{])
  | (?P<close>[)\]}}])
  | (?P<equals>=+)
  | (?P<currency>[$\u20ac\u00a3\u00a5\u20b9\u20a9\u20bd\u00a2])
  | (?P<percent>%)
  | (?P<comparison>[<>\u2264\u2265\u2260])
  | (?P<newline>\n)
  | (?P<comma>,)
  | (?P<colon>:)
  | (?P<stop>[.;!?])
  | (?P<space>[^\S\n]+)
  | (?P<any>.)
    """,
    re.VERBOSE,
)


class Token(NamedTuple):
    """A piece of a text with its kind, its place, and whether white space precedes it."""

    kind: str
    text: str
    start: int
    end: int
    spaced: bool


def tokenise(text: str, start: int, end: int) -> list[Token]:
    """Cut ``text[start:end]`` into tokens; white space but line feeds is left out."""
    tokens: list[Token] = []
    spaced = False
    for match in _TOKEN.finditer(text, start, end):
        if match.lastgroup == "space":
            spaced = True
            continue
        tokens.append(Token(match.lastgroup or "any", match[0], match.start(), match.end(), spaced))
        spaced = False
    return tokens


@dataclass
class Cursor:
    """A place among tokens.

    Attributes:
        tokens: The tokens.
        style: Where they stand. In ``prose`` a dash between two numbers is not a minus, and of a
            date the year counts. In a ``box``, ``5!`` is a factorial.
        at: Index of the token that comes next.
    """

    tokens: list[Token]
    style: Literal["prose", "stated", "box"]
    at: int = 0

    def coming(self, ahead: int = 0) -> Token:
        """Return a coming token (or, with a negative number, an earlier one)."""
        place = self.at + ahead
        if 0 <= place < len(self.tokens):
            return self.tokens[place]
        return Token("end", "", 0, 0, True)

    def kinds(self, count: int, ahead: int = 0) -> list[str]:
        """Return the kinds of coming tokens."""
        return [self.coming(ahead + number).kind for number in range(count)]
