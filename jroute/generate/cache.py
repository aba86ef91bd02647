"""The key-value cache of decoding: index = position in the row."""

import jax.numpy as jnp

from jroute.mesh import constrain
from jroute.model.qwen3 import KeyValue

Cache = KeyValue | tuple[KeyValue, ...]
"""Keys and values of all layers: stacked, to scan over, or one pair per layer."""

AXES = ("layers", "batch", "seq", "kv_heads", "head_dim")


def from_prefill(kv: KeyValue, length: int, *, stacked: bool = False) -> Cache:
    """Makes the cache of a prefill, with room for ``length`` positions.

    Args:
        kv: Keys and values ``[layers, batch, seq, kv_heads, head_dim]`` of right-padded prompts.
        length: Positions of the cache, at least ``seq``. What lies beyond a row's own length
            is never attended to before it has been overwritten.
        stacked: Keep the layers in one array; otherwise they are taken apart.
    """
    room = [(0, 0), (0, 0), (0, length - kv.key.shape[2]), (0, 0), (0, 0)]
    grown = KeyValue(*(constrain(jnp.pad(part, room), AXES) for part in kv))
    if stacked:
        return grown
    return tuple(KeyValue(key, value) for key, value in zip(*grown, strict=True))
