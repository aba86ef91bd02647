"""A side of ``bench_ppo.py`` in its own process.

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
    """Return the seconds of a call on the clock and of all processors, and its result."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = call()
    return {
        "seconds": time.perf_counter() - wall,
        "cpu_seconds": time.process_time() - cpu,
    }, result


def reach(side: Any, seeds: int, seed: int, share: float, limit: int) -> dict[str, Any]:
    """Measure training until the policy is worth ``share`` of the best; evaluation is not timed."""
    side.start(seeds, seed)
    total, value = {"seconds": 0.0, "cpu_seconds": 0.0}, 0.0
    for updates in range(CHUNK, limit + 1, CHUNK):
        took, _ = timed(functools.partial(side.run, seeds, CHUNK))
        total = {name: total[name] + took[name] for name in total}
        if (value := side.worth(seeds)) >= share:
            return {**total, "updates": updates, "worth": value}
    return {**total, "updates": None, "worth": value}


def answer(make: Callable[[], Any], *packages: str) -> None:
    """Serve the commands of ``bench_ppo.py`` until standard input ends."""
    sides: list[Any] = []

    def load() -> dict[str, Any]:
        """Make the side."""
        sides.append(make())
        return {"versions": versions(*packages)}

    def compile(seeds: int, updates: int) -> dict[str, Any]:
        """Time the first state, and the first and the second call of a program."""
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
        """Continue the training from where the last call ended."""
        return timed(lambda: sides[0].run(seeds, updates))[0]

    def prepare() -> dict[str, Any]:
        """Time the first update of given rollouts."""
        sides[0].prepare()
        return {"first_call": timed(lambda: sides[0].update(1))[0]}

    def update(updates: int) -> dict[str, float]:
        """Learn from the same rollouts again and again."""
        return timed(lambda: sides[0].update(updates))[0]

    def to(seeds: int, seed: int, share: float, limit: int) -> dict[str, Any]:
        """Train from scratch until the policy is worth ``share`` of the best policy."""
        return reach(sides[0], seeds, seed, share, limit)

    training = {"load": load, "compile": compile, "run": run, "to": to}
    serve({**training, "prepare": prepare, "update": update})
