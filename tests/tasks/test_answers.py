"""The answer parser against a table of texts, and its limits."""

import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jroute.tasks.answers import (
    ParsedAnswer,
    is_correct,
    parse_answer,
)
from jroute.tasks.numbers import canonical, parse_number

# (completion, canonical answer); None: no answer.
TABLE = [
    # Hash marks, with everything that stricter readers trip over.
    ("#### 42", "42"),
    ("#### 42.", "42"),
    ("#### 42.0", "42"),
    ("#### $42", "42"),
    ("####42", "42"),
    ("#### **42**", "42"),
    ("**#### 42**", "42"),
    ("#### 42 \\boxed{42}", "42"),
    ("#### 42" + " That is all." * 60, "42"),
    ("#### 42" + "\nSo there were 3 of them." * 60, "42"),
    ("#### $1,234.50", "1234.5"),
    ("#### 42 apples", "42"),
    ("#### 42 apples for 3 days", "42"),
    ("#### -42", "-42"),
    ("#### −42", "-42"),
    ("#### 1,000", "1000"),
    ("#### 25%", "25"),
    ("#### 25\\%", "25"),
    ("####\n42", "42"),
    ("####: 42", "42"),
    ("#### x = 42", "42"),
    ("#### 6 * 7 = 42", "42"),
    ("#### 7\nWait, that is wrong.\n#### 42", "42"),
    ("#### 42\n#### Done", "42"),
    ("She has 5 + 37 = 42 left.\n#### 42\n", "42"),
    # Hash marks that are headings.
    ("#### Step 1: add 5 and 37\nThis makes 42", "42"),
    ("#### 1. Add them\n5 + 37 = 42", "42"),
    ("#### 2) Add them\n5 + 37 = 42", "42"),
    ("### 7\nso 42", "42"),
    ("##### 7\nso 42", "42"),
    # Boxes.
    ("\\boxed{42}", "42"),
    ("$$\n\\boxed{18}\n$$", "18"),
    ("so $\\boxed{18}$.", "18"),
    ("\\boxed {18}", "18"),
    ("\\[\\boxed{18}\\] which took 3 steps", "18"),
    ("\\boxed{\\$18}", "18"),
    ("\\boxed{$18.00$}", "18"),
    ("\\boxed{18\\%}", "18"),
    ("\\boxed{18^\\circ}", "18"),
    ("\\boxed{18 \\text{ apples}}", "18"),
    ("\\boxed{18\\text{ m}^2}", "18"),
    ("\\boxed{18\\ \\mathrm{cm}^{2}}", "18"),
    ("\\boxed{\\text{18 apples}}", "18"),
    ("\\boxed{\\textbf{18}}", "18"),
    ("\\boxed{x = 18}", "18"),
    ("\\boxed{20 - 2 = 18}", "18"),
    ("\\boxed{18 = x}", "18"),
    ("\\boxed{{18}}", "18"),
    ("\\boxed{\\boxed{18}}", "18"),
    ("\\boxed{-18}", "-18"),
    ("\\boxed{1,800}", "1800"),
    ("\\boxed{1{,}800}", "1800"),
    ("\\boxed{1\\,800}", "1800"),
    ("\\boxed{1,\\!800}", "1800"),
    ("\\boxed{\\frac{3}{4}}", "0.75"),
    ("\\boxed{\\dfrac{3}{4}}", "0.75"),
    ("\\boxed{\\tfrac34}", "0.75"),
    ("\\boxed{-\\frac{1}{3}}", "-1/3"),
    ("\\boxed{\\frac{-1}{3}}", "-1/3"),
    ("\\boxed{1\\frac{1}{2}}", "1.5"),
    ("\\boxed{\\frac{1,000}{3}}", "1000/3"),
    ("\\boxed{7}, no: \\boxed{18}", "18"),
    ("\\boxed{18} #### 7, the answer is 8, or 9", "18"),
    ("\\boxed{18} is right, not \\boxed{\\text{seven}}", "18"),
    ("\\boxed{} The answer is 18", "18"),
    ("\\{ \\boxed{18} \\}", "18"),
    ("} \\boxed{18} {", "18"),
    ("\\boxed{\\{18} and 3", "18"),
    # Boxes that are not closed count as text.
    ("\\boxed{18", "18"),
    ("\\boxed{\\frac{3}{4}", "0.75"),
    ("#### 18 \\boxed{7", "18"),
    # Phrases.
    ("The answer is 18", "18"),
    ("The answer is 18.", "18"),
    ("The final answer is 18 because 2 of them left, 4 days ago", "18"),
    ("The final answer is **18**. I used 3 steps", "18"),
    ("The final answer is: $\\text{18}$ (3 steps)", "18"),
    ("THE ANSWER IS 18, in 3 steps", "18"),
    ("**Final Answer:** $18 for 3", "18"),
    ("**Final Answer**: 18 for 3", "18"),
    ("The final answer is:\n\n$$\n\\quad **18**\n$$\nThat took 3 steps", "18"),
    ("Answer: 18\nThat took 3 steps", "18"),
    ("The final answer is:\n\n18\n\nThat took 3 steps", "18"),
    ("The answer is $18$, with 3 left", "18"),
    ("The answer is (18) 3", "18"),
    ("The answer is [18] 3", "18"),
    ("The answer is x = 18, for y = 3", "18"),
    ("The answer is 5 + 13 = 18. Checked 3 times", "18"),
    ("The answer is 5 x 3 = 15 dollars for 2", "15"),
    ("The answer is $2 \\times 9 = 18$ for 3", "18"),
    ("The answer is 18 (18 - 9 = 9)", "18"),
    ("The answer is 18. 9 - 5 = 4", "18"),
    ("The answer is -3/4 of 8", "-0.75"),
    ("The answer is 7. No, the answer is 18, not 3", "18"),
    ("The answer is 18. What is the answer? 3 is not", "18"),
    ("The answer is 18. The answer is clear", "18"),
    ("The answer is:\n1. Add 5 and 13.\n2. Get 18", "18"),
    ("#### 18 The answer is 7", "18"),
    # The last number.
    ("It costs $18", "18"),
    ("It costs $18.00", "18"),
    ("It costs $3.50", "3.5"),
    ("It costs 18.", "18"),
    ("It is 1,000", "1000"),
    ("It is 42 ... ,", "42"),
    ("It is 42 , I think", "42"),
    ("It is 42!", "42"),
    ("3, 4, 5", "5"),
    ("3,4,5", "5"),
    ("1,00", "0"),
    ("1234,567", "567"),
    ("It is 3/4", "0.75"),
    ("It is 3 / 4", "0.75"),
    ("It is 2 1/2", "2.5"),
    ("It is -2 1/2", "-2.5"),
    ("It is 2½", "2.5"),
    ("It is ⅓", "1/3"),
    ("On 3/4/2020", "2020"),
    ("It is .5", "0.5"),
    ("Rs.18", "18"),
    ("It is -$5", "-5"),
    ("It is $-5", "-5"),
    ("It is -\\$5", "-5"),
    ("It is €5", "5"),
    ("It is −5", "-5"),
    ("It is –5", "-5"),
    ("10-3", "3"),
    ("10 - 3", "3"),
    ("(10)-3", "3"),
    ("10–12", "12"),
    ("1\u00a0000", "1000"),
    ("1\u202f000\u202f000", "1000000"),
    ("2,000,000", "2000000"),
    ("007", "7"),
    ("0", "0"),
    ("-0", "0"),
    ("18 m^2", "18"),
    ("18 m^{2}", "18"),
    ("18 cm2", "18"),
    ("18 x_1", "18"),
    ("18th", "18"),
    ("18cm", "18"),
    ("是18个", "18"),
    ("10^3", "1000"),
    ("10^{3}", "1000"),
    ("10^{-1}", "0.1"),
    ("1.5 \\times 10^3", "1500"),
    ("1.5 × 10^{3}", "1500"),
    ("1e3", "1000"),
    ("1.5E+3", "1500"),
    ("5e-1", "0.5"),
    ("2**3 = 8", "8"),
    # Thinking is not answering.
    ("<think>It is 7.</think>It is 18", "18"),
    ("It is 7, \\boxed{7} #### 7</think>\n\nIt is 18", "18"),
    ("<think>3</think>4<think>5</think>18", "18"),
    ("<think>It is 18", None),
    ("#### 18 <think> or is it #### 7", "18"),
    ("\\boxed{18}</think>", None),
    # Nothing.
    ("", None),
    ("   \n", None),
    ("eighteen", None),
    ("\\boxed{}", None),
    ("\\boxed{\\text{eighteen}}", None),
    ("####", None),
    ("The answer is", None),
    ("-", None),
    ("$ , . %", None),
    ("x1", None),
    ("3/0", None),
    ("\\frac{3}{0}", None),
    ("0^{-1}", None),
    # Absurd numbers are not answers.
    ("1e999999999", None),
    ("1e-999999999", None),
    ("10^999999999", None),
    ("10^{-999999999}", None),
    ("2 \\times 10^{999999999}", None),
    ("#### 1e999999999", None),
    ("\\boxed{10^{10^{10}}}", None),
    ("99^99", str(99**99)),
    ("9" * 80 + "^99", None),
    ("9" * 101, None),
    ("1e" + "9" * 5000, None),
]


