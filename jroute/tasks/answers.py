r"""From a completion to its answer.

A model is asked for a number and answers in prose, so reading the answer is part of the
measurement: a parser that misses ``#### **42**`` makes a good arm look bad. ``parse_answer``
looks, in this order, at

1. the last balanced ``\boxed{...}`` that holds a number,
2. the last ``####`` that is followed by a number,
3. the last "answer is" or "answer:" (and so "the final answer is") that is followed by a number,
4. the last number of the text.

It reads only the text after ``</think>``; an unclosed ``<think>`` hides what follows it. Numbers
are exact (see ``jroute.tasks.numbers``), and units do not count.

What counts is what a careful human marker would say. ``none`` means: no answer.

==========================================  =======  ==============================================
text                                        answer   rule
==========================================  =======  ==============================================
``#### -2½``                                -2.5     a whole number before a fraction belongs to it
``1-1/2``                                   1.5      without spaces, a proper fraction does, too
``#### 1 - 1/2``                            0.5      with spaces it is a difference
``\boxed{2\frac{1}{2}}``                    2.5      so it is in LaTeX
``\boxed{5+3}``                             8        plain arithmetic is evaluated
``#### 20 - 2``                             18       after a marker, a dash is a minus
``It took 10 - 3``                          3        in prose it is a dash: the last number counts
``2^{3}-1``                                 7        but not in a formula
``\boxed{\sqrt{16}}``                       none     anything else in a formula is no number
``\frac{\pi}{2}``                           none     so is a part of it
``\boxed{2x}``                              none     a variable has no value
``\boxed{2^x}``                             none     nor has a power of one
``\boxed{3i}``                              none     nor does a letter that is no unit
``\boxed{f(3)}``                            none     a function is no number
``\boxed{|-4|}``                            none     nor is a value in bars
``#### 5 mod 3``                            none     nor is a remainder, here or after a division
``#### 0.333...``                           none     nor are digits that go on
``\boxed{9^{9^{9^9}}}``                     none     a number beyond 1,000 bits is noise
``18 = 20 − 2``                             18       in a chain, the number counts, not its origin
``#### 5 apples + 13 apples = 18 apples``   18       units inside a chain do not end it
``#### 60 / 3 = 20 / hour``                 20       a rate's unit is a unit
``It makes 60 / 3 = 20 per 1 hour``         20       a number after "per" belongs to the unit
``#### 3 million``                          3        a word for a size is a unit, as in GSM8K
``答案是3万``                               30000    a character for one belongs to the number
``The answer is\n1. 18``                    18       "1." before a number is the number of a list
``The answer is\n1. 18\n2. 20``              none     two items are two answers
``The answer is about 1/3 of 7``            1/3      words such as "about" do not hide the number
``The answer is 3 and 4.``                  none     two equal answers are not one
``\boxed{3, 4}``                            none     nor are two numbers in a box
``#### 10-12``                              none     a range is not one number
``#### 20-2``                               18       the larger number first: a difference
``The answer is between 3 and 5``           none     neither are two bounds
``#### > 18``                               none     nor is one bound
``#### 12 34``                              none     nor are two numbers in a row
``#### 5 hours 30 minutes``                 none     nor is a number with two units
``The answer is 3:30``                      none     a time or a ratio is not one number
``She can start at 2:00 pm``                2        unless it is a full hour
``#### 3/4/2020``                           none     nor is a date
``The answer is negative 5``                -5       a sign in words counts
``#### 10 minus 3``                         7        and so does an operation
``#### 3 and 1/2``                          3.5      and an "and" before a fraction
``The answer is twelve``                    none     a number in words does not
``The answer is 17. No wait, it is 18``     18       what is taken back does not count
``The answer is (18) 3``                    18       brackets are not a minus
``Answer: - 18``                            18       a dash before a space is a bullet
``#### −$5``                                -5       signs and currencies in any order
``#### 18% (of 50)``                        18       a percent sign is a unit; remarks do not count
``\boxed{18^\circ}``                        18       so are degrees, ordinals, powers of units
``#### １８``                               18       digits of every script
``答案是18。``                              18       "the answer is", also in other languages
``It is 7 [2]``                             7        the number of a source does not count
``It is __18__``                            18       emphasis of Markdown, LaTeX and HTML
``The answer is ~~17~~ 18``                 18       what is struck out does not count
``It costs 12 000``                         12000    groups of three by space, comma or apostrophe
``It costs 1,00,000``                       100000   Indian groups
``It costs €1.234,56``                      1234.56  continental groups, if they are unmistakable
``It costs 2,5``                            5        another comma separates two numbers
``3 × 10⁵``                                 300000   powers of ten, typed in any way
``3⁄4``                                     0.75     any fraction slash
==========================================  =======  ==============================================
"""

