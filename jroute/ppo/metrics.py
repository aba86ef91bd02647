"""The metrics of an update, and the names they are logged under."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from jaxtyping import Array

from jroute.ppo.losses import LossTerms


class Metrics(NamedTuple):
    """Metrics of one update; those of the loss are means over all its minibatches."""

    episodic_return: Array
    """Mean reward of the batch."""
    learning_rate: Array
    value_loss: Array
    policy_loss: Array
    entropy: Array
    """Entropy of the policy given a prompt, in nats."""
    old_approx_kl: Array
    approx_kl: Array
    clipfrac: Array
    explained_variance: Array
    """Of the batch's rewards, by the critic before the update."""
    grad_norm: Array
    """Global norm before clipping."""
    loss: Array
    gate_entropy: Array
    """Entropy of the batch's gate histogram in nats, mean over the dimensions of a decision: 0 if
    every prompt got the same decision."""
    gate_fraction: Array
    """``[choices]``, share of decisions for each gate, over all their dimensions."""
    cells_revealed: Array
    """Distinct cells whose reward has been seen so far; NaN if cells are not counted. Above a
    million (gates per layer) the count is slightly low, see ``rollout.number_cells``."""


EPOCH_MEANS = (*LossTerms._fields, "grad_norm")
"""Fields of ``Metrics`` with a value for every gradient step: the loss terms and the norm."""


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


def named_scalars(metrics: Metrics, gates: Sequence[float]) -> dict[str, np.ndarray]:
    """Return metrics by the names they are logged under; leading axes (seeds, updates) stay.

    ``gates`` are the gate values that choices stand for: ``charts/gate_frac_<g>`` is the share of
    decisions for ``g``. ``charts/cells_revealed`` is present if cells were counted. The caller,
    which has a clock, adds ``charts/SPS``.
    """
    named = {name: np.asarray(getattr(metrics, field)) for field, name in SCALAR_NAMES.items()}
    fractions, cells = np.asarray(metrics.gate_fraction), np.asarray(metrics.cells_revealed)
    if not np.isnan(cells).all():
        named["charts/cells_revealed"] = cells
    return named | {f"charts/gate_frac_{g:g}": fractions[..., i] for i, g in enumerate(gates)}
