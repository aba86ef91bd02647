"""Log-likelihoods of given tokens, without ever holding ``[batch, seq, vocab]`` logits."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jroute.model.config import Qwen3Config
from jroute.model.decoder import forward, unembed
from jroute.model.params import Params
from jroute.routing.mixing import Routing

TOKENS = 2048
"""Tokens whose logits are held at a time: they take 2048 x vocab x 4 bytes, and that few times."""


@partial(jax.jit, static_argnames=("config",))
def token_scores(
    params: Params,
    tokens: Int[Array, "batch seq"],
    lengths: Int[Array, " batch"],
    routing: Routing | None,
    gate: Float[Array, "batch layers"] | None,
    *,
    config: Qwen3Config,
) -> tuple[Float[Array, "batch seq"], Bool[Array, "batch seq"]]:
    """Scores every token given those before it.

    Args:
        params: Model parameters.
        tokens: Right-padded rows.
        lengths: Real tokens of each row.
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

    targets = jnp.roll(
        tokens, -1, axis=1
    )  # what follows each token; the last column counts nothing
    found = jax.lax.map(columns_of, (split(out.hidden), split(targets)))
    scores, greedy = (x.swapaxes(0, 1).reshape(batch, -1)[:, : seq - 1] for x in found)
    counted = real[:, 1:]
    scores = jnp.pad(jnp.where(counted, scores, 0.0), ((0, 0), (1, 0)))
    return scores, jnp.pad(greedy | ~counted, ((0, 0), (1, 0)), constant_values=True)
