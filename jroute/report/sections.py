"""The sections of the page, each from its part of the material."""

from collections.abc import Callable, Mapping
from html import escape
from typing import Any

from jroute.report import result_rows
from jroute.report.report_data import ReportData, SplitReport
from jroute.report.tables import dots, fixed, p_value

TRAINING = ("return", "entropy", "explained-variance")
DIFFICULTY = ("answer-length", "prompt-length", "steps")

Panels = Callable[..., str]
"""Figures by their names, as HTML; nothing where none of them exists."""


def sections(material: ReportData, panels: Panels) -> str:
    """Everything below the top of the page."""
    found = (
        ("arms", "Arms", _arms(material)),
        ("contrasts", "Contrasts declared beforehand", _contrasts(material)),
        ("headroom", "Headroom", _headroom(material)),
        ("training", "Training", _training(material, panels)),
        ("gates", "Which gate for which problem", _gates(material, panels)),
        ("streams", "Streams", _streams(material, panels)),
        ("problems", "Problems", _problems(material)),
        ("settings", "Settings", _settings(material)),
    )
    return "".join(
        f'<section id="{name}"><h2>{escape(title)}</h2>\n{content}</section>\n'
        for name, title, content in found
    )


def _missing(sentence: str) -> str:
    return f'<p class="missing">{escape(sentence)}</p>'


def _note(sentence: str) -> str:
    return f'<p class="note">{escape(sentence)}</p>'


def _each(material: ReportData, of_split: Callable[[SplitReport], str]) -> str:
    """The same for every split, each under its own name."""
    return "".join(
        f"<h3>{escape(judged.name)} <small>{judged.results['n']:,} problems</small></h3>"
        f"{of_split(judged)}"
        for judged in material.splits
    )


def _share(told: Mapping[str, Any]) -> str:
    """A share with its interval, in per cent."""
    ends = " to ".join(fixed(100 * end) for end in told["ci95"])
    return f"{fixed(100 * told['share'])} % ({ends})"


# Tables -----------------------------------------------------------------------------------------


def _arms(material: ReportData) -> str:
    said = _note(
        "Share of problems solved, all arms on the same problems. One deterministic arm has "
        "Wilson's interval; an arm of several seeds has that of resampled seeds and problems."
    )
    every = [row for judged in material.splits for row in result_rows.arms(judged.results)]

    def table(judged: SplitReport) -> str:
        rows = result_rows.arms(judged.results)
        if not rows:
            return _missing("This run stores no arms.")
        found = dots(rows, "Accuracy", zero=False, beside=every)
        if sensitive := judged.results.get("gate_sensitive"):
            found += _note(
                f"Gates decide {_share(sensitive)} of these problems: some solve them, others do "
                "not."
            )
        if lacking := judged.results.get("not_available"):
            wants = "; ".join(f"{result_rows.words(arm)} ({what})" for arm, what in lacking.items())
            found += _missing(
                f"This run rolled out live and has no table of all gates, which these arms need: "
                f"{wants}."
            )
        return found

    return said + _each(material, table)


def _contrasts(material: ReportData) -> str:
    every = [row for judged in material.splits for row in result_rows.contrasts(judged.results)]

    def table(judged: SplitReport) -> str:
        declared = result_rows.contrasts(judged.results, declared=True)
        others = result_rows.contrasts(judged.results, declared=False)
        if not declared + others:
            return _missing("This run stores no contrasts.")
        found = dots([*declared, *others], "Points", zero=True, p=True, beside=every)
        return found + _reach(judged.results) + _one_seed(judged.results.get("mcnemar", ()))

    said = _note(
        "Differences in accuracy on the same problems, in points. Bold rows were declared before "
        "anything was measured; their p-values are adjusted together by Holm's method, the others "
        "are there to read and prove nothing."
    )
    return said + _each(material, table)


def _reach(results: Mapping[str, Any]) -> str:
    """The smallest gap that the problems can resolve."""
    gaps, gap = results.get("gaps", ()), results.get("resolvable_gap")
    power = gaps[-1].get("power_80") if gaps else None
    if not isinstance(gap, int | float):
        return ""
    sentence = f"The smallest gap these problems can resolve is {fixed(100 * gap)} points"
    if power is not None:
        sentence += f"; one of {fixed(100 * power)} points is found four times out of five"
    return _note(f"{sentence}.")


