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
        rows = [
            row
            for place, value in meaning(day).items()
            if place.endswith(": rows")
            for row in value
        ]
        cells = Counter(
            re.sub(r'"(seconds|machine|versions|execution)": [^,}]*', "", row) for row in rows
        )
        if rows and max(cells.values()) > 1 and "_replicates" not in str(rows):
            faults.append(("wrong", f"a cell stands {max(cells.values())} times in a table"))
        name = f"{step.name} twice, {delay:.2f} s apart"
        yield Trial(name, tuple(faults), took_effect=both)
