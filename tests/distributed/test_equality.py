"""A model on a mesh computes what it computes on one device."""

import jax
import numpy as np
import pytest

from jroute.distributed.mesh import make_mesh
from tests.distributed.decoder import (
    CONFIG,
    MESHES,
    NEW,
    UNTIED,
    Decoded,
    greedy,
    host_inputs,
    logits,
    parameters,
    placed_parameters,
)

ATOL = 1e-5


@pytest.fixture(scope="module")
def alone() -> dict[bool, tuple[np.ndarray, Decoded]]:
    """Logits and greedy decoding on one device, of the plain and of the routed model."""
    return {
        routed: (
            logits(parameters(), None, routed=routed),
            greedy(parameters(), None, routed=routed),
        )
        for routed in (False, True)
    }


def test_the_reference_is_worth_comparing_with(alone) -> None:
    (plain, decoded), (routed, other) = alone[False], alone[True]
    real = host_inputs().lengths > 0
    assert np.abs(plain - routed)[real].max() > 0.1
    for outputs in (decoded, other):
        assert (outputs.state.generated == np.where(real, NEW, 1)).all()
        assert ((outputs.tokens >= 0).all(axis=1) == real).all()
        assert len({tuple(row) for row in outputs.tokens[real]}) == real.sum()
    assert (decoded.tokens != other.tokens).any()
    ungated = (host_inputs().rows.gate == 0).all(axis=1)
    assert (decoded.tokens[ungated] == other.tokens[ungated]).all()


@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_forward_and_cached_decoding(alone, sizes: tuple[int, int, int]) -> None:
    mesh = make_mesh(*sizes)
    params = placed_parameters(mesh)
    data, fsdp, tensor = sizes
    gate_proj = params["blocks"]["mlp"]["gate_proj"]
    assert len(gate_proj.sharding.device_set) == data * fsdp * tensor
    assert gate_proj.addressable_shards[0].data.shape == (2, 48 // fsdp, 112 // tensor)
    real = host_inputs().lengths > 0
    for routed in (False, True):
        spread = logits(params, mesh, routed=routed)
        np.testing.assert_allclose(spread[real], alone[routed][0][real], atol=ATOL)
    decoded, expected = greedy(params, mesh, routed=False), alone[False][1]
    np.testing.assert_array_equal(decoded.tokens, expected.tokens)
    np.testing.assert_array_equal(decoded.state.lengths, expected.state.lengths)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a[real], b[real], atol=ATOL),
        decoded.state.cache,
        expected.state.cache,
    )


def test_an_output_layer_of_its_own() -> None:
    mesh, alone = make_mesh(2, 2, 2), parameters(UNTIED)
    spread = logits(placed_parameters(mesh, UNTIED), mesh, routed=False, config=UNTIED)
    expected = logits(alone, None, routed=False, config=UNTIED)
    real = host_inputs().lengths > 0
    np.testing.assert_allclose(spread[real], expected[real], atol=ATOL)


def test_routed_decoding_over_stacked_layers(alone) -> None:
    mesh = make_mesh(2, 2, 2)
    decoded = greedy(placed_parameters(mesh), mesh, routed=True, unroll=False)
    np.testing.assert_array_equal(decoded.tokens, alone[True][1].tokens)
    layers = CONFIG.num_hidden_layers
    assert [block.shape for block in decoded.state.cache.key] == [(layers, 8, 4, 20, 64)] * 2
    assert [block.shape for block in decoded.state.cache.value] == [(layers, 8, 4, 64, 20)] * 2
