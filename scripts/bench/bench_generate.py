r"""Measure generation beside its peers: the same model, prompts and tokens.

    python scripts/bench/bench_generate.py --make-environments
    python scripts/bench/bench_generate.py --out scripts/results/generate_cpu.json
    python scripts/bench/bench_generate.py --shape 4b --peers transformers --out generate_gpu.json
    python scripts/bench/bench_generate.py --hf DIR --model MODEL_DIR --parts equal,ragged \
        --peers transformers --out scripts/results/generate_smollm2_cpu.json

Every side runs in its own process, loads the same model (by default a random Qwen3), warms up with
the very work it will be timed on, and then waits for its turn: sides alternate round by round, and
only one computes at a time. All get the same token ids and generate the same number of tokens,
which no end token shortens; all have the same threads, and a key-value cache sized to the work.
Tokens are checked against transformers' torch model, position by position.

Parts: ``equal`` (batches of one length), ``ragged`` (lengths as in GSM8K), ``first`` (a fresh
process's first result), ``theta`` (tokens under another ``rope_theta``), ``floor`` (share of the
memory-bandwidth floor) and ``ablations`` (of our engine).
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from converters.hf_config import read_config
from jroute.checkpoint.manifest import model_fingerprint
from jroute.checkpoint.origin import gguf_quantisation
from jroute.utils.cli import command, run_command
from jroute.utils.errors import UserError
from jroute.utils.files import write_json
from jroute.utils.keys import stored
from jroute.utils.machine import describe_machine
from scripts.bench.peers.client import SideFailed, interpreter, make_environment
from scripts.bench.peers.model import make_model
from scripts.bench.peers.report import goals, table
from scripts.bench.peers.rounds import Bench, Contestant
from scripts.bench.peers.shapes import SHAPES, Shape
from scripts.bench.peers.sides import OURS, SIDES
from scripts.bench.peers.workload import equal, ragged

PARTS = ("equal", "ragged", "first", "theta", "floor", "ablations")


def run_equal(bench: Bench, args: argparse.Namespace) -> dict[str, Any]:
    """Measure batches whose prompts and completions all have the same length."""
    figures = {}
    for batch, rounds in zip(args.batches, args.rounds, strict=False):
        work = equal(batch, args.prompt, args.new, bench.shape.config.vocab_size)
        figures[str(batch)] = bench.measure(bench.contestants(), work, batch, rounds)
        bench.forget()
    return figures


def run_ragged(bench: Bench, args: argparse.Namespace) -> dict[str, Any]:
    """Measure requests of different lengths, with and without refilling of our slots."""
    work = ragged(args.requests, args.scale, bench.shape.config.vocab_size)
    waves = Contestant(f"{OURS} (static)", OURS, arguments={"waves": True})
    sides = [Contestant(OURS, OURS), waves, *bench.contestants()[1:]]
    if args.continuous and "transformers" in bench.sides:
        sides.append(Contestant("transformers (continuous)", "transformers", "continuous"))
    figures = bench.measure(sides, work, args.slots, args.ragged_rounds)
    bench.forget()
    return {"scale": args.scale, "slots": args.slots, **figures}


def run_first(bench: Bench, args: argparse.Namespace) -> dict[str, Any]:
    """Measure a fresh process until its first completions: imports, loading, compiling, work."""
    work = equal(args.first_batch, args.prompt, args.new, bench.shape.config.vocab_size)
    return {"batch": args.first_batch, **bench.first(work, args.first_batch, args.first_rounds)}


def run_theta(bench: Bench, args: argparse.Namespace) -> dict[str, Any]:
    """Check tokens under the ``rope_theta`` of Qwen3-4B-Instruct-2507."""
    config = replace(bench.shape.config, rope_theta=5e6, num_hidden_layers=2)
    folder = args.work / f"{args.shape}-{args.dtype}-theta-5e6"
    models = make_model(config, args.dtype, folder)
    work = equal(4, args.prompt, 16, config.vocab_size)
    with ExitStack() as stack:
        other = start(args, models, bench.shape, stack)
        return {
            "rope_theta": 5e6,
            **other.measure(other.contestants(), work, 4, 1),
        }


def run_floor(bench: Bench, args: argparse.Namespace) -> dict[str, Any]:
    """Measure our decode step against reading the weights and the live cache once."""
    bounds = bench.ask(OURS, "floor")
    figures: dict[str, Any] = {**bounds, "batches": {}}
    for batch, rounds in zip(args.batches, args.rounds, strict=False):
        figures["batches"][str(batch)] = bench.floor(
            equal(batch, args.prompt, args.new, bench.shape.config.vocab_size),
            batch,
            rounds,
            bounds,
        )
        bench.forget()
    return figures


def run_ablations(bench: Bench, args: argparse.Namespace) -> dict[str, Any]:
    """Measure our engine with a single option changed at a time."""
    figures, fields = {}, bench.sides[OURS]["engine"]
    for batch in args.ablation_batches or args.batches[-1:]:
        changed = [
            {name: value}
            for name, values in bench.shape.ablations.items()
            if name in fields
            for value in values
            if value != fields[name]
        ]
        sides = [Contestant(OURS, OURS)] + [
            Contestant(json.dumps(each), OURS, arguments={"engine": each}) for each in changed
        ]
        work = equal(batch, args.prompt, args.new, bench.shape.config.vocab_size)
        figures[str(batch)] = bench.measure(sides, work, batch, args.rounds[-1])
        bench.forget()
    missing = sorted(set(bench.shape.ablations) - set(fields))
    return {"not_options_of_this_engine": missing, "batches": figures}


RUN = {
    "equal": run_equal,
    "ragged": run_ragged,
    "first": run_first,
    "theta": run_theta,
    "floor": run_floor,
    "ablations": run_ablations,
}


def start(
    args: argparse.Namespace, models: tuple[Path, Path], shape: Shape, stack: ExitStack
) -> Bench:
    """Start every side's worker and load the model; report a side that fails as not measured."""
    bench = Bench(args, models, shape, stack)
    for name in (OURS, *args.peers):
        python = Path(sys.executable)
        if name != OURS:
            python = args.environment.get(name) or interpreter(args.environments / name)
            if not python.is_file():
                bench.failed[name] = f"not measured: no environment ({python} is not there)"
                continue
        try:
            bench.open(name, python)
        except SideFailed as error:
            if name == OURS:
                raise UserError(str(error)) from None
            bench.failed[name] = str(error)
    return bench


