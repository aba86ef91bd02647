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


def gate_numbers(gate: Gate | None) -> tuple[float, ...]:
    """Return the numbers of a gate in order; ``None`` has none."""
    if gate is None:
        return ()
    return gate if isinstance(gate, tuple) else (gate,)


def gate_text(gate: Gate) -> str:
    """Format a gate: ``0.5``, or ``0,0.5,1``."""
    return ",".join(f"{number:g}" for number in gate_numbers(gate))
