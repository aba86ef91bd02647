"""What guards, sites, bands, metrics and wrong settings do; formulas are in test_reference."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jroute.model.decoder import ForwardOutput
from jroute.routing.config import RoutingConfig
from jroute.routing.mixing import Routing
from jroute.routing.presets import preset_names, routing_file
from jroute.utils.config import load
from jroute.utils.errors import UserError
from tests.model import reference, small
from tests.model.small import (
    BATCH,
    CONFIG,
    CONFIGS,
    GUARDS,
    LAYERS,
    MIXED_GATES,
    SEQ,
    params,
    positions,
    routed,
    tokens,
)


def measured(config: RoutingConfig, gate, where=None, ids=None) -> ForwardOutput:
    routing = Routing.create(config, LAYERS)
    ids = tokens() if ids is None else ids
    where = positions(len(ids)) if where is None else where
    gates = routing.layer_gates(gate, len(ids))
    return jax.device_get(small.measured(params(), ids, where, routing, gates))


# Gates ----------------------------------------------------------------------------------------


def test_a_gate_per_layer_is_a_site() -> None:
    config = dataclasses.replace(CONFIGS["lopsided persistent"], hooks=("attention", "block"))
    gates = np.zeros((BATCH, LAYERS), np.float32)
    gates[:, 1] = 0.6
    everywhere = Routing.create(config, LAYERS)
    alone = Routing.create(dataclasses.replace(config, sites=(1,)), LAYERS)
    np.testing.assert_array_equal(
        everywhere.layer_gates(gates, BATCH), alone.layer_gates(0.6, BATCH)
    )
    np.testing.assert_array_equal(
        alone.layer_gates(np.ones((BATCH, LAYERS)), BATCH)[:, [0, 2, 3]], 0
    )
    expected = reference.forward(
        params(),
        CONFIG,
        tokens()[0],
        config,
        gates[0],
        reference.mixing(config, config.initial_raw(LAYERS)),
    )
    np.testing.assert_allclose(routed(config, gates)[0], expected.logits, atol=2e-4)


def test_a_gate_per_band_is_the_gate_per_layer_that_it_spreads_to() -> None:
    config = dataclasses.replace(CONFIGS["lopsided persistent"], bands=2)
    bands = np.array([[0.0, 1.0], [0.5, -0.5], [1.0, 0.0], [0.25, 0.25], [0.0, 0.0]], np.float32)
    routing = Routing.create(config, LAYERS)
    np.testing.assert_array_equal(routing.layer_gates(bands, BATCH), np.repeat(bands, 2, axis=1))
    np.testing.assert_array_equal(
        routed(config, bands), routed(config, np.repeat(bands, 2, axis=1))
    )
    uneven = Routing.create(RoutingConfig(bands=3), 8).layer_gates([[1.0, 2.0, 3.0]], 1)
    np.testing.assert_array_equal(uneven, [[1, 1, 1, 2, 2, 2, 3, 3]])
    # As many prompts as bands: one dimension is always one number per prompt.
    per_prompt = Routing.create(RoutingConfig(bands=3), 3).layer_gates([1.0, 2.0, 3.0], 3)
    np.testing.assert_array_equal(per_prompt, [[1] * 3, [2] * 3, [3] * 3])


@pytest.mark.parametrize("name", ["histories", "everything"])
def test_rows_do_not_depend_on_each_others_gates(name) -> None:
    config = CONFIGS[name]
    together = routed(config, MIXED_GATES)
    for row, gate in enumerate(MIXED_GATES):
        others = [0.9] * BATCH
        others[row] = gate
        np.testing.assert_array_equal(routed(config, others)[row], together[row])


# Guards ---------------------------------------------------------------------------------------

KINDS = ("delay(1)", "persistent", "mlp")


def guarded(**guards) -> RoutingConfig:
    """Write-back after attention and after the block, with lopsided rows."""
    return RoutingConfig(KINDS, "fixed", rows=small.ROWS, hooks=("attention", "block"), **guards)


def before_and_after(out: ForwardOutput) -> list[tuple[np.ndarray, np.ndarray]]:
    """The trunk before and after every hook of ``guarded``: attention's, then the block's."""
    taps, pairs = out.taps, []
    for layer in range(LAYERS):
        pairs.append(
            (taps.attention_input[layer] + taps.attention_update[layer], taps.mlp_input[layer])
        )
        pairs.append((taps.mlp_input[layer] + taps.mlp_update[layer], taps.trunk[layer]))
    return pairs


def rms(x) -> np.ndarray:
    return np.sqrt((np.asarray(x, float) ** 2).mean(-1))


def test_norm_matching_keeps_every_tokens_size_and_turns_it() -> None:
    out = measured(guarded(norm_match=True), 1.0)
    assert out.metrics is not None
    for before, after in before_and_after(out):
        np.testing.assert_allclose(rms(after), rms(before), rtol=1e-5)
        cosine = (before * after).mean(-1) / rms(before) / rms(after)
        assert cosine.max() < 0.9999
    sizes = out.metrics.rms
    np.testing.assert_allclose(sizes, np.broadcast_to(sizes[..., :1], sizes.shape), rtol=1e-4)
    grown = [rms(after) / rms(before) for before, after in before_and_after(measured(guarded(), 1))]
    assert np.abs(np.stack(grown) - 1).max() > 0.2


def test_the_first_token_is_left_alone_and_no_other() -> None:
    for before, after in before_and_after(measured(guarded(exempt_first=True), 1.0)):
        np.testing.assert_array_equal(after[:, 0], before[:, 0])
        assert (np.abs(after - before).max(-1)[:, 1:] > 1e-3).all()


def test_tokens_above_their_blocks_norm_are_left_alone_and_no_others() -> None:
    norms = GUARDS["sink_norms"]["sink_norms"]
    seen = set()
    for i, (before, after) in enumerate(before_and_after(measured(guarded(sink_norms=norms), 1.0))):
        exempt = rms(before) > norms[i // 2]
        np.testing.assert_array_equal(after[exempt], before[exempt])
        assert (np.abs(after - before).max(-1)[~exempt] > 1e-3).all()
        seen |= {(i // 2, bool(e)) for e in exempt.ravel()}
    assert len(seen) == 2 * LAYERS  # in every block both kinds of token


@pytest.mark.parametrize("guards", ["cap", "all guards"])
def test_no_token_changes_by_more_than_the_cap(guards) -> None:
    """What is capped is what comes out of the hook, after all guards."""
    for gate in (1.0, -1.0):
        reached = []
        for before, after in before_and_after(measured(guarded(**GUARDS[guards]), gate)):
            change = rms(after - before) / rms(before)
            assert (change < 0.2 * (1 + 1e-5)).all()
            reached.append(change)
        assert np.isclose(np.stack(reached), 0.2).mean() > 0.1
        assert (np.stack(reached) < 0.199).any()
        free = [rms(b - a) / rms(a) for a, b in before_and_after(measured(guarded(), gate))]
        assert np.stack(free).max() > 0.5


OWN = {"rotate": 0.2, "persistent": 4.0, "mlp": 1.5}
"""Side streams, the last a history, and how large their tokens are beside the trunk's."""
GATES = np.array([1.0, -1.0, 0.05, 0.0, 0.6], np.float32)


