"""The measurement of generation: workers, turns, rounds."""

import argparse
import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from scripts.bench.peers.client import SideFailed, Worker
from scripts.bench.peers.compare import different, speedup, spread, verdict
from scripts.bench.peers.model import ROOT
from scripts.bench.peers.shapes import Shape
from scripts.bench.peers.sides import OURS, SIDES
from scripts.bench.peers.workload import Workload

REFERENCE = "transformers"


class Contestant(NamedTuple):
    """A way of generating: a worker's command with its arguments, and what to call it."""

    label: str
    side: str
    command: str = "generate"
    arguments: Mapping[str, Any] = {}


class Bench:
    """Workers that have loaded the model, and what can be measured on them.

    Attributes:
        shape: What is measured.
        sides: What each open worker reports: versions, threads, device.
        failed: Sides without a worker, with the reason.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        models: tuple[Path, Path],
        shape: Shape,
        stack: ExitStack,
    ):
        self.shape = shape
        self.sides: dict[str, dict[str, Any]] = {}
        self.failed: dict[str, str] = {}
        self._args = args
        self._models = models
        self._stack = stack
        self._workers: dict[str, Worker] = {}

    def open(self, name: str, python: Path) -> None:
        """Start a side's worker and load the model in it.

        Raises:
            SideFailed: The worker could not load it.
        """
        worker = self._start(name, python)
        answer = self._load(worker)
        self._workers[name] = worker
        self.sides[name] = dict(answer)

    def _start(self, name: str, python: str | Path) -> Worker:
        log = self._args.work / "logs" / f"{name}.log"
        path = {"PYTHONPATH": str(ROOT)} if name == OURS else {}  # this checkout, installed or not
        threads = self._args.threads
        worker = Worker(name, python, SIDES[name].script, log, threads=threads, environment=path)
        self._stack.callback(worker.close)
        return worker

    def _load(self, worker: Worker) -> dict[str, Any]:
        model = str(self._models[worker.name == OURS].resolve())
        fields = {"dtype": self._args.dtype, "threads": self._args.threads}
        return worker.ask("load", timeout=self._args.timeout, model=model, **fields)

    def ask(self, side: str, do: str, **arguments: Any) -> dict[str, Any]:
        """Return an open worker's answer."""
        return self._workers[side].ask(do, timeout=self._args.timeout, **arguments)

    def forget(self) -> None:
        """Make our worker drop the engines of earlier shapes, to free memory."""
        self.ask(OURS, "forget")

    def contestants(self) -> list[Contestant]:
        """Return every open side with its defaults; ours first."""
        return [Contestant(name, name) for name in self._workers]

    def measure(
        self, sides: Sequence[Contestant], work: Workload, batch: int, rounds: int
    ) -> dict[str, Any]:
        """Time all sides on the same work, turn by turn.

        The first turn of each warms up: it compiles every program that the timed turns will run.
        A side that compiles nothing is warm after a few tokens of each row.
        The order rotates from round to round.
        """
        failed: dict[str, str] = {}
        turns: dict[str, list[dict[str, Any]]] = {}
        tokens: dict[str, list[list[int]]] = {}
        idle = 0.0
        for turn in range(rounds + 1):
            first = turn % len(sides)
            for side in (*sides[first:], *sides[:first]):
                if side.label in failed:
                    continue
                others = [w for name, w in self._workers.items() if name != side.side]
                before = [worker.cpu_seconds() for worker in others]
                try:
                    short = not turn and not SIDES[side.side].on_jax
                    request = work._replace(new=[min(n, 4) for n in work.new]) if short else work
                    answer = self._turn(side, request, batch)
                except SideFailed as error:
                    failed[side.label] = str(error)
                    turns.pop(side.label, None)
                    continue
                tokens[side.label] = answer.pop("tokens")
                rate = f"{sum(request.new) / answer['seconds']:,.1f} tokens/s"
                print(
                    f"  {f'round {turn}' if turn else 'warm-up'}  {side.label}: {rate}", flush=True
                )
                if turn:
                    turns.setdefault(side.label, []).append(answer)
                    after = [worker.cpu_seconds() for worker in others]
                    idle += sum(after) - sum(before)
        turns = {side.label: turns[side.label] for side in sides if side.label in turns}
        verdicts = self._check(work, {label: tokens[label] for label in turns})
        seconds = {label: [t["seconds"] for t in each] for label, each in turns.items()}
        ours, wanted = sides[0].label, sum(work.new)
        results = {}
        for label, each in turns.items():
            steps, live = each[-1]["row_steps"], each[-1].get("live_row_steps", wanted)
            results[label] = {
                "tokens_per_second": spread([wanted / s for s in seconds[label]]),
                "seconds": spread(seconds[label]),
                "cores_used": statistics.median(t["cpu_seconds"] / t["seconds"] for t in each),
                "occupancy": live / steps if steps else None,
                "tokens": verdicts.get(label),
            }
            if ours in turns and label != ours:
                results[label]["rows_different_from_ours"] = different(tokens[ours], tokens[label])
        ratios = {
            label: speedup(seconds[ours], seconds[label])
            for label in turns
            if ours in turns and label != ours
        }
        return {
            "work": work.describe(),
            "batch": batch,
            "sides": results,
            "ours_is_faster_by": ratios,
            "failed": failed,
            "idle_workers_cpu_seconds": idle,
        }

    def _turn(self, side: Contestant, work: Workload, batch: int) -> dict[str, Any]:
        request = {"prompts": work.prompts, "new": work.new, "batch": batch}
        return self.ask(side.side, side.command, **request, **side.arguments)

    def _check(
        self, work: Workload, tokens: Mapping[str, list[list[int]]]
    ) -> dict[str, dict[str, Any]]:
        """Check every side's tokens; a row that several sides generated is read once."""
        if REFERENCE not in self._workers:
            return {}
        rows = {(i, tuple(row)) for each in tokens.values() for i, row in enumerate(each)}
        order = sorted(rows)
        prompts = [work.prompts[i] for i, _ in order]
        try:
            answer = self.ask(
                REFERENCE, "check", prompts=prompts, completions=[list(row) for _, row in order]
            )
        except SideFailed as error:
            self.failed["check of tokens"] = str(error)
            return {}
        gaps = dict(zip(order, answer["gaps"], strict=True))
        return {
            label: verdict([gaps[i, tuple(row)] for i, row in enumerate(each)], self._args.dtype)
            for label, each in tokens.items()
        }

    def first(self, work: Workload, batch: int, rounds: int) -> dict[str, Any]:
        """Measure fresh processes until their first completions, and then their second."""
        names = list(self._workers)
        keys = ("until_first_result", "loading", "first_call", "second_call")
        times: dict[str, dict[str, list[float]]] = {n: {k: [] for k in keys} for n in names}
        failed: dict[str, str] = {}
        for turn in range(rounds):
            first = turn % len(names)
            for name in (*names[first:], *names[:first]):
                python = self._workers[name].command[0]
                try:
                    with self._start(name, python) as worker:
                        seconds = self._first(worker, work, batch)
                except SideFailed as error:
                    failed[name] = str(error)
                    continue
                for key, value in zip(keys, seconds, strict=True):
                    times[name][key].append(value)
        done = {name: each for name, each in times.items() if name not in failed}
        until = {name: each[keys[0]] for name, each in done.items()}
        return {
            "work": work.describe(),
            "seconds": {
                name: {key: spread(values) for key, values in each.items()}
                for name, each in done.items()
            },
            "ours_is_faster_by": {
                name: speedup(until[OURS], values)
                for name, values in until.items()
                if OURS in until and name != OURS
            },
            "failed": failed,
        }

    def _first(self, worker: Worker, work: Workload, batch: int) -> tuple[float, ...]:
        self._load(worker)
        loaded = time.perf_counter()
        request = {"prompts": work.prompts, "new": work.new, "batch": batch}
        calls = []
        for _ in range(2):
            worker.ask("generate", timeout=self._args.timeout, **request)
            calls.append(time.perf_counter())
        return (
            calls[0] - worker.started,
            loaded - worker.started,
            calls[0] - loaded,
            calls[1] - calls[0],
        )

    def floor(
        self, work: Workload, batch: int, rounds: int, bounds: Mapping[str, float]
    ) -> dict[str, Any]:
        """Measure our decode step against the bytes it has to read.

        The time of a step is that of the second half of the new tokens: a whole run less a run to
        the half, over the steps between, so that neither prefill nor the host's start counts.
        """
        full, half = work.new[0], work.new[0] // 2
        runs = {full: list[float](), half: list[float]()}
        for turn in range(rounds + 1):
            for new, seconds in runs.items():
                short = Workload(work.prompts, [new] * len(work.prompts))
                answer = self._turn(Contestant(OURS, OURS, arguments={"cap": full}), short, batch)
                if turn:  # the first turn compiles
                    seconds.append(answer["seconds"])
        steps = [(a - b) / (full - half) for a, b in zip(runs[full], runs[half], strict=True)]
        length = len(work.prompts[0]) + (full + half) / 2
        live = batch * length * bounds["cache_bytes_per_token"]
        bound = (bounds["weight_bytes"] + live) / bounds["copy_bandwidth"]
        return {
            "step_seconds": spread(steps),
            "floor_seconds": bound,
            "live_cache_bytes": live,
            "share_of_floor": spread([bound / step for step in steps]),
        }
