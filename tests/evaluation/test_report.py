"""From a small table of outcomes to the numbers of ``results.json``."""

import numpy as np
import pytest

from jroute.errors import UserError
from jroute.evaluation.report import DECLARED, JudgeConfig, arm_values, fixed_name, judge, table

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
CONFIG = JudgeConfig(replicates=400)


@pytest.fixture(scope="module")
def arms() -> dict[str, np.ndarray]:
    return arm_values(CORRECT, GATES, best_fixed=2, supervised=SUPERVISED, rl=RL, selected=1)


@pytest.fixture(scope="module")
def results(arms) -> dict:
    return judge(arms, CONFIG)


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
        "best_fixed": [0, 0, 1, 1, 0, 1, 0, 1],
        "oracle": [1, 1, 1, 1, 0, 1, 1, 1],
    }
    assert arms.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(arms[name], values, atol=1e-12, err_msg=name)


def test_the_baseline_is_the_gate_zero_wherever_it_stands_in_the_grid() -> None:
    order = [2, 0, 1]
    moved = arm_values(
        CORRECT[:, order], (1.0, 0.0, 0.5), best_fixed=0, supervised=SUPERVISED, rl=RL, selected=0
    )
    np.testing.assert_array_equal(moved["baseline"], CORRECT[:, 0])
    np.testing.assert_array_equal(moved["fixed:0.5"], CORRECT[:, 1])
    np.testing.assert_array_equal(moved["best_fixed"], CORRECT[:, 2])


def test_accuracies(results) -> None:
    accuracy = {name: arm["accuracy"] for name, arm in results["arms"].items()}
    assert results["n"] == 8
    assert accuracy == pytest.approx(
        {
            "baseline": 4 / 8,
            "fixed:0": 4 / 8,
            "fixed:0.5": 4 / 8,
            "fixed:1": 4 / 8,
            "random": 4 / 8,  # the mean of the three, not a draw
            "supervised": 6 / 8,
            "rl": 13 / 16,  # over both seeds
            "rl_selected": 6 / 8,
            "best_fixed": 4 / 8,
            "oracle": 7 / 8,
        }
    )
    # Wilson's interval of 4 in 8.
    z = 1.959964
    centre, half = 0.5, z / (1 + z**2 / 8) * (0.25 / 8 + z**2 / 256) ** 0.5
    assert results["arms"]["baseline"]["ci95"] == pytest.approx(
        [centre - half, centre + half], abs=1e-6
    )
    for arm in results["arms"].values():
        low, high = arm["ci95"]
        assert 0 <= low <= arm["accuracy"] <= high <= 1


def test_contrasts_are_those_of_rl_with_the_declared_arms_first(results) -> None:
    contrasts = results["contrasts"]
    assert [c["b"] for c in contrasts] == [*DECLARED, "random", "oracle"]
    assert {c["a"] for c in contrasts} == {"rl"}
    difference = {c["b"]: c["difference"] for c in contrasts}
    assert difference == pytest.approx(
        {
            "fixed:0.5": 5 / 16,
            "supervised": 1 / 16,
            "baseline": 5 / 16,
            "best_fixed": 5 / 16,
            "random": 5 / 16,
            "oracle": -1 / 16,
        }
    )
    for c in contrasts:
        assert c["ci95"][0] <= c["difference"] <= c["ci95"][1]
        assert 0 < c["p"] <= 1


def test_p_values_of_the_four_declared_are_adjusted_together(results) -> None:
    contrasts = results["contrasts"]
    declared = contrasts[: len(DECLARED)]
    ordered = sorted(declared, key=lambda c: c["p"])
    floor = 0.0
    for k, c in enumerate(ordered):  # Holm 1979: the k-th smallest times what is left, monotone
        floor = max(floor, min(1.0, (len(DECLARED) - k) * c["p"]))
        assert c["p_holm"] == pytest.approx(floor)
    assert any(c["p_holm"] > c["p"] for c in declared)
    assert all("p_holm" not in c for c in contrasts[len(DECLARED) :])


def test_a_plain_gain_is_found_and_nothing_is_not() -> None:
    rng = np.random.default_rng(0)
    correct = np.zeros((600, 3))
    best = rng.integers(0, 3, 600)
    correct[np.arange(600), best] = 1
    guess = rng.integers(0, 3, 600)
    learned = np.where(rng.random((5, 600)) < 0.8, best, guess)
    found = judge(
        arm_values(correct, GATES, best_fixed=1, supervised=guess, rl=learned, selected=0), CONFIG
    )
    for c in found["contrasts"][:5]:
        assert c["ci95"][0] > 0.3 and c["p"] < 0.02
    same = judge(
        arm_values(
            correct, GATES, best_fixed=1, supervised=guess, rl=np.tile(guess, (5, 1)), selected=0
        ),
        CONFIG,
    )
    against_itself = next(c for c in same["contrasts"] if c["b"] == "supervised")
    assert against_itself["difference"] == 0
    assert against_itself["ci95"] == pytest.approx([0, 0], abs=1e-12)
    assert against_itself["p"] == 1.0


def test_the_resampling_is_seeded(arms, results) -> None:
    assert judge(arms, CONFIG) == results
    assert judge(arms, JudgeConfig(replicates=400, seed=1)) != results


def test_the_table_shows_every_arm_and_contrast(results) -> None:
    text = table(results, "test")
    lines = text.splitlines()
    assert lines[0] == "test: n = 8 problems"
    assert len(lines) == 1 + 1 + len(results["arms"]) + 1 + len(results["contrasts"])
    baseline = next(line for line in lines if line.startswith("baseline"))
    assert baseline.split() == ["baseline", "50.0%", "[21.5,", "78.5]"]
    rl = next(line for line in lines if line.startswith("rl "))
    assert "81.2%" in rl
    against = lines[-len(results["contrasts"])]
    assert against.startswith("fixed:0.5") and "+31.2" in against and against.endswith(")")
    assert not lines[-1].endswith(")") and "-6.2" in lines[-1]


def test_names_and_settings() -> None:
    assert [fixed_name(gate) for gate in (0.0, 0.25, 1.0, -0.5)] == [
        "fixed:0",
        "fixed:0.25",
        "fixed:1",
        "fixed:-0.5",
    ]
    with pytest.raises(UserError, match=r"judge\.replicates is 99"):
        JudgeConfig(replicates=99)