def mixed_alone(**guards):
    """One hook on random streams: those before and after, who is exempt, and the coefficients."""
    config = RoutingConfig(tuple(OWN), "fixed", rows=small.ROWS, **guards)
    routing = Routing.create(config, LAYERS)
    rng = np.random.default_rng(5)
    # Tokens are of many sizes, on both sides of the sinks' norm.
    sizes = np.exp(rng.normal(0.3, 0.5, (BATCH, SEQ, 1)))
    drawn = [rng.normal(0, size, (BATCH, SEQ, 24)) * sizes for size in (1.0, *OWN.values())]
    trunk, *carried = before = [jnp.asarray(x, jnp.float32) for x in drawn]
    layer = jax.tree.map(lambda x: x[1], routing.per_layer())
    strength = routing.strength(jnp.asarray(GATES), layer, trunk, positions())
    acting = layer.mixing[0]
    everywhere = jnp.ones((BATCH, SEQ), bool)
    mixed, after, metrics = routing.mix(
        tuple(carried), trunk, trunk, acting, strength, valid=everywhere
    )
    assert metrics is not None
    # The strength of a token is that of the token alone: nothing here looks ahead or around.
    for t in (0, 4, SEQ - 1):
        one = slice(t, t + 1)
        alone = routing.strength(jnp.asarray(GATES), layer, trunk[:, one], positions()[:, one])
        np.testing.assert_array_equal(alone, strength[:, one])
    untouched = np.asarray(strength)[..., 0] == 0
    return before, [mixed, *after], untouched, np.asarray(metrics.coefficients, float)


