r"""One notation for the many ways in which a number is typed.

``normalise`` leaves one form of each thing for ``jroute.tasks.arithmetic``:

======================================  ======================
typed                                   becomes
======================================  ======================
``１８``, ``١٨``, ``१८``                ``18``
``−5``, ``–5``                          ``-5``
``10⁵``, ``10<sup>5</sup>``, ``10**5``  ``10^{5}``
``2 ½``, ``\dfrac12``                   ``2 \frac{1}{2}``
``1-½``, ``1-1/2`` (no spaces)          ``1 \frac{1}{2}``
``3⁄4``, ``3 ÷ 4``, ``3 \div 4``        ``3/4``
``3 × 4``, ``3 \cdot 4``                ``3 * 4``
``1,000``, ``1{,}000``, ``1,00,000``    digits alone
``12 000``, ``12'000``, ``12\,000``     digits alone
``1.234,56``, ``3{,}5``                 ``1234.56``, ``3.5``
``**18**``, ``_18_``, ``<b>18</b>``     ``18``
``\text{18}``, ``\left(18\right)``      ``{18}``, ``(18)``
``~~17~~``                              nothing: it is struck
``Rs. 18``, ``US$18``, ``USD 18``       ``$18``
======================================  ======================

A comma that is followed by other than three digits (``2,5``) separates two numbers. Every rule
takes linear time.
"""

import re
import unicodedata

from jroute.tasks.phrasing import in_figures

_MINUS_SIGNS = "\u2212\u2010\u2011\u2012\u2013\ufe63\uff0d\u207b"
_SINGLE = {
    **dict.fromkeys(_MINUS_SIGNS, "-"),
    **dict.fromkeys("\u2044\u2215\u00f7", "/"),
    **dict.fromkeys("\u00d7\u22c5\u00b7\u2217\u2715\u2716", "*"),
    **dict.fromkeys("\u2248\u2245\u2243\u2192\u21d2", "="),
    **dict.fromkeys("\u2019\u2018\u02bc\u00b4", "'"),
    **dict.fromkeys("\u066b", "."),
    **dict.fromkeys("\u066c", ","),
    **dict.fromkeys("\u066a", "%"),
    **dict.fromkeys("\u00b0\u2028\u2029\u0085\t\r\v\f", " "),
    **dict.fromkeys("\uffe5", "\u00a5"),
    **dict.fromkeys("\uffe1", "\u00a3"),
}


