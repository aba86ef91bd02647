"""A small outcome table, and what every arm chooses on it."""

import numpy as np

from jroute.arms.columns import arm_columns

GATES = (0.0, 0.5, 1.0)
CORRECT = np.array(
    [
        [1, 0, 0],
        [1, 1, 0],
        [0, 0, 1],
        [0, 1, 1],
        [0, 0, 0],
        [1, 0, 1],
        [0, 1, 0],
        [1, 1, 1],
    ],
    float,
)
SUPERVISED = np.array([0, 0, 2, 2, 0, 0, 0, 0])
RL = np.array([[0, 0, 2, 2, 0, 0, 1, 0], [0, 1, 2, 1, 1, 1, 1, 2]])
EXACT = np.array([0, 0, 2, 1, 0, 0, 1, 0])
RANDOM = np.array([[0, 0, 0, 0, 0, 0, 0, 0], [2, 1, 0, 2, 1, 0, 2, 1]])


def small_columns() -> dict[str, np.ndarray]:
    """The columns of every arm."""
    return arm_columns(
        len(CORRECT),
        GATES,
        best_fixed=2,
        supervised=SUPERVISED,
        rl=RL,
        selected=1,
        rl_modal=np.array([0, 1]),
        random_reward=RANDOM,
        supervised_features=SUPERVISED,
        exact_gradient=EXACT,
    )
