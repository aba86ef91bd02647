"""Puts a report together: one HTML file that needs nothing but itself."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from jroute.evaluation.html import figures as drawing
from jroute.evaluation.html import rows as numbers
from jroute.evaluation.html.figures import Figure
from jroute.evaluation.html.material import Judged, Material
from jroute.evaluation.html.problems import for_script, pack
from jroute.evaluation.html.rows import Interval
from jroute.files import write_text

TRAINING = ("return", "entropy", "explained-variance")
DIFFICULTY = ("answer-length", "prompt-length", "steps")


def write(material: Material, folder: Path) -> list[Path]:
    """Writes ``report.html`` and, beside it, ``figures`` as PNG and SVG.

    Returns:
        The page, then the figures.
    """
    found = drawing.figures(material)
    count = len(drawing.grid(material))
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    page = folder / "report.html"
    write_text(page, render(material, found))
    files = [drawing.save(figure, count, folder / "figures") for figure in found]
    return [page, *(file for pair in files for file in pair)]


def render(material: Material, found: Sequence[Figure]) -> str:
    """The whole page."""
    grid = drawing.grid(material)
    inside = {
        f.name: drawing.inline(f, len(grid))
        for f in found
        if not f.name.startswith(("arms-", "contrasts-", "headroom-"))
    }
    titles = {f.name: f.title for f in found}
    style = resources.files(__package__).joinpath("page.css").read_text("utf-8")
    style = f"{_variables(len(grid))}\n{style}"
    script = resources.files(__package__).joinpath("problems.js").read_text("utf-8")
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )

    def panels(*names: str) -> str:
        drawn = "".join(
            f"<figure><figcaption>{escape(titles[name])}</figcaption>{inside[name]}</figure>"
            for name in names
            if name in inside
        )
        return f'<div class="panels">{drawn}</div>' if drawn else ""

    sections = [
        _section("arms", "Arms", _arms(material)),
        _section("contrasts", "Contrasts declared beforehand", _contrasts(material)),
        _section("headroom", "Headroom", _headroom(material)),
        _section("training", "Training", _training(material, panels)),
        _section("gates", "Which gate for which problem", _gates(material, panels)),
        _section("streams", "Streams", _streams(material, panels)),
        _section("problems", "Problems", _problems(material)),
        _section("settings", "Settings", _settings(material)),
    ]
    data = for_script(pack(material.splits, grid))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{escape(policy, quote=True)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(material.name)} · jroute</title>
<style>
{style}
</style>
</head>
<body>
{_head(material)}
<main>
{"".join(sections)}
</main>
<script type="application/json" id="data">{data}</script>
<script>{script}</script>
</body>
</html>
"""


