"""Two processes at once: the same command, started twice on one folder."""

import random
import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tests.campaign.kills import finish, refusal
from tests.campaign.lab import Lab, meaning
from tests.campaign.trials import Trial
from tests.campaign.worker import Worker

_BY_PROCESS = "seconds|machine|versions|execution"  # columns that differ between equal cells


def races(
    lab: Lab, worker: Worker, folder: Path, rng: random.Random, count: int
) -> Iterator[Trial]:
    """Start commands twice within a random delay, and once more when both have ended."""
    for i in range(count):
        step = lab.steps[i % len(lab.steps)]
        day = lab.copy_before(step, folder)
        delay = rng.choice((0.0, rng.uniform(0.0, 1.0) * lab.seconds[step.name]))
        first = worker.start(step.argv, day)
        time.sleep(delay)
        both = first.running
        second = worker.start(step.argv, day)
        faults: list[tuple[str, str]] = []
        ends = [(first.wait(), second), (second.wait(), first)]
        for ended, other in ends:
            faults += refusal(ended)
            if ended.status == 2 and not re.search(rf"\b{other.process}\b", ended.message):
                faults.append(("status", f"does not name the other process: {ended.message}"))
        if all(ended.status for ended, _ in ends):
            faults.append(("lost", "neither of the two commands succeeded"))
        faults += finish(lab, worker, step, day)
        faults += _repeated(day)
        name = f"{step.name} twice, {delay:.2f} s apart"
        yield Trial(name, step.name, tuple(faults), took_effect=both)


def _repeated(day: Path) -> Iterator[tuple[str, str]]:
    """Yield the tables in which a cell stands more than once."""
    for place, rows in meaning(day).items():
        if place.endswith(": rows"):
            cells = Counter(re.sub(rf'"({_BY_PROCESS})": [^,}}]*', "", row) for row in rows)
            if max(cells.values(), default=0) > 1:
                yield "wrong", f"{place}: a cell stands {max(cells.values())} times"
