r"""From a completion to a number, and from a number to a reward.

A model is asked for a number and answers in prose, so reading the answer is part of the
measurement: a reader that misses ``#### **42**`` makes a good arm look bad. :func:`parse_answer`
looks, in this order, at

1. the last balanced ``\boxed{...}`` that holds a number,
2. the last ``####`` that is followed by a number,
3. the last "answer is" or "answer:" (so also "the final answer is") followed by a number,
4. the last number of the text,

always only in the text after ``</think>`` (an unclosed ``<think>`` hides what follows it). Numbers
are exact fractions: ``$18.00``, ``18`` and ``36/2`` are the same answer, ``0.33`` and ``1/3`` are
not. Signs of currency and percent, thousands separators, bold marks, units and a final period do
not count: ``25%`` is 25.
"""

import re
import unicodedata
from collections import deque
from dataclasses import dataclass
from decimal import Decimal, localcontext
from fractions import Fraction
from typing import Literal, NamedTuple

from jroute.utils.errors import UserError

# Longer numbers are noise (a model stuck on one digit), and exact arithmetic on them is costly.
MAX_CHARACTERS = 100
MAX_EXPONENT = 100
MAX_BITS = 1000


class ParsedAnswer(NamedTuple):
    """What a completion answered.

    Attributes:
        status: ``ok`` if there is a number; ``no_answer`` if there is none; ``truncated`` if the
            completion was cut by its token limit before it had stated an answer (see
            :func:`parse_answer`).
        value: The number, exactly; None unless the status is ``ok``.
        text: The number in canonical form (see :func:`canonical`); ``""`` unless ``ok``.
    """

    status: Literal["ok", "no_answer", "truncated"]
    value: Fraction | None
    text: str


@dataclass(frozen=True)
class RewardConfig:
    """Shaping on top of exact match; all of it is off by default, as the claim wants it.

    Customary amounts are 0.05 and 0.01. The stability penalty needs a model, so it is taken off
    where outcomes are paid for (:class:`jroute.outcomes.backends.Shaping`), not here.

    Attributes:
        parseable_bonus: Added when the status is ``ok``, whether or not the answer is right.
        length_penalty: Subtracted in proportion to the share of the token limit that was used:
            a completion that used all of it pays the whole penalty.
        stability_penalty: Subtracted in proportion to how far the gate moves the trunk of the
            prompt, relative to its norm and on average over tokens and mixing sites.
    """

    parseable_bonus: float = 0.0
    length_penalty: float = 0.0
    stability_penalty: float = 0.0

    def __post_init__(self) -> None:
        """Refuse negative amounts: the signs are part of the definition."""
        for name in ("parseable_bonus", "length_penalty", "stability_penalty"):
            if not getattr(self, name) >= 0:
                raise UserError(
                    f"reward.{name} is {getattr(self, name)}; give zero or a positive number."
                )