class _Characters(dict[int, str]):
    """What single characters become; digits of any script are found as they come."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        digit = unicodedata.decimal(character, None)
        category = unicodedata.category(character)
        if character in _SINGLE:
            plain = _SINGLE[character]
        elif digit is not None:
            plain = str(digit)
        elif 0xFF01 <= code <= 0xFF5E:  # full-width ASCII
            plain = chr(code - 0xFEE0)
        elif category == "Zs":
            plain = " "
        elif category == "Cf":  # zero-width characters and directions of writing
            plain = ""
        else:
            plain = character
        self[code] = plain
        return plain


_CHARACTERS = _Characters()
_SUPERSCRIPT = re.compile("[\u207a\u207b]?[\u2070\u00b9\u00b2\u00b3\u2074-\u2079]+")
_VULGAR_FRACTION = re.compile("(?:(?<=[0-9])[-\u2010\u2011])?([\u00bc-\u00be\u2150-\u215e\u2189])")
_HYPHENATED = re.compile(
    r"(?<![0-9A-Za-z.,/^*+=)-])(-?[0-9]{1,4})[-\u2010\u2011]([0-9]{1,4})/([0-9]{1,4})(?![0-9./^*]|,[0-9])"
)

# Struck out, or a calculator's annotation as in GSM8K: <<3+4=7>>7.
_HIDDEN = re.compile(r"~~[^~\n]{1,200}~~|<<[^<>\n]{1,100}>>")
_HTML_FRACTION = re.compile(r"<sup>([0-9]{1,9})</sup> ?/ ?<sub>([0-9]{1,9})</sub>", re.IGNORECASE)
_TAG = re.compile(
    r"</?(?:b|i|u|em|strong|code|span|p|br|mark|big|answer)\s{0,3}/?>|<sup>\s{0,3}(-?[0-9]{1,9})\s{0,3}</sup>",
    re.IGNORECASE,
)
_POWER_STARS = re.compile(r"(?<=[0-9)])\*\*(?=[0-9(-])")
_STARRED = re.compile(r"(?<![\w*)}])\*([^\s*](?:[^*\n]{0,80}[^\s*])?)\*(?![\w*(])")
_EMPHASIS = re.compile(
    r"\*\*+"
    r"|(?<![A-Za-z0-9}\])_])_+(?=[^\s_{])"
    r"|(?<=[0-9A-Za-z%.)!?$])_+(?![A-Za-z0-9_{])"
)

_LAYOUT = (
    "text mathrm textbf mathbf textit mathit textrm textsf texttt mathsf mathtt emph mbox hbox"
)
_LAYOUT += " underline operatorname boldsymbol bm bold bf rm it left right big Big bigl bigr Bigl"
_LAYOUT += " Bigr bigg Bigg displaystyle textstyle large Large huge"
_COMMANDS = {
    **dict.fromkeys(_LAYOUT.split(), ""),
    **dict.fromkeys((*"\n ,;:>()[]_", "quad", "qquad", "degree", "enspace", "thinspace"), " "),
    **{"!": "", "\\": "\n"},
    **dict.fromkeys(("times", "cdot", "ast"), "*"),
    "div": "/",
    **dict.fromkeys(("approx", "simeq", "cong", "equiv", "to", "rightarrow"), "="),
    **dict.fromkeys(("implies", "Rightarrow"), "="),
    **dict.fromkeys(("le", "leq", "leqslant"), "\u2264"),
    **dict.fromkeys(("ge", "geq", "geqslant"), "\u2265"),
    **dict.fromkeys(("ne", "neq"), "\u2260"),
    **dict.fromkeys(("lt", "gt"), "<"),
    **dict.fromkeys(("dots", "ldots", "cdots"), "..."),
    **dict.fromkeys(("frac", "dfrac", "tfrac", "cfrac"), "\\frac"),
    **dict.fromkeys(("lvert", "rvert", "vert", "mid"), "|"),
    **{"textdollar": "$", "$": "$", "%": "%", "#": "#", "&": "&", "pounds": "\u00a3"},
}
_COMMAND = re.compile(r"\\([A-Za-z]+|[^{}])", re.DOTALL)
_COLOUR = re.compile(r"\\(?:text)?color\s?\{[A-Za-z]{0,20}\}")
_DEGREE = re.compile(r"\^\s?(?:\\circ|\{\s?\\circ\s?\})(?![A-Za-z])")
_FIRST_DIGIT = re.compile(r"\\frac\s?([0-9])")
_SECOND_DIGIT = re.compile(r"(\\frac\{[^{}]{0,60}\})\s?([0-9])")
_CURRENCY = re.compile(
    r"(?<![A-Za-z])(?:(?:USD|EUR|GBP|INR|CAD|AUD|Rs)\.?(?=\s?-?\.?[0-9])|[A-Z]{1,2}(?=\$\s?[0-9]))"
)
_SPACES = re.compile(r"  +")

_LATEX_GROUP = re.compile(r"(?<=[0-9])(?:,?\\[,!;: ]|\{,\})(?=[0-9]{3}(?![0-9]))")
_LATEX_COMMA = re.compile(r"(?<=[0-9])\{,\}(?=[0-9])")
# None of them starts inside a longer run of groups, so no run is read twice.
_GROUPS = re.compile(
    r"""
    (?<![0-9.,'])(?:
        [0-9]{1,3}(?:,[0-9]{3})+(?!,?[0-9])
      | [0-9]{1,2}(?:,[0-9]{2})+,[0-9]{3}(?!,?[0-9])
      | [0-9]{1,3}(?:'[0-9]{3})+(?!'?[0-9])
      | (?:(?<![0-9][ ])|(?<=[0-9]{4}[ ]))(?<![_^])[1-9][0-9]{0,2}(?:[ ][0-9]{3})+(?![ ]?[0-9])
    )
    """,
    re.VERBOSE,
)
_EUROPEAN = re.compile(
    r"""
    (?<![0-9.,])[0-9]{1,3}(?:
        (?:\.[0-9]{3})+,[0-9]{1,2}
      | (?:\.[0-9]{3}){2,}
      | (?:[ ][0-9]{3})+,[0-9]{1,2}
    )(?![.,]?[0-9])
    """,
    re.VERBOSE,
)


def normalise(text: str) -> str:
    """Write a text in the notation of the module's docstring."""
    if not text.isascii():
        text = _SUPERSCRIPT.sub(lambda run: f"^{{{_plain(run[0])}}}", text)
        text = _VULGAR_FRACTION.sub(_fraction, text)
    text = _HYPHENATED.sub(_mixed_number, text)
    text = text.translate(_CHARACTERS)
    text = _HTML_FRACTION.sub(r" \\frac{\1}{\2}", text)
    text = _TAG.sub(lambda tag: f"^{{{tag[1]}}}" if tag[1] else " ", _HIDDEN.sub(" ", text))
    if "\\" in text or "{" in text:
        text = _latex(text)
    text = _EMPHASIS.sub(" ", _STARRED.sub(r" \1 ", _POWER_STARS.sub("^", text)))
    text = _CURRENCY.sub(lambda name: "" if name[0].isupper() and len(name[0]) < 3 else "$", text)
    text = _SPACES.sub(" ", text)
    text = _EUROPEAN.sub(lambda number: re.sub("[. ]", "", number[0]).replace(",", "."), text)
    text = _GROUPS.sub(lambda number: re.sub("[, ']", "", number[0]), text)
    return in_figures(text)


def _latex(text: str) -> str:
    text = _LATEX_COMMA.sub(".", _LATEX_GROUP.sub(",", text))
    text = _COMMAND.sub(_command, _DEGREE.sub(" ", _COLOUR.sub("", text)))
    return _SECOND_DIGIT.sub(r"\1{\2}", _FIRST_DIGIT.sub(r"\\frac{\1}", text))


def _plain(superscript: str) -> str:
    return unicodedata.normalize("NFKC", superscript).replace("\u2212", "-").lstrip("+")


def _fraction(sign: re.Match[str]) -> str:
    top, bottom = unicodedata.normalize("NFKC", sign[1]).split("\u2044")
    return f"{' ' if len(sign[0]) > 1 else ''}\\frac{{{top}}}{{{bottom}}}"


def _mixed_number(hyphenated: re.Match[str]) -> str:
    """Write ``1-1/2`` as ``1 1/2``; ``3-7/2`` is a difference."""
    whole, top, bottom = hyphenated.groups()
    return f"{whole} {top}/{bottom}" if int(top) < int(bottom) else hyphenated[0]


def _command(command: re.Match[str]) -> str:
    name = command[1]
    plain = _COMMANDS.get(name)
    if plain is None:
        return command[0]
    return plain + " " if name.isalpha() and plain.startswith("=") else plain
