"""Measure what streams cost: time and memory of every preset beside the plain model.

    python scripts/bench/bench_routing.py --out scripts/results/routing_cpu.json
    python scripts/bench/bench_routing.py --streams 1,2,3,4,5,6,7,8
    python scripts/bench/bench_routing.py --like DIR --out scripts/results/routing_h200.json

The plain model and every routing prefill and decode in turn, again and again, and are compared pair
by pair. ``gate`` is 1 everywhere. Sizes and operations are those of the compiled programs; they are
printed for programs slower than the goal. Weights are random: speed does not depend on their
values.
"""

import argparse
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from converters.hf_config import read_config
from jroute.generate.programs import Rows, decode, prefill
from jroute.model.config import DecoderConfig
from jroute.model.params import unstack_blocks
from jroute.routing.config import MAX_STREAMS, RoutingConfig
from jroute.routing.mixing import Routing
from jroute.routing.presets import preset_names, routing_file
from jroute.utils.cli import command, run_command
from jroute.utils.config import load
from jroute.utils.errors import UserError
from jroute.utils.files import write_json
from jroute.utils.keys import stored
from jroute.utils.machine import describe_machine
from scripts.bench.measurement import SMALL, random_params, spread, timed

WIDTHS = (1, 2, 4, 8)
"""Numbers of streams that are compared beside the presets."""

GOALS = {"cpu": 1.10, "gpu": 1.05}
"""Time that four streams may take, as a multiple of the plain model's, by platform."""


def routings(widths: Sequence[int]) -> dict[str, RoutingConfig | None]:
    """Return the routings by name: the plain model, every preset, and streams of two kinds."""
    configs: dict[str, RoutingConfig | None] = {"plain": None, "plain again": None}
    configs |= {name: load(RoutingConfig, routing_file(name)) for name in preset_names()}
    for n in widths:
        if n == 1:
            configs["n=1 scaled updates"] = RoutingConfig((), scale=0.5)
            continue
        configs[f"n={n} persistent"] = RoutingConfig(("persistent",) * (n - 1), strength=0.5)
        histories = ("attention", "mlp", "delay(1)", "embedding", "ema(0.5)", "delay(2)", "rotate")
        configs[f"n={n} histories, norms matched"] = RoutingConfig(
            histories[: n - 1], strength=0.5, norm_match=True
        )
    return configs


def compiled_size(program: Any) -> dict[str, Any]:
    """Return the memory beside the arguments, the bytes moved, and the operations by kind."""
    memory, cost = program.memory_analysis(), program.cost_analysis() or {}
    kinds = Counter(re.findall(r" = \S+ ([a-z][\w-]*)\(", program.as_text()))
    named = ("fusion", "dot", "copy", "while", "custom-call", "call")
    return {
        "temporary_bytes": memory.temp_size_in_bytes if memory else None,
        "bytes_accessed": cost.get("bytes accessed"),
        "operations": {"all": sum(kinds.values()), **{k: kinds[k] for k in named if kinds[k]}},
    }


def measure(
    params: Any,
    config: DecoderConfig,
    batch: int,
    prompt: int,
    steps: int,
    repeats: int,
    widths: Sequence[int] = WIDTHS,
) -> dict[str, Any]:
    """Measure time and sizes of every routing, as ratios to the plain model of the same round."""
    rng = np.random.default_rng(0)
    tokens = jnp.asarray(rng.integers(0, config.vocab_size, (batch, prompt)), jnp.int32)
    lengths, layers = jnp.full(batch, prompt), config.num_hidden_layers
    new = steps * (repeats + 1) + 1
    seeds, limits = jnp.zeros(batch, jnp.int32), jnp.full(batch, new)
    ends = jnp.array([-1], jnp.int32)
    sliced = unstack_blocks(params)
    fill: dict[str, Callable[[], Any]] = {}
    step: dict[str, Callable[[Any], Any]] = {}
    states, sizes = {}, {}
    for name, routing in routings(widths).items():
        made = None if routing is None else Routing.create(routing, layers)
        gate = None if made is None else jnp.asarray(made.layer_gates(1.0, batch))
        rows = Rows(tokens, lengths, seeds, limits, gate)
        fill[name] = jax.jit(
            lambda rows=rows, made=made: prefill(params, rows, ends, made, config=config, room=new)[
                0
            ]
        )
        decoder = partial(_decode, (ends, made), config, steps)
        step[name] = partial(decoder, sliced)
        states[name] = jax.block_until_ready(fill[name]())
        run = jax.jit(decoder, donate_argnums=1)
        sizes[name] = {
            "prefill": compiled_size(fill[name].lower().compile()),  # type: ignore[attr-defined]
            "decode": compiled_size(run.lower(sliced, states[name]).compile()),
        }
    times: dict[str, dict[str, list[float]]] = {
        name: {"prefill": [], "decode": []} for name in fill
    }
    for repeat in range(repeats + 1):
        for name in fill:
            filling, _ = timed(fill[name])
            stepping, states[name] = timed(partial(step[name], states[name]))
            if repeat:  # the first round warms up
                times[name]["prefill"].append(filling)
                times[name]["decode"].append(stepping / steps)
    figures = {}
    for name, measured in times.items():
        figures[name] = {"sizes": sizes[name]}
        for part, values in measured.items():
            plain = times["plain"][part]
            figures[name][f"{part} time / plain"] = spread(
                [a / b for a, b in zip(values, plain, strict=True)]
            )
            figures[name][f"{part} memory / plain"] = (
                sizes[name][part]["temporary_bytes"] / sizes["plain"][part]["temporary_bytes"]
            )
    return figures


