"""The registry of arms: names, queries, and what they have to agree on."""

import pytest

from jroute.arms import registry
from jroute.arms.registry import ARMS, fixed_name, parse_arm
from jroute.utils.errors import UserError


@pytest.mark.parametrize(
    ("arm", "gate"),
    [
        ("baseline", 0.0),
        ("fixed:0.5", 0.5),
        ("fixed:1", 1.0),
        ("fixed:-0.25", -0.25),
        ("best_fixed", None),
        ("random", None),
        ("supervised", None),
        ("rl", None),
    ],
)
def test_gates_of_arms(arm: str, gate: float | None) -> None:
    assert parse_arm(arm).gate == gate


@pytest.mark.parametrize("arm", ["fixed:", "fixed:half", "fixed:0,5"])
def test_a_fixed_arm_needs_a_number(arm: str) -> None:
    with pytest.raises(UserError, match=f"arm '{arm}' has no number after 'fixed:'"):
        parse_arm(arm)


def test_fixed_arms_keep_the_name_that_the_user_gave() -> None:
    assert parse_arm("fixed:0.50").name == "fixed:0.50"
    assert parse_arm("fixed:0.25").label == "fixed 0.25"
    assert [fixed_name(gate) for gate in (0.0, 0.25, 1.0, -0.5)] == [
        "fixed:0",
        "fixed:0.25",
        "fixed:1",
        "fixed:-0.5",
    ]


def test_an_unknown_arm_is_refused_with_those_there_are() -> None:
    listed = (
        "no arm is named 'luck'; arms are baseline, fixed:G, best_fixed, random, supervised, "
        "supervised_features, exact_gradient, rl"
    )
    with pytest.raises(UserError, match=listed):
        parse_arm("luck")


def test_queries_list_the_arms_that_outputs_have_always_listed() -> None:
    """These orders are those of ``results.json``, of tables, figures and messages."""
    assert registry.generable() == (
        *("baseline", "fixed:0.5", "best_fixed", "random"),
        *("supervised", "supervised_features", "exact_gradient", "rl"),
    )
    assert registry.generable(live=True) == ("baseline", "fixed:0.5", "rl")
    assert registry.selectable(table=False) == ("baseline", "fixed:G", "random", "rl")
    assert registry.reading() == ("supervised", "supervised_features", "exact_gradient", "rl")
    assert registry.from_controls() == ("supervised_features", "exact_gradient")
    assert registry.same_seeds() == ("rl_modal", "shuffled_prompt")
    assert registry.rivals() == ("supervised", "supervised_features")
    assert set(registry.deterministic()) == {
        *("baseline", "fixed:0.5", "best_fixed"),
        *("supervised", "supervised_features", "exact_gradient"),
    }
    assert registry.choosing() == (
        *("rl", "rl_selected", "exact_gradient", "supervised_features", "supervised"),
    )
    assert registry.headline() == ("baseline", "best_fixed", "supervised_features", "rl")
    assert list(registry.unavailable_live()) == [
        *("oracle", "best_fixed", "random"),
        *("supervised", "supervised_features", "exact_gradient"),
    ]


def test_orders_hold_every_arm_of_their_kind() -> None:
    assert registry.DECLARED == ("fixed:0.5", "supervised", "baseline", "best_fixed")
    assert registry.TRAINED_ON_TABLE == ("supervised", "exact_gradient", "best_fixed")
    assert (
        *("rl", "rl_selected", "rl_modal", "exact_gradient", "supervised", "supervised_features"),
        *("shuffled_prompt", "random_reward", "random", "baseline", "best_fixed", "oracle"),
    ) == registry.PAGE_ORDER
    assert {*registry.PAGE_ORDER, "fixed:0.5"} == set(ARMS)
    for field in ("contrast_order", "page_order", "cost_order"):
        places = [place for arm in ARMS.values() if (place := getattr(arm, field)) is not None]
        assert sorted(places) == list(range(1, len(places) + 1)), field
    assert all(arm.name == name and arm.label and arm.description for name, arm in ARMS.items())


def test_what_an_arm_needs_agrees_with_who_trains_it() -> None:
    for arm in ARMS.values():
        if arm.trained_by == "judging":
            assert {"training", "controls", "table"} <= arm.needs, arm.name
        if arm.trained_by == "nobody":
            assert not {"training", "controls"} & arm.needs, arm.name
