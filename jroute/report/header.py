"""The top of the page: the verdict, the numbers it rests on, and the way to the rest."""

from collections.abc import Mapping
from html import escape
from typing import Any

from jroute.report import result_rows
from jroute.report.report_data import ReportData
from jroute.report.tables import fixed, interval, signed

LINKS = (
    ("arms", "Arms"),
    ("contrasts", "Contrasts"),
    ("headroom", "Headroom"),
    ("training", "Training"),
    ("gates", "Gates"),
    ("streams", "Streams"),
    ("problems", "Problems"),
)


def verdict(results: Mapping[str, Any]) -> tuple[str, str]:
    """A headline and a sentence: the run's own verdict, or else only what its contrasts say."""
    stored = results.get("verdict")
    if isinstance(stored, Mapping):
        return _capital(str(stored.get("name", ""))), _sentence(str(stored.get("sentence", "")))
    if stored:
        return _capital(str(stored)), ""
    declared = result_rows.contrasts(results, declared=True)
    if not declared:
        return "No verdict", "This run declared no contrasts, so nothing can be said of RL."
    clear = [c for c in declared if c.p_holm is not None and c.p_holm < 0.05]
    above, below = [c for c in clear if c.value > 0], [c for c in clear if c.value < 0]
    many = f"{_word(len(declared))} declared arms"
    if len(above) == len(declared):
        headline = f"RL beats all {many}"
    elif above:
        headline = f"RL beats {_word(len(above))} of {many}"
    elif below:
        headline = f"RL is worse than {_word(len(below))} of {many}"
    else:
        headline = f"RL is not shown to beat any of {many}"
    return headline, (
        "This run stores no verdict of its own; this is what its declared contrasts say, each at "
        "5 % after Holm's adjustment. Not significant is not absent."
    )


def _word(count: int) -> str:
    words = ("no", "one", "two", "three", "four", "five", "six")
    return words[count] if count < len(words) else str(count)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _sentence(text: str) -> str:
    return _capital(text) + ("" if text[-1:] in ("", ".", "!", "?") else ".")


def header(material: ReportData) -> str:
    """The header element."""
    results = material.results
    headline, sentence = verdict(results)
    stored = results.get("verdict")
    beside = stored.get("beside", ()) if isinstance(stored, Mapping) else ()
    more = "".join(f"<li>{escape(_sentence(str(one)))}</li>" for one in beside)
    facts = [
        f"{results['n']:,} problems of {results['split']}",
        f"{results['seeds']} seeds" if "seeds" in results else "",
        f"gates {', '.join(f'{g:g}' for g in results.get('gates', ()))}"
        + (f", one for each of {results['parts']} parts" if results.get("parts", 1) > 1 else ""),
    ]
    line = " · ".join(fact for fact in facts if fact)
    links = "".join(f'<a href="#{name}">{title}</a>' for name, title in LINKS)
    return f"""<header>
<p class="run">jroute <span>{escape(material.name)}</span></p>
<h1>{escape(headline)}</h1>
<p class="sentence">{escape(sentence)}</p>
{f'<ul class="beside">{more}</ul>' if more else ""}
<dl class="tiles">{_tiles(results)}</dl>
<p class="facts">{escape(line)}</p>
<nav>{links}</nav>
</header>"""


def _tiles(results: Mapping[str, Any]) -> str:
    """The three numbers that matter most."""
    differences = result_rows.contrasts(results)
    against = next(
        (c for c in differences if c.name == "RL − best fixed"), next(iter(differences), None)
    )
    shown = {row.name: row for row in result_rows.arms(results)}
    tiles = [
        (fixed(row.value), "%", f"{name} accuracy", interval(row))
        for name in ("RL", "baseline")
        if (row := shown.get(name))
    ]
    if against is not None:
        ends = interval(against, signed)
        tiles.insert(1, (signed(against.value), "points", against.name, ends))
    return "".join(
        f'<div class="tile"><dt>{escape(what)}</dt>'
        f"<dd><b>{escape(value)}</b> <span>{escape(unit)}</span></dd>"
        f"<dd>{escape(ends)}</dd></div>"
        for value, unit, what, ends in tiles
    )
