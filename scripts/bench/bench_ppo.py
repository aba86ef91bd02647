"""Race the PPO learner against its peers on a bandit, and write the figures.

    python scripts/bench/bench_ppo.py --make-environments
    python scripts/bench/bench_ppo.py --out scripts/results/ppo_cpu.json

2,000 prompts with 8 features, 5 gates, rewards from a table; networks of 64-64 tanh units; batches
of 512 episodes, 4 epochs of 4 minibatches: the same for stable-baselines3 (torch), rejax (JAX) and
this learner, each in its own process on the same cores. The processes take turns, in an order
that rotates, and only one of them works at a time; ratios are those of the turns of one round.
``updates/s, given rollouts`` repeats one batch to this learner and to CleanRL's arithmetic in
torch, which leaves environments out. ``compile`` is the first call of a fresh process less a
second, equal call; ``to 95 %`` is training alone, from new weights until the policy's favourite
gates are worth 95 % of the best ones.

Wall-clock seconds decide. Processor seconds are reported beside them: on a machine that others
use too they are the steadier figure.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from jroute.utils.cli import command, run_command
from jroute.utils.errors import UserError
from jroute.utils.files import write_json
from jroute.utils.machine import describe_machine
from scripts.bench.peers.client import SideFailed, Worker, interpreter, make_environment
from scripts.bench.peers.compare import speedup, spread
from scripts.bench.peers.model import ROOT
from scripts.bench.peers.ppo_bandit import (
    BATCH,
    CHUNK,
    EPOCHS,
    FEATURES,
    GATES,
    HIDDEN,
    MINIBATCHES,
    PROMPTS,
)

OURS = "jroute"
CLOCKS = ("seconds", "cpu_seconds")

ENVIRONMENTS = {
    "stable-baselines3": ("stable-baselines3==2.9.2", "torch==2.13.0", "gymnasium==1.4.0"),
    "rejax": ("rejax==0.1.3", "gymnax==0.0.9"),
}
"""Peer -> what pip installs into its environment. Later versions of gymnax break rejax."""

SIDES = {
    OURS: ("ppo_ours.py", None),
    "rejax": ("ppo_rejax.py", "rejax"),
    "stable-baselines3": ("ppo_sb3.py", "stable-baselines3"),
    "torch": ("ppo_torch.py", "stable-baselines3"),
}
"""Side -> its worker, and the environment it needs."""


class Turn(NamedTuple):
    """What a side does in each round."""

    what: str
    side: str
    seeds: int | None
    """``None``: updates of given rollouts."""
    updates: int


TURNS = (
    Turn("env-steps/s, 1 seed", OURS, 1, 200),
    Turn("env-steps/s, 1 seed", "rejax", 1, 200),
    Turn("env-steps/s, 1 seed", "stable-baselines3", 1, 20),
    Turn("env-steps/s, 64 seeds", OURS, 64, 5),
    Turn("env-steps/s, 64 seeds", "rejax", 64, 5),
    Turn("updates/s, given rollouts", OURS, None, 200),
    Turn("updates/s, given rollouts", "torch", None, 50),
)

GOALS = {
    ("env-steps/s, 1 seed", "stable-baselines3"): 20.0,
    ("env-steps/s, 1 seed", "rejax"): 2.0,
    ("env-steps/s, 64 seeds", "rejax"): 2.0,
}
"""(what, over whom) -> times as fast."""

COMPILE_GOAL_SECONDS = 4.0


class Bench:
    """Where workers come from.

    Attributes:
        environments: Folder of the peers' virtual environments.
        threads: Cores that every side may use.
        log: What workers write to standard error.
        timeout: Most seconds for one answer.
    """

    def __init__(self, environments: Path, threads: int, log: Path, timeout: float):
        self.environments, self.threads, self.log, self.timeout = (
            environments,
            threads,
            log,
            timeout,
        )

    def open(self, name: str, stack: ExitStack) -> Worker:
        """Start a side in a fresh process.

        Raises:
            UserError: The side is not installed, or did not start.
        """
        script, environment = SIDES[name]
        python = Path(sys.executable)
        if environment is not None:
            python = interpreter(self.environments / environment)
        if not python.is_file():
            raise UserError(
                f"{environment} is not installed in {self.environments}; run with "
                "--make-environments"
            )
        settings = {"JAX_PLATFORMS": "cpu", "OMP_WAIT_POLICY": "PASSIVE"}
        if name == OURS:
            settings["PYTHONPATH"] = str(ROOT)  # this checkout, installed or not
        return stack.enter_context(
            Worker(name, python, script, self.log, threads=self.threads, environment=settings)
        )

    def ask(self, worker: Worker, do: str, **arguments: Any) -> dict[str, Any]:
        """Return a worker's answer.

        Raises:
            UserError: The worker failed.
        """
        try:
            return worker.ask(do, timeout=self.timeout, **arguments)
        except SideFailed as error:
            raise UserError(str(error)) from None

    def loaded(self, name: str, stack: ExitStack) -> tuple[Worker, dict[str, str]]:
        """Start a side in a fresh process; return it with the versions it loaded."""
        worker = self.open(name, stack)
        return worker, self.ask(worker, "load")["versions"]


def compilation(bench: Bench, rounds: int) -> dict[str, Any]:
    """Measure the compilation of every program in fresh processes, side after side."""
    seen: dict[str, dict[str, list[float]]] = {}
    for _ in range(rounds):
        for turn in TURNS:
            if turn.seeds is None or turn.side not in (OURS, "rejax"):
                continue
            with ExitStack() as stack:
                worker, _ = bench.loaded(turn.side, stack)
                took = bench.ask(worker, "compile", seeds=turn.seeds, updates=turn.updates)
            times = seen.setdefault(f"{_seeds(turn.seeds)}: {turn.side}", {})
            for clock in CLOCKS:
                alone = took["first_call"][clock] - took["second_call"][clock]
                times.setdefault(clock, []).append(alone)
                first_state = took["first_state"][clock]
                times.setdefault(f"first_state_{clock}", []).append(first_state)
    return {
        what: {clock: spread(values) for clock, values in of.items()} for what, of in seen.items()
    }


def race(bench: Bench, workers: Mapping[str, Worker], rounds: int) -> dict[str, Any]:
    """Measure the rate of every side, and this learner's speed over each peer's."""
    for turn in TURNS:
        if turn.seeds is None:
            bench.ask(workers[turn.side], "prepare")
        else:
            bench.ask(workers[turn.side], "compile", seeds=turn.seeds, updates=turn.updates)
    each: dict[tuple[str, str], dict[str, list[float]]] = {}
    for number in range(rounds):
        first = number % len(TURNS)
        for turn in (*TURNS[first:], *TURNS[:first]):
            if turn.seeds is None:
                took = bench.ask(workers[turn.side], "update", updates=turn.updates)
                work = turn.updates
            else:
                took = bench.ask(workers[turn.side], "run", seeds=turn.seeds, updates=turn.updates)
                work = turn.updates * turn.seeds * BATCH
            for clock in CLOCKS:
                times = each.setdefault((turn.what, turn.side), {})
                times.setdefault(clock, []).append(took[clock] / work)
    return results(each)


def results(each: Mapping[tuple[str, str], Mapping[str, Sequence[float]]]) -> dict[str, Any]:
    """Return rates and ratios from the seconds of a unit of work, by side and round."""
    rates: dict[str, Any] = {}
    ratios: dict[str, Any] = {}
    for (what, side), seconds in each.items():
        rates[f"{what}: {side}"] = {
            clock: spread([1.0 / value for value in values]) for clock, values in seconds.items()
        }
        if side == OURS:
            continue
        ratio = {
            clock: speedup(each[what, OURS][clock], values) for clock, values in seconds.items()
        }
        if goal := GOALS.get((what, side)):
            ratio |= {"goal": goal, "met": ratio["seconds"]["ratio"] >= goal}
        ratios[f"{what}: over {side}"] = ratio
    for what, of in list(rates.items()):
        if what.startswith("env-steps/s"):
            rates[what.replace("env-steps", "updates")] = {
                clock: spread([rate / BATCH for rate in values["rounds"]])
                for clock, values in of.items()
            }
    return {"rates": rates, "ratios": ratios}


def to_95(bench: Bench, workers: Mapping[str, Worker], repeats: int) -> dict[str, Any]:
    """Measure training from scratch until the policy's value is 95 % of the best policy's."""
    trained = [turn for turn in TURNS if turn.seeds is not None]
    for turn in trained:
        bench.ask(workers[turn.side], "compile", seeds=turn.seeds, updates=CHUNK)
    tries: dict[str, list[dict[str, Any]]] = {}
    for seed in range(1, repeats + 1):
        for turn in trained:
            attempt = bench.ask(
                workers[turn.side], "to", seeds=turn.seeds, seed=seed, share=0.95, limit=300
            )
            tries.setdefault(f"{_seeds(turn.seeds or 0)}: {turn.side}", []).append(attempt)
    summary: dict[str, Any] = {}
    for what, all_of in tries.items():
        reached = [attempt for attempt in all_of if attempt["updates"] is not None]
        summary[what] = {"tried": len(all_of), "reached": len(reached)}
        if reached:
            keys = (*CLOCKS, "updates")
            summary[what] |= {key: spread([attempt[key] for attempt in reached]) for key in keys}
    return summary


def _seeds(number: int) -> str:
    return "1 seed" if number == 1 else f"{number} seeds"


def measure(bench: Bench, rounds: int, repeats: int) -> dict[str, Any]:
    """Measure compilation, rates and times to 95 % on the bench's cores."""
    load = os.getloadavg()
    compiled = compilation(bench, repeats)
    for what, of in compiled.items():
        if what.endswith(OURS):
            met = of["seconds"]["median"] <= COMPILE_GOAL_SECONDS
            of |= {"goal": COMPILE_GOAL_SECONDS, "met": met}
    with ExitStack() as stack:
        opened = {name: bench.loaded(name, stack) for name in SIDES}
        workers = {name: worker for name, (worker, _) in opened.items()}
        raced = race(bench, workers, rounds)
        return {
            "threads": bench.threads,
            "load_before": load,
            "versions": {name: versions for name, (_, versions) in opened.items()},
            "compile": compiled,
            **raced,
            "to 95 % of the best policy": to_95(bench, workers, repeats),
        }