import re
from collections import deque
from fractions import Fraction
from typing import Literal, NamedTuple

from jroute.tasks.arithmetic import Reader
from jroute.tasks.notation import normalise
from jroute.tasks.numbers import canonical, parse_number, readable
from jroute.tasks.tokens import Token, tokenise

ANSWER_PARSER_VERSION = 2
"""Version of the rules by which answers are read; stored with every part of a table.

Raise it with every change after which any text may give another answer: here, or in ``notation``,
``phrasing``, ``tokens``, ``following``, ``arithmetic``, ``exact`` or ``numbers`` of this package.
Stored completions are then graded anew. Version 1 is that of all parts without a version.
"""


class ParsedAnswer(NamedTuple):
    """What a completion answered.

    Attributes:
        status: ``ok`` if it gives a number; ``no_answer`` if it gives none; ``truncated`` if it
            reached its token limit before it stated an answer (see ``parse_answer``).
        value: The exact number; None unless the status is ``ok``.
        text: The number in canonical form (see ``jroute.tasks.numbers.canonical``); ``""``
            unless the status is ``ok``.
    """

    status: Literal["ok", "no_answer", "truncated"]
    value: Fraction | None
    text: str


_HASHES = re.compile(r"(?<!#)####(?!#)")
_PHRASE = re.compile(
    r"(?:\banswers?(?:\s{0,3}(?:is\b|equals\b|(?:would|should|must|will)\sbe\b|:|=))+"
    r"|(?:答案|答え|解答|正解|정답|답)\s?(?:应该|应|應|就)?(?:\s?(?:[是为為は은는:=]))+"
    r"|\b(?:respuesta|réponse|antwort|resposta|risposta|ответ)"
    r"(?:\s{0,3}(?:es\b|est\b|ist\b|lautet\b|é\b|è\b|:|=))+)",
    re.IGNORECASE,
)
_APPROXIMATE = (
    " about approximately approx roughly around nearly almost exactly just only simply therefore "
    "thus a total of equal equals to "
)
# The start of a list item or of a numbered heading, seen from the end of its number.
_LIST_ITEM = re.compile(r"[.)][ \t]+[A-Za-z]")
# "1. 18": on a line of its own, or if nothing but a number follows on the line of the marker.
_FIRST_ITEM = re.compile(r"1[.)] (?=[-$\\(]?[0-9\\])")
_FIRST_ITEM_ALONE = re.compile(r"1[.)] (?=[-$\\(]?[0-9\\])[^A-Za-z\n]{1,60}(?:\n|$)")
_LIST = re.compile(r"1[.)] [^A-Za-z\n]{1,60}\n\s{0,3}2[.)] [^A-Za-z\n]{1,60}(?:\n|$)")
_RANGES = frozenset(("between", "from", "either"))
# "The answer is 17. No wait, it is 18."
_CORRECTION = re.compile(
    r"[.,;!?\n-] ?(?:oh,? )?(?:no,? wait|wait,? no|scratch that|correction)"
    r"(?: ?[,.:!-]|(?= (?:it|that|this|the)\b))",
    re.IGNORECASE,
)
# What may continue a statement that the token limit cut: no word, no new line or sentence, but a
# sign after a unit.
_OPEN_END = re.compile(
    r"(?:\s?(?:[A-Za-z]{1,20}|\{[A-Za-z ]{1,20}\})\s?[-+*/=])?"
    r"(?:(?!\.\s)[^A-Za-z\n\\]|\\[A-Za-z]*)*"
)
_BRACES = re.compile(r"\\boxed\s{0,3}\{|\\[{}]|[{}]")
_NUMERIC = re.compile(r"[0-9]|\\(?:pi|sqrt|infty)(?![A-Za-z])|[\u03c0\u221a\u221e]")

_MARKERS = 100
"""How many markers of a kind are looked at, from the last one back."""
_WINDOW = 2000
"""How many characters a statement may have."""
_LEAD = 40
"""How many signs, formatting commands and names may stand between a marker and its number."""


class _Statement(NamedTuple):
    """What stands where an answer is expected; a value of None is no number."""

    value: Fraction | None
    start: int
    end: int