# One number. `-` is a sign only where it cannot be a minus between two terms, and digits that hang
# on a letter, `^` or `_` (`cm2`, `m^2`, `x_1`) are not numbers. Neighbouring repetitions never
# match the same character, so matching takes linear time.
_INTEGER = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)"
_DECIMAL = rf"(?:{_INTEGER}(?:\.[0-9]+)?|(?<![0-9A-Za-z])\.[0-9]+)"
_SIGNED = rf"\s?-?{_DECIMAL}\s?"
_POWER = r"\s?\^\s?\{{?(?P<{name}>-?[0-9]+)\}}?"
_NUMBER = re.compile(
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

_HASHES = re.compile(r"(?<!#)####(?!#)")
_PHRASE = re.compile(r"\banswer(?:\s{0,3}(?:is\b|:|=))+", re.IGNORECASE)
# What may stand between a marker and its number: punctuation, line ends, formatting commands and
# the left side of an equation; no words.
_LEAD = re.compile(
    r"(?P<lead>(?:[^\w]|\\(?![dtc]?frac)[A-Za-z]+|(?<!\w)[A-Za-z]\w{0,15}\s{0,2}=){0,20}?)"
    rf"(?P<number>{_NUMBER.pattern})",
    re.VERBOSE,
)
# The start of a list item or of a numbered heading, seen from the end of its number.
_LIST_ITEM = re.compile(r"[.)][ \t]+[A-Za-z]")
# Arithmetic that goes on after a number: no words, within a sentence, up to a remark in brackets.
_ARITHMETIC = re.compile(r"(?:(?!\.\s)(?!(?<=[0-9$%])\s\()[^A-Za-z\n\\]|\\[A-Za-z]+|\bx\b){0,200}")
_BRACES = re.compile(r"\\boxed\s{0,3}\{|\\[{}]|[{}]")


def _part(groups: dict[str, str], *names: str) -> Fraction:
    """The first of the named groups that matched; 0 if none did."""
    found = next((groups[name] for name in names if name in groups), "0")
    return Fraction("".join(found.replace(",", "").split()))


def _exact(number: re.Match[str]) -> Fraction | None:
    """The value of a match of ``_NUMBER``; None if it is no number (n/0) or absurdly large."""
    groups = {name: text for name, text in number.groupdict().items() if text}
    if any(len(text) > MAX_CHARACTERS for text in groups.values()):
        return None
    exponents = {name: int(groups.get(name, 0)) for name in ("exponent", "ten_power", "power")}
    if any(abs(exponent) > MAX_EXPONENT for exponent in exponents.values()):
        return None
    if "plain" in groups:
        value = _part(groups, "plain") * Fraction(10) ** (
            exponents["exponent"] + exponents["ten_power"]
        )
        if "power" in groups:
            if not value and exponents["power"] < 0:
                return None
            value **= exponents["power"]
    else:
        bottom = _part(groups, "latex_bottom", "latex_bottom_digit", "bottom")
        if not bottom:
            return None
        value = _part(groups, "latex_top", "latex_top_digit", "top") / bottom
        value += _part(groups, "latex_whole", "whole")
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
        return None
    return -value if ("outer" in groups) != ("inner" in groups) else value


def _plain(text: str) -> str:
    """The text with one way to write a minus, a thousands separator and a fraction."""
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
    number = _NUMBER.fullmatch(_plain(text).strip().removesuffix(".").removesuffix("%").strip())
    return _exact(number) if number else None


def canonical(value: Fraction) -> str:
    """Write a number in the one form that gold answers have.

    Args:
        value: Any number.

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


def _boxes(text: str) -> tuple[list[str], bool]:
    """The contents of all balanced boxes in the order they open, and whether one stays open."""
    opened: list[int | None] = []  # per open brace: where its box's content starts, if it is one
    found: list[tuple[int, int]] = []
    for brace in _BRACES.finditer(text):
        if brace[0].startswith("\\boxed"):
            opened.append(brace.end())
        elif brace[0] == "{":
            opened.append(None)
        elif brace[0] == "}" and opened:
            start = opened.pop()
            if start is not None:
                found.append((start, brace.start()))
    boxes = [text[start:end] for start, end in sorted(found)]
    return boxes, any(start is not None for start in opened)


def _in_box(content: str) -> Fraction | None:
    """The number of a box: after its last equals sign if one is there, else its first."""
    for part in (content.rpartition("=")[2], content):
        if number := _NUMBER.search(part):
            return _exact(number)
    return None


def _after_markers(text: str, marker: re.Pattern[str]) -> tuple[Fraction, bool] | None:
    """The number after the last marker that has one, and whether it could go on after the text."""
    for mark in reversed(list(marker.finditer(text))):
        found = _LEAD.match(text, mark.end())
        if not found:
            continue
        in_heading = marker is _HASHES or "\n" in found["lead"]
        if in_heading and _LIST_ITEM.match(text, found.end()):
            continue
        number = _NUMBER.match(text, found.start("number"))
        sums = _ARITHMETIC.match(text, found.start("number"))
        if not number or not sums:
            continue
        if "=" in sums[0]:  # "5 + 13 = 18": the answer stands on the right
            right = sums.start() + sums[0].rindex("=")
            result = _NUMBER.search(text, right)
            if result and result.start() < sums.end():
                number = result
        if (value := _exact(number)) is not None:
            return value, sums.end() == len(text)
    return None


def parse_answer(completion: str, *, truncated: bool = False) -> ParsedAnswer:
    r"""Read the answer of a completion; see the module's docstring for the order of the rules.

    Args:
        completion: What the model wrote, without the prompt.
        truncated: Whether generation ended at the token limit (not at an end token or a stop
            string).

    Returns:
        The answer. With ``truncated``, only a completely stated answer counts: the last number of
        an unfinished text is an intermediate result, so rule 4 is not used; a ``\boxed{`` that is
        still open is not complete either, nor is a stated number with neither a word nor a line end
        behind it (``#### 1`` may have been on its way to ``#### 18``). In these cases the status is
        ``truncated``.
    """
    text = _plain(completion.rpartition("</think>")[2].partition("<think>")[0])
    cut = ParsedAnswer("truncated", None, "")

    boxes, one_open = _boxes(text)
    if truncated and one_open:
        return cut
    for content in reversed(boxes):
        if (value := _in_box(content)) is not None:
            return ParsedAnswer("ok", value, canonical(value))
    for marker in (_HASHES, _PHRASE):
        if stated := _after_markers(text, marker):
            value, may_go_on = stated
            if truncated and may_go_on:
                return cut
            return ParsedAnswer("ok", value, canonical(value))
    if truncated:
        return cut
    numbers = deque(_NUMBER.finditer(text), maxlen=1)
    value = _exact(numbers[0]) if numbers else None
    if value is None:
        return ParsedAnswer("no_answer", None, "")
    return ParsedAnswer("ok", value, canonical(value))


def boxed_answer(completion: str) -> str:
    r"""What stands in the last balanced ``\boxed{}`` of a completion, and nowhere else.

    Returns:
        Its number, canonical; its text, if that holds none; ``""`` without a box.
    """
    boxes, _ = _boxes(_plain(completion.rpartition("</think>")[2].partition("<think>")[0]))
    if not boxes:
        return ""
    value = _in_box(boxes[-1])
    return boxes[-1].strip() if value is None else canonical(value)


def is_correct(parsed: ParsedAnswer, gold: str) -> bool:
    """Whether an answer equals the gold answer as an exact number.

    Args:
        parsed: From :func:`parse_answer`.
        gold: A problem's gold answer.

    Raises:
        ValueError: The gold answer is not a number.
    """
    target = parse_number(gold)
    if target is None:
        raise ValueError(f"gold answer {gold!r} is not a number")
    return parsed.status == "ok" and parsed.value == target


def reward(
    parsed: ParsedAnswer,
    gold: str,
    *,
    tokens: int,
    max_tokens: int,
    config: RewardConfig,
) -> float:
    """Exact match plus optional shaping.

    ``correct + parseable_bonus · [status is ok] - length_penalty · tokens / max_tokens``, where
    ``correct`` is 1 or 0. Without shaping the reward is exactly 1.0 or 0.0.

    Args:
        parsed: From :func:`parse_answer`.
        gold: The problem's gold answer.
        tokens: Number of generated tokens, the end token included.
        max_tokens: The decoding's limit on them.
        config: The shaping.

    Raises:
        ValueError: ``tokens`` does not lie between 0 and ``max_tokens``.
    """
    if not 0 <= tokens <= max_tokens or max_tokens < 1:
        raise ValueError(f"{tokens} tokens do not lie between 0 and the limit of {max_tokens}")
    value = float(is_correct(parsed, gold))
    if parsed.status == "ok":
        value += config.parseable_bonus
    return value - config.length_penalty * tokens / max_tokens
