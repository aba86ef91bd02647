"""Fixed decoding: how tokens are chosen and when a completion ends."""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jroute.errors import UserError

StopReason = Literal["end_token", "stop_string", "length"]


@dataclass(frozen=True)
class Decoding:
    """The decoding of a whole experiment; every arm uses the same.

    Attributes:
        temperature: 0 is greedy; otherwise logits are divided by it and sampled from.
        top_k: Keep the k most likely tokens; 0 keeps all.
        top_p: Keep the smallest set of most likely tokens whose probability reaches p.
        max_new_tokens: A completion is cut off after so many tokens.
        stop: Strings that end a completion; they are cut from its text.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    max_new_tokens: int = 64
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise UserError(
                f"decoding.temperature is {self.temperature}; it must be 0 (greedy) or positive"
            )
        if self.top_k < 0 or not 0 < self.top_p <= 1:
            raise UserError("decoding.top_k must be 0 or positive and decoding.top_p in (0, 1]")
        if self.max_new_tokens < 1:
            raise UserError(
                f"decoding.max_new_tokens is {self.max_new_tokens}; it must be at least 1"
            )
        if "" in self.stop:
            raise UserError(
                "decoding.stop holds an empty string, which would end every completion; remove it"
            )


@dataclass(frozen=True)
class Completion:
    """What one prompt gave.

    Attributes:
        tokens: Ids as generated, with the end token if one was reached, or up to the token that
            completed a stop string.
        text: Decoded without special tokens, cut before the first stop string.
        stop_reason: ``end_token``, ``stop_string`` or ``length`` (cut off).
    """

    tokens: tuple[int, ...]
    text: str
    stop_reason: StopReason


def choose(
    logits: Float[Array, "slots vocab"],
    seeds: Int[Array, " slots"],
    positions: Int[Array, " slots"],
    decoding: Decoding,
) -> Int[Array, " slots"]:
    """The next token of every row.

    A row's randomness comes from its own seed and position only, so it does not depend on its
    neighbours or on the slot it sits in.
    """
    if decoding.temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = logits / decoding.temperature
    if decoding.top_k:
        kth = jax.lax.top_k(logits, min(decoding.top_k, logits.shape[-1]))[0][:, -1:]
        logits = jnp.where(logits < kth, -jnp.inf, logits)
    if decoding.top_p < 1:
        ordered = jnp.flip(jnp.sort(logits, axis=-1), axis=-1)
        probabilities = jax.nn.softmax(ordered, axis=-1)
        before = jnp.cumsum(probabilities, axis=-1) - probabilities
        last = jnp.min(jnp.where(before < decoding.top_p, ordered, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits < last, -jnp.inf, logits)

    def draw(seed: Array, position: Array, row: Array) -> Array:
        return jax.random.categorical(jax.random.fold_in(jax.random.key(seed), position), row)

    return jax.vmap(draw)(seeds, positions, logits).astype(jnp.int32)
