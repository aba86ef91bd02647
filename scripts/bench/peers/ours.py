"""jroute's engine: ``slots`` rows at a time, refilled as rows finish, or in static waves."""

import time
from typing import Any

import jax
import jax.numpy as jnp
from worker import Rows, serve, static_groups, timed, versions

import jroute
from jroute.generate.config import EngineConfig
from jroute.generate.decoding import Decoding
from jroute.generate.engine import Engine
from jroute.generate.requests import Progress, Request
from jroute.utils.keys import stored

loaded: dict[str, Any] = {}
engines: dict[str, Engine] = {}


def load(model: str, dtype: str, threads: int) -> dict[str, Any]:
    """Read the converted model."""
    loaded["lm"] = jroute.load(model, dtype=dtype)
    return {
        "versions": versions("jroute", "jax", "jaxlib", "flax", "numpy"),
        "threads": threads,
        "device": jax.devices()[0].device_kind,
        "engine": stored(EngineConfig()),
    }


def _engine(slots: int, cap: int, options: dict[str, Any]) -> Engine:
    key = repr((slots, cap, sorted(options.items())))
    if key not in engines:
        lm = loaded["lm"]
        engines[key] = Engine(
            lm.frozen._replace(end_token_ids=[-1]),  # no token ends a row
            Decoding(max_new_tokens=cap),
            EngineConfig(**{"slots": slots, **options}),
        )
    return engines[key]


def generate(
    prompts: Rows,
    new: list[int],
    batch: int,
    waves: bool = False,
    cap: int | None = None,
    engine: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Complete prompts.

    Args:
        prompts: Token ids.
        new: Tokens to generate for each prompt.
        batch: Slots of the engine.
        waves: Static batching: hand in ``batch`` requests, wait for all of them, and so on.
        cap: Most tokens of any completion, if more than this call generates.
        engine: Further fields of ``EngineConfig``.
    """
    made = _engine(batch, cap or max(new), engine or {})
    steps = live = 0

    def run(rows: Rows, wanted: list[int]) -> Rows:
        nonlocal steps, live
        seen: list[Progress] = []
        requests = [Request(row, None, limit=n) for row, n in zip(rows, wanted, strict=True)]
        completions = made.run(requests, progress=seen.append)
        steps, live = steps + seen[-1].steps, live + seen[-1].active_steps
        return [list(completion.tokens) for completion in completions]

    groups = static_groups(prompts, batch) if waves else [list(range(len(prompts)))]
    result = timed(run, prompts, new, groups)
    return result | {"row_steps": batch * steps, "live_row_steps": live}


def floor(repeats: int = 5) -> dict[str, Any]:
    """Return what bounds a decode step from below: bytes to read, and how fast this device copies.

    Returns:
        ``weight_bytes`` read in every step, ``cache_bytes_per_token``, and ``copy_bandwidth``:
        bytes read and written per second by a copy of a large array, the best of ``repeats``.
    """
    lm = loaded["lm"]
    c, leaves = lm.config, jax.tree.leaves(lm.params)
    weights = sum(leaf.nbytes for leaf in leaves)
    if not c.tie_word_embeddings:
        weights -= lm.params["embed_tokens"].nbytes  # only a few of its rows are read
    per_layer = 2 * c.num_key_value_heads * c.head_dim * leaves[0].dtype.itemsize
    large = jnp.ones(2**26 if jax.default_backend() == "cpu" else 2**29, jnp.float32)
    copy = jax.jit(lambda array: -array)
    times = []
    for _ in range(repeats + 1):  # the first copy compiles
        started = time.perf_counter()
        copy(large).block_until_ready()
        times.append(time.perf_counter() - started)
    return {
        "weight_bytes": weights,
        "cache_bytes_per_token": per_layer * c.num_hidden_layers,
        "copy_bandwidth": 2 * large.nbytes / min(times[1:]),
    }


def forget() -> dict[str, Any]:
    """Drop the engines made so far."""
    engines.clear()
    return {}


if __name__ == "__main__":
    serve({"load": load, "generate": generate, "floor": floor, "forget": forget})
