"""Log-likelihoods of given tokens, without ever holding ``[batch, seq, vocab]`` logits."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jroute.model.config import Qwen3Config
from jroute.model.qwen3 import Params, forward, unembed
from jroute.model.routing import Routing


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
        and padding are 0 and ``True``. Logits are made one row at a time.
    """
    columns = jnp.arange(tokens.shape[1])[None]
    real = columns < lengths[:, None]
    out = forward(params, config, tokens, jnp.where(real, columns, -1), routing=routing, gate=gate)

    def row(args: tuple[Array, Array]) -> tuple[Array, Array]:
        hidden, targets = args
        logits = unembed(params, config, hidden)
        chosen = jnp.take_along_axis(logits, targets[:, None], axis=1)[:, 0]
        return chosen - jax.nn.logsumexp(logits, axis=1), jnp.argmax(logits, axis=1) == targets

    scores, greedy = jax.lax.map(row, (out.hidden[:, :-1], tokens[:, 1:]))
    counted = real[:, 1:]
    scores = jnp.pad(jnp.where(counted, scores, 0.0), ((0, 0), (1, 0)))
    return scores, jnp.pad(greedy | ~counted, ((0, 0), (1, 0)), constant_values=True)
