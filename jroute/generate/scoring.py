"""Log-likelihoods of given tokens, without ever holding ``[batch, seq, vocab]`` logits."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jroute.distributed.mesh import fetch, place, replicate
from jroute.generate.finite import not_finite
from jroute.generate.requests import FrozenModel
from jroute.generate.shapes import bucket, pad_rows
from jroute.model.config import DecoderConfig
from jroute.model.decoder import forward, unembed
from jroute.model.params import Params
from jroute.routing.mixing import Routing

TOKENS = 2048
"""Tokens whose logits are held at a time: a few times 2048 x vocab x 4 bytes."""


@partial(jax.jit, static_argnames=("config",))
def token_scores(
    params: Params,
    tokens: Int[Array, "batch seq"],
    lengths: Int[Array, " batch"],
    routing: Routing | None,
    gate: Float[Array, "batch layers"] | None,
    *,
    config: DecoderConfig,
) -> tuple[Float[Array, "batch seq"], Bool[Array, "batch seq"]]:
    """Score every token given those before it.

    Args:
        params: Model parameters.
        tokens: Right-padded rows.
        lengths: Number of tokens of each row.
        routing: Streams, or ``None`` for the plain model.
        gate: Mixing strength, with ``routing``.
        config: Shape of the model.

    Returns:
        Natural-log probability of each token, and whether it was the most likely one. Column 0
        and padding are 0 and ``True``. Logits are made ``TOKENS`` at a time.
    """
    columns = jnp.arange(tokens.shape[1])[None]
    real = columns < lengths[:, None]
    out = forward(params, config, tokens, jnp.where(real, columns, -1), routing=routing, gate=gate)

    batch, seq = tokens.shape
    width = min(max(TOKENS // batch, 1), seq)  # columns at a time, so that rows may be sharded
    chunks = -(-seq // width)

    def split(x: Array) -> Array:
        x = jnp.pad(x, ((0, 0), (0, chunks * width - seq)) + ((0, 0),) * (x.ndim - 2))
        return x.reshape(batch, chunks, width, *x.shape[2:]).swapaxes(0, 1)

    def columns_of(args: tuple[Array, Array]) -> tuple[Array, Array]:
        hidden, targets = args
        logits = unembed(params, config, hidden)
        chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        best = jnp.argmax(logits, axis=-1) == targets
        return chosen - jax.nn.logsumexp(logits, axis=-1), best

    targets = jnp.roll(tokens, -1, axis=1)  # what follows each token; the last column is dropped
    chunked = jax.lax.map(columns_of, (split(out.hidden), split(targets)))
    scores, greedy = (x.swapaxes(0, 1).reshape(batch, -1)[:, : seq - 1] for x in chunked)
    counted = real[:, 1:]
    scores = jnp.pad(jnp.where(counted, scores, 0.0), ((0, 0), (1, 0)))
    return scores, jnp.pad(greedy | ~counted, ((0, 0), (1, 0)), constant_values=True)


def score_pairs(
    model: FrozenModel,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    gates: Float[np.ndarray, "pairs layers"] | None,
    *,
    slots: int,
) -> list[tuple[float, bool]]:
    """Score the continuation of every pair of (context ids, continuation ids), on the mesh set.

    Args:
        model: The model.
        pairs: Token ids; neither side may be empty.
        gates: Mixing strength of each pair; ``None`` for the plain model.
        slots: Pairs that run at a time.

    Returns:
        For each pair the summed natural-log probability of the continuation given the context,
        and whether greedy decoding would have produced it.

    Raises:
        NotFiniteError: The logits that score a continuation are not finite.
    """
    groups: dict[int, list[int]] = {}
    for i, (context, continuation) in enumerate(pairs):
        groups.setdefault(bucket(len(context) + len(continuation)), []).append(i)
    results: dict[int, tuple[float, bool]] = {}
    for width, members in sorted(groups.items()):
        for start in range(0, len(members), slots):
            indices = members[start : start + slots]
            padding = [indices[0]] * (slots - len(indices))
            batch_gates = None if gates is None else gates[[*indices, *padding]]
            batch = [pairs[i] for i in indices]
            scores, greedy = _score_batch(model, batch, batch_gates, (slots, width))
            for row, i in enumerate(indices):
                context, continuation = (len(ids) for ids in pairs[i])
                part = slice(context, context + continuation)
                if not np.isfinite(scores[row, part]).all():
                    raise not_finite(
                        "the logits of pair",
                        i,
                        model.params,
                        model.config,
                        [*pairs[i][0], *pairs[i][1]],
                        routing=model.routing,
                        gate=None if gates is None else gates[i],
                    )
                results[i] = (
                    float(scores[row, part].sum(dtype=np.float64)),
                    bool(greedy[row, part].all()),
                )
    return [results[i] for i in range(len(pairs))]


def _score_batch(
    model: FrozenModel,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    gates: Float[np.ndarray, "slots layers"] | None,
    shape: tuple[int, int],
) -> tuple[Float[np.ndarray, "slots width"], Bool[np.ndarray, "slots width"]]:
    """Compute ``token_scores`` of one batch of pairs, padded to ``shape``."""
    rows = [[*context, *continuation] for context, continuation in pairs]
    tokens, lengths = pad_rows(rows, shape)
    return fetch(
        token_scores(
            model.params,
            place(tokens, ("batch", "seq")),
            place(lengths, ("batch",)),
            None if gates is None else replicate(model.routing),
            None if gates is None else place(gates, ("batch", "layers")),
            config=model.config,
        )
    )
