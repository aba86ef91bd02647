"""Texts to exact numbers and back."""

from fractions import Fraction

from jroute.tasks.numbers import canonical, parse_number


def test_numbers():
    good = {"1,000": 1000, "$2.50": Fraction(5, 2), "-3/4": Fraction(-3, 4), "25%": 25, " 18. ": 18}
    for text, value in good.items():
        assert parse_number(text) == value
    for text in ("", "eighteen", "18 apples", "1 2", "1,00", "nan", "inf", "True", "1/0", "0x12"):
        assert parse_number(text) is None, text


def test_canonical_form():
    pairs = {
        Fraction(18): "18",
        Fraction(-1000): "-1000",
        Fraction(0): "0",
        Fraction("2.50"): "2.5",
        Fraction("0.001"): "0.001",
        Fraction(-1, 8): "-0.125",
        Fraction(1, 3): "1/3",
        Fraction(10**30): "1" + "0" * 30,
        Fraction(1, 10**30): "0." + "0" * 29 + "1",
    }
    for value, text in pairs.items():
        assert canonical(value) == text
