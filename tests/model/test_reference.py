"""The routed decoder against the formulas, for configurations that nobody chose."""

import dataclasses
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from jroute.model.decoder import BlockTrace, ForwardOutput
from jroute.routing.composition import closed_form_coefficients, composition
from jroute.routing.config import RoutingConfig
from jroute.routing.mixing import Routing
from jroute.routing.operators import Operator
from tests.model import reference, small
from tests.model.small import CONFIG, CONFIGS, LAYERS, params, relative

ROWS, SEQ = 3, 7
HOOKS = ("attention", "mlp", "block")
KINDS = (
    *("delay(1)", "delay(2)", "delay(6)", "ema(0.3)", "ema(1.0)", "attention", "mlp"),
    *("embedding", "rotate", "copies", "persistent"),
)


def inputs():
    return small.tokens()[:ROWS, :SEQ], small.positions()[:ROWS, :SEQ]


SIZES = (3, 4, 5, 1, 8, 4, 3, 5, 4, 5)
OPERATORS = ("softmax", "sinkhorn", "orthostochastic", "signed", "fixed", "permutations")


def draw(seed: int, turn: int) -> tuple[RoutingConfig, np.ndarray, np.ndarray]:
    """A configuration, raw weights of its operator, and a gate for every row and block.

    Sizes, operators and two streams take turns, so that few draws leave none out.
    """
    rng = np.random.default_rng(seed)

    def one(*choices: Any) -> Any:
        return choices[rng.integers(len(choices))]

    n, operator = SIZES[turn], OPERATORS[turn % len(OPERATORS)]
    kinds = [KINDS[(2 * turn + i) % len(KINDS)] for i in range(2)]
    kinds += [one(*KINDS, "rotate", "rotate", "persistent") for _ in range(n)]
    kinds = rng.permutation(kinds[: n - 1]).tolist()
    rows = np.eye(n)[: rng.integers(1, n + 1)]
    rows = rows + 0.4 * rng.standard_normal(rows.shape)
    rows += (1 - rows.sum(1, keepdims=True)) / n
    config = RoutingConfig(
        streams=tuple(kinds),
        operator=operator if n > 1 else "softmax",
        rows=tuple(map(tuple, rows.tolist())) if operator == "fixed" and n > 1 else (),
        scale=one(0.0, 0.4, 1.7, -0.5) if n == 1 else 1.0,
        hooks=tuple(rng.permutation(HOOKS)[: rng.integers(1, 4)].tolist()),
        sites=one((), (), (1,), ("1-2",), ("0.5-1.0",), (0, "0.7-1.0")),
        injection=one("write_back", "read_only"),
        readout=one("trunk", "trunk", "mean"),
        norm_match=one(True, False),
        exempt_first=one(True, False),
        sink_norms=one((), small.GUARDS["sink_norms"]["sink_norms"]),
        cap=one(0.0, 0.1, 0.4),
    )
    raw = rng.standard_normal(config.initial_raw(LAYERS).shape).astype(np.float32)
    gates = rng.choice([0.0, 0.25, 0.7, 1.0, -0.5, -1.0], (ROWS, LAYERS)).astype(np.float32)
    return config, raw, gates


def run(config: RoutingConfig, raw, gates) -> tuple[Routing, np.ndarray, ForwardOutput]:
    routing = Routing.create(config, LAYERS, raw)
    spread = routing.layer_gates(gates, ROWS)
    output = small.measured(params(), *inputs(), routing, spread)
    return routing, np.asarray(spread), jax.device_get(output)


def hold_against_reference(config, raw, spread, output: ForwardOutput) -> None:
    """Every inner state of every row."""
    matrices, worst = reference.mixing(config, raw), 0.0
    for row in range(ROWS):
        expected = reference.forward(
            params(), CONFIG, inputs()[0][row], config, spread[row], matrices
        )
        for name in ("attention_input", "attention_update", "mlp_input", "mlp_update", "trunk"):
            states = getattr(output.taps, name)[:, row]
            worst = max(worst, relative(states, np.stack(getattr(expected, name))))
        worst = max(worst, relative(output.residual[row], expected.residual))
        np.testing.assert_allclose(
            output.taps.first_attention[:, row], np.stack(expected.first_attention), atol=1e-5
        )
    assert worst < 1e-5


