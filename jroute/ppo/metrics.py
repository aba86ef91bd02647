"""What one update tells, and the names it is logged by."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from jaxtyping import Array


class Metrics(NamedTuple):
    """Scalars of one update; those of the losses are means over all its minibatches."""

    episodic_return: Array
    """Mean reward of the batch."""
    learning_rate: Array
    value_loss: Array
    policy_loss: Array
    entropy: Array
    """Of the policy given a prompt, in nats."""
    old_approx_kl: Array
    approx_kl: Array
    clipfrac: Array
    explained_variance: Array
    """Of the batch's rewards, by the critic before the update."""
    grad_norm: Array
    """Global norm before clipping."""
    loss: Array
    gate_entropy: Array
    """Of the batch's gate histogram, in nats, mean over the parts of a decision: 0 if every prompt
    got the same decision."""
    gate_fraction: Array
    """``[choices]``, share of decisions for each gate, over all their parts."""
    cells_revealed: Array
    """Different cells whose reward was seen so far; NaN where none are counted. More than a million
    (gates per layer) are counted a little too few, see ``learner.number_cells``."""


EPOCH_MEANS = (
    "loss",
    "policy_loss",
    "value_loss",
    "entropy",
    "old_approx_kl",
    "approx_kl",
    "clipfrac",
    "grad_norm",
)
"""Fields of ``Metrics`` that every gradient step has a value of, in the learner's order."""


SCALAR_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "episodic_return": "charts/episodic_return",
        "learning_rate": "charts/learning_rate",
        "value_loss": "losses/value_loss",
        "policy_loss": "losses/policy_loss",
        "entropy": "losses/entropy",
        "old_approx_kl": "losses/old_approx_kl",
        "approx_kl": "losses/approx_kl",
        "clipfrac": "losses/clipfrac",
        "explained_variance": "losses/explained_variance",
        "grad_norm": "losses/grad_norm",
        "loss": "losses/loss",
        "gate_entropy": "charts/gate_entropy",
    }
)
"""Field of ``Metrics`` -> name it is logged under: CleanRL's names where CleanRL has one."""


def scalars(metrics: Metrics, gates: Sequence[float]) -> dict[str, np.ndarray]:
    """Metrics under the names they are logged by; leading axes (seeds, updates) are kept.

    ``gates`` are the gate values that choices stand for: ``charts/gate_frac_<g>`` is the share of
    decisions for ``g``. ``charts/cells_revealed`` is there if cells were counted. ``charts/SPS``
    needs a clock and is added where one is.
    """
    named = {name: np.asarray(getattr(metrics, field)) for field, name in SCALAR_NAMES.items()}
    fractions, cells = np.asarray(metrics.gate_fraction), np.asarray(metrics.cells_revealed)
    if not np.isnan(cells).all():
        named["charts/cells_revealed"] = cells
    return named | {f"charts/gate_frac_{g:g}": fractions[..., i] for i, g in enumerate(gates)}
