"""Arms on an outcome table: the columns they choose and what these score."""

import numpy as np
import pytest

from jroute.arms.columns import arm_values, gate_counts
from tests.arms.outcomes import CORRECT, RL, SUPERVISED, arm_columns, small_columns


@pytest.fixture(scope="module")
def columns() -> dict[str, np.ndarray]:
    return small_columns()


@pytest.fixture(scope="module")
def arms(columns) -> dict[str, np.ndarray]:
    return arm_values(CORRECT, columns)


def test_values_of_every_arm(arms) -> None:
    expected = {
        "baseline": [1, 1, 0, 0, 0, 1, 0, 1],
        "fixed:0": [1, 1, 0, 0, 0, 1, 0, 1],
        "fixed:0.5": [0, 1, 0, 1, 0, 0, 1, 1],
        "fixed:1": [0, 0, 1, 1, 0, 1, 0, 1],
        "random": [1 / 3, 2 / 3, 1 / 3, 2 / 3, 0, 2 / 3, 1 / 3, 1],
        "supervised": [1, 1, 1, 1, 0, 1, 0, 1],
        "rl": [[1, 1, 1, 1, 0, 1, 1, 1], [1, 1, 1, 1, 0, 0, 1, 1]],
        "rl_selected": [1, 1, 1, 1, 0, 0, 1, 1],
        "supervised_features": [1, 1, 1, 1, 0, 1, 0, 1],
        "exact_gradient": [1, 1, 1, 1, 0, 1, 1, 1],
        "rl_modal": [[1, 1, 0, 0, 0, 1, 0, 1], [0, 1, 0, 1, 0, 0, 1, 1]],
        "random_reward": [[1, 1, 0, 0, 0, 1, 0, 1], [0, 1, 0, 1, 0, 1, 0, 1]],
        # Seed 0 gives 0 five times, 1 once, 2 twice; seed 1: 1, 5, 2. Each prompt gets another's.
        "shuffled_prompt": [
            [4 / 7, 5 / 7, 1 / 7, 2 / 7, 0, 6 / 7, 0, 1],
            [0, 5 / 7, 1 / 7, 6 / 7, 0, 3 / 7, 4 / 7, 1],
        ],
        "best_fixed": [0, 0, 1, 1, 0, 1, 0, 1],
        "oracle": [1, 1, 1, 1, 0, 1, 1, 1],
    }
    assert arms.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(arms[name], values, atol=1e-12, err_msg=name)


def test_the_baseline_is_the_gate_zero_wherever_it_stands_in_the_grid() -> None:
    order = [2, 0, 1]
    columns = arm_columns(
        8, (1.0, 0.0, 0.5), best_fixed=0, supervised=SUPERVISED, rl=RL, selected=0
    )
    moved = arm_values(CORRECT[:, order], columns)
    np.testing.assert_array_equal(moved["baseline"], CORRECT[:, 0])
    np.testing.assert_array_equal(moved["fixed:0.5"], CORRECT[:, 1])
    np.testing.assert_array_equal(moved["best_fixed"], CORRECT[:, 2])


def test_gates_that_were_chosen_are_counted_by_seed(columns) -> None:
    counts = gate_counts(columns, 3)
    assert counts["rl"] == [[5, 1, 2], [1, 5, 2]]
    assert counts["rl_selected"] == [[1, 5, 2]]
    assert counts["rl_modal"] == [[8, 0, 0], [0, 8, 0]]
    assert counts["best_fixed"] == [[0, 0, 8]]
    assert counts["random_reward"] == [[8, 0, 0], [2, 3, 3]]
    # An expectation and hindsight decide for no gate.
    assert not {"random", "shuffled_prompt", "oracle"} & counts.keys()
