"""Side streams of the residual: what each kind carries, reads and receives.

The trunk ``t`` is the residual that the frozen blocks read and write; side streams are histories of
it. All start as the embedding ``x0``. In block ``l`` (updates ``a_l`` of attention, ``m_l`` of the
MLP, ``t_l`` the trunk after the block and its mixing):

================  ======================================================================
``delay(k)``      reads ``t_{l-k}``
``ema(r)``        ``e <- e + r (t_l - e)`` after the block
``attention``     ``x0 + a_0 + ... + a_l``
``mlp``           ``x0 + m_0 + ... + m_l``
``embedding``     ``x0``
``rotate``        the ``l mod R``-th of ``R`` such streams also receives ``a_l`` and ``m_l``
``copies``        the trunk itself: mixing with it does nothing (a negative control)
``persistent``    only what its row of M brings it
================  ======================================================================

Every function is linear in the states and never looks at their last axis, so it serves equally for
the coefficients that ``jroute.routing.composition`` computes.
"""

import re
from collections.abc import Sequence
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

KINDS = (
    "delay(k)",
    "ema(rate)",
    "attention",
    "mlp",
    "embedding",
    "rotate",
    "copies",
    "persistent",
)
OWN_ROWS = ("persistent", "rotate")
"""Kinds that their own row of M acts on; the others are recomputed from the trunk."""

Part = Literal["attention", "mlp"]
State = Float[Array, "batch seq embed"]


def delay(kind: str) -> int:
    """Return k of ``delay(k)``, at most 999, or 0 for another kind."""
    match = re.fullmatch(r"delay\(([0-9]{1,3})\)", kind)
    return int(match.group(1)) if match else 0


def ema_rate(kind: str) -> float | None:
    """Return the rate of ``ema(rate)``, or ``None`` for another kind."""
    match = re.fullmatch(r"ema\((\d*\.?\d+)\)", kind)
    return float(match.group(1)) if match else None


def is_known(kind: str) -> bool:
    """Return whether this is a kind of side stream."""
    rate = ema_rate(kind)
    return bool(delay(kind)) or (rate is not None and 0 < rate <= 1) or kind in KINDS[2:]


def start(kinds: Sequence[str], x0: State) -> tuple[Array, ...]:
    """Return the state of the side streams before the first block; ``copies`` carry nothing."""
    carried = []
    for kind in kinds:
        if k := delay(kind):
            carried.append(jnp.broadcast_to(x0, (k, *x0.shape)))
        else:
            carried.append(jnp.zeros((0,), x0.dtype) if kind == "copies" else x0)
    return tuple(carried)


def read(kinds: Sequence[str], carried: Sequence[Array], trunk: State) -> list[State]:
    """Return the side streams as they are mixed."""
    reads = []
    for kind, s in zip(kinds, carried, strict=True):
        reads.append(trunk if kind == "copies" else s[0] if delay(kind) else s)
    return reads


def receive(
    kinds: Sequence[str],
    carried: Sequence[Array],
    part: Part,
    update: State,
    layer: Int[Array, ""],
) -> tuple[Array, ...]:
    """Hand an update of block ``layer`` to the streams that collect it."""
    rotating, after = kinds.count("rotate"), []
    for kind, s in zip(kinds, carried, strict=True):
        if kind == part:
            s = s + update
        elif kind == "rotate":
            turn = len([k for k in kinds[: len(after)] if k == "rotate"])
            s = jnp.where(layer % rotating == turn, s + update, s)
        after.append(s)
    return tuple(after)


def remember(kinds: Sequence[str], carried: Sequence[Array], trunk: State) -> tuple[Array, ...]:
    """Show the trunk after a block and its mixing to the streams that remember it."""
    after = []
    for kind, s in zip(kinds, carried, strict=True):
        if delay(kind):
            s = jnp.concatenate([s[1:], trunk[None]])
        elif (rate := ema_rate(kind)) is not None:
            s = s + jnp.asarray(rate, s.dtype) * (trunk - s)
        after.append(s)
    return tuple(after)


def write(
    kinds: Sequence[str], carried: Sequence[Array], mixed: Sequence[State | None]
) -> tuple[Array, ...]:
    """Put back the side streams that their own rows of M have changed."""
    pairs = zip(kinds, carried, mixed, strict=True)
    return tuple(new if kind in OWN_ROWS and new is not None else s for kind, s, new in pairs)
