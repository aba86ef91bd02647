"""What follows a number: whether the number is an answer, or only a part of something else."""

import re

from jroute.tasks.tokens import Cursor, Token

VARIABLES = frozenset("xyzXYZ")
_ATTACHED = VARIABLES | frozenset("abeijnpqrvw")  # 3i, 2a; other letters are units: 5m, 3h
_JOINING = frozenset(("and", "or", "to", "&", "bis", "und", "oder", "et", "ou"))
_JOINING_CHARACTERS = ("和", "或", "到", "至")
_REMAINDERS = frozenset(("R", "r", "remainder", "mod", "modulo", "bmod", "choose"))
_HEXADECIMAL = re.compile(r"[xX][0-9A-Fa-f]+")
_ORDINALS = frozenset(("st", "nd", "rd", "th", "o"))
_FIRST_UNITS = (
    "year month week day hour hr h minute min foot feet ft yard pound lb dollar km m kg euro mile "
    "gallon quart pint 小时 分钟 元 天 米"
)
_SECOND_UNITS = (
    "month week day hour hr h minute min second sec s inch in ounce oz cent cm g m foot feet yard "
    "quart pint cup 分钟 分 秒 角 厘米"
)
_FIRST, _SECOND = (frozenset(units.split()) for units in (_FIRST_UNITS, _SECOND_UNITS))
_CLOSED = frozenset(("end", "newline", "comma", "stop"))


def is_part(cursor: Cursor) -> bool:
    """Return whether the number before the cursor is only a part of something else."""
    token, second = cursor.coming(), cursor.coming(1)
    number_follows = second.kind in ("number", "open")
    remainder = token.text in _REMAINDERS and second.kind == "number"
    base = token.text == "_" and not token.spaced and number_follows
    if token.kind == "symbol" or remainder or base:
        return True
    if cursor.style == "prose":
        return False
    if _variable(token) or _goes_on(cursor) or _compound(cursor):
        return True
    if cursor.style == "stated":
        return _another_number(cursor) or _list_follows(cursor)
    factorial = token.text == "!"
    unfinished = token.kind == "operator" and second.kind == "end"
    if factorial or unfinished or token.kind == "comparison" or token.text == "|":
        return True
    return _box_holds_more(cursor)


def is_ordinal(token: Token) -> bool:
    """Return whether an exponent only makes an ordinal number or degrees: ``18^{th}``."""
    return token.text.lower() in _ORDINALS


def _variable(token: Token) -> bool:
    if token.text in VARIABLES:
        return True
    attached = token.text in _ATTACHED or _HEXADECIMAL.fullmatch(token.text)
    return token.kind == "word" and not token.spaced and bool(attached)


def _goes_on(cursor: Cursor) -> bool:
    """Return whether digits go on: ``0.333...``, ``0.(3)``, ``18+``, ``5'6``, ``3点半``."""
    token, second = cursor.coming(), cursor.coming(1)
    if token.spaced:
        return False
    decimal = "." in cursor.coming(-1).text
    three = [cursor.coming(ahead).text for ahead in range(3)] == ["."] * 3
    if decimal and (three or token.text == "\u2026"):
        return True
    if token.text == "." and second.kind == "open" and not second.spaced:
        return True
    if token.text == "+" and second.kind in _CLOSED:
        return True
    return token.text.startswith("点半") or (token.text == "'" and second.kind == "number")


def _unit(text: str) -> str:
    """Return a unit in the singular, as far as it is known."""
    forms = (text.lower(), text.lower().removesuffix("s"), text.lower().removesuffix("es"))
    return next((form for form in forms if form in _FIRST | _SECOND), text)


def _compound(cursor: Cursor) -> bool:
    """Return whether a smaller unit follows: ``5 hours 30 minutes``."""
    words = [
        t for t in (cursor.coming(ahead) for ahead in range(8)) if t.kind not in ("open", "close")
    ]
    if [token.kind for token in words[:3]] != ["word", "number", "word"]:
        return False
    first, second = _unit(words[0].text), _unit(words[2].text)
    return first in _FIRST and second in _SECOND and first != second


def _another_number(cursor: Cursor) -> bool:
    """Return whether a number follows at once: ``1 2 3``."""
    token = cursor.coming()
    return (
        token.kind == "number"
        and cursor.coming(-1).kind == "number"
        and (cursor.coming(1).kind in (*_CLOSED, "number"))
    )


def _joins(token: Token) -> bool:
    return token.text.lower() in _JOINING or token.text.endswith(_JOINING_CHARACTERS)


def _list_follows(cursor: Cursor) -> bool:
    """Return whether another number follows as an equal: ``3 and 4``, ``3, 4``, ``1 to 2``."""
    ahead = int(cursor.coming().kind == "word" and not _joins(cursor.coming()))
    unit = ahead > 0
    comma = cursor.coming(ahead).kind == "comma"
    tight = comma and not cursor.coming(ahead).spaced and not cursor.coming(ahead + 1).spaced
    ahead += comma
    word = _joins(cursor.coming(ahead))
    ahead += word
    if not (word or (comma and not unit)):
        return False
    if cursor.kinds(2, ahead) == ["word", "equals"]:
        ahead += 2
    while cursor.coming(ahead).kind == "currency":
        ahead += 1
    if cursor.coming(ahead).kind != "number":
        return False
    ahead += 1
    while cursor.coming(ahead).kind in ("percent", "currency", "close", "any", "other"):
        ahead += 1
    ahead += (word or tight) and cursor.coming(ahead).kind == "word"
    token = cursor.coming(ahead)
    full_stop = token.kind == "stop" and cursor.coming(ahead + 1).spaced
    return full_stop or token.kind in ("end", "newline", "comma")


def _box_holds_more(cursor: Cursor) -> bool:
    """Return whether the box has another number outside of units and remarks in brackets."""
    brackets, comma = 0, False
    for ahead in range(len(cursor.tokens) - cursor.at):
        token = cursor.coming(ahead)
        comma = comma or token.kind == "comma"
        if token.kind == "equals" and not comma:
            return False
        brackets += (token.text == "(") - (token.text == ")")
        if token.kind == "number" and brackets <= 0:
            back = ahead - 1
            while cursor.coming(back).text in ("{", "-"):
                back -= 1
            if cursor.coming(back).text != "^":
                return True
    return False
