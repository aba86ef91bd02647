"""What the mixing matrices are, for any raw weights and where they start."""

from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jroute.routing import operators
from jroute.routing.config import RoutingConfig
from jroute.routing.mixing import Routing
from jroute.routing.operators import Operator
from jroute.utils.errors import UserError
from tests.model import reference
from tests.model.small import PRESETS

LEARNED = [name for name in get_args(Operator) if name != "fixed"]
DOUBLY = ["permutations", "orthostochastic"]
SIZES = {name: (2, 4) if name == "permutations" else (2, 4, 8) for name in LEARNED}
CASES = [(name, n) for name in LEARNED for n in SIZES[name]]


def drawn(name, n: int, count: int = 6, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Random raw weights, and their matrices in float64 for exact sums."""
    rng = np.random.default_rng(n)
    raw = rng.normal(0, scale, (count, *operators.raw_shape(name, n))).astype(np.float32)
    matrices = jax.vmap(lambda one: operators.matrix(name, one, n))(jnp.asarray(raw))
    return raw, np.asarray(matrices, float)


@pytest.mark.parametrize(("name", "n"), CASES)
def test_any_raw_weights_give_the_reference_matrix_with_row_sums_one(name, n) -> None:
    raw, matrices = drawn(name, n)
    expected = [reference.matrix(name, one, n) for one in raw]
    np.testing.assert_allclose(matrices, expected, atol=2e-6, rtol=0)
    np.testing.assert_allclose(matrices.sum(-1), 1, atol=1e-6)
    assert np.abs(matrices - np.eye(n)).max() > 0.3
    if name != "signed":
        assert matrices.min() >= 0
    if name in DOUBLY:
        np.testing.assert_allclose(matrices.sum(-2), 1, atol=1e-6)
    if n > 2 or name == "softmax":  # two-by-two doubly stochastic matrices are symmetric
        assert np.abs(matrices - matrices.swapaxes(-1, -2)).max() > 0.05


@pytest.mark.parametrize("n", [2, 4, 8])
def test_sinkhorn_says_how_far_columns_are_from_one(n) -> None:
    """Little for weights of ordinary size, up to a percent for weights that hardly converge."""
    for scale, low, high in ((1.0, 0.0, 1e-6), (6.0, 1e-3, 1e-2)):
        _, matrices = drawn("sinkhorn", n, scale=scale)
        error = np.abs(matrices.sum(axis=1) - 1).max()
        assert operators.column_error(matrices) == pytest.approx(error, abs=1e-7)
        assert low <= error < high
        np.testing.assert_allclose(matrices.sum(axis=2), 1, atol=1e-6)  # rows are normalised last
    lopsided = np.array([[[0.9, 0.1], [0.4, 0.6]]], np.float32)
    assert operators.column_error(lopsided) == pytest.approx(0.3, abs=1e-6)


@pytest.mark.parametrize("n", [3, 4, 8])
def test_signed_matrices_keep_the_mean_and_never_grow_differences(n) -> None:
    raw, matrices = drawn("signed", n, scale=2.0)
    assert np.linalg.svd(raw)[1].max() > 1.5  # so the bound is at work
    np.testing.assert_allclose(matrices.sum(-1), 1, atol=1e-6)
    np.testing.assert_allclose(matrices.sum(-2), 1, atol=1e-6)
    centre = np.eye(n) - 1 / n
    norms = np.linalg.svd(centre @ matrices @ centre)[1].max(-1)
    assert (norms <= 1 + 1e-6).all()
    assert matrices.min() < 0
    small = 0.3 * raw / np.linalg.svd(raw)[1].max()
    inside = operators.matrix("signed", jnp.asarray(small[0]), n)
    norm = np.linalg.svd(centre @ np.asarray(inside) @ centre)[1].max()
    assert norm == pytest.approx(np.linalg.svd(small[0])[1].max(), rel=1e-4)  # not scaled up


@pytest.mark.parametrize("strength", [0.0, 0.3, 0.9])
@pytest.mark.parametrize(("name", "n"), CASES)
def test_strength_means_the_same_composite_at_any_depth(name, n, strength) -> None:
    """tr(M^K) = 1 + (n - 1) (1 - strength) for K applications over 6 and over 36 blocks."""
    for layers, hooks in ((6, ("block",)), (36, ("attention", "mlp"))):
        config = RoutingConfig(
            ("persistent",) * (n - 1), operator=name, strength=strength, hooks=hooks
        )
        routing = Routing.create(config, layers)
        steps = np.asarray(routing.mixing, float).reshape(-1, n, n)
        assert len(steps) == layers * len(hooks)
        product = np.linalg.multi_dot(list(steps))
        expected = 1 + (n - 1) * (1 - strength)
        assert np.trace(product) == pytest.approx(expected, abs=2e-4 * n)
        if strength == 0:
            np.testing.assert_allclose(steps[0], np.eye(n), atol=1e-6)


@pytest.mark.parametrize("strength", [0.0, 0.3, 0.9])
def test_rows_may_mix_towards_unequal_shares_at_the_same_strength(strength) -> None:
    shares = np.array([0.5, 0.3, 0.2])
    for layers in (6, 36):
        config = RoutingConfig(
            ("persistent",) * 2, "softmax", strength=strength, stationary=tuple(shares)
        )
        steps = np.asarray(Routing.create(config, layers).mixing, float)[:, 0]
        product = np.linalg.multi_dot(list(steps))
        expected = (1 - strength) * np.eye(3) + strength * np.broadcast_to(shares, (3, 3))
        np.testing.assert_allclose(product, expected, atol=1e-5)
        assert np.trace(product) == pytest.approx(1 + 2 * (1 - strength), abs=1e-5)


def test_strength_counts_sites_only() -> None:
    few = RoutingConfig(("persistent",), "sinkhorn", strength=0.5, sites=("2-3",))
    step = np.asarray(Routing.create(few, 36).mixing[2, 0], float)
    assert np.trace(step @ step) == pytest.approx(1.5, abs=1e-5)


@pytest.mark.parametrize("name", LEARNED)
def test_matrices_can_be_learned_from_where_they_start(name) -> None:
    """Gradients there are finite, those of finite differences, and point somewhere."""
    start = operators.initial_raw(name, 3, 0.4, 12)
    target = jnp.asarray([[0.2, 0.7, 0.1], [0.1, 0.2, 0.7], [0.7, 0.1, 0.2]])

    def distance(raw):
        return jnp.sum((operators.matrix(name, raw, 3) - target) ** 2)

    slope = np.asarray(jax.jit(jax.grad(distance))(jnp.asarray(start)))
    assert np.isfinite(slope).all()
    assert np.abs(slope).max() > 1e-2
    # Away from the start, where doubly stochastic matrices need not be symmetric.
    raw = start + np.random.default_rng(0).normal(0, 0.2, start.shape).astype(np.float32)
    toward = np.random.default_rng(1).normal(size=start.shape)
    step = 1e-4
    above, below = (
        np.square(reference.matrix(name, raw + sign * step * toward, 3) - np.asarray(target)).sum()
        for sign in (1, -1)
    )
    slope = np.asarray(jax.jit(jax.grad(distance))(jnp.asarray(raw)))
    assert (slope * toward).sum() == pytest.approx((above - below) / (2 * step), rel=1e-2)


def test_matrices_of_the_presets() -> None:
    mvp = np.asarray(Routing.create(PRESETS["mvp"], 4).mixing)
    e4 = np.exp(4)
    assert mvp.shape == (4, 1, 4, 4)
    np.testing.assert_allclose(np.diagonal(mvp, axis1=-2, axis2=-1), e4 / (e4 + 3), rtol=1e-6)
    np.testing.assert_allclose(mvp[:, 0, 0, 1:], 1 / (e4 + 3), rtol=1e-6)
    np.testing.assert_allclose(mvp.sum(-1), 1, rtol=1e-6)
    histories = np.asarray(Routing.create(PRESETS["histories"], 4).mixing)
    np.testing.assert_array_equal(histories[:, :, 0], 0.25)
    np.testing.assert_array_equal(histories[:, :, 1:], np.broadcast_to(np.eye(4)[1:], (4, 1, 3, 4)))


def test_learned_weights_take_the_place_of_the_first_ones() -> None:
    config = RoutingConfig(("attention", "mlp"), "softmax", hooks=("mlp", "block"))
    raw = np.random.default_rng(0).standard_normal((4, 2, 3, 3)).astype(np.float32)
    matrices = np.asarray(Routing.create(config, 4, raw).mixing)
    expected = np.exp(raw) / np.exp(raw).sum(-1, keepdims=True)
    np.testing.assert_allclose(matrices, expected, atol=1e-6)
    with pytest.raises(
        UserError, match=r"shape \(4, 1, 3, 3\), but this routing of 4 .* \(4, 2, 3, 3\)"
    ):
        Routing.create(config, 4, raw[:, :1])
