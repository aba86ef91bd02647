"""Holm's correction: p-values of contrasts that are tested together."""

from collections.abc import Sequence
from typing import Any

from statsmodels.stats.multitest import multipletests


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p-values, in the order given: compare each with the family's level."""
    if not len(p_values):
        return []
    adjusted: Any = multipletests(p_values, method="holm")[1]
    return [float(p) for p in adjusted]