def _digest(script: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


def _variables(count: int) -> str:
    """Every colour of the page, for light and for dark."""

    def block(mode: str) -> str:
        return "".join(f"--{n}:{c};" for n, c in drawing.look(count, mode).colours.items())

    return (
        f":root{{{block('light')}}}\n@media (prefers-color-scheme:dark){{:root{{{block('dark')}}}}}"
    )


def _section(name: str, title: str, content: str) -> str:
    return f'<section id="{name}"><h2>{escape(title)}</h2>\n{content}</section>\n'


def _missing(sentence: str) -> str:
    return f'<p class="missing">{escape(sentence)}</p>'


def _note(sentence: str) -> str:
    return f'<p class="note">{escape(sentence)}</p>'


# Verdict ----------------------------------------------------------------------------------------


def verdict(results: Mapping[str, Any]) -> tuple[str, str]:
    """A headline and a sentence: the run's own verdict, or else only what its contrasts say."""
    stored = results.get("verdict")
    if isinstance(stored, Mapping):
        return _capital(str(stored.get("name", ""))), str(stored.get("sentence", ""))
    if stored:
        return _capital(str(stored)), ""
    declared = numbers.contrasts(results, declared=True)
    if not declared:
        return "No verdict", "This run declared no contrasts, so nothing can be said of RL."
    above = [c for c in declared if (c.p_holm or 0.0) < 0.05 and c.value > 0]
    below = [c for c in declared if (c.p_holm or 0.0) < 0.05 and c.value < 0]
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


def _head(material: Material) -> str:
    results = material.results
    headline, sentence = verdict(results)
    against = next(
        (c for c in numbers.contrasts(results) if c.name.endswith("best fixed")),
        next(iter(numbers.contrasts(results)), None),
    )
    shown = {row.name: row for row in numbers.arms(results)}
    tiles = [
        (_fixed(row.value), "%", f"{name} accuracy", _ends(row))
        for name in ("RL", "baseline")
        if (row := shown.get(name))
    ]
    if against is not None:
        tiles.insert(1, (_signed(against.value), "points", against.name, _ends(against, True)))
    drawn = "".join(
        f'<div class="tile"><dt>{escape(what)}</dt>'
        f"<dd><b>{escape(value)}</b> <span>{escape(unit)}</span></dd>"
        f"<dd>{escape(interval)}</dd></div>"
        for value, unit, what, interval in tiles
    )
    facts = [
        f"{results['n']:,} problems of {results['split']}",
        f"{results['seeds']} seeds" if "seeds" in results else "",
        f"gates {', '.join(f'{g:g}' for g in results.get('gates', ()))}",
    ]
    line = " · ".join(fact for fact in facts if fact)
    links = "".join(
        f'<a href="#{name}">{title}</a>'
        for name, title in (
            ("arms", "Arms"),
            ("contrasts", "Contrasts"),
            ("headroom", "Headroom"),
            ("training", "Training"),
            ("gates", "Gates"),
            ("streams", "Streams"),
            ("problems", "Problems"),
        )
    )
    return f"""<header>
<p class="run">jroute <span>{escape(material.name)}</span></p>
<h1>{escape(headline)}</h1>
<p class="sentence">{escape(sentence)}</p>
<dl class="tiles">{drawn}</dl>
<p class="facts">{escape(line)}</p>
<nav>{links}</nav>
</header>"""


# Tables with dots -------------------------------------------------------------------------------


def _fixed(value: float) -> str:
    return f"{value:.1f}".replace("-", "−")


def _signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "−")


def _ends(row: Interval, signed: bool = False) -> str:
    if row.ci95 is None:
        return ""
    form = _signed if signed else _fixed
    return f"{form(row.ci95[0])} to {form(row.ci95[1])}"


def _p(value: float | None) -> str:
    if value is None:
        return ""
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _scale(rows: Sequence[Interval], zero: bool) -> tuple[float, float, list[float]]:
    """Ends of an axis that holds all rows, and a few round numbers on it."""
    from matplotlib.ticker import MaxNLocator

    ends = [end for row in rows for end in (row.ci95 or (row.value, row.value))]
    ends += [row.value for row in rows] + ([0.0] if zero else [])
    low, high = min(ends), max(ends)
    ticks = MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]).tick_values(low, max(high, low + 1e-6))
    low, high = min(low, float(ticks[0])), max(high, float(ticks[-1]))
    return low, high, [float(tick) for tick in ticks]