def make_environments(args: argparse.Namespace) -> None:
    """Make a virtual environment for each peer that has none."""
    for name in args.peers:
        if name not in args.environment:
            side = SIDES[name]
            pythons = [args.python] if args.python and side.on_jax else list(side.pythons)
            make_environment(args.environments / name, side.requirements, pythons)


def parser() -> argparse.ArgumentParser:
    """Return the options; those without a default take the shape's."""
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    integers = lambda text: [int(part) for part in text.split(",")]  # noqa: E731
    names = lambda text: [part for part in text.split(",") if part]  # noqa: E731
    p.add_argument("--shape", choices=SHAPES, default="42m")
    p.add_argument("--hf", type=Path, help="folder of a real model, instead of random weights")
    p.add_argument("--model", type=Path, help="model directory that --hf was converted to")
    p.add_argument("--dtype", choices=("float32", "bfloat16"))
    p.add_argument("--parts", type=names, help=f"with commas: {', '.join(PARTS)}")
    p.add_argument("--peers", type=names, default=list(SIDES)[1:], help="with commas; may be empty")
    p.add_argument("--batches", type=integers, help="batch sizes, with commas")
    p.add_argument("--prompt", type=int, help="tokens of every prompt of equal length")
    p.add_argument("--new", type=int, help="new tokens for each of them")
    p.add_argument("--rounds", type=integers, help="for each batch size; the last for all others")
    p.add_argument("--requests", type=int, default=256, help="of the ragged workload")
    p.add_argument("--scale", type=float, help="its lengths are divided by this")
    p.add_argument("--slots", type=int, help="its rows at a time, on every side")
    p.add_argument("--ragged-rounds", type=int, default=2)
    p.add_argument(
        "--continuous", action="store_true", help="add transformers' own continuous batching"
    )
    p.add_argument("--first-batch", type=int, default=16)
    p.add_argument("--first-rounds", type=int, default=2)
    p.add_argument("--ablation-batches", type=integers, default=[])
    p.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    p.add_argument("--timeout", type=float, default=900, help="most seconds for one answer")
    p.add_argument("--work", type=Path, default=Path("runs/bench_generate"), help="models and logs")
    p.add_argument("--environments", type=Path, default=Path("runs/peers"))
    p.add_argument(
        "--environment",
        action="append",
        default=[],
        metavar="PEER=PYTHON",
        help="use this interpreter",
    )
    p.add_argument("--make-environments", action="store_true", help="make those missing; then end")
    p.add_argument("--python", help="the interpreter for those on JAX (tunix and skyrl need 3.12)")
    p.add_argument("--resume", action="store_true", help="keep the parts that --out has already")
    p.add_argument("--out", type=Path, help="JSON to write, after every part")
    return p


