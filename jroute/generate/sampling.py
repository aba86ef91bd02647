"""Choice of the next token: strategies that shape the distribution, and the draw from it.

A strategy is a small frozen type that maps logits to the logits of the distribution to draw from.
Strategies apply in order; ``Decoding.strategies`` has the usual one: temperature, top-k, top-p,
min-p.
"""

import hashlib
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Logprobs = Literal["raw", "truncated"]
"""Which distribution a log-probability is of: the model's own, or the one drawn from."""


def hash_text(text: str) -> int:
    """Hash a text to 31 bits, the same on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


@runtime_checkable
class Strategy(Protocol):
    """A map from logits to logits; hashable, because it is part of the key of a program."""

    def __call__(self, logits: Float[Array, "rows vocab"]) -> Float[Array, "rows vocab"]:
        """Return the logits of the distribution to draw from; -inf is never drawn."""
        ...


@dataclass(frozen=True)
class Greedy:
    """Only the most likely token, of equal ones the first."""

    def __call__(self, logits: Float[Array, "rows vocab"]) -> Float[Array, "rows vocab"]:
        """Return 0 for the most likely token and -inf for all others."""
        best = jnp.argmax(logits, axis=-1, keepdims=True)
        chosen = jax.lax.broadcasted_iota(best.dtype, logits.shape, 1) == best
        return jnp.where(chosen, 0.0, -jnp.inf)


@dataclass(frozen=True)
class Temperature:
    """Logits divided by ``value``."""

    value: float

    def __call__(self, logits: Float[Array, "rows vocab"]) -> Float[Array, "rows vocab"]:
        """Return the scaled logits."""
        return logits / self.value


@dataclass(frozen=True)
class TopK:
    """The ``k`` most likely tokens."""

    k: int

    def __call__(self, logits: Float[Array, "rows vocab"]) -> Float[Array, "rows vocab"]:
        """Return -inf for all tokens less likely than the ``k``-th."""
        kth = jax.lax.top_k(logits, min(self.k, logits.shape[-1]))[0][:, -1:]
        return jnp.where(logits < kth, -jnp.inf, logits)


@dataclass(frozen=True)
class TopP:
    """The smallest set of most likely tokens whose probability reaches ``p``.

    Holtzman et al. 2020, "The curious case of neural text degeneration".
    """

    p: float

    def __call__(self, logits: Float[Array, "rows vocab"]) -> Float[Array, "rows vocab"]:
        """Return -inf for all tokens outside the set."""
        ordered = jnp.flip(jnp.sort(logits, axis=-1), axis=-1)
        probabilities = jax.nn.softmax(ordered, axis=-1)
        before = jnp.cumsum(probabilities, axis=-1) - probabilities
        last = jnp.min(jnp.where(before < self.p, ordered, jnp.inf), axis=-1, keepdims=True)
        return jnp.where(logits < last, -jnp.inf, logits)


@dataclass(frozen=True)
class MinP:
    """Tokens at least ``p`` times as likely as the most likely one.

    Nguyen et al. 2024, "Turning up the heat: min-p sampling".
    """

    p: float

    def __call__(self, logits: Float[Array, "rows vocab"]) -> Float[Array, "rows vocab"]:
        """Return -inf for all less likely tokens."""
        least = jnp.max(logits, axis=-1, keepdims=True) + jnp.log(self.p)
        return jnp.where(logits < least, -jnp.inf, logits)


@dataclass(frozen=True)
class Choice:
    """How a compiled program chooses tokens.

    Attributes:
        strategies: Applied one after the other.
        minimum: Number of tokens before which no end token is chosen.
        logprobs: Which log-probabilities of the chosen tokens to return, if any.
        margins: Return by how much the chosen token won.
    """

    strategies: tuple[Strategy, ...] = (Greedy(),)
    minimum: int = 0
    logprobs: Logprobs | None = None
    margins: bool = False


NOT_FINITE = -2
"""Stands for a token where the logits are not finite."""


class Chosen(NamedTuple):
    """One token for every row.

    Attributes:
        token: Its id.
        finite: Whether its score is finite. It is the largest, so it is not finite if a score is
            NaN or plus infinity, or if all are minus infinity; single scores of minus infinity are
            tokens that are never drawn.
        logprob: Its natural-log probability, if requested.
        margin: How far its score lies above the next best one, if requested. Scores are the logits;
            where a token is drawn, those of the distribution plus Gumbel noise, and the draw takes
            the largest. A small margin is a near-tie that rounding can decide.
    """

    token: Int[Array, " rows"]
    finite: Bool[Array, " rows"]
    logprob: Float[Array, " rows"] | None
    margin: Float[Array, " rows"] | None


def choose(
    logits: Float[Array, "rows vocab"],
    seeds: Int[Array, " rows"],
    positions: Int[Array, " rows"],
    choice: Choice,
    *,
    generated: Int[Array, " rows"] | None = None,
    ends: Int[Array, " ends"] | None = None,
) -> Chosen:
    """Choose the next token of every row.

    The randomness of a row depends only on its seed and position, not on its neighbors or slot.

    Args:
        logits: Logits of the next token, float32.
        seeds: Seeds of the rows' randomness.
        positions: Position of the next token in its row.
        choice: How to choose.
        generated: Number of tokens a row has generated so far; for ``choice.minimum``.
        ends: End tokens; for ``choice.minimum``. Ids outside the vocabulary have no effect.
    """
    allowed = logits
    if choice.minimum and generated is not None and ends is not None:
        allowed = jnp.where(_too_early(logits, generated, ends, choice.minimum), -jnp.inf, logits)
    greedy = any(isinstance(strategy, Greedy) for strategy in choice.strategies)
    drawn_from = scores = allowed
    if not greedy or choice.logprobs == "truncated":
        for strategy in choice.strategies:
            drawn_from = strategy(drawn_from)
    if not greedy:

        def noise(seed: Array, position: Array) -> Array:
            key = jax.random.fold_in(jax.random.key(seed), position)
            return jax.random.gumbel(key, logits.shape[-1:], logits.dtype)

        scores = jax.vmap(noise)(seeds, positions) + drawn_from
    best, token = _largest(scores)
    logprob = margin = None
    if choice.logprobs is not None:
        reported = logits if choice.logprobs == "raw" else drawn_from
        chosen = jnp.take_along_axis(reported, token[:, None], axis=-1)[:, 0]
        logprob = chosen - jax.nn.logsumexp(reported, axis=-1)
    if choice.margins:
        top = jax.lax.top_k(scores, 2)[0]
        margin = top[:, 0] - top[:, 1]
    return Chosen(token, jnp.isfinite(best), logprob, margin)


def _largest(
    scores: Float[Array, "rows vocab"],
) -> tuple[Float[Array, " rows"], Int[Array, " rows"]]:
    """Return the largest score of every row, NaN if there is one, and its first index.

    This is the reduction that ``jnp.argmax`` is made of, which does not return the score: nothing
    more is computed, or sent between devices, than for the index alone.
    """

    def larger(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
        ahead = (a[0] > b[0]) | (a[0] != a[0])
        first = ahead | ((a[0] == b[0]) & (a[1] < b[1]))
        return jnp.where(ahead, a[0], b[0]), jnp.where(first, a[1], b[1])

    indices = jax.lax.broadcasted_iota(jnp.int32, scores.shape, 1)
    start = jnp.array(-jnp.inf, scores.dtype), jnp.int32(0)
    return jax.lax.reduce((scores, indices), start, larger, (1,))


def _too_early(
    logits: Float[Array, "rows vocab"],
    generated: Int[Array, " rows"],
    ends: Int[Array, " ends"],
    minimum: int,
) -> Bool[Array, "rows vocab"]:
    """Mark end tokens that would come too early."""
    vocabulary = jnp.arange(logits.shape[-1], dtype=ends.dtype)
    ending = jnp.any(vocabulary[None] == ends[:, None], axis=0)
    return (generated < minimum)[:, None] & ending[None]
