"""What decoding sends between devices, counted in the compiled program."""

from collections import Counter
from typing import Any

import jax
import pytest
from jax.sharding import Mesh

from jroute.distributed import mesh as rules
from jroute.distributed.hlo import Collective, collectives, gathered_parameters, summary
from jroute.distributed.mesh import make_mesh
from jroute.generate.programs import decode, prefill
from jroute.model.config import DecoderConfig
from tests.distributed.decoder import CONFIG, SLOTS, UNTIED, on, placed_inputs, placed_parameters

# Calls and bytes of a chunk of one decode step, of one device; `expected` tells those of a larger
# model.
TRAFFIC = {
    (2, 2, 2): {"all-reduce": (17, 11_480), "all-gather": (2, 64)},
    (1, 4, 2): {"all-reduce": (15, 21_024), "all-gather": (2, 128)},
    (1, 1, 4): {"all-reduce": (5, 7_680), "all-gather": (2, 256)},
}


def decoding_on(
    mesh: Mesh,
    params: Any,
    *,
    routed: bool = False,
    unroll: bool = True,
    chunk: int = 6,
    config: DecoderConfig = CONFIG,
) -> list[Collective]:
    """Collectives of the program that goes on from what ``prefill`` left."""
    with on(mesh):
        rows, ends, routing = placed_inputs(routed=routed)
        state, _ = prefill(params, rows, ends, routing, config=config, room=10, unroll=unroll)
        if routed:  # an abstract Routing, which `lower` would make, is none to the type checker
            program = jax.jit(lambda p, s: decode(p, s, ends, routing, config=config, chunk=chunk))
            lowered = program.lower(params, state)
        else:
            lowered = decode.lower(params, state, ends, config=config, chunk=chunk)
        text = lowered.compile().as_text()
    return collectives(text, mesh.shape)


def expected(data: int, fsdp: int, tensor: int) -> Counter:
    """The arrays that one step must send, and no others: (kind, axes, type, shape) -> how many."""
    rows, layers = SLOTS // data, CONFIG.num_hidden_layers
    heads, kv_heads = CONFIG.num_attention_heads // tensor, CONFIG.num_key_value_heads // tensor
    state = ("f32", (rows, 1, CONFIG.hidden_size // fsdp))
    counts: Counter = Counter()
    if data > 1:  # how many slots are free? Asked once before the first step too
        counts["all-reduce", ("data",), "s32", ()] = 2
    if fsdp > 1:  # whatever sums over the embedding: projections, norms, logits
        shapes = {
            (rows, 1, heads, CONFIG.head_dim): layers,
            (rows, 1, kv_heads, CONFIG.head_dim): 2 * layers,
            (rows, 1, CONFIG.intermediate_size // tensor): 2 * layers,
            (rows, 1): 2 * layers + 1,
            (rows, CONFIG.vocab_size // tensor): 1,
        }
        for shape, times in shapes.items():
            counts["all-reduce", ("fsdp",), "f32", shape] += times
    if tensor > 1:  # token table, attention and MLP of every block; then the best of each part
        counts["all-reduce", ("tensor",), *state] = 1 + 2 * layers
        for kind in ("f32", "s32"):
            counts["all-gather", ("tensor",), kind, (rows, tensor)] = 1
    return counts


def arrays(operations: list[Collective]) -> Counter:
    total: Counter = Counter()
    for one in operations:
        for result in one.results:
            total[one.kind, one.axes, *result] += one.times
    return total


@pytest.mark.parametrize("sizes", TRAFFIC, ids=str)
def test_decoding_sends_small_activations_only(sizes: tuple[int, int, int]) -> None:
    mesh = make_mesh(*sizes)
    params = placed_parameters(mesh)
    operations = decoding_on(mesh, params)
    assert gathered_parameters(operations, params) == []
    early = [one for one in operations if one.loops != 1]
    assert [one.bytes for one in early] == [4] * (sizes[0] > 1), "sent before the first step"
    assert arrays(operations) == expected(*sizes)
    assert summary(operations) == TRAFFIC[sizes]


def test_an_output_layer_of_its_own_changes_nothing() -> None:
    mesh = make_mesh(1, 4, 2)
    params = placed_parameters(mesh, UNTIED)
    operations = decoding_on(mesh, params, config=UNTIED)
    assert gathered_parameters(operations, params) == []
    assert arrays(operations) == expected(1, 4, 2)


def test_a_scan_over_layers_sends_what_separate_layers_send() -> None:
    mesh = make_mesh(2, 2, 2)
    operations = decoding_on(mesh, placed_parameters(mesh), unroll=False)
    assert {one.loops for one in operations if one.bytes > 4} == {1, 2}
    assert arrays(operations) == expected(2, 2, 2)


def test_streams_stay_on_their_devices() -> None:
    mesh = make_mesh(2, 2, 2)
    params = placed_parameters(mesh)
    operations = decoding_on(mesh, params, routed=True)
    assert gathered_parameters(operations, params) == []
    more = arrays(operations) - expected(2, 2, 2)
    assert not expected(2, 2, 2) - arrays(operations)
    assert set(more) == {("all-reduce", ("fsdp",), "f32", (4, 1))}, "only their sizes are summed"


@pytest.mark.parametrize("axis", ["tensor", "fsdp"])
def test_a_rule_that_makes_weights_travel_is_seen(axis: str, monkeypatch) -> None:
    """The batch on the axis that cuts the weights: every device then needs whole weights."""
    mesh = make_mesh(1, *((1, 4) if axis == "tensor" else (4, 1)))
    params = placed_parameters(mesh)
    for name, part in rules.RULES.items():
        if part == axis:
            monkeypatch.setitem(rules.RULES, name, None)
    for name in ("batch", "slots"):
        monkeypatch.setitem(rules.RULES, name, axis)
    # Rules are no part of a program's name: another chunk makes it another one than the good one.
    operations = decoding_on(mesh, params, chunk=7)
    bad = [
        (name, one) for name, one in gathered_parameters(operations, params) if one.axes == (axis,)
    ]
    layers = CONFIG.num_hidden_layers
    weights = 3 * CONFIG.hidden_size * CONFIG.intermediate_size * layers * 4
    assert sum(one.times * one.bytes for name, one in bad if "mlp" in name) == weights
    attention = 2 * (8 + 4) * CONFIG.head_dim * CONFIG.hidden_size * layers * 4
    assert sum(one.times * one.bytes for name, one in bad if "attention" in name) == attention