def _boxes(text: str) -> tuple[list[tuple[int, int]], bool]:
    """Return where the balanced boxes' contents are, by opening, and whether a box stays open."""
    opened: list[int] = []  # per open brace: where its content starts if it opens a box, else -1
    spans: list[tuple[int, int]] = []
    for brace in _BRACES.finditer(text):
        if brace[0].startswith("\\boxed"):
            opened.append(brace.end())
        elif brace[0] == "{":
            opened.append(-1)
        elif brace[0] == "}" and opened:
            start = opened.pop()
            if start >= 0:
                spans.append((start, brace.start()))
    return sorted(spans), any(start >= 0 for start in opened)


def _box_value(text: str, start: int, end: int) -> Fraction | None:
    """Return the value of a box; None if its content is not a number."""
    if end - start > _WINDOW:
        return None
    statement = _statement(Reader(tokenise(text, start, end), "box"), text)
    return statement.value if statement else None


def _statement(reader: Reader, text: str) -> _Statement | None:
    """Read the number that follows a marker or that a box holds; None if words come first."""
    in_box = reader.style == "box"
    for _ in range(_WINDOW if in_box else _LEAD):
        token, after = reader.coming(), reader.coming(1)
        if token.kind == "end":
            return None
        if token.kind == "word":
            if after.kind == "equals":
                reader.at += 1
            elif _no_word_of_a_number(token, after, in_box):
                return _Statement(None, token.start, token.end)
            elif not in_box and f" {token.text.lower()} " not in _APPROXIMATE:
                return None
        elif _no_number_follows(reader, text):
            return _Statement(None, token.start, token.end)
        elif not in_box and _enumerates(reader, text):
            reader.at += 1
        elif token.text not in ("+", "-") or in_box or not after.spaced:
            start, first = token.start, reader.at
            value = reader.statement()
            if reader.at > first:
                return _Statement(value, start, reader.tokens[reader.at - 1].end)
        reader.at += 1
    return None


def _no_word_of_a_number(token: Token, after: Token, in_box: bool) -> bool:
    """Return whether a word makes the answer another thing: ``x + 5`` in a box, ``between 3``."""
    variable = in_box and len(token.text) == 1 and after.kind in ("operator", "comparison")
    return variable or (token.text.lower() in _RANGES and after.kind in ("number", "currency"))


def _no_number_follows(reader: Reader, text: str) -> bool:
    """Return whether what comes makes the answer another thing than one number."""
    token, before, after = (reader.coming(ahead) for ahead in (0, -1, 1))
    if reader.style == "box":
        function = token.text == "(" and not token.spaced and before.kind == "word"
        return function or token.kind == "comparison" or token.text in ("^", "|")
    if token.text == "1" and _LIST.match(text, token.start):
        return True
    line_start = before.kind == "newline" or "\n" in text[reader.tokens[0].start : token.start]
    value = after.kind in ("number", "currency") or after.text == "-"
    bracket = before.kind == "word" or reader.coming(2).text == ">"  # <answer>18, <18>
    return token.kind == "comparison" and value and not bracket and not line_start


def _enumerates(reader: Reader, text: str) -> bool:
    """Return whether a number only numbers the answer: ``1. 18``."""
    first = reader.tokens[0].start
    start = reader.coming().start
    own_line = "\n" in text[first:start] or reader.coming(-1).kind == "newline"
    pattern = _FIRST_ITEM if own_line else _FIRST_ITEM_ALONE
    return reader.coming().text == "1" and bool(pattern.match(text, start))


def _stated(text: str, marker: re.Pattern[str]) -> _Statement | None:
    """Return what the last marker states that has a number."""
    for place in reversed(deque((mark.end() for mark in marker.finditer(text)), maxlen=_MARKERS)):
        reader = Reader(tokenise(text, place, place + _WINDOW), "stated")
        statement = _statement(reader, text)
        if statement is None:
            continue
        in_heading = marker is _HASHES or "\n" in text[place : statement.start]
        if in_heading and _LIST_ITEM.match(text, statement.end):
            continue
        return statement
    return None


