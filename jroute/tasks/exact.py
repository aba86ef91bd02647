"""Exact values within limits."""

from fractions import Fraction

MAX_BITS = 1000
"""Largest size of a numerator or a denominator; larger values are noise."""
MAX_CHARACTERS = 700
"""Length of the longest number that is read or written."""


class NotANumber(Exception):
    """What is being read cannot be evaluated exactly, or is no number at all."""


def bounded(value: Fraction) -> Fraction:
    """Return a value; raise ``NotANumber`` if it is absurdly large or precise."""
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
        raise NotANumber
    return value


def power(base: Fraction, exponent: Fraction) -> Fraction:
    """Return ``base ** exponent`` for a whole exponent, without ever computing a huge number.

    Raises:
        NotANumber: The exponent is not whole, the result is too large, or zero has a negative
            exponent.
    """
    size = max(base.numerator.bit_length(), base.denominator.bit_length()) - 1
    if exponent.denominator != 1 or (not base and exponent < 0):
        raise NotANumber
    if abs(exponent) * size > MAX_BITS:
        raise NotANumber
    if not size:  # 0, 1 or -1: only whether the exponent is zero, even or odd matters
        exponent = Fraction(0 if not exponent else 2 - exponent.numerator % 2)
    return bounded(base**exponent.numerator)


def literal(text: str) -> Fraction:
    """Return the value of a number such as ``18``, ``.5`` or ``3e5``.

    Raises:
        NotANumber: It is too long or too large.
    """
    digits, _, exponent = text.lower().partition("e")
    if len(digits) > MAX_CHARACTERS or len(exponent) > 9:
        raise NotANumber
    value = bounded(Fraction(digits))
    return bounded(value * power(Fraction(10), Fraction(exponent))) if exponent else value


def power_of_ten(value: Fraction) -> bool:
    """Return whether a value is 1, 10, 0.1, and so on."""
    digits = str(max(value.numerator, value.denominator))
    return value > 0 and digits.rstrip("0") == "1" and min(value.numerator, value.denominator) == 1
