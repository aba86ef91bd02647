"""What routing does, against an independent reference; and that gate 0 is the plain model."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jroute.config import load
from jroute.errors import UserError
from jroute.model.config import Qwen3Config
from jroute.model.qwen3 import forward, init_params, unembed, unstack_blocks
from jroute.model.routing import Routing, RoutingConfig, preset_names, routing_file
from tests.model import reference

CONFIG = Qwen3Config(
    vocab_size=61,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=12,
    rms_norm_eps=1e-6,
    rope_theta=5e6,
    tie_word_embeddings=True,
    max_position_embeddings=64,
)
SEQ, BATCH = 11, 5
ROWS = ((0.4, 0.3, -0.1, 0.4), (0.2, 0.5, 0.1, 0.2), (0.0, 0.25, 0.5, 0.25))
CONFIGS = {
    "mvp": load(RoutingConfig, routing_file("mvp")),
    "histories": load(RoutingConfig, routing_file("histories")),
    "lopsided histories": RoutingConfig(
        ("delay(2)", "attention", "mlp"), "fixed", rows=ROWS, norm_match=True
    ),
    "lopsided persistent": RoutingConfig(("persistent",) * 3, "fixed", rows=ROWS),
    "mixed kinds": RoutingConfig(("persistent", "delay(1)", "mlp"), "fixed", rows=ROWS),
    "one site": RoutingConfig(("delay(1)", "attention", "mlp"), "fixed", rows=ROWS, sites=(2,)),
}


@functools.cache
def params(dtype: str = "float32"):
    drawn = init_params(CONFIG, jax.random.key(3), dtype)
    # Norm weights away from 1 and projections large enough that every part matters.
    keys = iter(jax.random.split(jax.random.key(4), 32))
    return jax.tree.map(
        lambda x: x * (1 + 0.3 * jax.random.normal(next(keys), x.shape, jnp.float32)).astype(dtype),
        drawn,
    )


@functools.cache
def tokens():
    return jax.random.randint(jax.random.key(1), (BATCH, SEQ), 0, CONFIG.vocab_size)


def positions(batch: int = BATCH):
    return jnp.broadcast_to(jnp.arange(SEQ), (batch, SEQ))


@functools.partial(jax.jit, static_argnames=("unrolled", "metrics"))
def logits(weights, ids, where, routing=None, gate=None, unrolled=False, metrics=False):
    weights = unstack_blocks(weights) if unrolled else weights
    out = forward(weights, CONFIG, ids, where, routing=routing, gate=gate, metrics=metrics)
    return unembed(weights, CONFIG, out.hidden), out.metrics


def routed(config: RoutingConfig, gate, dtype: str = "float32", **options):
    routing = Routing.create(config, CONFIG.num_hidden_layers)
    gates = routing.gates(gate, BATCH)
    return logits(params(dtype), tokens(), positions(), routing, gates, **options)[0]


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("gate", [0.35, 1.0, -0.5])
def test_routed_forward_equals_the_numpy_reference(name, gate):
    config = CONFIGS[name]
    ours = routed(config, gate)
    setting = (config.streams, config.matrix(), config.norm_match)
    sites = set(config.sites) or None
    for row in range(2):
        expected, _ = reference.forward(params(), CONFIG, tokens()[row], setting, gate, sites)
        np.testing.assert_allclose(ours[row], expected, atol=2e-4, rtol=0)
    plain = logits(params(), tokens(), positions())[0]
    assert float(jnp.abs(ours - plain).max()) > 0.05


def test_plain_forward_equals_the_numpy_reference():
    expected, _ = reference.forward(params(), CONFIG, tokens()[0])
    plain = logits(params(), tokens(), positions())[0]
    np.testing.assert_allclose(plain[0], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("unrolled", [False, True])
def test_gate_zero_is_the_plain_model_bit_for_bit(name, dtype, unrolled):
    plain = logits(params(dtype), tokens(), positions(), unrolled=unrolled)[0]
    at_zero = routed(CONFIGS[name], 0.0, dtype, unrolled=unrolled)
    np.testing.assert_array_equal(at_zero, plain)
    mixed = routed(CONFIGS[name], [0.0, 0.7, 0.0, 1.0, 0.0], dtype, unrolled=unrolled)
    np.testing.assert_array_equal(mixed[::2], plain[::2])
    assert float(jnp.abs(mixed[1::2] - plain[1::2]).min(axis=(1, 2)).max()) >= 0
    assert bool(jnp.all(jnp.abs(mixed[1::2] - plain[1::2]).max(axis=(1, 2)) > 0.01))


def test_gate_zero_holds_when_the_streams_overflow():
    """0 * inf must not reach a row whose gate is 0."""
    routing = Routing.create(CONFIGS["mvp"], CONFIG.num_hidden_layers)
    broken = Routing(routing.mixing * jnp.inf, routing.sites, routing.config)
    plain = logits(params(), tokens(), positions())[0]
    gates = routing.gates(0.0, BATCH)
    np.testing.assert_array_equal(logits(params(), tokens(), positions(), broken, gates)[0], plain)


def test_gate_per_layer():
    config = CONFIGS["lopsided histories"]
    alone = routed(RoutingConfig(**{**vars(config), "sites": (1,)}), 0.6)
    gates = np.zeros((BATCH, CONFIG.num_hidden_layers), np.float32)
    gates[:, 1] = 0.6
    np.testing.assert_array_equal(routed(config, gates), alone)


def test_rows_do_not_depend_on_each_others_gates():
    config = CONFIGS["histories"]
    together = routed(config, [0.2, 0.4, 0.6, 0.8, 1.0])
    np.testing.assert_array_equal(routed(config, [0.2, 0.0, 0.0, 0.0, 0.0])[0], together[0])
    np.testing.assert_array_equal(routed(config, 1.0)[4], together[4])


def test_copies_of_the_trunk_do_nothing():
    """The no-op trap: mixing the trunk with itself is not an effect."""
    inert = RoutingConfig(("copies",) * 3, "fixed", rows=((0.25,) * 4,))
    plain = logits(params(), tokens(), positions())[0]
    np.testing.assert_allclose(routed(inert, 1.0), plain, atol=1e-4)


def test_transposed_mixing_is_seen(monkeypatch):
    hold_against_the_true_matrix()
    true = RoutingConfig.matrix
    monkeypatch.setattr(RoutingConfig, "matrix", lambda self: true(self).T)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        hold_against_the_true_matrix()


def hold_against_the_true_matrix():
    matrix = np.eye(4)
    matrix[:3] = ROWS
    expected, _ = reference.forward(
        params(), CONFIG, tokens()[0], (("persistent",) * 3, matrix, False), 0.5
    )
    np.testing.assert_allclose(
        routed(CONFIGS["lopsided persistent"], 0.5)[0], expected, atol=2e-4, rtol=0
    )


def test_matrix_of_the_presets():
    mvp = CONFIGS["mvp"].matrix()
    e4 = np.exp(4)
    np.testing.assert_allclose(np.diag(mvp), e4 / (e4 + 3), rtol=1e-6)
    np.testing.assert_allclose(mvp[0, 1:], 1 / (e4 + 3), rtol=1e-6)
    np.testing.assert_allclose(mvp.sum(1), 1, rtol=1e-6)
    histories = CONFIGS["histories"].matrix()
    np.testing.assert_array_equal(histories[0], 0.25)
    np.testing.assert_array_equal(histories[1:], np.eye(4)[1:])
    assert preset_names() == ["histories", "mvp"]


def test_mvp_is_a_recency_weighting_of_updates():
    """The closed form of the seed: with c at distance k = 1/n + (1 - 1/n) (1 - g (1 - l))^k."""
    config, gate, n = CONFIGS["mvp"], 0.8, 4
    routing = Routing.create(config, CONFIG.num_hidden_layers)
    x0 = jax.random.normal(jax.random.key(0), (1, 1, 6))
    updates = jax.random.normal(jax.random.key(1), (CONFIG.num_hidden_layers, 1, 1, 6))
    carried, trunk = routing.start(x0), x0
    for update in updates:
        block = reference_block(trunk, update)
        trunk, carried, _ = routing.mix(carried, block, routing.mixing[0], jnp.array([gate]))
    matrix = config.matrix()
    second = matrix[0, 0] - matrix[0, 1]
    expected = np.asarray(x0)
    layers = CONFIG.num_hidden_layers
    for i, update in enumerate(updates):
        weight = 1 / n + (1 - 1 / n) * (1 - gate * (1 - second)) ** (layers - i)
        expected = expected + weight * np.asarray(update)
    np.testing.assert_allclose(trunk, expected, atol=1e-5)


def reference_block(trunk, update):
    from jroute.model.qwen3 import BlockOutput, KeyValue

    nothing = jnp.zeros((1, 1, 1, 1))
    return BlockOutput(update, jnp.zeros_like(update), trunk + update, KeyValue(nothing, nothing))


def test_norm_matching_keeps_the_trunks_size_and_turns_it():
    config = CONFIGS["histories"]
    routing = Routing.create(config, CONFIG.num_hidden_layers)
    out = forward(
        params(),
        CONFIG,
        tokens(),
        positions(),
        routing=routing,
        gate=routing.gates(1.0, BATCH),
        metrics=True,
    )
    assert out.metrics is not None
    rms = np.asarray(out.metrics.rms)
    np.testing.assert_allclose(rms, np.broadcast_to(rms[..., :1], rms.shape), rtol=1e-4)
    assert float(out.metrics.cosine.max()) < 0.9999
    # |after| = |before|, so the chord and the cosine tell the same angle.
    assert float(out.metrics.change.min()) > 0.01


@pytest.mark.parametrize("name", ["histories", "mixed kinds"])
def test_stream_metrics_equal_numpy(name):
    config = CONFIGS[name]
    routing = Routing.create(config, CONFIG.num_hidden_layers)
    gate = 0.5
    out = forward(
        params(),
        CONFIG,
        tokens()[:1],
        positions(1),
        routing=routing,
        gate=routing.gates(gate, 1),
        metrics=True,
    )
    matrix = config.matrix()
    _, seen = reference.forward(
        params(), CONFIG, tokens()[0], (config.streams, matrix, config.norm_match), gate
    )
    for layer, streams in enumerate(seen):
        sizes = np.stack([np.linalg.norm(s, axis=-1) for s in streams])
        cosines = [
            (streams[i] * streams[j]).sum(-1) / sizes[i] / sizes[j]
            for i in range(4)
            for j in range(i + 1, 4)
        ]
        share = (np.abs(matrix[0])[:, None] * sizes).mean(-1)
        share /= share.sum()
        found = jax.tree.map(lambda x, layer=layer: np.asarray(x[layer, 0]), out.metrics)
        np.testing.assert_allclose(
            found.rms, reference.rms(np.stack(streams)).mean((1, 2)), rtol=1e-4
        )
        np.testing.assert_allclose(found.diversity, 1 - np.mean(cosines), atol=1e-4)
        np.testing.assert_allclose(found.dominance, share, rtol=1e-4)
        entropy = -(share * np.log(share)).sum()
        np.testing.assert_allclose(found.effective_streams, np.exp(entropy), rtol=1e-4)
        mixed = streams[0] + gate * (np.tensordot(matrix[0], np.stack(streams), 1) - streams[0])
        if config.norm_match:
            mixed = mixed * reference.rms(streams[0]) / reference.rms(mixed)
        change = np.linalg.norm(mixed - streams[0], axis=-1) / sizes[0]
        np.testing.assert_allclose(found.change, change.mean(), rtol=1e-3)
        cosine = (mixed * streams[0]).sum(-1) / sizes[0] / np.linalg.norm(mixed, axis=-1)
        np.testing.assert_allclose(found.cosine, cosine.mean(), atol=1e-4)


def test_metrics_do_not_count_padding():
    config = CONFIGS["histories"]
    routing = Routing.create(config, CONFIG.num_hidden_layers)
    where = jnp.where(jnp.arange(SEQ)[None] < 7, positions(), -1)
    options = {"routing": routing, "gate": routing.gates(0.5, BATCH), "metrics": True}
    padded = forward(params(), CONFIG, tokens(), where, **options).metrics
    short = forward(params(), CONFIG, tokens()[:, :7], positions()[:, :7], **options).metrics
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), padded, short)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"streams": ()}, "streams is empty"),
        ({"streams": ("delay",)}, "unknown stream 'delay'"),
        ({"streams": ("delay(0)",)}, "unknown stream"),
        ({"operator": "fixed"}, "give both or neither"),
        ({"rows": ((1.0, 0.0, 0.0, 0.0),)}, "give both or neither"),
        ({"operator": "fixed", "rows": ((0.5, 0.5),)}, "rows of 4 numbers"),
        ({"operator": "fixed", "rows": ((0.5, 0.5, 0.5, 0.0),)}, "sums to 1.5"),
    ],
)
def test_impossible_routing_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        RoutingConfig(**changes)


def test_impossible_sites_and_gates_are_refused():
    with pytest.raises(UserError, match="names block 9, but the model has blocks 0 to 3"):
        Routing.create(RoutingConfig(sites=(9,)), 4)
    routing = Routing.create(RoutingConfig(), 4)
    with pytest.raises(UserError, match="gate has shape"):
        routing.gates([0.1, 0.2], 3)
    with pytest.raises(UserError, match="not finite"):
        routing.gates(float("nan"), 3)