def table(figures: Mapping[str, Any]) -> str:
    """Return compilation, rates, ratios beside their goals, and times to 95 % as text."""
    lines = [f"{figures['threads']} core(s)"]

    def line(what: str, form: str, of: Mapping[str, Any], suffix: str = "") -> None:
        middle, low, high = of["median"], of["min"], of["max"]
        lines.append(f"{what:47} {middle:11{form}} [{low:{form}}, {high:{form}}]{suffix}")

    for what, of in figures["compile"].items():
        suffix = f" s; first state {of['first_state_seconds']['median']:.2f} s{_goal(of)}"
        line(f"compile, {what}", ".2f", of["seconds"], suffix)
    for what, of in figures["rates"].items():
        line(what, ",.0f", of["seconds"])
    for what, of in figures["ratios"].items():
        lines.append(
            f"{what:47} {_ratio(of['seconds'])}, by processors' seconds "
            f"{_ratio(of['cpu_seconds'])}{_goal(of)}"
        )
    for what, of in figures["to 95 % of the best policy"].items():
        if "seconds" in of:
            suffix = (
                f" s, {of['updates']['median']:g} updates, {of['reached']} of {of['tried']} runs"
            )
            line(f"to 95 %, {what}", ".3f", of["seconds"], suffix)
        else:
            lines.append(f"to 95 %, {what:38} not reached")
    return "\n".join(lines)


