"""The top of the page: the verdict and the numbers that it rests on."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jroute.arms.registry import BASELINE, BEST_FIXED, SUBJECT
from jroute.report.formats import decimal, interval
from jroute.report.report_data import ReportData
from jroute.report.result_rows import (
    ResultRow,
    arm_label,
    arm_rows,
    contrast_label,
    contrast_rows,
)

NUMBER_WORDS = ("no", "one", "two", "three", "four", "five", "six")


@dataclass(frozen=True)
class Tile:
    """One of the numbers that matter most."""

    label: str
    value: str
    unit: str
    interval: str


@dataclass(frozen=True)
class Header:
    """The content of the header.

    Attributes:
        run: Name of the run.
        headline: The verdict in a few words.
        sentence: The verdict in one sentence.
        notes: Further sentences of the verdict.
        tiles: RL's accuracy, its difference to the best fixed gate, the plain model's accuracy.
        facts: Size of the experiment, in a few words each.
    """

    run: str
    headline: str
    sentence: str
    notes: list[str]
    tiles: list[Tile]
    facts: list[str]


def header(data: ReportData) -> Header:
    """Return the header of a report."""
    headline, sentence = verdict(data.results)
    stored = data.results.get("verdict")
    notes = stored.get("beside", ()) if isinstance(stored, Mapping) else ()
    return Header(
        run=data.name,
        headline=headline,
        sentence=sentence,
        notes=[_sentence(str(note)) for note in notes],
        tiles=_tiles(data.results),
        facts=_facts(data.results),
    )


def verdict(results: Mapping[str, Any]) -> tuple[str, str]:
    """Return the run's own verdict, or what its contrasts say, as a headline and a sentence."""
    stored = results.get("verdict")
    if isinstance(stored, Mapping):
        return (
            _capitalized(str(stored.get("name", ""))),
            _sentence(str(stored.get("sentence", ""))),
        )
    if stored:
        return _capitalized(str(stored)), ""
    declared = contrast_rows(results, declared=True)
    if not declared:
        return "No verdict", "This run declared no contrasts, so nothing can be said of RL."
    return _headline(declared), (
        "This run stores no verdict of its own; this is what its declared contrasts say, each at "
        "5 % after Holm's adjustment. Not significant is not absent."
    )


def _headline(declared: list[ResultRow]) -> str:
    """Return how many of the declared arms RL beats, or else is worse than."""
    significant = [row for row in declared if row.p_holm is not None and row.p_holm < 0.05]
    above = sum(row.value > 0 for row in significant)
    below = sum(row.value < 0 for row in significant)
    declared_arms = f"{_number_word(len(declared))} declared arms"
    if above == len(declared):
        return f"RL beats all {declared_arms}"
    if above:
        return f"RL beats {_number_word(above)} of {declared_arms}"
    if below:
        return f"RL is worse than {_number_word(below)} of {declared_arms}"
    return f"RL is not shown to beat any of {declared_arms}"


def _number_word(count: int) -> str:
    return NUMBER_WORDS[count] if count < len(NUMBER_WORDS) else str(count)


def _capitalized(text: str) -> str:
    return text[:1].upper() + text[1:]


def _sentence(text: str) -> str:
    """Return a text with a capital letter and a full stop."""
    return _capitalized(text) + ("" if text[-1:] in ("", ".", "!", "?") else ".")


def _tiles(results: Mapping[str, Any]) -> list[Tile]:
    """Return those of the three headline numbers that are stored."""
    arms = {row.name: row for row in arm_rows(results)}
    tiles = [
        Tile(f"{name} accuracy", decimal(arms[name].value), "%", interval(arms[name].ci95))
        for name in (arm_label(SUBJECT), arm_label(BASELINE))
        if name in arms
    ]
    contrasts = contrast_rows(results)
    best_fixed = [row for row in contrasts if row.name == contrast_label(SUBJECT, BEST_FIXED)]
    for row in (best_fixed or contrasts)[:1]:
        ends = interval(row.ci95, signed=True)
        tiles.insert(1, Tile(row.name, decimal(row.value, signed=True), "points", ends))
    return tiles


def _facts(results: Mapping[str, Any]) -> list[str]:
    """Return the number of problems, the number of seeds, and the gates."""
    gates = f"gates {', '.join(f'{gate:g}' for gate in results.get('gates', ()))}"
    if results.get("parts", 1) > 1:
        gates += f", one for each of {results['parts']} parts"
    seeds = [f"{results['seeds']} seeds"] if "seeds" in results else []
    return [f"{results['n']:,} problems of {results['split']}", *seeds, gates]
