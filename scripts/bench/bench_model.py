"""Measure the decoder: memory, prefill, and decode steps against the memory-bandwidth floor.

    python scripts/bench/bench_model.py --out scripts/results/model_cpu.json
    python scripts/bench/bench_model.py --like DIR --out scripts/results/model_h200.json
    python scripts/bench/bench_model.py --batches 1,16,64 --prompt 128 --before earlier.json

Weights are random: speed does not depend on their values. Every decode step has to read all weights
and the live part of the key-value cache once, which bounds it from below at ``bytes / bandwidth``;
and it has to multiply with them, which bounds it at ``operations / rate``. Bandwidth is that of a
large matrix-vector product and the rate that of a large matrix product, both measured on the device
in the same run; where the data sheet's bandwidth is known, the floor by it is reported too. With
``--before`` the steps are compared with those of an earlier run.

Four programs decode from the same prompts, in alternation: over separate layers (``unrolled``) or a
scan over stacked ones (``scanned``), without streams (``plain``) or with four of them (``routed``).
"""

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from converters.hf_config import read_config
from jroute.distributed.hlo import collectives, summary
from jroute.distributed.mesh import MeshConfig, place, replicate
from jroute.generate import cache as caches
from jroute.generate.programs import DecodeState, Rows, decode, prefill
from jroute.generate.scoring import token_scores
from jroute.model.config import DecoderConfig
from jroute.model.params import unstack_blocks
from jroute.routing.config import RoutingConfig
from jroute.routing.mixing import Routing
from jroute.utils.cli import command, run_command
from jroute.utils.errors import UserError
from jroute.utils.files import write_json
from jroute.utils.json_files import read_json
from jroute.utils.keys import stored
from jroute.utils.machine import describe_machine
from scripts.bench.measurement import (
    SMALL,
    device_memory,
    measure_bandwidth,
    measure_rate,
    random_params,
    spread,
    timed,
)

DATA_SHEET = {"H200": 4.8e12, "H100 PCIe": 2.0e12, "H100": 3.35e12, "A100": 2.04e12, "L40S": 864e9}
"""Memory bandwidth in bytes per second by a part of the device's name (NVIDIA's data sheets)."""

PROGRAMS = ("unrolled plain", "unrolled routed", "scanned plain", "scanned routed")


class Bench(NamedTuple):
    """The model, its routing, and the sizes of a measurement."""

    params: Any
    config: DecoderConfig
    routing: Routing
    prompt: int
    steps: int
    repeats: int
    keys: int = 0

    @property
    def new(self) -> int:
        """Tokens that every row generates, in the warm-up and all repeats."""
        return self.steps * (self.repeats + 1) + 1

    @property
    def capacity(self) -> int:
        """Positions of a row in the cache."""
        return caches.capacity_for(max(self.keys, self.prompt + self.new))


