"""The gate: how much of the mixing a prompt receives, from 0 (the plain model) to 1 and beyond.

A gate has two forms, and a value keeps its form throughout:

* ``Gate``, of one prompt: a number for the whole depth, or a tuple with one number per band or per
  site. It is hashable and compares by value, so tables, records, and memos use it as a key.
* ``GateArray``, of a batch: *one* NumPy array ``[prompts]``, ``[prompts, bands]``, or
  ``[prompts, layers]``. A decision produces it, ``Routing.layer_gates`` spreads it over the layers,
  and the program that decodes reads it. A table's cells carry the gate of each prompt as their key.

``None`` in place of either means the model without routing.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from jroute.utils.errors import UserError

MAX_GATE = 1000.0
"""Largest size of a gate. Gate 1 is the mixing of the configuration; far beyond, states
overflow."""

Gate = float | tuple[float, ...]
"""The gate of one prompt: a number for the whole depth, or one number per band or site."""

GateLike = ArrayLike | Sequence[Any]
"""What the public face takes: a ``Gate`` for all prompts, or what NumPy reads as a ``GateArray``,
tuples included (``ArrayLike`` alone leaves them out at run time); ``Routing.layer_gates`` checks
it."""

GateArray = Float[np.ndarray, " prompts"] | Float[np.ndarray, "prompts gate_dims"]
"""The gates of a batch: one number per prompt, or one per prompt and band or layer."""


def as_gate(value: Any) -> Gate:
    """Return a number, a sequence of numbers, or a row of ``GateArray`` as a ``Gate``."""
    return tuple(map(float, value)) if np.ndim(value) else float(value)


def check_gates(gates: Any, where: str) -> None:
    """Refuse gates that are not finite, or larger than ``MAX_GATE``.

    Args:
        gates: Numbers, in any shape.
        where: What has them, for the message.

    Raises:
        UserError: A gate is NaN, infinite or too large.
    """
    try:
        numbers = np.asarray(gates, np.float64)
    except (TypeError, ValueError, OverflowError):
        raise UserError(f"{where} holds {gates!r:.60}; gates are numbers") from None
    wrong = numbers[~(np.abs(numbers) <= MAX_GATE)]
    if wrong.size and not np.isfinite(wrong[0]):
        raise UserError(f"{where} holds a value that is not finite; gates are real numbers")
    if wrong.size:
        raise UserError(
            f"{where} holds {wrong[0]:g}; give gates from {-MAX_GATE:g} to {MAX_GATE:g}"
        )


def gate_numbers(gate: Gate | None) -> tuple[float, ...]:
    """Return the numbers of a gate in order; ``None`` has none."""
    if gate is None:
        return ()
    return gate if isinstance(gate, tuple) else (gate,)


def gate_text(gate: Gate) -> str:
    """Format a gate: ``0.5``, or ``0,0.5,1``."""
    return ",".join(f"{number:g}" for number in gate_numbers(gate))
