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
"""

import re
from collections import deque
from fractions import Fraction
from typing import Literal, NamedTuple

from jroute.tasks.numbers import NUMBER, canonical, exact_value, normalise, parse_number

ANSWER_PARSER_VERSION = 2
"""Version of the rules by which answers are read; stored with every part of a table.

Raise it with every change after which any text may give another answer: here, in
``jroute.tasks.numbers``, or in ``is_correct``. Stored completions are then graded anew.
Version 1 is that of all parts without a version.
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
_PHRASE = re.compile(r"\banswer(?:\s{0,3}(?:is\b|:|=))+", re.IGNORECASE)
# What may stand between a marker and its number: punctuation, line ends, formatting commands and
# the left side of an equation; no words.
_LEAD = re.compile(
    r"(?P<lead>(?:[^\w]|\\(?![dtc]?frac)[A-Za-z]+|(?<!\w)[A-Za-z]\w{0,15}\s{0,2}=){0,20}?)"
    rf"(?P<number>{NUMBER.pattern})",
    re.VERBOSE,
)
# The start of a list item or of a numbered heading, seen from the end of its number.
_LIST_ITEM = re.compile(r"[.)][ \t]+[A-Za-z]")
# Arithmetic that continues after a number: no words, within a sentence, up to a remark in brackets.
_ARITHMETIC = re.compile(r"(?:(?!\.\s)(?!(?<=[0-9$%])\s\()[^A-Za-z\n\\]|\\[A-Za-z]+|\bx\b){0,200}")
_BRACES = re.compile(r"\\boxed\s{0,3}\{|\\[{}]|[{}]")


def _boxes(text: str) -> tuple[list[str], bool]:
    """Return the contents of all balanced boxes, by opening, and whether a box stays open."""
    opened: list[int | None] = []  # per open brace: where its content starts, if it opens a box
    spans: list[tuple[int, int]] = []
    for brace in _BRACES.finditer(text):
        if brace[0].startswith("\\boxed"):
            opened.append(brace.end())
        elif brace[0] == "{":
            opened.append(None)
        elif brace[0] == "}" and opened:
            start = opened.pop()
            if start is not None:
                spans.append((start, brace.start()))
    boxes = [text[start:end] for start, end in sorted(spans)]
    return boxes, any(start is not None for start in opened)


def _box_value(content: str) -> Fraction | None:
    """Return the first number after the last equals sign of a box, else its first number."""
    for part in (content.rpartition("=")[2], content):
        if number := NUMBER.search(part):
            return exact_value(number)
    return None


def _stated_value(text: str, marker: re.Pattern[str]) -> tuple[Fraction, bool] | None:
    """Return the number after the last marker that has one, and whether it ends with the text.

    A number that ends with the text may be incomplete in a truncated completion.
    """
    for mark in reversed(list(marker.finditer(text))):
        stated = _LEAD.match(text, mark.end())
        if not stated:
            continue
        in_heading = marker is _HASHES or "\n" in stated["lead"]
        if in_heading and _LIST_ITEM.match(text, stated.end()):
            continue
        number = NUMBER.match(text, stated.start("number"))
        arithmetic = _ARITHMETIC.match(text, stated.start("number"))
        if not number or not arithmetic:
            continue
        if "=" in arithmetic[0]:  # "5 + 13 = 18": the answer is on the right
            right = arithmetic.start() + arithmetic[0].rindex("=")
            result = NUMBER.search(text, right)
            if result and result.start() < arithmetic.end():
                number = result
        if (value := exact_value(number)) is not None:
            return value, arithmetic.end() == len(text)
    return None


def _answer_text(completion: str) -> str:
    """Return the part of a completion that may hold the answer, normalised."""
    return normalise(completion.rpartition("</think>")[2].partition("<think>")[0])


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
    text = _answer_text(completion)
    cut_off = ParsedAnswer("truncated", None, "")

    boxes, box_stays_open = _boxes(text)
    if truncated and box_stays_open:
        return cut_off
    for content in reversed(boxes):
        if (value := _box_value(content)) is not None:
            return ParsedAnswer("ok", value, canonical(value))
    for marker in (_HASHES, _PHRASE):
        if stated := _stated_value(text, marker):
            value, ends_the_text = stated
            if truncated and ends_the_text:
                return cut_off
            return ParsedAnswer("ok", value, canonical(value))
    if truncated:
        return cut_off
    numbers = deque(NUMBER.finditer(text), maxlen=1)
    value = exact_value(numbers[0]) if numbers else None
    if value is None:
        return ParsedAnswer("no_answer", None, "")
    return ParsedAnswer("ok", value, canonical(value))


def boxed_answer(completion: str) -> str:
    r"""Return the content of the last balanced ``\boxed{}`` of a completion.

    Returns:
        Its number in canonical form; its text if it holds no number; ``""`` without a box.
    """
    boxes, _ = _boxes(_answer_text(completion))
    if not boxes:
        return ""
    value = _box_value(boxes[-1])
    return boxes[-1].strip() if value is None else canonical(value)


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
