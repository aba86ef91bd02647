"""Arms on an outcome table: the column that each gives to each problem, and what that scores."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from jroute.arms.controls import shuffled_values
from jroute.arms.registry import (
    BASELINE,
    BEST_FIXED,
    ORACLE,
    RANDOM,
    RANDOM_REWARD,
    RL_MODAL,
    SELECTED,
    SHUFFLED_PROMPT,
    SUBJECT,
    SUPERVISED,
    fixed_name,
)


def arm_columns(
    problems: int,
    gates: Sequence[float],
    *,
    best_fixed: int,
    supervised: Int[np.ndarray, " problems"],
    rl: Int[np.ndarray, "seeds problems"],
    selected: int,
    rl_modal: Int[np.ndarray, " seeds"] | None = None,
    random_reward: Int[np.ndarray, "other_seeds problems"] | None = None,
    **columns: Int[np.ndarray, " problems"],
) -> dict[str, Int[np.ndarray, "..."]]:
    """Return the column of the outcome table that each deciding arm gives to each problem.

    Args:
        problems: Number of problems.
        gates: The gate of each column.
        best_fixed: Column that was best on train.
        supervised: Columns that the supervised arm chooses.
        rl: Columns that each seed's controller chooses.
        selected: The seed that was best on validation.
        rl_modal: Column that each seed's controller chose most often on train.
        random_reward: Columns that each controller trained on random rewards chooses.
        **columns: Columns that further deterministic arms choose, by name.

    Returns:
        Columns by arm, ``[problems]``, or ``[seeds, problems]`` for arms with several seeds.
    """
    arms = {
        BASELINE: np.full(problems, list(gates).index(0.0)),
        **{fixed_name(gate): np.full(problems, i) for i, gate in enumerate(gates)},
        BEST_FIXED: np.full(problems, best_fixed),
        SUPERVISED: supervised,
        **columns,
        SUBJECT: rl,
        SELECTED: rl[selected],
    }
    if rl_modal is not None:
        arms[RL_MODAL] = np.repeat(rl_modal[:, None], problems, axis=1)
    if random_reward is not None:
        arms[RANDOM_REWARD] = random_reward
    return arms


def arm_values(
    correct: Float[np.ndarray, "problems gates"], columns: Mapping[str, Int[np.ndarray, "..."]]
) -> dict[str, Float[np.ndarray, "..."]]:
    """Return what each arm scores on each problem.

    Args:
        correct: 1 where a gate solves a problem.
        columns: From ``arm_columns``.

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
