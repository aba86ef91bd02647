"""From a small table of outcomes to the numbers of ``results.json``."""

import numpy as np
import pytest

from jroute.arms import registry
from jroute.arms.columns import arm_values
from jroute.arms.registry import DECLARED
from jroute.statistics.config import JudgeConfig
from jroute.statistics.contrasts import paired_contrast
from jroute.statistics.headroom import headroom
from jroute.statistics.results import arm_results
from jroute.utils.errors import UserError
from tests.arms.outcomes import CORRECT, GATES, arm_columns, small_columns

CONFIG = JudgeConfig(replicates=400)
ROLES = registry.roles()
OTHERS = ("supervised_features", "exact_gradient", "rl_modal", "shuffled_prompt", "random_reward")


FLIPS = {"n": 200, "flips": 4, "share": 0.02, "ci95": [0.01, 0.05]}


def values(correct: np.ndarray, **choices) -> dict[str, np.ndarray]:
    """What every arm scores."""
    return arm_values(correct, arm_columns(len(correct), GATES, **choices))


@pytest.fixture(scope="module")
def arms() -> dict[str, np.ndarray]:
    return arm_values(CORRECT, small_columns())


def small_results(arms: dict[str, np.ndarray]) -> dict:
    """The results of the small table, with headroom and flips."""
    x = np.random.default_rng(0).standard_normal((16, 3))
    room = headroom((x[:8], CORRECT), (x[8:], CORRECT), 2, folds=2, replicates=400)
    return arm_results(arms, CONFIG, ROLES, room, FLIPS)


@pytest.fixture(scope="module")
def results(arms) -> dict:
    return small_results(arms)


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
            "supervised_features": 6 / 8,
            "exact_gradient": 7 / 8,
            "rl_modal": 4 / 8,
            "shuffled_prompt": (25 / 7 + 26 / 7) / 16,
            "random_reward": 4 / 8,
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
    assert [c["b"] for c in results["contrasts"][:4]] == list(DECLARED)
    contrasts = [c for c in results["contrasts"] if c["a"] == "rl"]
    assert {c["b"] for c in contrasts} == {*DECLARED, "random", *OTHERS, "oracle"}
    assert contrasts[-1]["b"] == "oracle"
    difference = {c["b"]: c["difference"] for c in contrasts}
    assert difference == pytest.approx(
        {
            "fixed:0.5": 5 / 16,
            "supervised": 1 / 16,
            "baseline": 5 / 16,
            "best_fixed": 5 / 16,
            "random": 5 / 16,
            "supervised_features": 1 / 16,
            "exact_gradient": -1 / 16,
            "rl_modal": 5 / 16,
            "shuffled_prompt": (13 - 51 / 7) / 16,
            "random_reward": 5 / 16,
            "oracle": -1 / 16,
        }
    )
    for c in contrasts:
        assert c["ci95"][0] <= c["difference"] <= c["ci95"][1]
        assert 0 < c["p"] <= 1
    others = {(c["a"], c["b"]): c["difference"] for c in results["contrasts"] if c["a"] != "rl"}
    assert others == pytest.approx(
        {
            ("supervised", "best_fixed"): 2 / 8,
            ("supervised_features", "best_fixed"): 2 / 8,
            ("exact_gradient", "best_fixed"): 3 / 8,
            ("best_fixed", "baseline"): 0.0,
        }
    )


def test_modal_gates_are_compared_seed_by_seed(arms, results) -> None:
    contrast = next(c for c in results["contrasts"] if c["b"] == "rl_modal")
    paired = paired_contrast(arms["rl"], arms["rl_modal"], same_seeds=True, replicates=400)
    assert (contrast["ci95"], contrast["p"]) == (list(paired.ci95), paired.p)


def numbers(tree, path="") -> list[tuple[str, dict]]:
    """Every dictionary of a tree that states an estimate."""
    if isinstance(tree, list):
        return [number for i, item in enumerate(tree) for number in numbers(item, f"{path}[{i}]")]
    if not isinstance(tree, dict):
        return []
    below = [number for name, item in tree.items() for number in numbers(item, f"{path}.{name}")]
    estimates = {"accuracy", "difference", "value", "share", "only_a", "discordance", "sentence"}
    plain = any(not isinstance(tree[name], dict) for name in estimates & tree.keys())
    return [*below, (path, tree)] if plain else below


def test_no_number_is_without_its_count_and_interval(results) -> None:
    stated = numbers(results)
    assert len(stated) > 35
    for path, tree in stated:
        assert tree["n"] == (200 if path.endswith("noise_floor") else 8), path
        if {"accuracy", "difference", "value", "share"} & tree.keys():
            low, high = tree["ci95"]
            assert (low is None) == (high is None), path