def _last_number(text: str) -> Fraction | None:
    """Return the last number of a text, whatever it belongs to; None if it is part of a formula."""
    place = max(text.rfind(digit) for digit in "0123456789")
    start = max(0, place - _WINDOW)
    start = max(start, text.rfind("\n", start, max(place, 0)) + 1)
    reader = Reader(tokenise(text, start, place + _WINDOW // 10), "prose")
    last: Fraction | None = None
    read = False
    while reader.coming().kind != "end":
        start, token = reader.at, reader.coming()
        if token.text == "^" or token.text.endswith("_"):
            _skip_script(reader)
        elif _may_start(reader):
            rate = read and _belongs_to_a_unit(reader)
            value = reader.statement()
            if any(token.kind == "number" for token in reader.tokens[start : reader.at]):
                last, read = (last if rate else value), True
        if reader.at == start:
            reader.at += 1
    return last


def _belongs_to_a_unit(reader: Reader) -> bool:
    """Return whether a number is that of a rate: ``20 per 1 hour``, ``20 apples/2 people``."""
    before, unit = reader.coming(-1), reader.coming(-2)
    tight = not before.spaced and not reader.coming().spaced
    return before.text.lower() == "per" or (before.text == "/" and tight and unit.kind == "word")


def _may_start(reader: Reader) -> bool:
    """Return whether a number may start here; a minus must not be a hyphen or a dash."""
    token, before, after = reader.coming(), reader.coming(-1), reader.coming(1)
    if token.text == "+":
        return False
    operand = before.kind in ("number", "word", "close", "percent")
    return token.text != "-" or (not after.spaced and (token.spaced or not operand))


def _skip_script(reader: Reader) -> None:
    """Pass over the exponent of a unit and over an index: ``m^{2}``, ``x_1``."""
    reader.at += 1
    if reader.coming().text == "{":
        while reader.coming().kind not in ("end", "close"):
            reader.at += 1
    reader.at += 1


def _answer_text(completion: str) -> str:
    """Return the part of a completion that may hold the answer."""
    return completion.rpartition("</think>")[2].partition("<think>")[0]


def _answered(value: Fraction | None) -> ParsedAnswer:
    if value is None or not readable(value):
        return ParsedAnswer("no_answer", None, "")
    return ParsedAnswer("ok", value, canonical(value))


def parse_answer(completion: str, *, truncated: bool = False) -> ParsedAnswer:
    r"""Read the answer of a completion; the module's docstring gives the order of the rules.

    Args:
        completion: What the model wrote, without the prompt.
        truncated: Whether generation ended at the token limit (not at an end token or a stop
            string).

    Returns:
        The answer. With ``truncated``, only a completely stated answer counts, and otherwise the
        status is ``truncated``: the last number of an unfinished text is an intermediate result, so
        rule 4 does not apply; a ``\boxed{`` that is still open is incomplete, and so is a stated
        number that no word or line end follows (``#### 1`` may become ``#### 18``).
    """
    text = normalise(_answer_text(completion))
    cut_off = ParsedAnswer("truncated", None, "")

    boxes, box_stays_open = _boxes(text)
    if truncated and box_stays_open:
        return cut_off
    for start, end in reversed(boxes):
        if end - start <= _WINDOW and _NUMERIC.search(text, start, end):
            parsed = _answered(_box_value(text, start, end))
            return cut_off if truncated and parsed.status != "ok" else parsed
    for marker in (_HASHES, _PHRASE):
        if statement := _stated(text, marker):
            if _CORRECTION.search(text, statement.end):
                return cut_off if truncated else _answered(_last_number(text))
            parsed = _answered(statement.value)
            open_end = len(text) - statement.end < _WINDOW and _OPEN_END.fullmatch(
                text, statement.end
            )
            return cut_off if truncated and (open_end or parsed.status != "ok") else parsed
    return cut_off if truncated else _answered(_last_number(text))


def boxed_answer(completion: str) -> str:
    r"""Return the content of the last balanced ``\boxed{}`` of a completion.

    Returns:
        Its number in canonical form; its text if it holds no number; ``""`` without a box.
    """
    text = _answer_text(completion)
    boxes, _ = _boxes(text)
    if not boxes:
        return ""
    content = text[slice(*boxes[-1])].strip()
    plain = normalise(content)
    return _answered(_box_value(plain, 0, len(plain))).text or content


def is_correct(parsed: ParsedAnswer, gold: str) -> bool:
    """Return whether an answer equals the gold answer as an exact number.

    Args:
        parsed: From ``parse_answer``.
        gold: A problem's gold answer.

    Raises:
        ValueError: The gold answer is not a number.
    """
    target = parse_number(gold)
    if target is None:
        raise ValueError(f"gold answer {gold!r} is not a number")
    return parsed.status == "ok" and parsed.value == target
