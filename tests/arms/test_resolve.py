"""From an arm to gates: what every arm gives to a prompt, and what it reads for that."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jroute.arms import registry
from jroute.arms.controls import random_columns
from jroute.arms.registry import parse_arm
from jroute.arms.resolve import (
    ArmInputs,
    decide,
    learned_decisions,
    live_decisions,
    resolve,
    table_columns,
)
from jroute.arms.rl import decisions_of_policy
from jroute.arms.supervised import columns_of_regressor
from jroute.controller import networks
from jroute.utils.errors import UserError

GRID = (0.0, 0.25, 0.5, 0.75, 1.0)
PROMPTS = [f"Tom has {i} pens." for i in range(40)]
X = np.random.default_rng(0).normal(size=(len(PROMPTS), 3)).astype(np.float32)


def stack(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def regressor(seed: int, features: int) -> Any:
    """A supervised arm of one network."""
    return stack([networks.init_regressor(jax.random.key(seed), features, len(GRID))])


SEEDS = [networks.init(jax.random.key(seed), 3, (len(GRID),)) for seed in range(2)]
CONTROLLER = {
    "best_fixed": 3,
    "selected": 1,
    "seeds": stack(SEEDS),
    "rl": SEEDS[1],
    "supervised": regressor(2, 1),
}
CONTROLS = {
    "supervised_features": regressor(3, 3),
    "exact_gradient": regressor(4, 3),
    "random_reward": stack(SEEDS[::-1]),
    "rl_modal": np.array([4, 0]),
}


def nothing(*_: object) -> Any:
    raise AssertionError("read before it was needed")


UNREAD = ArmInputs(
    GRID,
    seed=7,
    has_table=True,
    observe=nothing,
    controller=nothing,
    controls=nothing,
)
TRAINED = dataclasses.replace(UNREAD, observe=lambda _: X, controller=lambda: CONTROLLER)
JUDGED = dataclasses.replace(TRAINED, controls=lambda: CONTROLS)


def test_constant_and_random_arms_read_nothing() -> None:
    for name, gate in (("baseline", 0.0), ("fixed:0.5", 0.5), ("fixed:0.3", 0.3)):
        np.testing.assert_array_equal(resolve(parse_arm(name), PROMPTS, UNREAD), [gate] * 40)
    drawn = np.asarray(GRID)[random_columns(PROMPTS, len(GRID), 7)]
    np.testing.assert_array_equal(resolve(parse_arm("random"), PROMPTS, UNREAD), drawn)


def test_trained_arms_read_what_training_saved_and_judged_arms_the_controls() -> None:
    grid = np.asarray(GRID)
    expected = {
        "best_fixed": np.full(40, 3),
        "supervised": columns_of_regressor(CONTROLLER["supervised"], X[:, :1]),
        "rl": decisions_of_policy(SEEDS[1], X)[:, 0],
    }
    for name, columns in expected.items():
        np.testing.assert_array_equal(resolve(parse_arm(name), PROMPTS, TRAINED), grid[columns])
    for name in registry.from_controls():
        columns = columns_of_regressor(CONTROLS[name], X)
        assert len(set(columns.tolist())) > 1
        np.testing.assert_array_equal(decide(parse_arm(name), PROMPTS, JUDGED)[:, 0], columns)
        np.testing.assert_array_equal(resolve(parse_arm(name), PROMPTS, JUDGED), grid[columns])


def test_a_table_and_a_prompt_get_the_same_gates() -> None:
    columns = table_columns(X, GRID, CONTROLLER, CONTROLS)
    for name in ("best_fixed", "supervised", *registry.from_controls()):
        decisions = decide(parse_arm(name), PROMPTS, JUDGED)
        np.testing.assert_array_equal(columns[name], decisions[:, 0])
    gates = resolve(parse_arm("rl"), PROMPTS, JUDGED)  # as a policy, the selected seed
    selected = [GRID.index(gate) for gate in gates]
    np.testing.assert_array_equal(columns["rl_selected"], selected)
    np.testing.assert_array_equal(columns["rl"][1], selected)
    np.testing.assert_array_equal(columns["random_reward"], columns["rl"][::-1])
    np.testing.assert_array_equal(columns["rl_modal"], np.repeat([[4], [0]], 40, axis=1))
    assert set(columns) >= {registry.fixed_name(gate) for gate in GRID}


def test_live_rollouts_and_reports_decide_as_a_table_does() -> None:
    columns = table_columns(X, GRID, CONTROLLER, CONTROLS)
    decisions = learned_decisions(X, CONTROLLER)
    assert list(decisions) == ["rl", "rl_selected", "best_fixed"]
    live = {name: CONTROLLER[name] for name in ("selected", "seeds", "rl")}  # trained live
    assert list(learned_decisions(X, live)) == ["rl", "rl_selected"]
    decisions |= live_decisions(X, GRID, live)
    assert set(decisions) == {"rl", "rl_selected", "best_fixed", "baseline", "fixed:0.5"}
    for name, indices in decisions.items():
        assert indices.shape[-1] == 1  # one number in a decision
        np.testing.assert_array_equal(indices[..., 0], columns[name])


def test_decisions_of_several_numbers_are_one_gate_each() -> None:
    params = networks.init(jax.random.key(5), 3, (len(GRID),) * 4)
    controller = {"seeds": stack([params]), "selected": 0}
    inputs = dataclasses.replace(TRAINED, has_table=False, controller=lambda: controller)
    gates = resolve(parse_arm("rl"), PROMPTS, inputs)
    np.testing.assert_array_equal(gates, np.asarray(GRID)[networks.act(params, jnp.asarray(X))])
    assert gates.shape == (40, 4)
    assert resolve(parse_arm("fixed:0.5"), PROMPTS, inputs).shape == (40,)


@pytest.mark.parametrize("name", ["best_fixed", "supervised", *registry.from_controls()])
def test_live_rollouts_lack_the_arms_that_learn_from_a_table(name: str) -> None:
    live = dataclasses.replace(JUDGED, has_table=False)
    with pytest.raises(UserError, match=f"arm {name} learns from the rewards of all gates"):
        resolve(parse_arm(name), PROMPTS, live)


@pytest.mark.parametrize("name", ["oracle", "rl_selected", "rl_modal", "shuffled_prompt"])
def test_arms_without_one_gate_per_prompt_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"arm {name} does not give one gate to a prompt"):
        resolve(parse_arm(name), PROMPTS, JUDGED)
