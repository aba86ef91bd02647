"""skyrl's JAX Qwen3 (``skyrl.tx``) with its own generate.

Prompts are padded on the right to the longest of the batch; the library itself rounds the cache up
to its next size. Each row has its own limit there, but a batch runs until its longest row is done.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from skyrl.tinker import types  # pyright: ignore[reportMissingImports]
from skyrl.tx.models.configs import Qwen3Config  # pyright: ignore[reportMissingImports]
from skyrl.tx.models.qwen3 import Qwen3ForCausalLM  # pyright: ignore[reportMissingImports]
from skyrl.tx.utils.models import load_safetensors  # pyright: ignore[reportMissingImports]
from transformers import AutoConfig
from worker import Rows, padded, serve, static_groups, timed, versions

loaded: dict[str, Any] = {}


def load(model: str, dtype: str, threads: int) -> dict[str, Any]:
    """Read the model."""
    config = Qwen3Config(
        AutoConfig.from_pretrained(model),
        max_lora_adapters=1,
        max_lora_rank=1,
        shard_attention_heads=True,
    )
    kinds = (jax.sharding.AxisType.Auto,) * 2
    jax.set_mesh(jax.make_mesh((1, 1), ("fsdp", "tp"), axis_types=kinds))
    lm = Qwen3ForCausalLM(config, dtype=jnp.dtype(dtype), rngs=nnx.Rngs(0))
    load_safetensors(model, config, lm)
    loaded["model"] = lm
    return {
        "versions": versions("skyrl", "jax", "jaxlib", "flax", "numpy"),
        "threads": threads,
        "device": jax.devices()[0].device_kind,
    }


def _complete(prompts: Rows, new: list[int]) -> Rows:
    rows, mask = padded(prompts, left=False)
    sampling = [types.SamplingParams(max_tokens=n, temperature=0.0, seed=0) for n in new]
    return (
        loaded["model"]
        .generate(jnp.array(rows), jnp.array(mask), sampling_params=sampling)
        .generated_ids
    )


def generate(prompts: Rows, new: list[int], batch: int) -> dict[str, Any]:
    """Generate in static batches of ``batch`` rows."""
    return timed(_complete, prompts, new, static_groups(prompts, batch))


if __name__ == "__main__":
    serve({"load": load, "generate": generate})