def test_shares_tests_and_reach(arms, results) -> None:
    share = results["shares"]["rl"]
    assert share["share"] == pytest.approx((13 / 16 - 4 / 8) / (7 / 8 - 4 / 8))
    exact = {one["b"]: one for one in results["mcnemar"]}
    # Only where it is defined: one seed, acting by argmax, against one gate per prompt.
    assert set(exact) == {
        *("baseline", "fixed:0", "fixed:0.5", "fixed:1", "best_fixed"),
        *("supervised", "supervised_features", "exact_gradient"),
    }
    assert {one["a"] for one in exact.values()} == {"rl_selected"}
    assert (exact["best_fixed"]["only_a"], exact["best_fixed"]["only_b"]) == (3, 1)
    assert exact["best_fixed"]["p"] == pytest.approx(0.625)
    gap = next(one for one in results["gaps"] if one["b"] == "best_fixed")
    assert gap["discordance"] == 0.5 and gap["just_significant"] is None  # 4 items: never
    assert [one["b"] for one in results["gaps"]] == list(DECLARED)
    assert results["resolvable_gap"] is None


def test_the_gap_that_can_be_resolved_is_that_to_the_best_fixed_gate() -> None:
    correct = np.zeros((100, 3))
    correct[:10, 0], correct[10:14, 2] = 1, 1
    results = arm_results(
        values(
            correct,
            best_fixed=2,
            supervised=np.full(100, 2),
            rl=np.zeros((2, 100), int),
            selected=0,
        ),
        CONFIG,
        ROLES,
    )
    gap = next(one for one in results["gaps"] if one["b"] == "best_fixed")
    assert gap["discordance"] == 0.14
    # Of 14 discordant items an exact McNemar test needs 12 to 2.
    assert results["resolvable_gap"] == gap["just_significant"] == pytest.approx(0.1)


def test_headroom_and_verdict_are_told(arms, results) -> None:
    stored = results["headroom"]
    assert stored["hindsight"]["value"] == pytest.approx(3 / 8)
    low, high = stored["hindsight"]["ci95"]
    assert low < 3 / 8 < high and "upper95" in stored["learnable"]
    assert stored["folds"] == 2
    # 2 % of cells differ when made twice: each flips with 1.01 %, on a half of solved problems.
    flip = (1 - 0.96**0.5) / 2
    best = 0.5 * (1 - flip**3) + 0.5 * (1 - (1 - flip) ** 3)
    assert stored["noise_floor"]["value"] == pytest.approx(best - 0.5)
    assert stored["noise_floor"]["ci95"][0] < best - 0.5 < stored["noise_floor"]["ci95"][1]
    assert "noise_floor" not in arm_results(arms, CONFIG, ROLES).get("headroom", {})
    verdict = results["verdict"]
    assert verdict["name"] == "underpowered"  # eight problems
    assert verdict["sentence"] == "these items cannot tell a gain of δ from none (δ = 1 point)"
    assert verdict["delta"] == 0.01
    # Six problems are solved by some gates only; Wilson's interval of 6 in 8.
    assert results["gate_sensitive"]["share"] == 6 / 8
    assert results["gate_sensitive"]["ci95"] == pytest.approx([0.409, 0.929], abs=5e-4)
    import json

    assert json.loads(json.dumps(results, allow_nan=False)) == results


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
    results = arm_results(
        values(correct, best_fixed=1, supervised=guess, rl=learned, selected=0), CONFIG, ROLES
    )
    for c in results["contrasts"][:5]:
        assert c["ci95"][0] > 0.3 and c["p"] < 0.02
    assert "verdict" not in results  # none without its headroom
    same = arm_results(
        values(correct, best_fixed=1, supervised=guess, rl=np.tile(guess, (5, 1)), selected=0),
        CONFIG,
        ROLES,
    )
    against_itself = next(c for c in same["contrasts"] if c["b"] == "supervised")
    assert against_itself["difference"] == 0
    unseen = 1 - 0.025 ** (1 / 600)
    assert against_itself["ci95"] == pytest.approx([-unseen, unseen], abs=1e-12)
    assert against_itself["p"] == 1.0


def test_the_resampling_is_seeded(arms, results) -> None:
    again = arm_results(arms, CONFIG, ROLES)
    assert again == {name: results[name] for name in again}
    other = arm_results(arms, JudgeConfig(replicates=400, seed=1), ROLES)
    assert other["contrasts"] != again["contrasts"]


def test_configurations_that_judge_nothing_are_refused() -> None:
    with pytest.raises(UserError, match=r"judge\.replicates is 99"):
        JudgeConfig(replicates=99)
    with pytest.raises(UserError, match=r"judge\.delta is 1"):
        JudgeConfig(delta=1.0)
    with pytest.raises(UserError, match=r"judge\.folds is 1"):
        JudgeConfig(folds=1)