def start(bench: Bench, batch: int, *, routed: bool, unroll: bool) -> tuple[Callable[[], Any], Any]:
    """Return a prefill of ``batch`` prompts, and what decoding takes besides weights and state."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, bench.config.vocab_size, (batch, bench.prompt)).astype(np.int32)
    gate = np.full((batch, bench.config.num_hidden_layers), 0.5, np.float32)

    def column(value: int) -> Any:
        return place(np.full(batch, value, np.int32), ("batch",))

    rows = Rows(
        place(tokens, ("batch", "seq")),
        column(bench.prompt),
        column(0),
        column(bench.new),
        place(gate, ("batch", "layers")) if routed else None,
    )
    ends = np.array([-1], np.int32)  # no token ends a row
    fixed = (ends, replicate(bench.routing) if routed else None)
    room = bench.capacity - bench.prompt
    call = partial(prefill, bench.params, rows, *fixed, config=bench.config, room=room)
    return partial(call, unroll=unroll), fixed


def local_bytes(array: jax.Array) -> int:
    """Return the bytes of an array on its first device."""
    return array.addressable_shards[0].data.nbytes


def floor_bytes(bench: Bench, batch: int, length: float) -> dict[str, int]:
    """Return the bytes that a device reads in a decode step: weights, keys and values so far."""
    weights = sum(local_bytes(leaf) for leaf in jax.tree.leaves(bench.params))
    c, item = bench.config, jax.tree.leaves(bench.params)[0].dtype.itemsize
    if not c.tie_word_embeddings:
        weights -= local_bytes(bench.params["embed_tokens"])  # only a few of its rows are read
    mesh = jax.sharding.get_mesh().shape
    heads = c.num_key_value_heads // mesh["tensor"]
    per_token = 2 * c.num_hidden_layers * heads * c.head_dim * item
    batch //= mesh["data"]
    return {
        "weights": weights,
        "live_cache": int(batch * length * per_token),
        "padded_cache": batch * bench.capacity * per_token,
    }


def floor_operations(bench: Bench, batch: int, length: float) -> float:
    """Return a device's additions and multiplications in a decode step, products alone."""
    c = bench.config
    weights = sum(leaf.size for leaf in jax.tree.leaves(bench.params["blocks"]) if leaf.ndim > 2)
    weights += c.vocab_size * c.hidden_size
    attention = 2 * c.num_hidden_layers * c.num_attention_heads * c.head_dim * length
    return 2 * batch * (weights + attention) / jax.sharding.get_mesh().size


def operations(program: str) -> dict[str, int]:
    """Count a compiled program's operations by kind, without those that only name memory."""
    kinds = re.findall(r" = (?:\([^)]*\)|\S+) ([a-z][\w-]*)\(", program)
    free = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast")
    named = ("fusion", "dot", "copy", "transpose", "scatter")
    counted = {kind: kinds.count(kind) for kind in named if kind in kinds}
    return {"all": sum(kind not in free for kind in kinds), **counted}


def measure_batch(
    bench: Bench, batch: int, bandwidth: Mapping[str, float], rate: float
) -> dict[str, Any]:
    """Measure prefill and decode of a batch size, all programs in alternation."""
    prefills, steps, compiled = _time_programs(bench, batch)
    length = bench.prompt + bench.steps * (1 + (bench.repeats + 1) / 2)
    sizes = floor_bytes(bench, batch, length)
    needed = sizes["weights"] + sizes["live_cache"]
    floors = {name: needed / value for name, value in bandwidth.items()}
    floors["arithmetic"] = floor_operations(bench, batch, length) / rate
    return {
        "batch": batch,
        "keys": {"live": length, "capacity": bench.capacity},
        "floor_seconds": floors,
        "bytes_per_step": sizes,
        "programs": {
            name: {
                "prefill_tokens_per_second": spread(
                    [batch * bench.prompt / seconds for seconds in prefills[name]]
                ),
                **_step_figures(batch, spread(steps[name]), floors),
                **_program_figures(compiled[name]),
            }
            for name in PROGRAMS
        },
        "ratios": {
            "routed / plain (unrolled)": _ratio(steps, "unrolled routed", "unrolled plain"),
            "routed / plain (scanned)": _ratio(steps, "scanned routed", "scanned plain"),
            "scanned / unrolled (plain)": _ratio(steps, "scanned plain", "unrolled plain"),
        },
        "device_memory": device_memory(),
    }


