"""What the benchmarks of the decoder share: a small shape, random weights, clocks."""

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jroute.distributed.mesh import shardings
from jroute.model.config import DecoderConfig
from jroute.model.params import abstract_params, logical_axes

SMALL = DecoderConfig(
    vocab_size=32_768,
    hidden_size=512,
    intermediate_size=1536,
    num_hidden_layers=8,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=64,
    rms_norm_eps=1e-6,
    rope_theta=1e6,
    tie_word_embeddings=True,
    max_position_embeddings=32_768,
)


def random_params(config: DecoderConfig, dtype: str, mesh: jax.sharding.Mesh | None) -> Any:
    """Return random weights of a trained model's size, each made on its devices."""
    shapes = abstract_params(config, dtype)
    leaves, tree = jax.tree.flatten(shapes)
    placed = [None] * len(leaves)
    if mesh is not None:
        placed = jax.tree.leaves(shardings(logical_axes(config), shapes, mesh))

    def leaf(shape: jax.ShapeDtypeStruct, sharding: Any, key: jax.Array) -> jax.Array:
        scale = 0.02 if shape.size > 10**5 else 1.0
        make = partial(jax.random.uniform, shape=shape.shape, dtype=shape.dtype)
        return jax.jit(lambda key: make(key, minval=-scale, maxval=scale), out_shardings=sharding)(
            key
        )

    keys = jax.random.split(jax.random.key(0), len(leaves))
    return tree.unflatten([leaf(*each) for each in zip(leaves, placed, keys, strict=True)])


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds of a call until its result is ready, and the result."""
    started = time.perf_counter()
    result = jax.block_until_ready(call())
    return time.perf_counter() - started, result


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return median, least and greatest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def measure_bandwidth(size: int, dtype: str, repeats: int) -> dict[str, float]:
    """Measure the bytes per second of a matrix-vector product with a matrix of ``size`` bytes."""
    columns = 4096
    matrix = jnp.ones((size // jnp.dtype(dtype).itemsize // columns, columns), dtype)
    product = jax.jit(lambda matrix, vector: matrix @ vector)
    call = partial(product, matrix, jnp.ones(columns, dtype))
    jax.block_until_ready(call())
    return spread([matrix.nbytes / timed(call)[0] for _ in range(repeats)])


def measure_rate(size: int, dtype: str, repeats: int) -> dict[str, float]:
    """Measure the operations per second of a product of two square matrices of this size."""
    matrix = jnp.ones((size, size), dtype)
    call = partial(jax.jit(jnp.matmul), matrix, matrix)
    jax.block_until_ready(call())
    return spread([2 * size**3 / timed(call)[0] for _ in range(repeats)])


def device_memory() -> dict[str, int]:
    """Return the bytes in use, now and at most, of the first device, where it reports them."""
    stats = jax.local_devices()[0].memory_stats() or {}
    names = ("bytes_in_use", "peak_bytes_in_use", "bytes_limit")
    return {name: int(stats[name]) for name in names if name in stats}