def _dots(
    rows: Sequence[Interval],
    what: str,
    *,
    zero: bool,
    p: bool = False,
    beside: Sequence[Interval] = (),
) -> str:
    """A table whose last column is the interval drawn to scale.

    Args:
        rows: What is in it.
        what: Name of the column of values.
        zero: Whether values are differences, and 0 is on the axis.
        p: Whether there are columns of p-values.
        beside: Rows of all tables that are read side by side: they share an axis.
    """
    low, high, ticks = _scale([*rows, *beside], zero)

    def at(value: float) -> str:
        return f"{3 + 94 * (value - low) / (high - low):.2f}%"

    lines = "".join(
        f'<line class="{"zero" if zero and tick == 0 else "grid"}" '
        f'x1="{at(tick)}" x2="{at(tick)}" y1="0" y2="100%"/>'
        for tick in ticks
    )
    labels = "".join(
        f'<text x="{at(tick)}" y="13">{escape(f"{tick:g}".replace("-", "−"))}</text>'
        for tick in ticks
    )
    extra = '<th class="n">p</th><th class="n">Holm</th>' if p else ""
    form = _signed if zero else _fixed

    def line(row: Interval) -> str:
        whisker = (
            f'<line class="ci" x1="{at(row.ci95[0])}" x2="{at(row.ci95[1])}" y1="50%" y2="50%"/>'
            if row.ci95
            else ""
        )
        about = f"<small>{escape(row.about)}</small>" if row.about else ""
        adjusted = f'<td class="n p">{_p(row.p)}</td><td class="n p">{_p(row.p_holm)}</td>'
        return (
            f'<tr{" class=bold" if row.bold else ""}><th scope="row">{escape(row.name)}{about}</th>'
            f'<td class="n v">{form(row.value)}</td>'
            f'<td class="n i">{_ends(row, zero)}</td>{adjusted if p else ""}'
            f'<td class="dot"><svg aria-hidden="true">{lines}{whisker}'
            f'<circle cx="{at(row.value)}" cy="50%" r="4.5"/></svg></td></tr>'
        )

    return (
        f'<table class="dots"><thead><tr><th></th><th class="n">{escape(what)}</th>'
        f'<th class="n">95 % interval</th>{extra}<th class="dot"></th></tr></thead>'
        f"<tbody>{''.join(map(line, rows))}</tbody>"
        f'<tfoot><tr><td colspan="{5 if p else 3}"></td><td class="dot">'
        f'<svg aria-hidden="true">{labels}</svg></td></tr></tfoot></table>'
    )


def _each(material: Material, of_split: Any) -> str:
    """The same for every split, each under its own name."""
    return "".join(
        f"<h3>{escape(judged.name)} <small>{judged.results['n']:,} problems</small></h3>"
        f"{of_split(judged)}"
        for judged in material.splits
    )


def _arms(material: Material) -> str:
    said = _note(
        "Share of problems solved, all arms on the same problems. One deterministic arm has "
        "Wilson's interval; an arm of several seeds has that of resampled seeds and problems."
    )
    every = [row for judged in material.splits for row in numbers.arms(judged.results)]

    def table(judged: Judged) -> str:
        rows = numbers.arms(judged.results)
        if not rows:
            return _missing("This run stores no arms.")
        return _dots(rows, "Accuracy", zero=False, beside=every)

    return said + _each(material, table)


def _contrasts(material: Material) -> str:
    def table(judged: Judged) -> str:
        declared = numbers.contrasts(judged.results, declared=True)
        others = numbers.contrasts(judged.results, declared=False)
        if not declared + others:
            return _missing("This run stores no contrasts.")
        return _dots([*declared, *others], "Points", zero=True, p=True, beside=every)

    every = [row for judged in material.splits for row in numbers.contrasts(judged.results)]

    said = _note(
        "Differences in accuracy on the same problems, in points. Bold rows were declared before "
        "anything was measured; their p-values are adjusted together by Holm's method, the others "
        "are there to read and prove nothing."
    )
    gap = material.results.get("resolvable_gap")
    found = _each(material, table)
    if isinstance(gap, int | float):
        found += _note(f"The smallest gap this set can resolve is {100 * gap:.1f} points.")
    return said + found


def _headroom(material: Material) -> str:
    def table(judged: Judged) -> str:
        rows = numbers.headroom(judged.results)
        if not rows:
            return _missing("This run stores neither a best fixed gate nor the oracle.")
        named = {row.name for row in rows}
        found = _dots(rows, "Points", zero=True, beside=every)
        if "learnable" not in named:
            found += _missing(
                "Learnable headroom is not stored for this split, so how much of the hindsight "
                "gain features can tell is not known."
            )
        if "noise floor" not in named:
            found += _missing(
                "No noise floor was measured for this split: without cells that were generated "
                "twice, the hindsight gain is an upper bound and may be noise in part."
            )
        return found

    every = [row for judged in material.splits for row in numbers.headroom(judged.results)]
    said = _note("Gains over the fixed gate that was best on train, in points.")
    return said + _each(material, table)


# Figures ----------------------------------------------------------------------------------------


