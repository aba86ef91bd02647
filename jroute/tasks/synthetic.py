"""Synthetic grade-school word problems with a known structure, for the bundled tiny model.

A person owns things, gains and loses them; other parties do the same and are irrelevant. Three
classes have matched numbers of sentences, numbers and tokens, so neither the length of a prompt nor
its count of numbers distinguishes them:

* ``two``: two changes concern the person, the others are distractors; the question is the end;
* ``three``: three changes concern the person, one distractor fewer; the question is the end;
* ``start``: either of these, but the question is what the person had at first.

Every problem is drawn from its own seed, and its question's hash decides which splits it may be in,
so train, validation and test never share a question. The out-of-distribution split has its own
names, things, openings and questions, and a few new verbs and distractors.
"""

import hashlib
import random
from dataclasses import dataclass

from jroute.tasks.problem import Problem, Split

CLASSES = ("two", "three", "start")
CLASS_SHARES = (0.40, 0.35, 0.25)
HARD_SHARE = 0.12
"""Share of problems with numbers up to 99; the numbers of the others are at most 20."""


@dataclass(frozen=True)
class _Style:
    """Words of a family of problems; ``{n}`` is a person, ``{k}`` a number, ``{o}`` a thing."""

    names: tuple[str, ...]
    things: tuple[str, ...]
    openings: tuple[str, ...]
    gains: tuple[str, ...]
    losses: tuple[str, ...]
    adverbs: tuple[str, ...]
    others: tuple[str, ...]
    question_end: tuple[str, ...]
    question_start: tuple[str, ...]


_USUAL = _Style(
    names=("Tom", "Anna", "Ben", "Lily", "Sam", "Mia", "Jack", "Nina"),
    things=("pens", "books", "apples", "coins", "cards", "balls"),
    openings=("{n} has {k} {o}.", "{n} owns {k} {o}."),
    gains=("gets", "buys", "finds", "picks up"),
    losses=("loses", "sells", "drops", "gives away"),
    adverbs=("Then", "Later", "Next"),
    others=("The shop", "The school", "The market"),
    question_end=(
        "How many {o} does {n} have at last?",
        "Count the {o} {n} has at last.",
    ),
    question_start=(
        "How many {o} does {n} have at first?",
        "Count the {o} {n} has at first.",
    ),
)
_OTHER = _Style(
    names=("Omar", "Ruth", "Ivan", "Zoe", "Hugo", "Lena"),
    things=("stamps", "shells", "stones", "keys"),
    openings=("There are {k} {o} with {n}.", "Today {n} holds {k} {o}."),
    gains=("gets", "collects", "picks up"),
    losses=("loses", "donates", "gives away"),
    adverbs=("Then", "Later", "Afterwards"),
    others=("The farm", "The museum", "The market"),
    question_end=(
        "Tell the number of {o} {n} has at last.",
        "{n} has how many {o} at last?",
    ),
    question_start=(
        "Tell the number of {o} {n} has at first.",
        "{n} has how many {o} at first?",
    ),
)

_BUCKETS = {
    "train": range(0, 12),
    "validation": range(12, 14),
    "test": range(14, 20),
    "ood": range(14, 20),
}


def _draw(
    rng: random.Random, style: _Style, hard_share: float
) -> tuple[str, str, str, dict[str, str | int]]:
    kind = rng.choices(CLASSES, CLASS_SHARES)[0]
    hard = rng.random() < hard_share
    changes = {"two": 2, "three": 3}.get(kind) or rng.choice((2, 3))
    statements = rng.choice((4, 5))
    low, limit = (21, 99) if hard else (1, 20)
    name, thing = rng.choice(style.names), rng.choice(style.things)
    start = total = rng.randint(low, limit - 1 if hard else limit)
    step = 40 if hard else 9
    relevant = set(rng.sample(range(statements), changes))
    question = [rng.choice(style.openings).format(n=name, k=start, o=thing)]
    steps = []
    for i in range(statements):
        gain = rng.random() < 0.5
        if i in relevant:
            margin = (limit - total) if gain else total
            if margin < 1:
                gain = not gain
                margin = (limit - total) if gain else total
            amount = rng.randint(1, min(margin, step))
            after = total + amount if gain else total - amount
            steps.append(f"{total}{'+' if gain else '-'}{amount}={after}")
            total = after
            subject = f"{rng.choice(style.adverbs)} {name}"
        else:
            amount = rng.randint(1, step)
            subject = rng.choice(style.others)
        verb = rng.choice(style.gains if gain else style.losses)
        question.append(f"{subject} {verb} {amount} {thing}.")
    form = rng.randrange(len(style.question_end))
    wordings = style.question_start if kind == "start" else style.question_end
    question.append(wordings[form].format(n=name, o=thing))
    answer = start if kind == "start" else total
    lines = [] if kind == "start" else steps
    solution = "\n".join([*lines, f"#### {answer}"])
    labels: dict[str, str | int] = {
        "class": kind,
        "changes": changes,
        "statements": statements,
        "hard": int(hard),
    }
    return " ".join(question), str(answer), solution, labels


def _bucket(question: str) -> int:
    return int.from_bytes(hashlib.sha256(question.encode()).digest()[:4], "big") % 20


def problems(
    split: Split, count: int, seed: int = 0, *, hard_share: float = HARD_SHARE
) -> list[Problem]:
    """Draw ``count`` problems; a longer draw begins with the same problems.

    Args:
        split: ``train``, ``validation``, ``test`` (the usual words) or ``ood`` (other words).
        count: Number of problems.
        seed: Seed of the draw; draws of one split with different seeds may share questions.
        hard_share: Share of problems with numbers up to 99.
    """
    return _problems(split, "ood" if split == "ood" else "usual", count, seed, hard_share)


def pretraining_problems(
    count: int, seed: int, *, other_share: float = 0.25, hard_share: float = 0.04
) -> list[Problem]:
    """Draw problems to pretrain the tiny model on, from both families of words.

    All come from the train buckets, so they hold no validation, test or out-of-distribution
    question.
    """
    usual = _problems("train", "usual", count - round(count * other_share), seed, hard_share)
    other = _problems("train", "ood", round(count * other_share), seed, hard_share)
    mixed = usual + other
    random.Random(f"mix/{seed}").shuffle(mixed)
    return mixed


def _problems(split: str, words: str, count: int, seed: int, hard_share: float) -> list[Problem]:
    style = _OTHER if words == "ood" else _USUAL
    drawn: list[Problem] = []
    seen: set[str] = set()
    i = 0
    while len(drawn) < count:
        rng = random.Random(f"{split}/{words}/{seed}/{i}")
        question, answer, solution, labels = _draw(rng, style, hard_share)
        i += 1
        if _bucket(question) in _BUCKETS[split] and question not in seen:
            seen.add(question)
            drawn.append(
                Problem(
                    f"synthetic/{split}/{len(drawn)}",
                    question,
                    answer,
                    solution,
                    labels,
                )
            )
    return drawn
