"""The key-value cache of decoding: one pair of arrays per layer, index = position in the row."""

import jax.numpy as jnp

from jroute.model.qwen3 import KeyValue

Cache = tuple[KeyValue, ...]


def from_prefill(kv: KeyValue, length: int) -> Cache:
    """Splits the stacked keys of a prefill into layers, with room for ``length`` positions.

    Args:
        kv: Keys and values ``[layers, batch, seq, kv_heads, head_dim]`` of right-padded prompts.
        length: Positions of the cache, at least ``seq``. What lies beyond a row's own length
            is never attended to before it has been overwritten.
    """
    room = [(0, 0), (0, length - kv.key.shape[2]), (0, 0), (0, 0)]
    return tuple(
        KeyValue(jnp.pad(key, room), jnp.pad(value, room))
        for key, value in zip(kv.key, kv.value, strict=True)
    )