@pytest.mark.parametrize(("completion", "answer"), TABLE)
def test_table(completion, answer):
    parsed = parse_answer(completion)
    if answer is None:
        assert parsed == ParsedAnswer("no_answer", None, "")
    else:
        assert parsed == ParsedAnswer("ok", Fraction(answer), answer)


# (completion, what a completion that hit the token limit here has answered; None: truncated)
CUT = [
    ("", None),
    ("She has 5 + 13 = 18", None),
    ("She has 5 + 13 = 18.\n", None),
    ("<think>The answer is 18. But", None),
    ("<think>The answer is 18.</think>So", None),
    ("<think>7</think>The answer is 18.\nIndeed", "18"),
    ("The answer is 1", None),
    ("The answer is 18.", None),  # 18.5 may have been on its way
    ("The answer is 18. So", "18"),
    ("The answer is 18\n", "18"),
    ("The answer is 1,", None),
    ("The answer is 3/", None),
    ("The answer is 5 + 1", None),
    ("The answer is 5 + ", None),
    ("The answer is 9 + 9 = 1", None),
    ("#### 1", None),
    ("#### 18\n", "18"),
    ("#### 18 apples", "18"),
    ("#### 7\nNo, wait.\n#### 1", None),
    ("####", None),
    ("\\boxed{18}", "18"),
    ("so \\boxed{18", None),
    ("so \\boxed{\\frac{1}{2}", None),
    ("\\boxed{7}, no: \\boxed{1", None),
    ("#### 7\n\\boxed{1", None),
]


