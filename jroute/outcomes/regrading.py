"""Regrading: stored completions are graded anew when the rules of reading answers have changed.

A part of a table holds what the model wrote, so its cells outlive the rules they were graded by.
Readers grade the cells of an older part anew, in memory; the files stay as they are.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from jroute.outcomes.outcome import Outcome
from jroute.outcomes.parts import Part
from jroute.tasks.answers import ANSWER_PARSER_VERSION, is_correct, parse_answer


@dataclasses.dataclass(frozen=True)
class Graded:
    """The cells of a part, graded by the present rules.

    Attributes:
        outcomes: The cells.
        anew: How many of them an older version had graded.
        changed: Those of them that have another answer, status or correctness now.
        unknown: Cells that cannot be graded, because their problem's answer is not known.
    """

    outcomes: Sequence[Outcome]
    anew: int = 0
    changed: Sequence[Outcome] = ()
    unknown: Sequence[Outcome] = ()


def graded(part: Part, answers: Callable[[], Mapping[str, str]]) -> Graded:
    """Return the cells of a part, graded by the present rules.

    Args:
        part: The part.
        answers: Returns gold answers by problem id; called if the part must be graded anew.
    """
    if part.parser == ANSWER_PARSER_VERSION:
        return Graded(part.outcomes)
    golds = answers()
    outcomes, changed, unknown = [], [], []
    for outcome in part.outcomes:
        again = regrade(outcome, golds.get(outcome.problem_id))
        if again is None:
            unknown.append(outcome)
            continue
        outcomes.append(again)
        if _grade(again) != _grade(outcome):
            changed.append(again)
    return Graded(outcomes, len(part.outcomes), changed, unknown)


def regrade(outcome: Outcome, gold: str | None) -> Outcome | None:
    """Return an outcome with the grade that the present rules give it.

    Args:
        outcome: The outcome, graded by whatever rules.
        gold: The problem's gold answer, if known. Without it, a grade is certain only if the answer
            is read as it was, or if there is none now.

    Returns:
        The outcome; ``None`` if its grade is not certain.
    """
    truncated = outcome.stop_reason == "length"
    parsed = parse_answer(outcome.completion, truncated=truncated)
    if gold is not None:
        correct = is_correct(parsed, gold)
    elif (parsed.text, parsed.status) == (outcome.parsed, outcome.status):
        return outcome
    elif parsed.status != "ok":
        correct = False
    else:
        return None
    return dataclasses.replace(
        outcome,
        parsed=parsed.text,
        status=parsed.status,
        correct=correct,
        reward=float(correct),
    )


def _grade(outcome: Outcome) -> tuple[str, str, bool]:
    return outcome.parsed, outcome.status, outcome.correct