def _time_programs(
    bench: Bench, batch: int
) -> tuple[dict[str, list[float]], dict[str, list[float]], dict[str, Any]]:
    """Return the seconds of every prefill and of every decode step, and the compiled steps."""
    prefills: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    states: dict[str, DecodeState] = {}
    runs: dict[str, Callable[[DecodeState], DecodeState]] = {}
    compiled: dict[str, Any] = {}
    sliced = unstack_blocks(bench.params)
    for name in PROGRAMS:
        unroll, routed = name.startswith("unrolled"), name.endswith("routed")
        call, fixed = start(bench, batch, routed=routed, unroll=unroll)
        jax.block_until_ready(call())
        for _ in range(bench.repeats):
            seconds, (states[name], _) = timed(call)
            prefills[name].append(seconds)
        weights = sliced if unroll else bench.params
        step = partial(_step, fixed, bench.config, bench.steps)
        compiled[name] = jax.jit(step, donate_argnums=1).lower(weights, states[name]).compile()
        runs[name] = partial(step, weights)
    steps: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    for repeat in range(bench.repeats + 1):
        for name in PROGRAMS:
            seconds, states[name] = timed(partial(runs[name], states[name]))
            if repeat:  # the first repeat warms up
                steps[name].append(seconds / bench.steps)
    assert int(states[PROGRAMS[0]].generated[0]) == bench.new  # no row stopped early
    return prefills, steps, compiled


def _step_figures(
    batch: int, step: Mapping[str, float], floors: Mapping[str, float]
) -> dict[str, Any]:
    return {
        "step_seconds": step,
        "tokens_per_second": batch / step["median"],
        "floor_over_step": {to: floor / step["median"] for to, floor in floors.items()},
    }


def _program_figures(program: Any) -> dict[str, Any]:
    memory, text = program.memory_analysis(), program.as_text()
    traffic = summary(collectives(text, jax.sharding.get_mesh().shape))
    return {
        "collectives": {kind: each._asdict() for kind, each in traffic.items()},
        "operations": operations(text),
        "temporary_bytes": memory.temp_size_in_bytes,
        "argument_bytes": memory.argument_size_in_bytes,
    }


def _step(
    fixed: Any, config: DecoderConfig, steps: int, params: Any, state: DecodeState
) -> DecodeState:
    return decode(params, state, *fixed, config=config, chunk=steps)[0]


def _ratio(steps: Mapping[str, Sequence[float]], program: str, other: str) -> dict[str, float]:
    """Divide a program's step times by another's, pair by pair as they alternated."""
    return spread([a / b for a, b in zip(steps[program], steps[other], strict=True)])


def measure_scoring(bench: Bench, batch: int, width: int) -> dict[str, Any]:
    """Measure the log-likelihoods of ``batch`` rows of ``width`` tokens."""
    tokens = place(np.zeros((batch, width), np.int32), ("batch", "seq"))
    lengths = place(np.full(batch, width, np.int32), ("batch",))
    call = partial(token_scores, bench.params, tokens, lengths, None, None, config=bench.config)
    jax.block_until_ready(call())
    times = [timed(call)[0] for _ in range(bench.repeats)]
    memory = (
        token_scores.lower(bench.params, tokens, lengths, None, None, config=bench.config)
        .compile()
        .memory_analysis()
    )
    assert memory is not None
    return {
        "batch": batch,
        "width": width,
        "tokens_per_second": spread([batch * width / seconds for seconds in times]),
        "temporary_bytes": memory.temp_size_in_bytes,
        "device_memory": device_memory(),
    }


def table(result: Mapping[str, Any], before: Mapping[str, Any] | None = None) -> str:
    """Return the main figures, a line per batch and program, beside those of an earlier run."""
    lines = [
        f"{'batch':>5}  {'program':16} {'ms/step':>8} {'tokens/s':>9}  floor/step  prefill tok/s"
    ]
    earlier = {figures["batch"]: figures for figures in before["batches"]} if before else {}
    for figures in result["batches"]:
        live, capacity = figures["keys"]["live"], figures["keys"]["capacity"]
        floors = ", ".join(f"{to} {1e3 * s:.3f} ms" for to, s in figures["floor_seconds"].items())
        lines.append(f"{figures['batch']:>5}  {live:.0f} of {capacity} keys; floors: {floors}")
        for name, program in figures["programs"].items():
            shares = ", ".join(f"{to} {s:.0%}" for to, s in program["floor_over_step"].items())
            lines.append(
                f"{figures['batch']:>5}  {name:16} {1e3 * program['step_seconds']['median']:>8.3f} "
                f"{program['tokens_per_second']:>9,.0f}  {shares}  "
                f"{program['prefill_tokens_per_second']['median']:,.0f}"
            )
            old = earlier.get(figures["batch"], {}).get("programs", {}).get(name)
            if old:
                was, now = (x["step_seconds"]["median"] for x in (old, program))
                lines.append(f"       {'':16} {1e3 * was:>8.3f} before: {was / now:.2f} times")
        for name, ratio in figures["ratios"].items():
            lines.append(
                f"       {name} {ratio['median']:.3f} [{ratio['min']:.3f}, {ratio['max']:.3f}]"
            )
    return "\n".join(lines)


