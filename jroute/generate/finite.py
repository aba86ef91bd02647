"""Numbers that are not finite: where in the model they begin, and the sentence that says so.

Programs only mark a row whose logits are not finite. The row is then read once more, block by
block, to name the place.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jroute.distributed.mesh import fetch, num_replicas, place, replicate
from jroute.generate.shapes import bucket, pad_rows
from jroute.model.config import DecoderConfig
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
        label: How the message calls it, such as ``prompt 3``.
    """

    def __init__(self, message: str, row: int, label: str):
        """Keep the row, so that a caller can name what it stands for."""
        super().__init__(message)
        self.row = row
        self.label = label


@contextmanager
def rows_named(name: Callable[[int], str]) -> Iterator[None]:
    """Let a ``NotFiniteError`` of the block call its row by what the row stands for.

    Args:
        name: Returns the name of a row by its index.
    """
    try:
        yield
    except NotFiniteError as error:
        label = name(error.row)
        message = str(error).replace(error.label, label, 1)
        raise NotFiniteError(message, error.row, label) from None


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
    config: DecoderConfig,
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
    label = f"{what.split()[-1]} {row}"
    return NotFiniteError(f"{what} {row} are not finite {where}: {begins}; {remedy}", row, label)


def check_tokens(
    what: str,
    finite: Bool[np.ndarray, "batch seq"],
    tokens: Int[np.ndarray, "batch seq"],
    params: Params,
    config: DecoderConfig,
    *,
    routing: Routing | None = None,
    gates: Float[np.ndarray, "batch layers"] | None = None,
) -> None:
    """Refuse a batch for the first of its tokens whose numbers are not finite.

    Args:
        what: As for ``not_finite``.
        finite: Whether they are.
        tokens: The tokens; a negative one is padding, which does not count.
        params: Parameters of the model.
        config: Its shape.
        routing: The streams that the gates act on.
        gates: The gates of every row; ``None`` for the plain model.

    Raises:
        NotFiniteError: A token's numbers are not finite.
    """
    broken = np.argwhere(~finite & (tokens >= 0))
    if not len(broken):
        return
    row, column = map(int, broken[0])
    real = tokens[row] >= 0
    raise not_finite(
        what,
        row,
        params,
        config,
        tokens[row][real].tolist(),
        position=int(real[:column].sum()),
        routing=routing,
        gate=None if gates is None else gates[row],
    )


def first_not_finite(
    params: Params,
    config: DecoderConfig,
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


@jax.jit
def finite_tokens(logits: Float[Array, "*tokens vocab"]) -> Bool[Array, "*tokens"]:
    """Return where logits make a distribution: none is NaN or infinite, but for impossible ones."""
    return jnp.isfinite(jnp.max(logits, axis=-1))


@partial(jax.jit, static_argnames=("config",))
def _finite_parts(
    params: Params,
    tokens: Int[Array, "batch seq"],
    lengths: Int[Array, " batch"],
    routing: Routing | None,
    gate: Float[Array, "batch layers"] | None,
    *,
    config: DecoderConfig,
) -> Bool[Array, "parts seq"]:
    """Return which tokens of the first row are finite after every part of the model."""
    columns = jnp.arange(tokens.shape[1])[None]
    positions = jnp.where(columns < lengths[:, None], columns, -1)
    options = ForwardOptions(tap=_block_parts)
    out = forward(params, config, tokens, positions, routing=routing, gate=gate, options=options)
    embedded = _finite(params["embed_tokens"][tokens])
    # One token at a time, so that the logits of all are never held.
    logits = jax.lax.map(
        lambda states: finite_tokens(unembed(params, config, states)[0]),
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