@pytest.mark.parametrize(("completion", "answer"), CUT)
def test_truncated_completion_counts_only_a_complete_statement(completion, answer):
    parsed = parse_answer(completion, truncated=True)
    if answer is None:
        assert parsed == ParsedAnswer("truncated", None, "")
        assert not is_correct(parsed, "18") and not is_correct(parsed, "1")
    else:
        assert parsed == ParsedAnswer("ok", Fraction(answer), answer)


NUMBERS = st.fractions(max_denominator=60).filter(lambda value: abs(value.numerator) < 10**12)
WRAPPERS = [
    "so 7 #### {}",
    "7, \\boxed{{{}}}.",
    "**The final answer is: {}**",
    "Answer: ${}$ after 7",
    "First 7, then {}.",
    "<think>7</think>{}",
]


@given(NUMBERS, st.sampled_from(WRAPPERS))
def test_any_canonical_number_survives_any_wrapping(value, wrapper):
    text = canonical(value)
    parsed = parse_answer(wrapper.format(text))
    assert parsed == ParsedAnswer("ok", value, text)
    assert parse_number(text) == value
    assert is_correct(parsed, text)
    assert not is_correct(parsed, canonical(value + 1))


@given(st.integers(-(10**12), 10**12), st.sampled_from(WRAPPERS))
def test_thousands_separators_change_nothing(value, wrapper):
    assert parse_answer(wrapper.format(f"{value:,}")).value == value


@given(st.text(alphabet="0123456789.,-−$/%^e{}\\=# x\n()½", max_size=60))
def test_any_text_gives_a_consistent_answer(text):
    for truncated in (False, True):
        parsed = parse_answer(text, truncated=truncated)
        assert (parsed.status == "ok") == (parsed.value is not None) == bool(parsed.text)
        if parsed.value is not None:
            assert parsed.text == canonical(parsed.value)
            assert parse_number(parsed.text) == parsed.value
        assert (parsed.status == "truncated") <= truncated
        assert (parsed.status == "no_answer") <= (not truncated)


# Each would take hours if matching were quadratic, or a power were written out.
UNITS = "9|1,|1,000,|1/|1 1 |1.|1e|1^|10^{|-|$|(|½|**|\\boxed{|\\boxed{1|}|\\frac{1}{|#### |####|"
UNITS += "answer: |answer is 5 =|5=|#### 5=|\\times |<think>|</think>|\\,|a1|\n|    "


@pytest.mark.parametrize("unit", UNITS.split("|"))
def test_long_repetitive_texts_take_linear_time(unit):
    """A text ten times as long takes about ten times as long; a quadratic rule takes a hundred."""

    def seconds(size: int) -> float:
        body = unit * (size // len(unit))
        start = time.process_time()
        for text in (body, "#### 1" + body, "\\boxed{" + body + "}", "answer is " + body):
            parse_answer(text)
        return time.process_time() - start

    assert seconds(30_000) < 40 * max(seconds(3_000), 0.002)


def test_correct_is_exact_equality():
    assert is_correct(parse_answer("#### 36/2"), "18")
    assert is_correct(parse_answer("#### 0.5"), "1/2")
    assert not is_correct(parse_answer("#### 0.33"), "1/3")
    assert not is_correct(parse_answer("#### 18.0001"), "18")
    assert not is_correct(parse_answer("#### -18"), "18")
    assert not is_correct(parse_answer("eighteen"), "18")
    with pytest.raises(ValueError, match="eighteen"):
        is_correct(parse_answer("#### 18"), "eighteen")