def _one_seed(tests: Any) -> str:
    """McNemar's tests of the selected seed, folded away."""
    if not tests:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{escape(result_rows.words(one["b"]))}</th>'
        f'<td class="n">{one["only_a"]:,}</td><td class="n">{one["only_b"]:,}</td>'
        f'<td class="n">{p_value(one["p"])}</td></tr>'
        for one in tests
    )
    return (
        "<details><summary>The one seed that was best on validation, problem by problem (exact "
        'McNemar)</summary><table class="plain"><thead><tr><th>against</th>'
        '<th class="n">only RL right</th><th class="n">only it right</th><th class="n">p</th></tr>'
        f"</thead><tbody>{rows}</tbody></table></details>"
    )


def _headroom(material: ReportData) -> str:
    every = [row for judged in material.splits for row in result_rows.headroom(judged.results)]

    def table(judged: SplitReport) -> str:
        rows = result_rows.headroom(judged.results)
        if not rows:
            return _missing("This run stores neither a best fixed gate nor the oracle.")
        named = {row.name for row in rows}
        found = dots(rows, "Points", zero=True, beside=every)
        reached = [
            f"{result_rows.words(arm)} {_share(told)}"
            for arm, told in judged.results.get("shares", {}).items()
            if None not in told["ci95"]
        ]
        if reached:
            found += _note(f"Of the exact-gradient policy's gain: {', '.join(reached)}.")
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

    said = _note("Gains over the fixed gate that was best on train, in points.")
    floor = material.results.get("noise_floor")
    again = ""
    if floor:
        again = _note(
            f"{floor['correct']['n']:,} cells were made twice, in another order and width: "
            f"{_share(floor['text'])} changed their text, {_share(floor['correct'])} whether they "
            "are right."
        )
    return said + _each(material, table) + again


# Figures ----------------------------------------------------------------------------------------


def _training(material: ReportData, panels: Panels) -> str:
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
    cost = (
        "Against generations, the line is what one seed's sampled gates earn on train as it asks "
        f"for more of them; dots are accuracies on {material.splits[0].name}, each at what its "
        "arm had been told by then."
    )
    return _note(band) + drawn + (_note(cost) if "consumed" in rest else "") + rest


def _gates(material: ReportData, panels: Panels) -> str:
    judged = material.splits[0]
    of_arms = panels("gates-arms")
    if judged.absent:
        return of_arms + _missing(judged.absent)
    if not judged.gates.size:
        return of_arms + _missing(
            "The choices of the controllers are not stored, so they are not shown."
        )
    drawn, parts = (
        panels(*(f"gate-{m}" for m in DIFFICULTY)),
        panels(*(f"parts-{m}" for m in DIFFICULTY)),
    )
    said = _note(
        f"Share of each gate among the choices of all {len(judged.gates)} seeds on {judged.name}, "
        "in groups of problems of about equal size. No controller sees these measures but the "
        "prompt's length."
    )
    if parts:
        parts = (
            _note("Shades are mean gates, from the smallest of the grid to the largest.") + parts
        )
    sentences = {
        "answer-length": "All answers of the plain model are equally long.",
        "prompt-length": "All prompts are equally long.",
        "steps": "The problems have no reference solutions to count steps in, or all are alike.",
    }
    missing = [sentence for name, sentence in sentences.items() if not panels(f"gate-{name}")]
    return of_arms + said + drawn + parts + "".join(map(_missing, missing))


def _streams(material: ReportData, panels: Panels) -> str:
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


def _problems(material: ReportData) -> str:
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


def _settings(material: ReportData) -> str:
    results = material.results
    facts = {
        "model": results.get("model"),
        "outcome table": results.get("outcomes"),
        "training": results.get("training"),
        "best fixed gate on train": results.get("best_fixed_gate"),
        "cells of train": results.get("train_cells"),
        "rewards sampled by each RL seed": results.get("rewards_sampled_by_each_rl_seed"),
        "cells generated": results.get("cells_generated"),
    } | {
        f"generated on {machine}": f"{told['cells']:,.0f} cells, {told['tokens']:,.0f} tokens in "
        f"{told['seconds']:,.0f} s"
        for machine, told in results.get("generation", {}).items()
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