@pytest.mark.parametrize(
    "guards",
    [{}, {"cap": 0.2}, {"cap": 0.8, "norm_match": True}, GUARDS["all guards"]],
    ids=["none", "cap", "wide cap on what turns", "all"],
)
def test_every_stream_with_a_row_is_guarded_like_the_trunk(guards) -> None:
    before, after, untouched, coefficients = mixed_alone(**guards)
    assert untouched[3].all() and untouched.mean() < 0.7
    if "sink_norms" in guards:
        exempt = (rms(before[0]) > guards["sink_norms"][1]) | (np.arange(SEQ) == 0)
        np.testing.assert_array_equal(untouched, exempt | (GATES == 0)[:, None])
        assert 0.2 < exempt.mean() < 0.8
    cap, turns = guards.get("cap", np.inf), "norm_match" in guards
    for old, new in zip(before[:3], after[:3], strict=True):
        np.testing.assert_array_equal(np.asarray(new)[untouched], np.asarray(old)[untouched])
        change = rms(new - old) / rms(old)
        assert (change[~untouched] > 1e-3).all()
        assert (change <= cap * (1 + 1e-5)).all()
        if turns:
            np.testing.assert_allclose(rms(new), rms(old), rtol=1e-5)
    # The trunk reaches the cap where much is mixed, and not where little is.
    change = (rms(after[0] - before[0]) / rms(before[0]))[~untouched]
    assert np.isclose(change, cap, rtol=1e-5).any() == ("cap" in guards)
    assert (change < 0.9 * cap).any()
    np.testing.assert_array_equal(after[3], before[3])  # a history has no row of its own
    rebuilt = np.einsum("bsij,jbse->ibse", coefficients, np.stack(before).astype(float))
    assert small.relative(rebuilt, np.stack(after)) < 1e-5


# Metrics --------------------------------------------------------------------------------------


def test_dominance_is_by_the_row_that_the_trunk_takes() -> None:
    """Uniform read-out of a doubly stochastic matrix brings the trunk nothing but itself."""
    streams, raw = ("rotate", "persistent"), np.random.default_rng(0).normal(size=(3, 3))
    shares = {}
    for readout in ("trunk", "mean"):
        config = RoutingConfig(streams, "sinkhorn", readout=readout)
        weights = np.broadcast_to(raw, (LAYERS, 1, 3, 3)).astype(np.float32)
        layer = jax.tree.map(lambda x: x[0], Routing.create(config, LAYERS, weights).per_layer())
        ones, trunk = jnp.ones((1, 2, 1)), jnp.ones((1, 2, 8))
        carried = (2 * trunk, 3 * trunk)
        routing = Routing.create(config, LAYERS, weights)
        metrics = routing.mix(carried, trunk, trunk, layer.mixing[0], ones, ones[..., 0] > 0)[2]
        assert metrics is not None
        shares[readout] = np.asarray(metrics.dominance[0])
    m = reference.matrix("sinkhorn", raw, 3)
    expected = m[0] * [1, 2, 3] / (m[0] * [1, 2, 3]).sum()
    np.testing.assert_allclose(shares["trunk"], expected, atol=1e-5)
    np.testing.assert_allclose(shares["mean"], [1, 0, 0], atol=1e-5)


