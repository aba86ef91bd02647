"""The verdict table, row by row, with what just misses each row."""

from dataclasses import replace

import pytest

from jroute.arms.registry import DECLARED, roles
from jroute.statistics.contrasts import Contrast
from jroute.statistics.headroom import Headroom
from jroute.statistics.verdict import TABLE, Evidence, points, verdict


def contrast(difference: float, half: float, p: float | None = None, n: int = 1000) -> Contrast:
    """A difference in points with a symmetric interval; significant where that leaves 0 out."""
    d, h = difference / 100, half / 100
    p_value = (0.001 if abs(d) > h else 0.5) if p is None else p
    return Contrast(d, (d - h, d + h), p_value, n, lower95=d - 0.84 * h, upper95=d + 0.84 * h)


def evidence(
    *,
    rl: float | dict[str, float] = 0.0,
    half: float = 0.8,
    rivals: float = 0.0,
    constant: float = 0.0,
    learnable: float = 0.0,
    room_half: float = 0.8,
) -> Evidence:
    """RL minus every arm is ``rl`` points, or as given by name; likewise the rest."""
    names = (*DECLARED, "supervised_features")
    points_by_arm = (
        dict.fromkeys(names, rl) if isinstance(rl, float) else {**dict.fromkeys(names, 0.0), **rl}
    )
    return Evidence(
        rl={name: contrast(d, half) for name, d in points_by_arm.items()},
        roles=roles(),
        rivals={
            "supervised": contrast(0.0, half),
            "supervised_features": contrast(rivals, half),
        },
        constant=contrast(constant, half),
        headroom=Headroom(contrast(5.0, 1.0), contrast(learnable, room_half), 5),
    )


ROWS = {
    "gain": evidence(rl=3.0, learnable=3.0),
    "features suffice, RL not needed": evidence(
        rl={"baseline": 3.0, "fixed:0.5": 3.0, "best_fixed": 3.0}, rivals=3.0, learnable=3.0
    ),
    "a constant gate suffices": evidence(
        rl={"baseline": 3.0, "fixed:0.5": 2.0}, half=0.9, constant=3.0, learnable=0.1, room_half=2.0
    ),
    "bounded below δ": evidence(learnable=-0.1),
    "underpowered": evidence(half=2.0, room_half=2.0),
}


@pytest.mark.parametrize("name", ROWS)
def test_every_row_is_reached(name) -> None:
    result = verdict(ROWS[name])
    assert result.name == name
    assert result.n == 1000 and result.delta == 0.01
    means = next(row.means for row in TABLE if row.name == name)
    assert result.sentence == f"{means} (δ = 1 point)"


def test_the_table_is_written_out() -> None:
    assert [row.name for row in TABLE] == list(ROWS)
    assert all(row.when and row.means for row in TABLE)


@pytest.mark.parametrize("weak", DECLARED)
def test_one_declared_contrast_that_fails_is_no_gain(weak) -> None:
    base = evidence(rl=3.0, learnable=3.0)
    rl = {**base.rl, weak: contrast(3.0, 4.0)}
    assert verdict(replace(base, rl=rl)).name != "gain"
    # A worse arm with a small p is no gain either.
    rl = {**base.rl, weak: contrast(-3.0, 0.8)}
    result = verdict(replace(base, rl=rl))
    assert result.name != "gain"
    assert f"RL is worse than {weak}: -3.0 points [-3.8, -2.2] (n = 1000)" in result.beside


def test_p_values_are_adjusted_before_they_count() -> None:
    base = evidence(rl=3.0)
    rl = {name: replace(base.rl[name], p=0.02) for name in base.rl}
    assert verdict(replace(base, rl=rl)).name != "gain"  # 4 x 0.02 is beyond 0.05
    rl = {name: replace(base.rl[name], p=0.012) for name in base.rl}
    assert verdict(replace(base, rl=rl)).name == "gain"


def test_a_gain_smaller_than_delta_is_not_called_one() -> None:
    rl = {"baseline": 3.0, "fixed:0.5": 3.0, "supervised": 3.0, "best_fixed": 0.5}
    base = evidence(rl={**rl, "supervised_features": 3.0}, half=0.4, learnable=0.5, room_half=0.4)
    assert verdict(base).name == "bounded below δ"
    assert verdict(replace(base, delta=0.005)).name == "gain"


def test_a_gain_tells_that_features_do_as_well() -> None:
    same = evidence(rl=3.0)
    rl = {**same.rl, "supervised_features": contrast(0.1, 0.5)}
    result = verdict(replace(same, rl=rl))
    assert result.name == "gain"
    assert "supervised_features is not beaten by δ" in result.beside[0]
    assert "+0.1 points [-0.4, +0.6] (n = 1000)" in result.beside[0]
    assert verdict(same).beside == ()


@pytest.mark.parametrize(
    ("change", "instead"),
    [
        ({"rivals": 0.5}, "underpowered"),  # not better than one gate for all
        ({"half": 4.0}, "underpowered"),  # not known to be
    ],
    ids=["small", "unsure"],
)
def test_features_suffice_only_where_a_rival_gains(change, instead) -> None:
    known = {"rl": {"baseline": 3.0, "fixed:0.5": 3.0, "best_fixed": 3.0}, "rivals": 3.0}
    assert verdict(evidence(**{**known, "learnable": 3.0, **change})).name == instead


def test_features_suffice_only_where_rl_is_not_beyond_them() -> None:
    base = ROWS["features suffice, RL not needed"]
    rl = {**base.rl, "supervised_features": contrast(1.0, 0.8)}
    assert verdict(replace(base, rl=rl)).name == "underpowered"


@pytest.mark.parametrize(
    ("change", "instead"),
    [({"constant": 0.5}, "underpowered"), ({"half": 1.5}, "underpowered")],
    ids=["no constant gain", "RL not bounded"],
)
def test_a_constant_gate_suffices_only_where_rl_is_bounded(change, instead) -> None:
    known = {"rl": {"baseline": 3.0, "fixed:0.5": 2.0}, "half": 0.9, "constant": 3.0}
    known |= {"learnable": 0.1, "room_half": 2.0}
    assert verdict(evidence(**{**known, **change})).name == instead


@pytest.mark.parametrize("change", [{"room_half": 1.5}, {"half": 1.5}], ids=["headroom", "RL"])
def test_not_significant_is_not_absent(change) -> None:
    """Both bounds must lie below δ; a wide interval around nothing says nothing."""
    assert verdict(evidence(learnable=0.0)).name == "bounded below δ"
    assert verdict(evidence(**{"learnable": 0.0, **change})).name == "underpowered"


def test_points() -> None:
    assert points(contrast(1.25, 0.5, n=7)) == "+1.2 points [+0.8, +1.8] (n = 7)"