def _ratio(of: Mapping[str, Any]) -> str:
    interval = "" if of["interval"] is None else " [{:.2f}, {:.2f}]".format(*of["interval"])
    return f"{of['ratio']:.2f}{interval} x"


def _goal(of: Mapping[str, Any]) -> str:
    return f"; goal {of['goal']:g}{'' if of['met'] else ' NOT MET'}" if "goal" in of else ""


def parser() -> argparse.ArgumentParser:
    """Return the options."""
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--environments", type=Path, default=Path("runs/peers"))
    p.add_argument("--make-environments", action="store_true", help="make those missing; then end")
    p.add_argument("--threads", type=int, nargs="+", help="cores to race on (default: 1, and all)")
    p.add_argument("--rounds", type=int, default=11, help="turns of every side (default: 11)")
    p.add_argument(
        "--repeats",
        type=int,
        default=5,
        help="fresh processes and trainings to 95 %% (default: 5)",
    )
    p.add_argument("--timeout", type=float, default=900, help="most seconds for one answer")
    p.add_argument("--out", type=Path, help="JSON to write")
    return p


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Parse, measure, print and write."""
    args = parser().parse_args(argv)
    cores = len(os.sched_getaffinity(0))
    threads = args.threads or sorted({1, cores})
    if min(args.rounds, args.repeats, *threads) < 1 or max(threads) > cores:
        raise UserError(
            "--rounds, --repeats and --threads must be positive, --threads no more than there are "
            "cores"
        )
    if args.make_environments:
        for name, packages in ENVIRONMENTS.items():
            make_environment(args.environments / name, packages, (sys.executable,))
        return
    report: dict[str, Any] = {
        "machine": describe_machine(),
        "command": " ".join(["python scripts/bench/bench_ppo.py", *(argv or sys.argv[1:])]),
        "settings": {
            "prompts": PROMPTS,
            "features": FEATURES,
            "gates": GATES,
            "hidden": HIDDEN,
            "batch": BATCH,
            "epochs": EPOCHS,
            "minibatches": MINIBATCHES,
            "rounds": args.rounds,
            "repeats": args.repeats,
        },
        "races": [],
    }
    with tempfile.TemporaryDirectory() as folder:
        for number in threads:
            bench = Bench(args.environments, number, Path(folder) / "log", args.timeout)
            figures = measure(bench, args.rounds, args.repeats)
            print(table(figures), flush=True)
            report["races"].append(figures)
            if args.out:
                args.out.parent.mkdir(parents=True, exist_ok=True)
                write_json(args.out, report)
    if args.out:
        print(f"wrote {args.out}")


if __name__ == "__main__":
    run_command(main, "finished races are in --out")
