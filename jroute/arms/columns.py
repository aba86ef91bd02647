"""Arms on an outcome table: what the column that each gives to each problem scores."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Int

from jroute.arms.controls import shuffled_values
from jroute.arms.registry import ORACLE, RANDOM, SHUFFLED_PROMPT, SUBJECT


def arm_values(
    correct: Float[np.ndarray, "problems gates"], columns: Mapping[str, Int[np.ndarray, "..."]]
) -> dict[str, Float[np.ndarray, "..."]]:
    """Return what each arm scores on each problem.

    Args:
        correct: 1 where a gate solves a problem.
        columns: From ``jroute.arms.resolve.table_columns``.

    Returns:
        Values by arm, ``[problems]``, or ``[seeds, problems]`` for arms with several seeds;
        ``random`` and ``shuffled_prompt`` are expectations.
    """
    rows = np.arange(len(correct))
    return {
        **{name: correct[rows, of_arm] for name, of_arm in columns.items()},
        RANDOM: correct.mean(axis=1),
        SHUFFLED_PROMPT: shuffled_values(correct, columns[SUBJECT]),
        ORACLE: correct.max(axis=1),
    }


def gate_counts(
    columns: Mapping[str, Int[np.ndarray, "..."]], gates: int
) -> dict[str, list[list[int]]]:
    """Count the problems to which each seed gives each gate: arm -> ``[seeds, gates]``."""
    return {
        name: [np.bincount(row, minlength=gates).tolist() for row in np.atleast_2d(of_arm)]
        for name, of_arm in columns.items()
    }
