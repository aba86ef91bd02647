"""Races the PPO learner against its peers on one bandit, and writes what it found.

    python scripts/bench_ppo.py --make-environments
    python scripts/bench_ppo.py --out scripts/results/ppo_cpu.json

2,000 prompts with 8 features, 5 gates, rewards from a table; networks of 64-64 tanh units; batches
of 512 episodes, 4 epochs of 4 minibatches: the same for stable-baselines3 (torch), rejax (JAX) and
this learner, each in a process of its own on the same cores. The processes take turns, and only
one works at a time. Ratios are those of neighbouring turns: the median, and the range that holds
the true median with the probability stated. ``update only`` gives the same rollouts again and
again to this learner and to CleanRL's arithmetic in torch, which leaves environments out.

Seconds of the clock decide. Seconds of processors stand beside them: on a machine that others use
too they are the steadier figure.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench_ppo_worker import BATCH, CHUNK, EPOCHS, MINIBATCHES, PROMPTS

from jroute.door import door, enter
from jroute.errors import UserError
from jroute.files import write_text
from jroute.observe.machine import describe_machine

ENVIRONMENTS = {
    "stable-baselines3": ("stable-baselines3==2.9.2", "torch==2.13.0", "gymnasium==1.4.0"),
    "rejax": ("rejax==0.1.3", "gymnax==0.0.9"),
}
"""Peer -> what its virtual environment holds."""

GOALS = {
    "env-steps/s, 1 seed, over stable-baselines3": 20.0,
    "env-steps/s, 1 seed, over rejax": 2.0,
    "env-steps/s, 64 seeds, over rejax": 2.0,
}
COMPILE_GOAL_SECONDS = 4.0

UPDATES = {
    ("jroute", 1): 200,
    ("jroute", 64): 5,
    ("rejax", 1): 200,
    ("rejax", 64): 5,
    ("stable-baselines3", 1): 20,
}
"""Updates of one turn, by side and seeds."""

ONLY = {"jroute": 200, "torch": 50}
"""Updates of one turn on given rollouts."""


class Side:
    """A worker process that answers one request at a time."""

    def __init__(self, name: str, python: str, cores: Sequence[int]) -> None:
        here = Path(__file__).resolve().parent
        threads = str(len(cores))
        settings = {
            "JAX_PLATFORMS": "cpu",
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "OMP_WAIT_POLICY": "PASSIVE",  # a waiting process must not take time from the others
            "PYTHONPATH": str(here.parent) if name == "jroute" else "",
        }
        self.name = name
        self.process = subprocess.Popen(
            [python, str(here / "bench_ppo_worker.py"), name, ",".join(map(str, cores))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | settings,
        )
        self.about = self._answer()

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """What the side answers."""
        assert self.process.stdin is not None
        print(json.dumps({"do": do, **arguments}), file=self.process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise UserError(f"the process of {self.name} ended; what it printed says why")
        return json.loads(line)

    def close(self) -> None:
        """Ends the process."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.process.wait()


