"""Texts to exact numbers and back.

Numbers are exact fractions: ``$18.00``, ``18`` and ``36/2`` are equal, ``0.33`` and ``1/3`` are
not. Currency and percent signs, thousands separators, bold marks and a final period do not count:
``25%`` is 25.
"""

import math
import re
from decimal import Decimal, localcontext
from fractions import Fraction

from jroute.tasks.arithmetic import Reader
from jroute.tasks.exact import MAX_BITS, MAX_CHARACTERS
from jroute.tasks.notation import normalise
from jroute.tasks.tokens import tokenise

# A model that is stuck on one digit states no number.
_STUCK = re.compile(r"([1-9])\1{100}")


def parse_number(text: str) -> Fraction | None:
    """Read a text that is one number and nothing else.

    Args:
        text: For example ``1,000``, ``-3/4``, ``2 1/2``, ``$2.50``, ``25%``, ``1e3``.

    Returns:
        The number, or None if the text is anything else. It reads whatever ``canonical`` writes of
        a value that is ``readable``.
    """
    if len(text) > 4 * MAX_CHARACTERS:
        return None
    text = normalise(text).strip().removesuffix(".")
    value = Reader(tokenise(text, 0, len(text)), "box").number()
    return value if value is not None and readable(value) else None


def meant(number: float) -> Fraction | None:
    """Return the number that a binary one stands for, as its decimal digits show it.

    Up to 15 significant digits are exact in a float. With more, the number is the result of a
    computation: of the decimal number next to it if that is short (0.30000000000000004 is 0.3), or
    of a fraction (0.3333333333333333 is 1/3).

    Returns:
        The number; None if it is not finite, absurdly large, or if it cannot be known.
    """
    if not math.isfinite(number):
        return None
    printed = Decimal(repr(number))
    rounded = Decimal(f"{number:.15g}")
    fraction = Fraction(number).limit_denominator(1000)
    if printed == rounded or len(rounded.normalize().as_tuple().digits) <= 12:
        value = Fraction(rounded)
    elif abs(float(fraction) - number) <= 4 * math.ulp(number):
        value = fraction
    else:
        return None
    return value if parse_number(canonical(value)) is not None else None


def readable(value: Fraction) -> bool:
    """Return whether a value counts as an answer: it is not a digit repeated without end."""
    return not _STUCK.search(canonical(value))


def canonical(value: Fraction) -> str:
    """Write a number in canonical form, the form of gold answers.

    Returns:
        An integer (``18``), else the exact decimal number (``2.5``), else, and where the decimal
        number is very long, a fraction (``1/3``).
    """
    if value.denominator == 1:
        return str(value.numerator)
    with localcontext(prec=2 * MAX_BITS):
        decimal = Decimal(value.numerator) / Decimal(value.denominator)
    text = f"{decimal:f}"
    if Fraction(decimal) != value or len(text) > MAX_CHARACTERS:
        return f"{value.numerator}/{value.denominator}"
    return text
