"""google-tunix's own sampler over its Qwen3.

The sampler takes strings, so ids travel through a tokenizer that reads and writes numbers. Prompts
are padded on the left to the longest of the batch, and the cache holds exactly prompt and
completion. A row cannot leave a batch, so every batch runs to its longest completion. Attention
ignores ``rope_theta`` and always uses 1e6, so tokens are right for such models only.
"""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from tunix.generate.sampler import CacheConfig, Sampler  # pyright: ignore[reportMissingImports]
from tunix.models.qwen3 import model as qwen3  # pyright: ignore[reportMissingImports]
from tunix.models.qwen3 import params  # pyright: ignore[reportMissingImports]
from worker import Rows, serve, static_groups, timed, versions

loaded: dict[str, Any] = {}
samplers: dict[int, Sampler] = {}
NO_TOKEN = -1  # pads prompts; no model has such an id


class Numbers:
    """A tokenizer of texts like ``12 7 1033``."""

    def encode(self, text: str) -> list[int]:
        """Return the numbers."""
        return [int(word) for word in text.split()]

    def decode(self, ids: list[int]) -> str:
        """Return nothing: only ids are needed."""
        return ""

    def bos_id(self) -> None:
        """Return nothing: no token begins a text."""

    def eos_id(self) -> int:
        """Return an id that is never generated."""
        return NO_TOKEN - 1

    def pad_id(self) -> int:
        """Return an id that is never generated."""
        return NO_TOKEN


def load(model: str, dtype: str, threads: int) -> dict[str, Any]:
    """Read the model."""
    c = json.loads((Path(model) / "config.json").read_text())
    config = qwen3.ModelConfig(
        num_layers=c["num_hidden_layers"],
        vocab_size=c["vocab_size"],
        embed_dim=c["hidden_size"],
        hidden_dim=c["intermediate_size"],
        num_heads=c["num_attention_heads"],
        head_dim=c["head_dim"],
        num_kv_heads=c["num_key_value_heads"],
        rope_theta=int(c["rope_theta"]),
        norm_eps=c["rms_norm_eps"],
        use_tied_embedding=c["tie_word_embeddings"],
        dtype=jnp.dtype(dtype),
        param_dtype=jnp.dtype(dtype),
    )
    loaded["model"] = params.create_model_from_safe_tensors(
        model, config, mesh=None, dtype=jnp.dtype(dtype)
    )
    loaded["config"] = config
    return {
        "versions": versions("google-tunix", "jax", "jaxlib", "flax", "numpy"),
        "threads": threads,
        "device": jax.devices()[0].device_kind,
    }


def _complete(prompts: Rows, new: list[int]) -> Rows:
    width, steps, c = max(map(len, prompts)), max(new), loaded["config"]
    if width + steps not in samplers:
        cache = CacheConfig(width + steps, c.num_layers, c.num_kv_heads, c.head_dim)
        samplers[width + steps] = Sampler(loaded["model"], Numbers(), cache)
    out = samplers[width + steps](
        [" ".join(map(str, row)) for row in prompts],
        max_generation_steps=steps,
        max_prompt_length=width,
        eos_tokens=[NO_TOKEN - 1],
    )
    return [row.tolist() for row in out.tokens]


def generate(prompts: Rows, new: list[int], batch: int) -> dict[str, Any]:
    """Generate in static batches of ``batch`` rows."""
    return timed(_complete, prompts, new, static_groups(prompts, batch))


if __name__ == "__main__":
    serve({"load": load, "generate": generate})