def hold_against_composition(config, routing, spread, output: ForwardOutput) -> None:
    """Sum of C Delta with the realised scales rebuilds what every reader reads."""
    assert output.metrics is not None
    taps: BlockTrace = output.taps
    x0 = np.asarray(params()["embed_tokens"])[np.asarray(inputs()[0])]
    updates = np.stack([taps.attention_update, taps.mlp_update], 1).reshape(-1, *x0.shape)
    sources = np.concatenate([x0[None], updates]).astype(float)
    c = composition(config, jnp.asarray(output.metrics.coefficients))
    worst = 0.0
    for weights, read in zip(
        (*c.attention, *c.mlp, c.final),
        (*taps.attention_input, *taps.mlp_input, output.residual),
        strict=True,
    ):
        rebuilt = np.einsum("bsx,xbse->bse", np.asarray(weights, float), sources)
        worst = max(worst, relative(rebuilt, read))
    assert worst < 1e-5
    unguarded = not (config.norm_match or config.exempt_first or config.sink_norms or config.cap)
    if unguarded:
        np.testing.assert_allclose(
            output.metrics.coefficients,
            np.broadcast_to(
                closed_form_coefficients(routing, spread), output.metrics.coefficients.shape
            ),
            atol=1e-6,
        )


def test_any_routing_equals_the_numpy_reference_and_its_composition() -> None:
    drawn: list[RoutingConfig] = []

    # Shrinking a failure would compile hundreds of programs.
    @settings(max_examples=len(SIZES), phases=[Phase.generate])
    @given(st.integers(0, 2**32 - 1))
    def hold(seed: int) -> None:
        config, raw, gates = draw(seed, len(drawn))
        routing, spread, output = run(config, raw, gates)
        hold_against_reference(config, raw, spread, output)
        hold_against_composition(config, routing, spread, output)
        drawn.append(config)

    hold()
    assert {kind for config in drawn for kind in config.streams} == set(KINDS)
    assert {config.operator for config in drawn} == set(get_args(Operator))
    assert {hook for config in drawn for hook in config.hooks} == set(HOOKS)
    for name in ("injection", "readout", "norm_match", "exempt_first", "sink_norms", "cap"):
        assert len({getattr(config, name) for config in drawn}) > 1, name


@pytest.mark.parametrize("name", CONFIGS)
def test_the_presets_equal_the_numpy_reference_and_their_composition(name) -> None:
    config = CONFIGS[name]
    gates = np.array([[1.0] * 4, [0.6, -0.5, 0.0, 0.35], [-0.5] * 4], np.float32)
    routing, spread, output = run(config, None, gates)
    hold_against_reference(config, config.initial_raw(LAYERS), spread, output)
    hold_against_composition(config, routing, spread, output)


def test_the_plain_model_equals_the_numpy_reference() -> None:
    expected = reference.forward(params(), CONFIG, small.tokens()[0])
    np.testing.assert_allclose(small.plain()[0], expected.logits, atol=1e-4, rtol=0)


def test_logits_of_a_routed_row_equal_the_numpy_reference() -> None:
    config = CONFIGS["histories"]
    matrices = reference.mixing(config, config.initial_raw(LAYERS))
    expected = reference.forward(params(), CONFIG, small.tokens()[1], config, 0.7, matrices)
    output = small.routed(config, small.MIXED_GATES)
    np.testing.assert_allclose(output[1], expected.logits, atol=2e-4, rtol=0)
    assert float(jnp.abs(output - small.plain())[1].max()) > 0.05


def test_transposed_mixing_is_seen() -> None:
    config = CONFIGS["lopsided persistent"]
    routing = Routing.create(config, LAYERS)
    turned = dataclasses.replace(routing, mixing=routing.mixing.swapaxes(-1, -2))
    spread = routing.layer_gates(0.5, ROWS)
    raw, outputs = config.initial_raw(LAYERS), []
    for one in (routing, turned):
        outputs.append(jax.device_get(small.measured(params(), *inputs(), one, spread)))
    hold_against_reference(config, raw, np.asarray(spread), outputs[0])
    with pytest.raises(AssertionError, match="1e-05"):
        hold_against_reference(config, raw, np.asarray(spread), outputs[1])