def settle(args: argparse.Namespace) -> None:
    """Fill in the shape's defaults and validate the options.

    Raises:
        UserError: An unknown part or peer, or a number that is not positive.
    """
    shape = SHAPES[args.shape]
    for name in ("dtype", "batches", "rounds", "prompt", "new", "scale", "slots", "parts"):
        if getattr(args, name) is None:
            value = getattr(shape, name)
            setattr(args, name, list(value) if isinstance(value, tuple) else value)
    for option, given, known in (
        ("--parts", args.parts, PARTS),
        ("--peers", args.peers, list(SIDES)[1:]),
    ):
        unknown = [each for each in given if each not in known]
        if unknown:
            raise UserError(f"{option} names {unknown[0]!r}; choose from {', '.join(known)}")
    if (args.hf is None) != (args.model is None):
        raise UserError("--hf and --model belong together; give both, or neither")
    if args.hf is not None and "theta" in args.parts:
        raise UserError("the part theta has random weights of its own; leave it out with --hf")
    pairs = [each.partition("=") for each in args.environment]
    if not all(name in SIDES and path for name, _, path in pairs):
        raise UserError(f"--environment is {args.environment}; give PEER=PYTHON")
    args.environment = {name: Path(path) for name, _, path in pairs}
    numbers = ("prompt", "new", "requests", "scale", "slots", "ragged_rounds")
    for name in (*numbers, "first_batch", "first_rounds", "threads"):
        if getattr(args, name) <= 0:
            raise UserError(f"--{name.replace('_', '-')} must be positive")
    args.rounds += args.rounds[-1:] * (len(args.batches) - len(args.rounds))
    if min(*args.batches, *args.rounds) < 1 or args.threads > len(os.sched_getaffinity(0)):
        raise UserError(
            "--batches and --rounds must be positive, --threads no more than there are cores"
        )


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Parse, measure part by part, print and write."""
    args = parser().parse_args(argv)
    settle(args)
    if args.make_environments:
        make_environments(args)
        return
    shape = SHAPES[args.shape]
    if args.hf is not None:
        shape = replace(shape, config=read_config(args.hf / "config.json"))
    same = ("shape", "dtype", "peers", "batches", "prompt", "new", "rounds", "requests", "scale")
    settings = {name: getattr(args, name) for name in (*same, "slots", "ragged_rounds", "threads")}
    if args.hf is not None:
        settings["shape"] = args.model.name
        settings["model"] = {
            "fingerprint": model_fingerprint(args.model),
            "gguf_quantisation": gguf_quantisation(args.hf),
        }
    result: dict[str, Any] = {
        "machine": describe_machine(),
        "command": " ".join(["python scripts/bench/bench_generate.py", *(argv or sys.argv[1:])]),
        "settings": settings,
        "config": stored(shape.config),
        "parts": {},
    }
    if args.resume and args.out and args.out.is_file():
        before = json.loads(args.out.read_text())
        if before["settings"] == settings:
            result["parts"] = before["parts"]
    (args.work / "logs").mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    if args.hf is not None:
        models = args.hf, args.model
    else:
        models = make_model(shape.config, args.dtype, args.work / f"{args.shape}-{args.dtype}")
    with ExitStack() as stack:
        bench = start(args, models, shape, stack)
        result["sides"], result["not_measured"] = bench.sides, bench.failed
        result["seconds_to_start"] = time.perf_counter() - began
        for part in [part for part in args.parts if part not in result["parts"]]:
            before, load = time.perf_counter(), os.getloadavg()
            print(f"{part} …", flush=True)
            figures = RUN[part](bench, args)
            seconds = time.perf_counter() - before
            result["parts"][part] = {"part_seconds": seconds, "load_before": load, **figures}
            result["goals"] = goals(result["parts"]) if shape is SHAPES["42m"] else []
            if args.out:
                args.out.parent.mkdir(parents=True, exist_ok=True)
                write_json(args.out, result)
    print(table(result))
    if args.out:
        print(f"wrote {args.out}")


if __name__ == "__main__":
    run_command(main, "finished parts are in --out")