def _numbers(option: str, text: str, separator: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(separator)]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise UserError(f"{option} is {text!r}; give positive numbers with {separator!r} between")
    return numbers


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Parse, measure, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--like", type=Path, help="folder with a config.json; default: a small shape"
    )
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), help="default: bfloat16 on a GPU"
    )
    parser.add_argument("--batches", default="1,8,32,128", help="batch sizes, with commas")
    parser.add_argument("--prompt", type=int, default=256, help="tokens of every prompt")
    parser.add_argument("--steps", type=int, default=64, help="decode steps per measurement")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--keys", type=int, default=0, help="capacity of the cache, at least")
    parser.add_argument("--before", type=Path, help="JSON of an earlier run to compare with")
    parser.add_argument("--scoring", default="", help="also score BATCHxWIDTH tokens, e.g. 32x2048")
    parser.add_argument("--mesh", default="1,1,1", help="data,fsdp,tensor")
    parser.add_argument("--out", type=Path, help="JSON to write")
    args = parser.parse_args(argv)
    config = SMALL
    before = (
        read_json(args.before, dict[str, Any], "give a result of this benchmark")
        if args.before
        else None
    )
    if args.like:
        where = args.like / "config.json"
        config = read_config(where)
    device = jax.devices()[0]
    on_cpu = device.platform == "cpu"
    dtype = args.dtype or ("float32" if on_cpu else "bfloat16")
    layout = MeshConfig.parse(args.mesh)
    batches, scoring = _numbers("--batches", args.batches, ","), []
    if args.scoring:
        scoring = _numbers("--scoring", args.scoring, "x")
        if len(scoring) != 2:
            raise UserError(f"--scoring is {args.scoring!r}; give BATCHxWIDTH like 32x2048")
    for name in ("prompt", "steps", "repeats"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} is {getattr(args, name)}; give a positive number")
    mesh = layout.make()
    with jax.set_mesh(mesh):
        params = random_params(config, dtype, mesh)
        routing = Routing.create(RoutingConfig(), config.num_hidden_layers)
        bench = Bench(params, config, routing, args.prompt, args.steps, args.repeats, args.keys)
        bandwidth = {"measured": measure_bandwidth(2**28 if on_cpu else 2**31, dtype, 10)["median"]}
        rate = measure_rate(2048 if on_cpu else 8192, dtype, 10)["median"]
        known = [value for name, value in DATA_SHEET.items() if name in device.device_kind]
        bandwidth |= {"data sheet": known[0]} if known else {}
        result: dict[str, Any] = {
            "machine": describe_machine(),
            "device": device.device_kind,
            "mesh": stored(layout),
            "dtype": dtype,
            "config": stored(config),
            "prompt": args.prompt,
            "steps": args.steps,
            "repeats": args.repeats,
            "bandwidth_bytes_per_second": bandwidth,
            "operations_per_second": rate,
            "parameter_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(params)),
            "parameter_bytes_per_device": sum(map(local_bytes, jax.tree.leaves(params))),
            "batches": [],
        }
        for batch in batches:
            result["batches"].append(measure_batch(bench, batch, bandwidth, rate))
        if scoring:
            result["scoring"] = measure_scoring(bench, *scoring)
    print(table(result, before))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(args.out, result)
        print(f"wrote {args.out}")


if __name__ == "__main__":
    run_command(main, "nothing was written")
