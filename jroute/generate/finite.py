"""Numbers that are not finite: where in the model they begin, and the sentence that says so.

Programs only mark a row whose logits are not finite. The row is then read once more, block by
block, to name the place.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jroute.distributed.mesh import fetch, num_replicas, place, replicate
from jroute.generate.shapes import bucket, pad_rows
from jroute.model.config import Qwen3Config
from jroute.model.decoder import BlockTrace, ForwardOptions, forward, unembed
from jroute.model.params import Params
from jroute.routing.mixing import Routing
from jroute.utils.errors import UserError

PARTS = ("the attention of block {}", "the MLP of block {}", "the mixing of block {}")
"""Places within a block, in the order of ``_block_parts``."""


class NotFiniteError(UserError):
    """Logits or hidden states that are not finite.

    Attributes:
        row: Index of the prompt, pair or text among those that were given.
    """

    def __init__(self, message: str, row: int):
        """Keep the row, so that a caller can name what it stands for."""
        super().__init__(message)
        self.row = row


class Origin(NamedTuple):
    """Where numbers stop being finite.

    Attributes:
        place: The part of the model, such as ``the attention of block 3``.
        position: Position of the first such token in its row.
    """

    place: str
    position: int


def not_finite(
    what: str,
    row: int,
    params: Params,
    config: Qwen3Config,
    tokens: Sequence[int],
    *,
    position: int | None = None,
    routing: Routing | None = None,
    gate: Float[np.ndarray, " layers"] | None = None,
) -> NotFiniteError:
    """Make the exception for a row by finding where its numbers stop being finite.

    Args:
        what: What is not finite, such as ``the logits of prompt``; the number of the row follows.
        row: Index of the row among those that were given.
        params: Parameters, with ``blocks`` stacked.
        config: Shape of the model.
        tokens: The row.
        position: Position of the token whose numbers are not finite, if it is one token.
        routing: The streams that the gate acts on.
        gate: The gate of every layer; ``None`` for the plain model.
    """
    origin = first_not_finite(params, config, tokens, routing=routing, gate=gate)
    begins = "a second reading of the row gives finite numbers"
    if origin is not None:
        begins = f"they begin in {origin.place} at position {origin.position}"
    gates = [] if gate is None else sorted({float(number) for number in gate})
    if not any(gates):
        at, remedy = "at gate 0", "check the weights of the model, and its dtype"
    else:
        at = f"at gate {gates[-1]:g}" if len(set(gates) - {0.0}) == 1 else f"at gates {gates}"
        remedy = "give a gate nearer to 0, or check the weights of the model and its dtype"
    where = at if position is None else f"at position {position}, {at}"
    return NotFiniteError(f"{what} {row} are not finite {where}: {begins}; {remedy}", row)


def first_not_finite(
    params: Params,
    config: Qwen3Config,
    tokens: Sequence[int],
    *,
    routing: Routing | None = None,
    gate: Float[np.ndarray, " layers"] | None = None,
) -> Origin | None:
    """Read a row on the mesh that is set, and return where its numbers stop being finite.

    Returns:
        The first part of the model with such numbers, and their first position; ``None`` if all
        are finite.
    """
    replicas = num_replicas()
    rows, lengths = pad_rows([tokens] * replicas, (replicas, bucket(len(tokens))))
    layer_gates = None
    if routing is None or gate is None:
        routing = None
    else:
        layer_gates = place(np.repeat(gate[None], replicas, axis=0), ("batch", "layers"))
    finite = fetch(
        _finite_parts(
            params,
            place(rows, ("batch", "seq")),
            place(lengths, ("batch",)),
            replicate(routing),
            layer_gates,
            config=config,
        )
    )[:, : len(tokens)]
    parts = [
        "the embedding",
        *(part.format(i) for i in range(config.num_hidden_layers) for part in PARTS),
        "the final norm",
        "the unembedding",
    ]
    for part, positions in zip(parts, finite, strict=True):
        if not positions.all():
            return Origin(part, int(np.argmin(positions)))
    return None


@partial(jax.jit, static_argnames=("config",))
def _finite_parts(
    params: Params,
    tokens: Int[Array, "batch seq"],
    lengths: Int[Array, " batch"],
    routing: Routing | None,
    gate: Float[Array, "batch layers"] | None,
    *,
    config: Qwen3Config,
) -> Bool[Array, "parts seq"]:
    """Return which tokens of the first row are finite after every part of the model."""
    columns = jnp.arange(tokens.shape[1])[None]
    positions = jnp.where(columns < lengths[:, None], columns, -1)
    options = ForwardOptions(tap=_block_parts)
    out = forward(params, config, tokens, positions, routing=routing, gate=gate, options=options)
    embedded = _finite(params["embed_tokens"][tokens])
    # One token at a time, so that the logits of all are never held.
    logits = jax.lax.map(
        lambda states: jnp.isfinite(jnp.max(unembed(params, config, states)[0])),
        out.hidden.swapaxes(0, 1),
    )
    blocks = out.taps.reshape(-1, tokens.shape[1])
    ends = jnp.stack([_finite(out.hidden), logits])
    return jnp.concatenate([embedded[None], blocks, ends])


def _block_parts(block: BlockTrace) -> Bool[Array, "parts seq"]:
    """Return which tokens of the first row are finite after attention, MLP and mixing."""
    return jnp.stack([_finite(x) for x in (block.attention_update, block.mlp_update, block.trunk)])


def _finite(x: Float[Array, "batch seq embed"]) -> Bool[Array, " seq"]:
    return jnp.isfinite(x[0]).all(axis=-1)
