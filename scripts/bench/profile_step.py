"""Profile a decode step: the whole step, its matrix products, its attention.

    python scripts/bench/profile_step.py --out scripts/results/profile_cpu.json
    python scripts/bench/profile_step.py --shape 4b --dtype bfloat16 --rows 1,8,64,128 --context 512

``products`` multiplies rows of one token by every weight of the model, in the order of the blocks,
and does nothing else: no engine takes less time with this runtime. ``attention`` reads a cache of
``--context`` positions in every layer. All three take turns, round by round. Cores are processor
seconds of all threads over seconds of the wall; the remainder of a step is norms, rotation, writing
the cache, and what cannot overlap. Weights are random.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jroute.generate.programs import DecodeState, decode, empty, unstack
from jroute.model.attention import attend_cached
from jroute.model.config import DecoderConfig
from jroute.model.decoder import unembed
from jroute.model.params import Params
from jroute.utils.cli import command, run_command
from jroute.utils.errors import UserError
from jroute.utils.files import write_json
from jroute.utils.machine import describe_machine
from scripts.bench.measurement import random_params
from scripts.bench.peers.shapes import SHAPES

STEPS = 16
"""Steps of one measurement."""


@partial(jax.jit, static_argnames="config")
def products(params: Params, x: jax.Array, *, config: DecoderConfig) -> jax.Array:
    """Compute every matrix product of ``STEPS`` steps, in the order of the model."""

    def flat(weight: jax.Array, inputs: int) -> jax.Array:
        return weight.reshape(inputs, -1)

    def step(_: Any, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        for block in params["blocks"]:
            attention, mlp = block["attention"], block["mlp"]
            heads = x @ flat(attention["q_proj"], width)
            for name in ("k_proj", "v_proj"):  # must be made, but may not change the values
                made = x @ flat(attention[name], width)
                heads = heads + 1e-9 * made.sum(axis=-1, keepdims=True)
            x = x + heads @ flat(attention["o_proj"], heads.shape[-1])
            x = x + (jax.nn.silu(x @ mlp["gate_proj"]) * (x @ mlp["up_proj"])) @ mlp["down_proj"]
            x = x / jnp.maximum(1, jnp.abs(x).max(axis=-1, keepdims=True))
        top = unembed(params, config, x).argmax(axis=-1, keepdims=True)
        return x + 1e-9 * top.astype(x.dtype)

    return jax.lax.fori_loop(0, STEPS, step, x)


@partial(jax.jit, static_argnames="config")
def attention(
    state: DecodeState, query: jax.Array, positions: jax.Array, *, config: DecoderConfig
) -> jax.Array:
    """Attend to a filled cache for ``STEPS`` steps, layer after layer."""

    def step(_: Any, query: jax.Array) -> jax.Array:
        for layer in state.cache:
            query = query + attend_cached(query, layer.key, layer.value, positions)
        return query / config.num_hidden_layers

    return jax.lax.fori_loop(0, STEPS, step, query)


def sides(
    params: Params, config: DecoderConfig, rows: int, context: int
) -> dict[str, Callable[[], Any]]:
    """Return the functions to measure, ready to be called."""
    dtype = params["embed_tokens"].dtype
    shape = {"slots": rows, "capacity": context, "routed": False, "unroll": True}
    state = empty(params, config=config, **shape)
    busy = {
        "lengths": jnp.full(rows, context - STEPS - 1, jnp.int32),
        "generated": jnp.ones(rows, jnp.int32),
        "limits": jnp.full(rows, context, jnp.int32),
        "done": jnp.zeros(rows, bool),
    }
    ends = jnp.array([-1], jnp.int32)
    x = jax.random.normal(jax.random.key(1), (rows, config.hidden_size), jnp.float32).astype(dtype)
    query = jnp.ones((rows, 1, config.num_attention_heads, config.head_dim), dtype)
    positions = jnp.full((rows, 1), context - 1, jnp.int32)
    held = [state]

    def step() -> Any:
        held[0], outputs = decode(
            params, held[0]._replace(**busy), ends, config=config, chunk=STEPS
        )
        busy.update({name: jnp.copy(value) for name, value in kept.items()})  # donated
        return outputs

    kept = {name: jnp.copy(value) for name, value in busy.items()}
    still = empty(params, config=config, **shape)
    return {
        "step": step,
        "products": lambda: products(params, x, config=config),
        "attention": lambda: attention(still, query, positions, config=config),
    }


def measure(calls: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, Any]:
    """Measure milliseconds and cores of a step of each side, in turns after a warm-up round."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for _ in range(rounds + 1):
        for name, run in calls.items():
            wall, processor = time.perf_counter(), time.process_time()
            jax.block_until_ready(run())
            times[name].append((time.perf_counter() - wall, time.process_time() - processor))
    result = {}
    for name, each in times.items():
        walls = [1e3 * wall / STEPS for wall, _ in each[1:]]
        result[name] = {
            "milliseconds": statistics.median(walls),
            "least": min(walls),
            "most": max(walls),
            "cores": statistics.median(busy / wall for wall, busy in each[1:]),
        }
    return result


def _numbers(text: str) -> list[int]:
    if not all(part.isdecimal() and int(part) for part in text.split(",")):
        raise UserError(f"--rows is {text!r}; give positive numbers with commas")
    return [int(part) for part in text.split(",")]


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Parse, measure, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, default="42m")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"))
    parser.add_argument("--rows", default="1,16,64", help="with commas")
    parser.add_argument("--context", type=int, default=192, help="positions of the cache")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(argv)
    rows = _numbers(args.rows)
    if args.context <= STEPS + 1 or args.rounds < 1:
        raise UserError(f"give --context over {STEPS + 1} and --rounds of at least 1")
    shape = SHAPES[args.shape]
    dtype = args.dtype or shape.dtype
    params = unstack(random_params(shape.config, dtype, None))
    result: dict[str, Any] = {
        "machine": describe_machine(),
        "threads": len(os.sched_getaffinity(0)),
        "settings": {**vars(args), "dtype": dtype, "out": None},
        "rows": {},
    }
    for count in rows:
        timings = measure(sides(params, shape.config, count, args.context), args.rounds)
        result["rows"][str(count)] = timings
        print(f"{count} rows", flush=True)
        for name, each in timings.items():
            line = "{:10} {milliseconds:8.2f} ms [{least:.2f}, {most:.2f}]  {cores:.2f} cores"
            print("  " + line.format(name, **each), flush=True)
    if args.out is not None:
        write_json(args.out, result, indent=1)
        print(f"wrote {args.out}")


if __name__ == "__main__":
    run_command(main, "nothing was written")
