"""SIGKILL: at random moments, and just before every rename or deletion that a command makes."""

import random
from collections.abc import Iterator
from pathlib import Path

from tests.campaign.lab import Lab, Step, differences
from tests.campaign.trials import Trial
from tests.campaign.worker import Ended, Worker


def random_kills(
    lab: Lab, worker: Worker, folder: Path, rng: random.Random, count: int
) -> Iterator[Trial]:
    """Kill commands at random moments, up to three times in a row, and then let them finish."""
    for i in range(count):
        step = lab.steps[i % len(lab.steps)]
        day = lab.copy_before(step, folder)
        kills, killed = rng.randint(1, 3), 0
        moments = []
        for _ in range(kills):
            moment = rng.uniform(0.05, 1.0) * lab.seconds[step.name]
            running = worker.start(step.argv, day)
            running.wait_or_kill(moment)
            moments.append(f"{moment:.2f}")
            killed += running.wait().killed
        name = f"{step.name} killed after {', '.join(moments)} s"
        faults = tuple(finish(lab, worker, step, day))
        yield Trial(name, step.name, faults, took_effect=killed > 0)


def rename_kills(
    lab: Lab, worker: Worker, folder: Path, *, every: int = 1, steps: tuple[str, ...] | None = None
) -> Iterator[Trial]:
    """Kill commands before their n-th rename or deletion, for every n or for every few."""
    for step in lab.steps:
        if steps is not None and step.name not in steps:
            continue
        n = 1
        while True:
            day = lab.copy_before(step, folder)
            if not worker.run(step.argv, day, kill_at_rename=n).killed:
                break
            name = f"{step.name} killed before rename or deletion {n}"
            yield Trial(name, step.name, tuple(finish(lab, worker, step, day)))
            n += every


def finish(lab: Lab, worker: Worker, step: Step, day: Path) -> Iterator[tuple[str, str]]:
    """Run a disturbed command again, and yield what is not as on an undisturbed day."""
    ended = worker.run(step.argv, day)
    yield from failure(ended)
    if ended.status == 0:
        yield from differences(lab, day, lab.after(step))


def failure(ended: Ended) -> Iterator[tuple[str, str]]:
    """Yield the fault of a command that should have succeeded."""
    if ended.traceback:
        yield "traceback", ended.message
    elif ended.status:
        yield "status", f"exit {ended.status}: {ended.message}"


def refusal(ended: Ended) -> Iterator[tuple[str, str]]:
    """Yield the fault of a command that should have refused, or else succeeded."""
    errors = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    if ended.traceback:
        yield "traceback", ended.message
    elif ended.status not in (0, 2) or (ended.status == 2 and len(errors) != 1):
        yield "status", f"exit {ended.status}: {ended.message}"
