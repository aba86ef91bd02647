"""Synthetic problems: every one is solved again here, from its text alone."""

import hashlib
import re
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from jroute.tasks.answers import is_correct, parse_answer
from jroute.tasks.problem import Problem
from jroute.tasks.synthetic import (
    CLASS_SHARES,
    CLASSES,
    HARD_SHARE,
    Split,
    pretraining_problems,
    problems,
)

SPLITS: tuple[Split, ...] = ("train", "validation", "test", "ood")
COUNT = 2000


@pytest.fixture(scope="module")
def drawn() -> dict[str, list[Problem]]:
    return {split: problems(split, COUNT) for split in SPLITS}


# A reader of questions that shares nothing with the generator ---------------------------------

OPENING = re.compile(
    r"(?:Today )?(?:There are (?P<a>\d+) (?P<t>\w+) with (?P<n>\w+)"
    r"|(?P<n2>\w+) (?:has|owns|holds) (?P<a2>\d+) (?P<t2>\w+))"
)
CHANGE = re.compile(r"(?P<who>[A-Z]\w+ \w+) (?P<verb>\w+(?: \w+)?) (?P<amount>\d+) (?P<thing>\w+)")
GAINS = {"gets", "buys", "finds", "picks up", "collects"}
LOSSES = {"loses", "sells", "drops", "gives away", "donates"}


def read(question: str) -> tuple[list[int], list[str], str]:
    """The person's holdings after each of their changes, the equations, and the question asked."""
    opening, *changes, wording, trailing = re.split(r"(?<=[.?])\s*", question)
    assert trailing == ""
    match = OPENING.fullmatch(opening.removesuffix("."))
    assert match
    name, thing = match["n"] or match["n2"], match["t"] or match["t2"]
    held, equations = [int(match["a"] or match["a2"])], []
    for sentence in changes:
        change = CHANGE.fullmatch(sentence.removesuffix("."))
        assert change, sentence
        assert change["thing"] == thing
        if change["who"].split()[1] != name:
            assert change["who"].startswith("The ")
            continue
        assert (change["verb"] in GAINS) != (change["verb"] in LOSSES)
        sign = "+" if change["verb"] in GAINS else "-"
        after = held[-1] + int(sign + change["amount"])
        equations.append(f"{held[-1]}{sign}{change['amount']}={after}")
        held.append(after)
    assert name in wording and thing in wording
    first, last = "at first" in wording, "at last" in wording
    assert first != last
    return held, equations, "first" if first else "last"


@pytest.mark.parametrize("split", SPLITS)
def test_every_answer_and_solution_follows_from_the_text(drawn, split: Split) -> None:
    for problem in drawn[split]:
        held, equations, wanted = read(problem.question)
        answer = held[0] if wanted == "first" else held[-1]
        assert problem.answer == str(answer)
        steps = [] if wanted == "first" else equations
        assert problem.solution == "\n".join([*steps, f"#### {answer}"])
        parsed = parse_answer(problem.solution)
        assert (parsed.status, parsed.value) == ("ok", Fraction(answer))
        assert is_correct(parsed, problem.answer)
        assert min(held) >= 0
        kind = problem.labels["class"]
        assert (kind == "start") == (wanted == "first")
        assert len(equations) == problem.labels["changes"]
        assert kind == "start" or len(equations) == {"two": 2, "three": 3}[str(kind)]


def test_hard_problems_have_large_numbers_and_the_others_none(drawn) -> None:
    for split in SPLITS:
        hard = [bool(problem.labels["hard"]) for problem in drawn[split]]
        for problem, is_hard in zip(drawn[split], hard, strict=True):
            held, *_ = read(problem.question)
            numbers = [int(n) for n in re.findall(r"\d+", problem.question)]
            assert max(numbers + held) <= (99 if is_hard else 20)
            assert (held[0] > 20) == is_hard
        assert stats.binomtest(sum(hard), COUNT, HARD_SHARE).pvalue > 1e-3
    assert HARD_SHARE == 0.12
    assert not any(problem.labels["hard"] for problem in problems("test", 50, hard_share=0.0))
    assert all(problem.labels["hard"] for problem in problems("test", 50, hard_share=1.0))


# Classes cannot be distinguished by counting -----------------------------------------------------


