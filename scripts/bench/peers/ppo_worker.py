"""What a side of ``bench_ppo.py`` answers, in a process of its own.

A side trains (``start``, ``program``, ``run``, ``worth``), or learns from the same rollouts again
and again (``prepare``, ``update``), or both.
"""

import functools
import time
from collections.abc import Callable
from typing import Any

from ppo_bandit import CHUNK
from worker import serve, versions


def timed(call: Callable[[], Any]) -> tuple[dict[str, float], Any]:
    """Seconds on the clock and of all processors until a call is done, and what it gives."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = call()
    return {
        "seconds": time.perf_counter() - wall,
        "cpu_seconds": time.process_time() - cpu,
    }, found


def reach(side: Any, seeds: int, seed: int, share: float, limit: int) -> dict[str, Any]:
    """Time of training until the policy is worth ``share`` of the best; looks cost none of it."""
    side.start(seeds, seed)
    total, found = {"seconds": 0.0, "cpu_seconds": 0.0}, 0.0
    for updates in range(CHUNK, limit + 1, CHUNK):
        took, _ = timed(functools.partial(side.run, seeds, CHUNK))
        total = {name: total[name] + took[name] for name in total}
        if (found := side.worth(seeds)) >= share:
            return {**total, "updates": updates, "worth": found}
    return {**total, "updates": None, "worth": found}


def answer(make: Callable[[], Any], *packages: str) -> None:
    """Answers what ``bench_ppo.py`` asks of a side, until it asks no more."""
    sides: list[Any] = []

    def load() -> dict[str, Any]:
        """Make the side."""
        sides.append(make())
        return {"versions": versions(*packages)}

    def compile(seeds: int, updates: int) -> dict[str, Any]:
        """Time of the first state, and of the first and the second call of a program."""
        side = sides[0]
        first_state, _ = timed(lambda: side.start(seeds, 0))

        def first() -> None:
            side.program(seeds, updates)
            side.run(seeds, updates)

        return {
            "first_state": first_state,
            "first_call": timed(first)[0],
            "second_call": timed(lambda: side.run(seeds, updates))[0],
        }

    def run(seeds: int, updates: int) -> dict[str, float]:
        """Trains on from where the last call ended."""
        return timed(lambda: sides[0].run(seeds, updates))[0]

    def prepare() -> dict[str, Any]:
        """Time of the first update of given rollouts."""
        sides[0].prepare()
        return {"first_call": timed(lambda: sides[0].update(1))[0]}

    def update(updates: int) -> dict[str, float]:
        """Learns from the same rollouts again and again."""
        return timed(lambda: sides[0].update(updates))[0]

    def to(seeds: int, seed: int, share: float, limit: int) -> dict[str, Any]:
        """Trains from scratch until the policy is worth ``share`` of the best one."""
        return reach(sides[0], seeds, seed, share, limit)

    asked = {"load": load, "compile": compile, "run": run, "to": to}
    serve({**asked, "prepare": prepare, "update": update})