def make_environments(folder: Path) -> None:
    """Makes the virtual environments of the peers, with pip as it is set up here."""
    for name, packages in ENVIRONMENTS.items():
        place = folder / name
        for command in (
            [sys.executable, "-m", "venv", str(place)],
            [str(place / "bin" / "python"), "-m", "pip", "install", "--quiet", *packages],
        ):
            if subprocess.run(command, check=False).returncode:
                raise UserError(f"{place} could not be made: {' '.join(command)} failed")
        print(f"{place}: {' '.join(packages)}")


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and greatest.

    The true median lies between the least and the greatest of n independent values with
    probability ``1 - 2 ** (1 - n)``, whatever their distribution.
    """
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "holds_median_with": 1.0 - 2.0 ** (1 - len(values)),
        "values": len(values),
    }


def race(sides: Mapping[str, Side], rounds: int) -> dict[str, Any]:
    """Env-steps per second of every side and their ratios, then the same of updates alone."""
    rates: dict[str, dict[str, list[float]]] = {}

    def note(what: str, work: float, took: Mapping[str, float]) -> None:
        for clock in ("seconds", "cpu_seconds"):
            rates.setdefault(what, {}).setdefault(clock, []).append(work / took[clock])

    for turn in range(rounds):
        order = list(UPDATES) if turn % 2 else list(reversed(UPDATES))
        for name, seeds in order:
            updates = UPDATES[name, seeds]
            took = sides[name].ask("run", seeds=seeds, updates=updates)
            note(f"env-steps/s, {_seeds(seeds)}: {name}", updates * BATCH * seeds, took)
        for name in ("jroute", "torch") if turn % 2 else ("torch", "jroute"):
            took = sides[name].ask("update", updates=ONLY[name])
            note(f"updates/s on given rollouts: {name}", ONLY[name], took)
    ratios: dict[str, Any] = {}
    pairs = (
        ("env-steps/s, 1 seed", "stable-baselines3"),
        ("env-steps/s, 1 seed", "rejax"),
        ("env-steps/s, 64 seeds", "rejax"),
        ("updates/s on given rollouts", "torch"),
    )
    for what, peer in pairs:
        ours, theirs = rates[f"{what}: jroute"], rates[f"{what}: {peer}"]
        ratios[f"{what}, over {peer}"] = {
            clock: spread([a / b for a, b in zip(ours[clock], theirs[clock], strict=True)])
            for clock in ours
        }
    return {
        "rates": {
            what: {clock: spread(values) for clock, values in of.items()}
            for what, of in rates.items()
        },
        "ratios": ratios,
    }


def to_95(sides: Mapping[str, Side], repeats: int, share: float = 0.95) -> dict[str, Any]:
    """Time of training from scratch until the policy's value is 95 % of the best one's."""
    found: dict[str, Any] = {}
    for name, seeds in UPDATES:
        sides[name].ask("compile", seeds=seeds, updates=CHUNK)
    for name, seeds in UPDATES:
        tries = [
            sides[name].ask("reach", seeds=seeds, seed=seed, share=share, limit=300)
            for seed in range(1, repeats + 1)
        ]
        reached = [one for one in tries if one["updates"] is not None]
        found[f"{_seeds(seeds)}: {name}"] = {
            "reached": f"{len(reached)} of {repeats}",
            **{
                key: spread([one[key] for one in reached])
                for key in ("seconds", "cpu_seconds", "updates")
                if reached
            },
        }
    return found


def _seeds(number: int) -> str:
    return "1 seed" if number == 1 else f"{number} seeds"


def measure(folder: Path, threads: int, rounds: int, repeats: int) -> dict[str, Any]:
    """Everything, on so many cores."""
    cores = sorted(os.sched_getaffinity(0))
    if threads > len(cores):
        raise UserError(f"{threads} threads were asked for, but there are {len(cores)} cores")
    peers = {name: folder / name / "bin" / "python" for name in ENVIRONMENTS}
    for name, python in peers.items():
        if not python.exists():
            raise UserError(f"{name} is not installed in {folder}; run with --make-environments")
    pythons = {"jroute": sys.executable, "torch": str(peers["stable-baselines3"])}
    pythons |= {name: str(python) for name, python in peers.items()}
    sides: dict[str, Side] = {}
    load = os.getloadavg()[0]
    try:
        for name, python in pythons.items():
            sides[name] = Side(name, python, cores[:threads])
        compiled = {
            f"{_seeds(seeds)}: {name}": sides[name].ask("compile", seeds=seeds, updates=updates)
            for (name, seeds), updates in UPDATES.items()
        }
        compiled |= {
            f"updates alone: {name}": sides[name].ask("compile update")
            for name in ("jroute", "torch")
        }
        raced = race(sides, rounds)
        # The first call is compilation and one turn: what is over the turn's usual time.
        for (name, seeds), updates in UPDATES.items():
            rate = raced["rates"][f"env-steps/s, {_seeds(seeds)}: {name}"]
            first = compiled[f"{_seeds(seeds)}: {name}"]["first"]
            for clock in ("seconds", "cpu_seconds"):
                first[f"compile_{clock}"] = (
                    first[clock] - updates * BATCH * seeds / rate[clock]["median"]
                )
        return {
            "threads": threads,
            "load_before": load,
            "versions": {name: side.about["versions"] for name, side in sides.items()},
            "compile": compiled,
            **raced,
            "to 95 % of the best policy": to_95(sides, repeats),
        }
    finally:
        for side in sides.values():
            side.close()


def table(found: Mapping[str, Any]) -> str:
    """Compilation, rates, ratios beside their goals, and times to 95 %."""
    lines = [f"on {found['threads']} thread(s); [least, greatest] of {_rounds(found)} rounds"]
    for what, took in found["compile"].items():
        if seconds := took["first"].get("compile_seconds"):
            lines.append(
                f"compile, {what:40} {seconds:8.2f} s ({took['first']['compile_cpu_seconds']:.2f} "
                f"s of processors), first state {took['start']['seconds']:.2f} s"
            )
    for what, of in found["rates"].items():
        rate = of["seconds"]
        lines.append(f"{what:49} {rate['median']:11,.0f} [{rate['min']:,.0f}, {rate['max']:,.0f}]")
    for what, of in found["ratios"].items():
        goal = f"; goal {GOALS[what]:g}" if what in GOALS else ""
        wall, cpu = of["seconds"], of["cpu_seconds"]
        lines.append(
            f"{what:49} {wall['median']:11.2f} [{wall['min']:.2f}, {wall['max']:.2f}] x, by "
            f"processors {cpu['median']:.2f} [{cpu['min']:.2f}, {cpu['max']:.2f}]{goal}"
        )
    for what, of in found["to 95 % of the best policy"].items():
        if "seconds" in of:
            lines.append(
                f"to 95 %, {what:40} {of['seconds']['median']:11.3f} s "
                f"[{of['seconds']['min']:.3f}, {of['seconds']['max']:.3f}], "
                f"{of['updates']['median']:g} updates"
            )
        else:
            lines.append(f"to 95 %, {what:40} not reached")
    return "\n".join(lines)


def _rounds(found: Mapping[str, Any]) -> int:
    return next(iter(found["ratios"].values()))["seconds"]["values"]


@door
def main(argv: Sequence[str] | None = None) -> None:
    """Parses, measures, prints, writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--environments",
        type=Path,
        default=Path(".cache/bench_ppo"),
        help="folder of the peers' virtual environments (default: .cache/bench_ppo)",
    )
    parser.add_argument(
        "--make-environments", action="store_true", help="make them with venv and pip, then stop"
    )
    parser.add_argument(
        "--threads", type=int, nargs="+", default=[1, 2], help="cores to race on (default: 1 2)"
    )
    parser.add_argument("--rounds", type=int, default=7, help="turns of every side (default: 7)")
    parser.add_argument("--repeats", type=int, default=3, help="trainings to 95 %% (default: 3)")
    parser.add_argument("--out", type=Path, help="JSON to write")
    args = parser.parse_args(argv)
    if args.make_environments:
        make_environments(args.environments)
        return
    if args.rounds < 1 or args.repeats < 1:
        raise UserError("--rounds and --repeats must be at least 1")
    results = {
        "what": {
            "prompts": PROMPTS,
            "batch": BATCH,
            "epochs": EPOCHS,
            "minibatches": MINIBATCHES,
            "goals": {**GOALS, "compile seconds": COMPILE_GOAL_SECONDS},
        },
        "machine": describe_machine(),
        "races": [],
    }
    for threads in args.threads:
        found = measure(args.environments, threads, args.rounds, args.repeats)
        print(table(found), flush=True)
        results["races"].append(found)
        if args.out:
            write_text(args.out, json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    enter(main, "nothing was written but what is complete")
