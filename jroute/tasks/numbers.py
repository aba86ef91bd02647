"""Texts to exact numbers and back.

Numbers are exact fractions: ``$18.00``, ``18`` and ``36/2`` are equal, ``0.33`` and ``1/3`` are
not. Currency and percent signs, thousands separators, bold marks and a final period do not count:
``25%`` is 25.
"""

import re
import unicodedata
from decimal import Decimal, localcontext
from fractions import Fraction

# Longer numbers are noise (a model stuck on one digit), and exact arithmetic on them is costly.
MAX_CHARACTERS = 100
MAX_EXPONENT = 100
MAX_BITS = 1000

# One number. `-` is a sign only where it cannot be a minus between two terms, and digits attached
# to a letter, `^` or `_` (`cm2`, `m^2`, `x_1`) are not numbers. Neighbouring repetitions never
# match the same character, so matching takes linear time.
_INTEGER = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)"
_DECIMAL = rf"(?:{_INTEGER}(?:\.[0-9]+)?|(?<![0-9A-Za-z])\.[0-9]+)"
_SIGNED = rf"\s?-?{_DECIMAL}\s?"
_POWER = r"\s?\^\s?\{{?(?P<{name}>-?[0-9]+)\}}?"
NUMBER = re.compile(
    rf"""
    (?P<outer>(?<![0-9A-Za-z)\]}}%])-)?
    (?:[$€£¥]\s?)?
    (?P<inner>(?<=[$€£¥])-)?
    (?<![0-9A-Za-z_^])(?<!\^\{{)(?<!_\{{)
    (?:
        (?:(?P<latex_whole>[0-9]+)\s?)?
        \\[dtc]?frac\s?(?:
            \{{(?P<latex_top>{_SIGNED})\}}\s?\{{(?P<latex_bottom>{_SIGNED})\}}
            | (?P<latex_top_digit>[0-9])\s?(?P<latex_bottom_digit>[0-9])
        )
      | (?:(?P<whole>[0-9]+)[ ](?=[0-9]+/))?
        (?<!/)(?P<top>{_DECIMAL})\s?/\s?(?P<bottom>{_DECIMAL})(?![/0-9])
      | (?P<plain>{_DECIMAL})
        (?:
            [eE](?P<exponent>[+-]?[0-9]+)(?![0-9A-Za-z])
          | \s?(?:\\times|\\cdot|[\u00d7*x])\s?10{_POWER.format(name="ten_power")}
          | {_POWER.format(name="power")}
        )?
    )
    """,
    re.VERBOSE,
)

_MINUS_SIGNS = dict.fromkeys(map(ord, "\u2212\u2010\u2011\u2012\u2013\ufe63\uff0d"), "-")
_GROUP_SPACE = re.compile(
    r"(?<=[0-9])(?:,?\\[,!;: ]|\{,\}|[\u00a0\u2009\u202f])(?=[0-9]{3}(?![0-9]))"
)
_VULGAR_FRACTION = re.compile(r"[\u00bc-\u00be\u2150-\u215e]")


def _group_value(groups: dict[str, str], *names: str) -> Fraction:
    """Return the value of the first of the named groups that matched; 0 if none did."""
    digits = next((groups[name] for name in names if name in groups), "0")
    return Fraction("".join(digits.replace(",", "").split()))


def exact_value(number: re.Match[str]) -> Fraction | None:
    """Return the value of a match of ``NUMBER``; None for n/0 and for absurdly large numbers."""
    groups = {name: text for name, text in number.groupdict().items() if text}
    if any(len(text) > MAX_CHARACTERS for text in groups.values()):
        return None
    exponents = {name: int(groups.get(name, 0)) for name in ("exponent", "ten_power", "power")}
    if any(abs(exponent) > MAX_EXPONENT for exponent in exponents.values()):
        return None
    if "plain" in groups:
        value = _group_value(groups, "plain") * Fraction(10) ** (
            exponents["exponent"] + exponents["ten_power"]
        )
        if "power" in groups:
            if not value and exponents["power"] < 0:
                return None
            value **= exponents["power"]
    else:
        bottom = _group_value(groups, "latex_bottom", "latex_bottom_digit", "bottom")
        if not bottom:
            return None
        value = _group_value(groups, "latex_top", "latex_top_digit", "top") / bottom
        value += _group_value(groups, "latex_whole", "whole")
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
        return None
    return -value if ("outer" in groups) != ("inner" in groups) else value


def normalise(text: str) -> str:
    """Write every minus sign, thousands separator and fraction of a text in one way."""
    text = text.translate(_MINUS_SIGNS).replace("\\$", "$").replace("**", " ")
    text = _VULGAR_FRACTION.sub(
        lambda sign: " " + unicodedata.normalize("NFKC", sign[0]).replace("\u2044", "/"),
        text,
    )
    return _GROUP_SPACE.sub(",", text)


def parse_number(text: str) -> Fraction | None:
    """Read a text that is one number and nothing else.

    Args:
        text: For example ``1,000``, ``-3/4``, ``$2.50``, ``25%``, ``1e3``.

    Returns:
        The number, or None if the text is anything else.
    """
    number = NUMBER.fullmatch(normalise(text).strip().removesuffix(".").removesuffix("%").strip())
    return exact_value(number) if number else None


def canonical(value: Fraction) -> str:
    """Write a number in canonical form, the form of gold answers.

    Returns:
        An integer (``18``), else the exact decimal number (``2.5``), else a fraction (``1/3``).
    """
    if value.denominator == 1:
        return str(value.numerator)
    with localcontext(prec=2 * MAX_BITS):
        decimal = Decimal(value.numerator) / Decimal(value.denominator)
    if Fraction(decimal) != value:
        return f"{value.numerator}/{value.denominator}"
    return f"{decimal:f}"
