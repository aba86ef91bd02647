"""What one disturbance did, and the counts of many."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

FAULTS = ("lost", "wrong", "traceback", "leftover", "slow", "large", "status")
"""What must never happen.

``lost`` and ``wrong`` compare with the undisturbed day. ``leftover`` is there after the next start
though no undisturbed command writes it. ``slow`` took over ``SECONDS``, ``large`` over
``MEGABYTES``. ``status`` is a refusal without exit status 2 and one sentence, or a command that
fails when nothing disturbs it any more.
"""

SECONDS, MEGABYTES = 2.0, 200.0
"""Limits for a single broken input."""


@dataclass(frozen=True)
class Trial:
    """One disturbance.

    Attributes:
        name: What was done to what, so that it can be repeated.
        subject: What was disturbed: a command, a reader, or a kind of file.
        faults: Which of ``FAULTS`` followed, each with the place or the message.
        took_effect: Whether the disturbance happened: a command may end before it is killed.
    """

    name: str
    subject: str
    faults: tuple[tuple[str, str], ...] = ()
    took_effect: bool = True


def counts(trials: Iterable[Trial]) -> dict[str, Any]:
    """Return the number of trials, of those that took effect, and of those with each fault.

    ``subjects`` are the numbers of trials of each subject.
    """
    trials = list(trials)
    found = Counter(fault for trial in trials for fault in {kind for kind, _ in trial.faults})
    effective = sum(trial.took_effect for trial in trials)
    return {
        "trials": len(trials),
        "took_effect": effective,
        **{fault: found[fault] for fault in FAULTS},
        "subjects": dict(Counter(trial.subject for trial in trials)),
    }


def lines(trials: Iterable[Trial], most: int = 200) -> list[str]:
    """Return each fault as a line, at most ``most``."""
    every = [
        f"{trial.name}: {kind}: {' '.join(detail.split())[:300]}"
        for trial in trials
        for kind, detail in trial.faults
    ]
    return every[:most]


def table(parts: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the counts of all parts as the documentation shows them."""
    head = ("part", "trials", "took effect", *FAULTS)
    rows = [
        (name, part["trials"], part["took_effect"], *(part[fault] for fault in FAULTS))
        for name, part in parts.items()
    ]
    cells = [head, ("---", *["---:"] * (len(head) - 1)), *rows]
    return "\n".join(
        "| " + " | ".join(f"{c:,}" if isinstance(c, int) else c for c in row) + " |"
        for row in cells
    )
