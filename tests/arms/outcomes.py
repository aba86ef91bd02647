"""A small outcome table, and what every arm chooses on it."""

from collections.abc import Sequence

import numpy as np

from jroute.arms.registry import fixed_name

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


def arm_columns(
    problems: int,
    gates: Sequence[float],
    *,
    best_fixed: int,
    supervised: np.ndarray,
    rl: np.ndarray,
    selected: int,
    rl_modal: np.ndarray | None = None,
    random_reward: np.ndarray | None = None,
    **columns: np.ndarray,
) -> dict[str, np.ndarray]:
    """The columns of arms, from what each of them chooses: laid out by hand, as a reference."""
    arms = {
        "baseline": np.full(problems, list(gates).index(0.0)),
        **{fixed_name(gate): np.full(problems, i) for i, gate in enumerate(gates)},
        "best_fixed": np.full(problems, best_fixed),
        "supervised": supervised,
        **columns,
        "rl": rl,
        "rl_selected": rl[selected],
    }
    if rl_modal is not None:
        arms["rl_modal"] = np.repeat(rl_modal[:, None], problems, axis=1)
    if random_reward is not None:
        arms["random_reward"] = random_reward
    return arms


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
