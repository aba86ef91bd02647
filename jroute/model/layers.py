"""The layers of the decoder: RMS norm, attention, MLP, and the block made of them.

Flax NNX modules define and name the parameters. They run on parameters merged in by
``jroute.model.decoder``, inside the trace of a program.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Initializer
from jaxtyping import Array, Float, Int

from jroute.distributed.mesh import constrain
from jroute.model.attention import KeyValue, attend, attend_cached, causal_mask, update_cache
from jroute.model.config import DecoderConfig
from jroute.model.rope import apply_rope

STATE_AXES = ("batch", "seq", "embed")
QUERY_AXES = ("batch", "seq", "heads", "head_dim")
KEY_AXES = ("batch", "seq", "kv_heads", "head_dim")
"""Logical axes of the activations (see ``jroute.distributed.mesh``)."""


def rms_norm(
    x: Float[Array, "*batch dim"], weight: Float[Array, " dim"], eps: float
) -> Float[Array, "*batch dim"]:
    """Normalise by the root mean square (Zhang & Sennrich 2019), in float32 whatever the dtype.

    The sum of squares is a dot product: for the CPU, XLA drops barriers before it fuses, and would
    sum in another order where another program computes ``x`` in the same loop.

    Where the sum of squares overflows the result is NaN, so that it is noticed; without the select
    it would be 0 and pass for a state.
    """
    wide = x.astype(jnp.float32)
    total = jnp.einsum("...e,...e->...", wide, wide, precision="highest")[..., None]
    scale = jnp.where(total < jnp.inf, jax.lax.rsqrt(total / x.shape[-1] + eps), jnp.nan)
    wide = wide * scale
    return jnp.broadcast_to(weight, x.shape) * wide.astype(x.dtype)


def parameter(
    config: DecoderConfig,
    rngs: nnx.Rngs,
    axes: tuple[str, ...],
    init: Initializer = nnx.initializers.ones,
) -> nnx.Param:
    """Declare a parameter once; shape, initial values, and sharding all follow from it.

    Args:
        config: Sizes of the axes.
        rngs: Source of the initial values.
        axes: Logical axes of the array.
        init: Initial values; those of a norm are 1.
    """
    shape = tuple(config.axis_sizes[axis] for axis in axes)
    return nnx.Param(init(rngs.params(), shape, jnp.float32), axes=axes)


def summing(inputs: int) -> Initializer:
    """Return initial values of a projection that sums so many inputs: its outputs vary by 1."""
    return nnx.initializers.normal(1 / inputs**0.5)


ZEROS = nnx.initializers.zeros
"""Initial values of a bias."""


class Attention(nnx.Module):
    """Self-attention; its family decides whether projections have biases and heads are normed."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        embed, out = config.hidden_size, config.num_attention_heads * config.head_dim
        self.q_proj = parameter(config, rngs, ("embed", "heads", "head_dim"), summing(embed))
        self.k_proj = parameter(config, rngs, ("embed", "kv_heads", "head_dim"), summing(embed))
        self.v_proj = parameter(config, rngs, ("embed", "kv_heads", "head_dim"), summing(embed))
        self.o_proj = parameter(config, rngs, ("heads", "head_dim", "embed"), summing(out))
        self.family = config.architecture
        if self.family.biases:
            self.q_bias = parameter(config, rngs, ("heads", "head_dim"), ZEROS)
            self.k_bias = parameter(config, rngs, ("kv_heads", "head_dim"), ZEROS)
            self.v_bias = parameter(config, rngs, ("kv_heads", "head_dim"), ZEROS)
        if self.family.head_norms:
            self.q_norm = parameter(config, rngs, ("head_dim",))
            self.k_norm = parameter(config, rngs, ("head_dim",))
        self.eps = config.rms_norm_eps

    def __call__(
        self,
        x: Float[Array, "batch seq embed"],
        cos: Float[Array, "batch seq head_dim"],
        sin: Float[Array, "batch seq head_dim"],
        positions: Int[Array, "batch seq"],
        past: KeyValue | None,
    ) -> tuple[Float[Array, "batch seq embed"], Float[Array, "batch seq heads head_dim"], KeyValue]:
        """Attend.

        Args:
            x: Normed states.
            cos: Cosines of the rotation.
            sin: Sines of the rotation.
            positions: Position of every token; padding is -1.
            past: This layer's part of the cache, to which the new keys are added, or ``None``.

        Returns:
            The update, the queries, and the keys and values they attended to.
        """
        query, key, value = self._project(x)
        query, key = apply_rope(query, cos, sin), apply_rope(key, cos, sin)
        if past is None:
            kv = KeyValue(key, value)
            attended = attend(query, key, value, causal_mask(positions, positions))
        else:
            kv = update_cache(past, KeyValue(key, value), positions)
            attended = attend_cached(query, kv.key, kv.value, positions)
        # One axis to sum over: with two XLA would transpose the weight at every step on a CPU.
        merged = constrain(attended, QUERY_AXES).reshape(*x.shape[:2], -1)
        update = constrain(merged @ self.o_proj[...].reshape(merged.shape[-1], -1), STATE_AXES)
        return update, query, kv

    def _project(
        self, x: Float[Array, "batch seq embed"]
    ) -> tuple[
        Float[Array, "batch seq heads head_dim"],
        Float[Array, "batch seq kv_heads head_dim"],
        Float[Array, "batch seq kv_heads head_dim"],
    ]:
        """Return queries, keys and values, before the rotation."""
        query = constrain(jnp.einsum("bse,ehd->bshd", x, self.q_proj[...]), QUERY_AXES)
        key = constrain(jnp.einsum("bse,ehd->bshd", x, self.k_proj[...]), KEY_AXES)
        value = constrain(jnp.einsum("bse,ehd->bshd", x, self.v_proj[...]), KEY_AXES)
        if self.family.biases:
            query += self.q_bias[...][None, None]
            key += self.k_bias[...][None, None]
            value += self.v_bias[...][None, None]
        if self.family.head_norms:
            query = rms_norm(query, self.q_norm[...], self.eps)
            key = rms_norm(key, self.k_norm[...], self.eps)
        return query, key, value