def _decode(fixed: Any, config: DecoderConfig, steps: int, params: Any, state: Any) -> Any:
    return decode(params, state, *fixed, config=config, chunk=steps)[0]


def table(figures: Mapping[str, Any]) -> str:
    """Return a line of figures per routing."""
    lines = [f"{'routing':30} {'prefill time':>21} {'memory':>7} {'decode time':>21} {'memory':>7}"]
    for name, values in figures.items():
        cells = []
        for part in ("prefill", "decode"):
            ratio = values[f"{part} time / plain"]
            cells.append(f"{ratio['median']:.2f} [{ratio['min']:.2f}, {ratio['max']:.2f}]")
            cells.append(f"{values[f'{part} memory / plain']:.2f}")
        lines.append(f"{name:30} {cells[0]:>21} {cells[1]:>7} {cells[2]:>21} {cells[3]:>7}")
    return "\n".join(lines)


def above(figures: Mapping[str, Any], goal: float) -> str:
    """Return operations and bytes of programs slower than the goal, beside the plain model's."""
    lines = []
    for name, values in figures.items():
        for part in ("prefill", "decode"):
            ratio = values[f"{part} time / plain"]["median"]
            if ratio <= goal:
                continue
            size, plain = values["sizes"][part], figures["plain"]["sizes"][part]
            kinds = sorted({*size["operations"], *plain["operations"]})
            counts = (
                f"{k} {plain['operations'].get(k, 0)} -> {size['operations'].get(k, 0)}"
                for k in kinds
            )
            moved = size["bytes_accessed"] / plain["bytes_accessed"]
            lines.append(
                f"{name}, {part}: {ratio:.2f} x the time, {moved:.2f} x the bytes; operations: "
                + ", ".join(counts)
            )
    return "\n".join(lines) or f"none takes more than {goal:g} x the time of the plain model"


def _widths(text: str) -> tuple[int, ...]:
    widths = tuple(int(part) for part in text.split(",")) if re.fullmatch(r"\d(,\d)*", text) else ()
    if not widths or not all(1 <= n <= MAX_STREAMS for n in widths):
        raise UserError(
            f"--streams is {text!r}; give numbers from 1 to {MAX_STREAMS}, like 1,2,4,8"
        )
    return widths


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Parse, measure, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--like", type=Path, help="folder with a config.json; default: a small one")
    parser.add_argument("--batch", type=int, default=8, help="rows (default: 8)")
    parser.add_argument("--prompt", type=int, default=128, help="tokens of a prompt (default: 128)")
    parser.add_argument("--steps", type=int, default=16, help="decode steps at a time")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--streams", default=",".join(map(str, WIDTHS)), help="numbers of streams")
    parser.add_argument("--out", type=Path, help="JSON to write")
    args = parser.parse_args(argv)
    widths, config = _widths(args.streams), SMALL
    if args.like:
        where = args.like / "config.json"
        config = read_config(where)
    device = jax.devices()[0]
    dtype = "float32" if device.platform == "cpu" else "bfloat16"
    params = random_params(config, dtype, None)
    figures = measure(params, config, args.batch, args.prompt, args.steps, args.repeats, widths)
    goal = GOALS.get(device.platform, GOALS["gpu"])
    print(f"{table(figures)}\n\n{above(figures, goal)}")
    if args.out:
        result = {
            "machine": describe_machine(),
            "device": device.device_kind,
            "dtype": dtype,
            "config": stored(config),
            **{name: getattr(args, name) for name in ("batch", "prompt", "steps", "repeats")},
            "streams": widths,
            "goal": goal,
            "routings": figures,
        }
        args.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(args.out, result)
        print(f"wrote {args.out}")


if __name__ == "__main__":
    run_command(main, "nothing was written")
