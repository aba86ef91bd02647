r"""Plain arithmetic in a text, evaluated exactly.

``Reader.statement`` reads a number, an expression (numbers with ``+ - * / ^``, ``\frac`` and
brackets), or a chain of them with ``=`` in between. If anything else takes part (``\pi``,
``\sqrt``, a variable, a time, a ratio, a date, a range), the statement is *not a number*. The
text must be in the notation of ``jroute.tasks.notation``. Nesting and values are bounded.
"""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

from jroute.tasks.exact import NotANumber, bounded, literal, power, power_of_ten
from jroute.tasks.following import VARIABLES, is_ordinal, is_part
from jroute.tasks.tokens import Cursor, Token

MAX_DEPTH = 30
"""Deepest nesting of brackets and signs."""

_CLOSING = {"(": ")", "[": "]", "{": "}"}
_CONDITIONS = frozenset(
    ("if", "when", "for", "where", "with", "and", "or", "since", "as", "because", "while", "is")
)
_ENDS = frozenset(("end", "newline", "comma", "stop"))


class Term(NamedTuple):
    """A value, and whether it is written as a number rather than as an operation."""

    value: Fraction
    bare: bool


@dataclass
class Reader(Cursor):
    """Reads statements out of tokens."""

    _depth: int = 0
    _equation: bool = False

    def statement(self) -> Fraction | None:
        """Read ``part = part = ...`` from here on, and return its value.

        The last part that is written as a number counts (``5 + 13 = 18``, ``18 = 20 - 2``), else
        the last part.

        Returns:
            The value; None if it is not a number, and then ``at`` has moved, or if nothing that
            could be a number starts here.
        """
        parts: list[Term | None] = []
        while True:
            self._equation = bool(parts) or self._equation_follows()
            try:
                part = self._sum()
                if part is None:
                    break
                self._refuse_what_follows()
            except NotANumber:
                part = None
                self._recover()
            parts.append(part)
            self._skip_unit()
            if self.coming().kind != "equals":
                break
            self.at += 1
            while self.kinds(2) == ["word", "equals"]:
                self.at += 2
        numbers = [part for part in parts if part is not None and part.bare]
        last = numbers[-1] if numbers else parts[-1] if parts else None
        return last.value if last is not None else None

    def number(self) -> Fraction | None:
        """Return the value if the tokens are one number and nothing else, not an operation."""
        try:
            term = self._sum()
        except NotANumber:
            return None
        complete = term is not None and term.bare and self.coming().kind == "end"
        return term.value if term is not None and complete else None

    def _equation_follows(self) -> bool:
        for ahead in range(80):
            kind = self.coming(ahead).kind
            if kind == "equals" or kind in _ENDS:
                return kind == "equals"
        return False

    def _recover(self) -> None:
        """Go on to the equals sign or to the end of a statement that is not a number."""
        self._depth = 0
        start, braces = self.at, 0
        while self.coming().kind not in _ENDS and (braces or self.coming().kind != "equals"):
            token = self.coming()
            braces = max(braces + (token.text == "{") - (token.text == "}"), 0)
            if token.kind == "word" and len(token.text) > 1 and self.at > start:
                return
            self.at += 1
        if self.at == start and self.coming().kind not in ("end", "equals"):
            self.at += 1

    def _skip_unit(self) -> None:
        """Within an equation, pass over a unit in front of a sign: ``5 apples + 13 apples =``."""
        if not self._equation or self._depth:
            return
        length = self._unit_length()
        if self._is_rate(length):
            return
        if self.kinds(2, length) == ["operator", "number"] and self.coming(length).text == "^":
            length += 2
        if length and self.coming(length).kind in ("operator", "equals"):
            self.at += length

    def _is_rate(self, length: int) -> bool:
        """Return whether a unit is per another: ``20 apples/2 people``."""
        slash, number = self.coming(length), self.coming(length + 1)
        after = self.coming(length + 3).kind
        tight = slash.text == "/" and not slash.spaced and not number.spaced
        return (
            bool(length)
            and tight
            and number.kind == "number"
            and (self.coming(length + 2).kind == "word" and after not in ("equals", "operator"))
        )

    def _unit_length(self) -> int:
        token = self.coming()
        if token.kind == "word" and token.text.lower() not in _CONDITIONS | VARIABLES:
            return 1
        if token.text == "{":
            length = 1
            while self.coming(length).kind == "word" and length < 6:
                length += 1
            if self.coming(length).text == "}":
                return length + 1
        return 0

    def _refuse_what_follows(self) -> None:
        """Raise ``NotANumber`` if the number that was read is only a part of something else."""
        token, second = self.coming(), self.coming(1)
        ratio = token.kind == "colon" and second.kind == "number" and token.spaced == second.spaced
        if ratio and self._skip_full_hour():
            return
        if ratio or is_part(self):
            raise NotANumber

    def _skip_full_hour(self) -> bool:
        """Return whether the colon is no ratio: in ``2:00`` pm, and in ``Week 3:210 pages``."""
        hour, minutes = self.coming(-1), self.coming(1)
        if minutes.text == "00" and hour.text.isdigit() and len(hour.text) <= 2:
            self.at += 2
            return self.coming().kind != "colon"
        return self.style == "prose" and len(minutes.text) > 2 and not minutes.spaced

    # The grammar: each method returns None, and does not move, where no operand starts.

    def _sum(self) -> Term | None:
        first = self.at
        total = self._product()
        while total is not None and self.coming().text in ("+", "-"):
            sign, start = self.coming(), self.at
            self.at += 1
            right = self._product()
            if right is None:
                self.at = start
                break
            if total.bare and right.bare and not self._depth and sign.text == "-":
                if self._is_dash(first):
                    self.at = start
                    break
                self._refuse_range(total.value, right.value, start)
            value = right.value if sign.text == "+" else -right.value
            total = Term(bounded(total.value + value), False)
            self._skip_unit()
        return total

    def _is_dash(self, first: int) -> bool:
        """Return whether the dash in what was read from ``first`` on may be no minus."""
        formula = any(t.text == "^" or t.kind == "fraction" for t in self.tokens[first : self.at])
        return self.style == "prose" and not formula and not self._equation

    def _refuse_range(self, low: Fraction, high: Fraction, dash: int) -> None:
        """Raise ``NotANumber`` for ``10-12`` and ``2020-03-04``, but not for ``20-2``."""
        tight = not self.tokens[dash].spaced and not self.tokens[dash + 1].spaced
        whole = low.denominator == high.denominator == 1
        day = self.coming().text == "-" and not self.coming().spaced and low >= 1000
        if tight and whole and (0 <= low < high or day) and not self._equation:
            raise NotANumber

    def _product(self) -> Term | None:
        total = self._power()
        while total is not None:
            self._skip_unit()
            if self.coming().text == "/" and (date := self._date()) is not None:
                return date
            start, sign = self.at, self._multiplication()
            if not sign:
                break
            right = self._power()
            if right is None:
                self.at = start
                break
            if sign == "/" and not right.value:
                raise NotANumber
            tight = all(not self.coming(ahead).spaced for ahead in (-1, -2))
            ten = right.bare and sign == "*" and power_of_ten(right.value)
            bare = total.bare and right.bare and (ten or (sign == "/" and tight))
            value = total.value / right.value if sign == "/" else total.value * right.value
            total = Term(bounded(value), bare)
        return total

    def _multiplication(self) -> str:
        """Pass over ``*``, ``/``, ``x`` or nothing (``2(3)``); return the sign, else ``""``."""
        token, second = self.coming(), self.coming(1)
        operand = second.kind in ("number", "open", "currency", "fraction")
        of = self._equation and token.text == "of"
        if token.text in ("*", "/") or (operand and (of or token.text in ("x", "X"))):
            self.at += 1
            return token.text if token.text == "/" else "*"
        return "*" if token.kind == "fraction" or (token.text == "(" and not token.spaced) else ""

    def _date(self) -> Term | None:
        """Read the rest of ``3/4/2020``: its year in prose, not a number elsewhere."""
        pieces = [self.coming(ahead) for ahead in range(-1, 4)]
        kinds = [piece.kind for piece in pieces]
        if kinds != ["number", "operator"] * 2 + ["number"] or pieces[3].text != "/":
            return None
        lengths = [len(piece.text) for piece in pieces]
        if any(piece.spaced for piece in pieces[1:]) or max(lengths[0], lengths[2]) > 2:
            return None
        if lengths[4] not in (2, 4):
            return None
        self.at += 4
        if self.style != "prose":
            raise NotANumber
        return Term(literal(pieces[4].text), True)

    def _power(self) -> Term | None:
        start = self.at
        while self.coming().kind == "currency":
            self.at += 1
        if self.coming().text in ("+", "-"):
            negative = self.coming().text == "-"
            self.at += 1
            with_sign = self._deeper(self._power)
            if with_sign is None:
                self.at = start
                return None
            return Term(-with_sign.value if negative else with_sign.value, with_sign.bare)
        base = self._operand()
        if base is None:
            self.at = start
        elif self.coming().text == "^":
            self.at += 1
            exponent = self._deeper(self._power)
            if exponent is not None:
                return Term(power(base.value, exponent.value), base.bare and exponent.bare)
            self._skip_ordinal()
        return base

    def _skip_ordinal(self) -> None:
        """Pass over the exponent in ``18^{th}``."""
        while self.coming().text == "{":
            self.at += 1
        if self.coming().kind == "symbol":
            raise NotANumber
        if self.coming().kind == "word":
            if not is_ordinal(self.coming()):
                raise NotANumber
            self.at += 1
        while self.coming().text == "}" and self.coming(-1).kind != "close":
            self.at += 1

    def _operand(self) -> Term | None:
        token = self.coming()
        if token.kind == "symbol":
            raise NotANumber
        if token.kind == "number":
            self.at += 1
            value = bounded(literal(token.text) + self._mixed_fraction(token))
        elif token.kind == "fraction":
            value = self._fraction()
        elif token.kind == "open":
            inner = self._deeper(self._bracket)
            if inner is None:
                return None
            self._skip_suffix()
            return inner
        else:
            return None
        self._skip_suffix()
        return Term(value, True)

    def _skip_suffix(self) -> None:
        while self.coming().kind in ("percent", "currency"):
            self.at += 1

    def _mixed_fraction(self, whole: Token) -> Fraction:
        r"""Read the fraction of ``2 1/2`` or ``2\frac{1}{2}``; return 0 if none follows."""
        if not whole.text.isdigit():
            return Fraction(0)
        if self.coming().kind == "fraction":
            return self._fraction()
        top, slash, bottom, after = (self.coming(ahead) for ahead in range(4))
        if (top.kind, slash.text, bottom.kind) != ("number", "/", "number") or not top.spaced:
            return Fraction(0)
        if slash.spaced or bottom.spaced or not (top.text + bottom.text).isdigit():
            return Fraction(0)
        if after.text == "/" or not literal(bottom.text):
            raise NotANumber
        self.at += 3
        return literal(top.text) / literal(bottom.text)

    def _fraction(self) -> Fraction:
        self.at += 1
        top = self._deeper(self._bracket) if self.coming().text == "{" else None
        bottom = self._deeper(self._bracket) if self.coming().text == "{" else None
        if top is None or bottom is None or not bottom.value:
            raise NotANumber
        return bounded(top.value / bottom.value)

    def _bracket(self) -> Term | None:
        """Read ``(5 + 3)``, or ``{18 apples}``."""
        start, opening = self.at, self.coming()
        self.at += 1
        inner = self._sum()
        while inner is not None and opening.text == "{" and self.coming().kind == "word":
            if self.coming().text in VARIABLES:
                raise NotANumber
            self.at += 1
        if inner is not None and self.coming().kind == "symbol":
            raise NotANumber
        if inner is None or self.coming().text != _CLOSING[opening.text]:
            self.at = start
            return None
        self.at += 1
        return inner

    def _deeper(self, read: Callable[[], Term | None]) -> Term | None:
        if self._depth >= MAX_DEPTH:
            raise NotANumber
        self._depth += 1
        term = read()
        self._depth -= 1
        return term