class MLP(nnx.Module):
    """SwiGLU feed-forward network (Shazeer 2020)."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        embed, wide = config.hidden_size, config.intermediate_size
        self.gate_proj = parameter(config, rngs, ("embed", "mlp"), summing(embed))
        self.up_proj = parameter(config, rngs, ("embed", "mlp"), summing(embed))
        self.down_proj = parameter(config, rngs, ("mlp", "embed"), summing(wide))

    def __call__(self, x: Float[Array, "batch seq embed"]) -> Float[Array, "batch seq embed"]:
        """Return the update of normed states."""
        hidden = jax.nn.silu(x @ self.gate_proj[...]) * (x @ self.up_proj[...])
        hidden = constrain(hidden, ("batch", "seq", "mlp"))
        return constrain(hidden @ self.down_proj[...], STATE_AXES)


class Block(nnx.Module):
    """One pre-norm decoder block."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        self.input_norm = parameter(config, rngs, ("embed",))
        self.attention = Attention(config, rngs)
        self.post_attention_norm = parameter(config, rngs, ("embed",))
        self.mlp = MLP(config, rngs)
        self.eps = config.rms_norm_eps

    def attend(
        self,
        x: Float[Array, "batch seq embed"],
        cos: Float[Array, "batch seq head_dim"],
        sin: Float[Array, "batch seq head_dim"],
        positions: Int[Array, "batch seq"],
        past: KeyValue | None,
    ) -> tuple[Float[Array, "batch seq embed"], Float[Array, "batch seq heads head_dim"], KeyValue]:
        """Return attention's update of ``x``, its queries, and their keys and values."""
        normed = rms_norm(x, self.input_norm[...], self.eps)
        return self.attention(normed, cos, sin, positions, past)

    def feed_forward(self, x: Float[Array, "batch seq embed"]) -> Float[Array, "batch seq embed"]:
        """Return the MLP's update of ``x``."""
        return self.mlp(rms_norm(x, self.post_attention_norm[...], self.eps))
