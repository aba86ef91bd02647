r"""Words that belong to a number, in the notation of ``jroute.tasks.notation``.

========================================  ================================
written                                   becomes
========================================  ================================
``negative 5``, ``is minus 5``, ``负5``    ``-5``
``10 minus 3``, ``3 times 4``, ``3x4``    ``10 - 3``, ``3 * 4``, ``3 * 4``
``3 and 1/2``                             ``3 1/2``
``3分之1``                                  ``1/3``
``3万``                                    ``3 * 10^{4}``
``7 [2]``                                 ``7``: that is a citation
========================================  ================================
"""

import re

_CHARACTERS = {"千": 3, "万": 4, "萬": 4, "億": 8, "亿": 8}
_SIGNS = {"plus": "+", "minus": "-", "times": "*", "multiplied by": "*", "divided by": "/"}
_CURRENCY = "[$\u20ac\u00a3]?"

_IN_BRACES = re.compile(
    r"\{ ?(negative|and|plus|minus|times|multiplied by|divided by) ?\}", re.IGNORECASE
)
_NEGATIVE = re.compile(
    r"(?<![0-9)}%] )(?<![A-Za-z0-9])(?:"
    rf"negative (?={_CURRENCY}[({{]?\.?[0-9])"
    rf"|(?:负|負|マイナス|마이너스) ?(?={_CURRENCY}\.?[0-9]))",
    re.IGNORECASE,
)
_MINUS = re.compile(
    r"(^|[\n:=#(是为為は]|\b(?:is|are|be|was|equals|about|only|exactly|es|est|ist|è|é)) ?"
    rf"(?:minus|menos|moins|meno) (?={_CURRENCY}\.?[0-9])",
    re.IGNORECASE,
)
_BETWEEN = re.compile(
    rf"(?<=[0-9)]) (plus|minus|times|multiplied by|divided by) (?={_CURRENCY}\.?[0-9(])",
    re.IGNORECASE,
)
_PRODUCT = re.compile(r"(?<![0-9A-Za-z])([1-9][0-9]{0,5})[xX](?=[1-9][0-9]{0,5}(?![0-9A-Za-z]))")
_MIXED = re.compile(
    r"(?<![0-9./,] )(?<![0-9./,])([0-9]{1,4}) (?:and|&) "
    r"(?=([0-9]{1,3})/([0-9]{1,3})(?! of\b|[0-9./]))"
)
_PARTS_OF = re.compile(r"([0-9]{1,9}) ?分之 ?([0-9]{1,9})")
_POWER = re.compile(rf"(?<=[0-9}}]) ?([{''.join(_CHARACTERS)}])")
_CITATION = re.compile(r"(?<=[0-9]) ?\[[0-9]{1,2}\]")


def in_figures(text: str) -> str:
    """Write words that belong to numbers as signs; the text has plain digits and single spaces."""
    text = _CITATION.sub("", _IN_BRACES.sub(r" \1 ", text).replace("  ", " "))
    text = _MINUS.sub(r"\1 -", _NEGATIVE.sub("-", text))
    text = _BETWEEN.sub(lambda word: f" {_SIGNS[word[1].lower()]} ", text)
    text = _MIXED.sub(_mixed_number, _PRODUCT.sub(r"\1 * ", text))
    text = _PARTS_OF.sub(r"\2/\1", text)
    return _POWER.sub(lambda power: f" * 10^{{{_CHARACTERS[power[1]]}}}", text)


def _mixed_number(match: re.Match[str]) -> str:
    """Write ``3 and 1/2`` as ``3 1/2``; ``3 and 7/2`` are two numbers."""
    return f"{match[1]} " if int(match[2]) < int(match[3]) else match[0]
