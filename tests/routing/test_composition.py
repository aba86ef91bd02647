"""C(g) of the presets, as the comments in their files state it; in six blocks."""

import dataclasses

import jax
import numpy as np
import pytest

from jroute.probe.effects import composite_gain
from jroute.routing.composition import (
    Composition,
    closed_form_coefficients,
    composition,
    source_names,
)
from jroute.routing.config import RoutingConfig
from jroute.routing.mixing import Routing
from tests.model.small import PRESETS

LAYERS, FINAL = 6, 2 * 6
NAMES = source_names(LAYERS)


def composed(config: RoutingConfig, gate: float, layers: int = LAYERS) -> np.ndarray:
    """C(g) of one token: attention and MLP of every block in turn, then the final norm."""
    routing = Routing.create(config, layers)
    gates = np.asarray(routing.layer_gates(gate, 1))

    follow = jax.jit(composition, static_argnums=0)
    c: Composition = follow(config, closed_form_coefficients(routing, gates))
    readers = np.stack([c.attention, c.mlp], 1).reshape(2 * layers, -1)
    return np.concatenate([readers, np.asarray(c.final).reshape(1, -1)]).astype(float)


def plain(layers: int = LAYERS) -> np.ndarray:
    """C = 1 for all earlier sources: reader r comes after the embedding and r updates."""
    return np.tril(np.ones((2 * layers + 1, 2 * layers + 1)))


def index(*names: str) -> list[int]:
    return [NAMES.index(name) for name in names]


@pytest.mark.parametrize("name", PRESETS)
def test_at_gate_zero_everything_counts_once(name) -> None:
    np.testing.assert_array_equal(composed(PRESETS[name], 0.0), plain())


@pytest.mark.parametrize("gate", [0.25, 1.0, -0.5])
def test_soft_skip_takes_from_the_two_latest_blocks(gate) -> None:
    """Sites 2 and 3 (0.3 to 0.7 of six): what blocks 3 and 4 read."""
    weights, expected = composed(PRESETS["soft_skip"], gate), plain()
    for site in (2, 3):
        latest = index(*(f"{part}{block}" for part in "am" for block in (site, site - 1)))
        expected[np.ix_([2 * (site + 1), 2 * (site + 1) + 1], latest)] -= gate
    np.testing.assert_allclose(weights, expected, atol=1e-6)


@pytest.mark.parametrize("gate", [0.25, 1.0, -0.5])
def test_soft_repeat_counts_blocks_in_the_middle_again(gate) -> None:
    """Sites 2 and 3 (0.4 to 0.6 of six): from the next block on."""
    weights, expected = composed(PRESETS["soft_repeat"], gate), plain()
    for site in (2, 3):
        expected[2 * (site + 1) :, index(f"a{site}", f"m{site}")] += gate
    np.testing.assert_allclose(weights, expected, atol=1e-6)


@pytest.mark.parametrize("gate", [0.25, 1.0, -0.5])
def test_attention_mlp_balance_is_half_a_gate_more_and_less(gate) -> None:
    """Also of the block before; the MLP adds its own block's attention to that as it is."""
    weights, expected = composed(PRESETS["attention_mlp_balance"], gate), plain()
    for reader in range(FINAL + 1):
        done = reader // 2  # blocks that are behind
        expected[reader, index(*(f"a{block}" for block in range(done)))] += gate / 2
        expected[reader, index(*(f"m{block}" for block in range(done)))] -= gate / 2
    np.testing.assert_allclose(weights, expected, atol=1e-6)


@pytest.mark.parametrize("gate", [0.3, 0.8])
def test_mvp_fades_older_updates_towards_a_quarter(gate) -> None:
    """An update k blocks back weighs 1/4 + 3/4 (1 - g (1 - l))^k, l the second eigenvalue."""
    layers = 36
    weights = composed(PRESETS["mvp"], gate, layers)
    second = (np.exp(4) - 1) / (np.exp(4) + 3)
    back = layers - np.arange(layers)
    expected = 0.25 + 0.75 * (1 - gate * (1 - second)) ** back
    np.testing.assert_allclose(weights[-1, 1::2], expected, atol=1e-5)
    np.testing.assert_allclose(weights[-1, 2::2], expected, atol=1e-5)
    assert weights[-1, 0] == pytest.approx(1, abs=1e-5)  # all streams start as the embedding


@pytest.mark.parametrize(
    ("name", "limits", "columns"),
    [("hyper_connections", (0.7, 0.6, 0.5), 1 + 0.6 * (4 * 0.4 - 1)), ("mhc", (0.5,) * 3, 1.0)],
    ids=["hyper_connections", "mhc"],
)
def test_rotating_streams_fade_older_updates_towards_what_holds_them(name, limits, columns) -> None:
    """Two streams hold an update; if they are worth w, it weighs w + (1 - w) (1 - g e)^k."""
    for gate in (0.5, 1.0, -0.5):
        weights = composed(PRESETS[name], gate)[-1]
        kept = 1 - gate * (1 - 0.4 ** (1 / (2 * LAYERS)))  # of 1 - strength, over all hooks
        hooks = 2 * LAYERS - np.arange(2 * LAYERS)
        worth = np.repeat(np.resize(limits, LAYERS), 2)  # attention and MLP of every block
        np.testing.assert_allclose(weights[1:], worth + (1 - worth) * kept**hooks, atol=1e-5)
        assert weights[0] == pytest.approx(1, abs=1e-5)
    gain = composite_gain(Routing.create(PRESETS[name], LAYERS), np.ones((1, LAYERS), np.float32))
    assert gain == pytest.approx((1.0, columns), rel=1e-4)


def test_histories_halve_all_updates_before_they_are_scaled() -> None:
    """What scaling adds to that depends on the model; see the probe's tests."""
    config = PRESETS["histories"]
    assert config.norm_match
    last = composed(dataclasses.replace(config, norm_match=False), 1.0)[-1]
    np.testing.assert_allclose(last, [1.0] + [0.5] * 2 * LAYERS, atol=1e-6)


def test_sources_are_named_in_order() -> None:
    assert source_names(2) == ["x0", "a0", "m0", "a1", "m1"]
