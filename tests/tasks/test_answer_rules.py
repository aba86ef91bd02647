"""The parser's table of rules, and the ways in which numbers are written."""

import re
import time
import tracemalloc
from fractions import Fraction

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jroute.tasks import answers
from jroute.tasks.answers import boxed_answer, parse_answer
from jroute.tasks.numbers import canonical, parse_number

ROWS = re.findall(r"^``(.+?)``  +(\S+)  +\S", answers.__doc__ or "", re.MULTILINE)


def test_the_docstring_has_its_rules():
    assert len(ROWS) == 59


@pytest.mark.parametrize(("text", "answer"), ROWS)
def test_rule_of_the_docstring(text, answer):
    parsed = parse_answer(text.replace(r"\n", "\n"))
    assert (parsed.text or "none") == answer


# (answer, texts that give it); none: no answer.
CASES = {
    "-0.5": ["-½", "\\boxed{-½}", "#### −½", "\\boxed{-\\tfrac12}", "#### -1/2"],
    "2.5": ["2 ½", "2½", "2-½", "2-1/2", "#### 2 1/2", "\\boxed{2\\dfrac12}", "2\u2009½"],
    "8": ["\\boxed{5+3}", "#### 5 + 3", "\\boxed{(5+3)}", "\\boxed{2\\cdot4}", "\\boxed{2^3}"],
    "7": ["2^{3}-1", "\\boxed{2^{3}-1}", "\\boxed{2(3)+1}", "2³−1", "#### 2**3 - 1", "#### 14 ÷ 2"],
    "5/6": ["\\boxed{\\frac{1}{2}+\\frac13}", "#### 1/2 + 1/3", "\\boxed{½+⅓}"],
    "-4": ["\\boxed{-2^2}", "\\boxed{2 - 6}", "#### -(1+3)", "\\boxed{-\\frac{8}{2}}"],
    "18": [
        *("18 = 20 − 2", "#### 18 = 20 − 2", "The answer is 18 = 20 - 2", "\\boxed{18 = 20-2}"),
        *("The answer is:\n1. 18", "The answer is 1. 18", "#### 1) 18", "The answer is:\n> 18\n"),
        *("１８", "١٨", "१८", "𝟏𝟖", "１８．０", "答案：18", "答案为18个，共3天", "答えは18です。3"),
        *("_18_", "*18*", "***18***", "`18`", "<b>18</b>", "The answer is *18*, 3 steps"),
        *("\\textbf{18}", "\\boxed{\\color{red}{18}}", "\\boxed{\\text{Total: }18}"),
        *("USD 18", "Rs.18", "US$18", "18 €", "\\boxed{18\\ \\text{m}^{-2}}", "\\boxed{18^{th}}"),
        *("\\boxed{18} \\boxed{}", "The answer is eighteen (18).", "#### 18 when x = 3"),
        *("The answer is 50% of 36 = 18", "#### 18 \u200b", "\\(18\\)"),
    ],
    "12000": [
        "12 000",
        "12\u00a0000",
        "12\u202f000",
        "12'000",
        "12’000",
        "12{,}000",
        "in 2020 12 000",
    ],
    "1234567": ["1 234 567", "12,34,567", "1.234.567", "1'234'567", "1\\,234\\,567", "1,234,567"],
    "300000": ["3 × 10⁵", "3\\times10^{5}", "3e5", "3·10^5", "3 x 10^5", "3 × 10<sup>5</sup>"],
    "100000": ["10⁵", "10^5", "10**5", "1,00,000", "\\boxed{10^{5}}"],
    "210": ["Week 3:210 pages", "Their answer was 9, but it is 210"],
    "0.001": ["10⁻³", "1e-3", "10^{-3}", "1\u20441000"],
    "20": [
        *("60 / 3 = 20 per hour", "#### 60 miles / 3 hours = 20 miles per 1 hour"),
        *("#### 60/3=20/hour", "\\boxed{60 / 3 = 20 \\text{ per hour}}"),
    ],
    "none": [
        *("\\boxed{\\sqrt{16}}", "10\\pi", "10π", "\\boxed{10\\pi}", "\\boxed{\\pi}", "3√2"),
        *("\\boxed{x + 5}", "\\boxed{x > 5}", "\\boxed{5!}", "\\boxed{5 \\pm 2}", "\\boxed{101_2}"),
        *("\\boxed{3:4}", "\\boxed{x = 3, y = 4}", "The answer is 3 or 4", "#### 2020-03-04"),
        *("#### 9^9^9^9", "9^9^9^9", "NaN", "\\boxed{\\infty}", "infinity", "#### 0^{-1}"),
        *("#### 5 / 0", "\\boxed{\\frac{5}{0}}", "\\boxed{(3, 4)}", "The answer is 10–12"),
        *("The answer is 3 hours and 30 minutes.", "3:00:30", "at 3:30"),
    ],
}


@pytest.mark.parametrize(("answer", "texts"), CASES.items())
def test_ways_of_writing(answer, texts):
    assert {text: parse_answer(text).text or "none" for text in texts} == dict.fromkeys(
        texts, answer
    )


def test_cut_off_arithmetic_is_no_answer():
    for text in (
        "#### 5 apples +",
        "#### 60 / 3 =",
        "The answer is 1. 18",
        "\\boxed{5+3} \\boxed{",
    ):
        assert parse_answer(text, truncated=True).status == "truncated", text
    assert parse_answer("#### 20 - 2 apples", truncated=True).text == "18"


def test_a_box_is_its_number_or_its_text():
    assert boxed_answer("\\boxed{7} \\boxed{5+3}") == "8"
    assert boxed_answer("so \\boxed{ \\sqrt{16} }") == "\\sqrt{16}"
    assert boxed_answer("8") == ""


TEXTS = st.text(alphabet="0123456789.,-−$/%^e{}\\=# x\n()½_*'⁵\u2009答案是abx:", max_size=60)
PIECES = "\\boxed{ \\frac{ } #### answer:  ^{ ( ) 1 12 000 , . - / * ^ = x 1e100 9^99 \\pi ½ ⁵ 7{,}"
PIECES += " \\text{ per and _ ** ~~ 1. 3:4 \ud800 １ ± \\ \\\\"
MIXTURES = st.lists(st.sampled_from([*PIECES.split(" "), "\n", " "]), max_size=25).map("".join)


@given(st.one_of(TEXTS, MIXTURES), st.booleans())
@settings(max_examples=400, deadline=None)
@example("10^" + "9" * 700, False)
@example("2^-999", False)
def test_an_answer_is_read_as_itself(text, truncated):
    parsed = parse_answer(text, truncated=truncated)
    assert isinstance(boxed_answer(text), str)
    if parsed.value is not None:
        assert parsed.text == canonical(parsed.value)
        assert parse_number(parsed.text) == parsed.value == parse_answer(parsed.text).value


def test_limits_of_what_is_a_number():
    assert parse_answer("1e100").value == parse_number("1e100") == 10**100
    assert parse_answer("2^{-999}").value == parse_number("1/" + str(2**999)) == Fraction(1, 2**999)
    for text in ("1e400", "9" * 101, "1e999999999", "10^" + "9" * 5000, "1" * 5000):
        assert parse_number(text) is None and parse_answer(text).status == "no_answer"


def test_nested_boxes_take_linear_time_and_memory():
    nested = "\\boxed{" * 20_000 + "}" * 20_000
    start = time.process_time()
    assert parse_answer(nested.replace("{}", "{18}")).text == "18"
    assert time.process_time() - start < 10  # quadratic: a minute
    tracemalloc.start()
    assert parse_answer(nested).status == "no_answer"
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30 * 2**20