def _training(material: Material, panels: Any) -> str:
    drawn = panels(*TRAINING)
    if not drawn:
        return _missing(
            "No training curves are in the run's tensorboard folder, so learning is not shown."
        )
    band = (
        "Lines are means over seeds; bands hold 90 % of the seeds."
        if material.banded
        else "Lines are means over seeds; this run did not store its seeds one by one, so there "
        "are no bands."
    )
    rest = panels("gates-training", "consumed")
    return _note(band) + drawn + rest


def _gates(material: Material, panels: Any) -> str:
    judged = material.splits[0]
    if judged.absent:
        return _missing(judged.absent)
    if not judged.gates.size:
        return _missing("The choices of the controllers are not stored, so they are not shown.")
    names = [f"{kind}-{measure}" for measure in DIFFICULTY for kind in ("gate", "parts")]
    drawn = panels(*names)
    said = _note(
        f"Share of each gate among the choices of all {len(judged.gates)} seeds on {judged.name}, "
        "in groups of problems of about equal size. No controller sees these measures but the "
        "prompt's length."
        + (" Shades are mean gates, from the smallest to the largest." if "parts-" in drawn else "")
    )
    missing = [m for m in DIFFICULTY if f"gate-{m}" not in drawn and f'id="gate-{m}' not in drawn]
    sentences = {
        "answer-length": "All answers of the plain model are equally long.",
        "prompt-length": "All prompts are equally long.",
        "steps": "The problems have no reference solutions to count steps in, or all are alike.",
    }
    return said + drawn + "".join(_missing(sentences[m]) for m in missing)


def _streams(material: Material, panels: Any) -> str:
    drawn = panels("dominance", "diversity")
    if not drawn:
        return _missing(
            "The streams of this run were not measured; python -m jroute.probe with its config "
            "does that, and the next report shows it."
        )
    assert material.probe is not None
    said = (
        f"Measured on {material.probe.get('prompts', 'some')} prompts of "
        f"{material.probe.get('split', 'train')}. Dominance is the share of every stream in the "
        "mixed trunk; diversity is one minus the mean cosine of pairs of streams. The probe's "
        f"verdict on these gates: {material.probe.get('verdict', 'none')}."
    )
    return _note(said) + drawn


# Problems and settings --------------------------------------------------------------------------


def _problems(material: Material) -> str:
    absent = "".join(_missing(judged.absent) for judged in material.splits if judged.absent)
    if not any(judged.rows for judged in material.splits):
        return absent or _missing("This run has no judged problems.")
    return (
        absent
        + _note(
            "The plain model beside the deployed controller. ▲ only RL is right, ▼ only the plain "
            "model is. Choose a row to read it, a column's name to sort."
        )
        + """<form class="filters" id="filters">
<label class="wide">Search
<input type="search" name="text" placeholder="question, answer, id"></label>
<label>Split<select name="split"></select></label>
<label>Outcome<select name="outcome">
<option value="">all</option>
<option value="win">▲ wins</option><option value="loss">▼ losses</option>
<option value="right">both right</option><option value="wrong">both wrong</option>
<option value="sensitive">gate matters</option></select></label>
<label>RL's gate<select name="gate"></select></label>
</form>
<p class="count" id="count" role="status"></p>
<div class="grid" role="grid" aria-label="Problems" id="grid">
<div class="line heads" role="row" id="heads"></div>
<div class="rows" id="rows" tabindex="0"><div id="space"></div></div>
</div>
<dialog id="detail" aria-label="One problem"></dialog>
<noscript><p class="missing">The table of problems needs JavaScript.</p></noscript>
"""
    )


def _settings(material: Material) -> str:
    results = material.results
    facts = {
        "model": results.get("model"),
        "outcome table": results.get("outcomes"),
        "training": results.get("training"),
        "best fixed gate on train": results.get("best_fixed_gate"),
        "cells of train": results.get("train_cells"),
        "rewards sampled by each RL seed": results.get("rewards_sampled_by_each_rl_seed"),
    }
    shown = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(str(value))}</dd></div>"
        for name, value in facts.items()
        if value is not None
    )
    return (
        f'<dl class="facts-list">{shown}</dl>'
        f"<details><summary>config.yaml</summary><pre>{escape(material.settings)}</pre></details>"
    )