@pytest.mark.parametrize(
    "config",
    [
        CONFIGS["histories"],
        RoutingConfig(KINDS, "fixed", rows=small.ROWS, hooks=("attention", "block")),
    ],
    ids=["histories", "two hooks"],
)
def test_stream_metrics_equal_numpy(config) -> None:
    gate = 0.5
    out = measured(config, gate, ids=tokens()[:1])
    matrix = reference.mixing(config, config.initial_raw(LAYERS))[0, 0]
    expected = reference.forward(
        params(), CONFIG, tokens()[0], config, gate, [[matrix] * 2] * LAYERS
    )
    assert len(expected.seen) == LAYERS * len(config.hooks)
    for (layer, name), mixed in expected.seen.items():
        streams, before, after = mixed
        sizes = np.stack([np.linalg.norm(s, axis=-1) for s in streams])
        cosines = [
            (streams[i] * streams[j]).sum(-1) / sizes[i] / sizes[j]
            for i in range(4)
            for j in range(i + 1, 4)
        ]
        share = (np.abs(matrix[0])[:, None] * sizes).mean(-1)
        share /= share.sum()
        at = (layer, config.hooks.index(name), 0)
        metrics = jax.tree.map(lambda x, at=at: x[at], out.metrics)
        np.testing.assert_allclose(
            metrics.rms, reference.rms(np.stack(streams)).mean((1, 2)), rtol=1e-4
        )
        np.testing.assert_allclose(metrics.diversity, 1 - np.mean(cosines), atol=1e-4)
        np.testing.assert_allclose(metrics.dominance, share, rtol=1e-4)
        entropy = -(share * np.log(share)).sum()
        np.testing.assert_allclose(metrics.effective_streams, np.exp(entropy), rtol=1e-4)
        change = np.linalg.norm(after - before, axis=-1) / sizes[0]
        np.testing.assert_allclose(metrics.change, change.mean(), rtol=1e-3)
        cosine = (after * before).sum(-1) / sizes[0] / np.linalg.norm(after, axis=-1)
        np.testing.assert_allclose(metrics.cosine, cosine.mean(), atol=1e-4)


def test_metrics_do_not_count_padding() -> None:
    config = CONFIGS["histories"]
    where = jnp.where(jnp.arange(SEQ)[None] < 7, positions(), -1)
    padded = measured(config, 0.5, where=where).metrics
    short = measured(config, 0.5, ids=tokens()[:, :7], where=positions()[:, :7]).metrics
    assert padded is not None and short is not None
    padded = padded._replace(coefficients=padded.coefficients[:, :, :, :7])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), padded, short)


# Settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", preset_names())
@pytest.mark.parametrize("layers", [1, 2, 3, 4, 6, 28, 36])
def test_presets_fit_any_depth(name, layers) -> None:
    config = load(RoutingConfig, routing_file(name))
    assert Routing.create(config, layers).sites.sum() > 0


def test_presets() -> None:
    assert preset_names() == [
        *("attention_mlp_balance", "histories", "hyper_connections", "mhc", "mvp"),
        *("soft_repeat", "soft_skip"),
    ]


@pytest.mark.parametrize(
    ("sites", "blocks"),
    [
        ((), range(10)),
        ((3,), [3]),
        (("3",), [3]),
        (("2-5",), [2, 3, 4, 5]),
        (("0-1",), [0, 1]),  # whole numbers are blocks
        (("0.0-1.0",), range(10)),
        (("0.25-0.75",), [3, 4, 5, 6, 7]),
        (("0-0.25", "0.25-1"), range(10)),  # ranges that meet neither overlap nor leave a gap
        ((".4-.6",), [4, 5]),
        (("0.45-0.5",), [4]),  # narrower than a block
        (("0.96-1.0",), [9]),
        ((7, "1-2", "0.1-0.3", 1), [1, 2, 7]),
    ],
)
def test_sites_are_indices_ranges_and_parts_of_the_depth(sites, blocks) -> None:
    assert RoutingConfig(sites=sites).site_indices(10) == list(blocks)


def test_parts_of_the_depth_that_meet_cut_it_without_rest() -> None:
    config = RoutingConfig(sites=("0.0-0.3",))
    for layers in (6, 28, 36):
        indices = config.site_indices(layers)
        for part in ("0.3-0.62", "0.62-1.0"):
            indices += RoutingConfig(sites=(part,)).site_indices(layers)
        assert indices == list(range(layers))