@pytest.mark.parametrize("split", ["train", "ood"])
def test_classes_have_their_shares_and_matched_counts(drawn, split: str, tiny_lm) -> None:
    of_class = {name: [p for p in drawn[split] if p.labels["class"] == name] for name in CLASSES}
    counts = [len(of_class[name]) for name in CLASSES]
    assert stats.chisquare(counts, COUNT * np.array(CLASS_SHARES)).pvalue > 1e-3
    seen = {}
    for name, members in of_class.items():
        sentences = [len(re.findall(r"[.?]", p.question)) for p in members]
        numbers = [len(re.findall(r"\d+", p.question)) for p in members]
        assert set(sentences) == {6, 7} and set(numbers) == {5, 6}
        # One opening, 4 or 5 statements, one question; a number in all but the last.
        assert [s - n for s, n in zip(sentences, numbers, strict=True)] == [1] * len(members)
        tokens = [len(tiny_lm.encode(p.question)) for p in members]
        seen[name] = (Counter(sentences)[7], len(members), np.mean(tokens))
    table = [[seven, total - seven] for seven, total, _ in seen.values()]
    assert stats.chi2_contingency(table).pvalue > 1e-3  # type: ignore[attr-defined]
    lengths = [mean for *_, mean in seen.values()]
    assert max(lengths) - min(lengths) < 0.6


# Draws ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", SPLITS)
def test_a_draw_is_repeatable_and_begins_every_longer_one(drawn, split: Split) -> None:
    assert problems(split, 100) == drawn[split][:100]
    assert problems(split, 0) == []
    other = problems(split, 100, seed=1)
    assert not {p.question for p in other} & {p.question for p in drawn[split][:100]}


def test_ids_and_questions_are_unique(drawn) -> None:
    for split, members in drawn.items():
        assert [p.id for p in members] == [f"synthetic/{split}/{i}" for i in range(COUNT)]
        assert len({p.question for p in members}) == COUNT


def test_splits_share_no_question_whatever_the_seed(drawn) -> None:
    texts = {split: {p.question for p in members} for split, members in drawn.items()}
    for split in SPLITS:
        texts[split] |= {p.question for p in problems(split, COUNT, seed=1)}
    for i, one in enumerate(SPLITS):
        for other in SPLITS[i + 1 :]:
            assert not texts[one] & texts[other]


def share_of_hash(question: str) -> int:
    """Which twentieth of all possible questions one belongs to."""
    return int(hashlib.sha256(question.encode()).hexdigest()[:8], 16) % 20


def test_questions_are_kept_apart_by_their_text_and_not_by_luck(drawn) -> None:
    """The draws are too few of too many to meet by chance, so look at what keeps them apart."""
    shares = {
        split: {share_of_hash(p.question) for p in members} for split, members in drawn.items()
    }
    assert shares["train"] == set(range(12))
    assert shares["validation"] == {12, 13}
    assert shares["test"] == shares["ood"] == set(range(14, 20))
    pretraining = {share_of_hash(p.question) for p in pretraining_problems(500, seed=3)}
    assert pretraining == shares["train"]


def test_pretraining_sees_no_held_out_question(drawn) -> None:
    seen = pretraining_problems(6000, seed=0)
    assert len(seen) == 6000
    texts = {p.question for p in seen}
    for split in ("validation", "test", "ood"):
        assert not texts & {p.question for p in drawn[split]}
    # A quarter is in the other family's words, so that they are not unknown out of distribution.
    names = {"Omar", "Ruth", "Ivan", "Zoe", "Hugo", "Lena"}
    other = [bool(names & set(re.findall(r"\w+", p.question))) for p in seen]
    assert sum(other) == 1500
    assert 300 < sum(other[:1500]) < 450  # mixed, not one after the other
    assert pretraining_problems(6000, seed=0) == seen
    assert stats.binomtest(sum(bool(p.labels["hard"]) for p in seen), 6000, 0.04).pvalue > 1e-3


def test_the_other_family_has_names_things_and_templates_of_its_own(drawn) -> None:
    def words(split: str, pattern: str) -> set[str]:
        return {w for p in drawn[split] for w in re.findall(pattern, p.question)}

    for pattern in (
        r"(?:with|by|holds|^|Today|does) ([A-Z][a-z]{2,3}) ",  # names
        r"\d+ (\w+)",  # things
        r"^(\w+ \w+) ",  # openings
        r"(?:^| )([A-Z]\w+ \w+ \w+) [^.]* at (?:first|last)[.?]$",  # questions
    ):
        usual, other = words("test", pattern), words("ood", pattern)
        assert usual and other
        if "Today" in pattern:
            usual, other = usual - {"The"}, other - {"The"}
        assert not usual & other, pattern