@pytest.mark.parametrize("site", ["two", -1, "2-", "1.5", "0.7-0.3", "0.5-0.5", "0.5-1.5", "0,1"])
def test_sites_that_are_none_are_refused(site) -> None:
    with pytest.raises(UserError, match=r"routing\.sites: '.*' is not a (block|range of depth)"):
        RoutingConfig(sites=(site,))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"streams": ("mlp",) * 8}, "8 side streams; give at most 7"),
        ({"streams": ("delay",)}, "unknown stream 'delay'"),
        ({"streams": ("delay(0)",)}, "unknown stream"),
        ({"streams": ("ema(0)",)}, "unknown stream"),
        ({"streams": ("ema(1.5)",)}, "unknown stream"),
        ({"streams": ("ema(nan)",)}, "unknown stream"),
        ({"operator": "fixed"}, "give both or neither"),
        ({"rows": ((1.0, 0.0, 0.0, 0.0),)}, "give both or neither"),
        ({"operator": "fixed", "rows": ((0.5, 0.5),)}, "rows of 4 numbers"),
        ({"operator": "fixed", "rows": ((0.5, 0.5, 0.5, 0.0),)}, "sums to 1.5"),
        ({"operator": "permutations", "streams": ("mlp",) * 4}, "at most 4 streams"),
        ({"diagonal": 4.0, "strength": 0.5}, "instead of strength"),
        ({"diagonal": 4.0, "operator": "sinkhorn"}, "for operator 'softmax'"),
        ({"strength": 1.0}, "from 0 to below 1"),
        ({"strength": -0.1}, "from 0 to below 1"),
        ({"stationary": (0.5, 0.5)}, r"stationary is \[0.5, 0.5\]; give 4 numbers"),
        ({"stationary": (0.5, 0.5, 0.0, 0.0)}, "above 0"),
        ({"stationary": (0.4, 0.4, 0.4, 0.4)}, "sum to 1"),
        ({"stationary": (0.25,) * 4, "operator": "sinkhorn"}, "for operator 'softmax'"),
        ({"stationary": (0.25,) * 4, "diagonal": 4.0}, "for operator 'softmax'"),
        ({"scale": 2.0}, "without side streams"),
        ({"hooks": ()}, "at least one of attention, mlp, block"),
        ({"hooks": ("mlp", "mlp")}, "each once"),
        ({"cap": -0.1}, "must not be negative"),
        ({"bands": -1}, "must not be negative"),
    ],
)
def test_impossible_routing_is_refused(changes, message) -> None:
    with pytest.raises(UserError, match=message):
        RoutingConfig(**changes)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e39], ids=str)
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("cap", lambda x: {"cap": x}),
        ("scale", lambda x: {"streams": (), "scale": x}),
        ("stationary", lambda x: {"streams": ("mlp",), "stationary": (x, 0.5)}),
        ("strength", lambda x: {"strength": x}),
        ("diagonal", lambda x: {"diagonal": x}),
        (
            "rows",
            lambda x: {"streams": ("mlp",), "operator": "fixed", "rows": ((1.0, 0.0), (x, 1 - x))},
        ),
        ("sink_norms", lambda x: {"sink_norms": (1.0, x)}),
    ],
    ids=["cap", "scale", "stationary", "strength", "diagonal", "rows", "sink_norms"],
)
def test_numbers_that_are_not_finite_are_refused(name, settings, value) -> None:
    with pytest.raises(UserError, match=rf"routing\.{name} holds a number that is not finite"):
        RoutingConfig(**settings(value))


def test_the_order_of_hooks_means_nothing() -> None:
    assert RoutingConfig(hooks=("block", "attention")) == RoutingConfig(
        hooks=("attention", "block")
    )


def test_what_does_not_fit_the_model_is_refused() -> None:
    for site in (9, "2-4"):
        with pytest.raises(UserError, match=f"names '{site}', but the model has blocks 0 to 3"):
            Routing.create(RoutingConfig(sites=(site,)), 4)
    with pytest.raises(UserError, match="sink_norms has 2 numbers, but the model has 4"):
        Routing.create(RoutingConfig(sink_norms=(1.0, 2.0)), 4)
    with pytest.raises(UserError, match=r"bands is 5, .* 4 blocks"):
        Routing.create(RoutingConfig(bands=5), 4)


def test_impossible_gates_are_refused() -> None:
    routing = Routing.create(RoutingConfig(bands=2), 4)
    with pytest.raises(UserError, match="gate has shape"):
        routing.layer_gates([0.1, 0.2], 3)
    with pytest.raises(UserError, match=r"band \(3, 2\), or .* layer \(3, 4\)"):
        routing.layer_gates(np.zeros((3, 3)), 3)
    with pytest.raises(UserError, match="not finite"):
        routing.layer_gates(float("nan"), 3)
    with pytest.raises(UserError, match="gates are numbers"):
        routing.layer_gates("half", 3)
