"""The decoder's two drivers, its cache, and its declarations."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from converters.hf_config import config_from_hf, config_to_hf
from jroute.generate.cache import from_prefill
from jroute.model import attention
from jroute.model.config import DecoderConfig
from jroute.model.decoder import ForwardOptions, forward, unembed
from jroute.model.params import abstract_params, init_params, logical_axes, unstack_blocks
from jroute.routing.config import RoutingConfig
from jroute.routing.mixing import Routing
from jroute.utils.errors import UserError
from tests.model import small
from tests.model.small import (
    BATCH,
    CONFIG,
    CONFIGS,
    GUARDS,
    LAYERS,
    MIXED_GATES,
    PRESETS,
    SEQ,
    params,
    positions,
    tokens,
)

HISTORIES = {"streams": ("delay(1)", "persistent", "mlp"), "operator": "fixed", "rows": small.ROWS}
GUARDED = {name: RoutingConfig(**HISTORIES, **guards) for name, guards in GUARDS.items()}
ROUTED = {"": None, **PRESETS, **GUARDED, "everything": CONFIGS["everything"]}


def run(weights, ids, where, cache=None, routing=None, gate=None):
    out = forward(weights, CONFIG, ids, where, cache=cache, routing=routing, gate=gate)
    return unembed(weights, CONFIG, out.hidden), out.kv


def under(config: RoutingConfig | None):
    """Routing and gate of a batch; nothing of the plain model."""
    if config is None:
        return None, None
    routing = Routing.create(config, LAYERS)
    return routing, routing.layer_gates(MIXED_GATES, BATCH)


@pytest.mark.parametrize(
    ("name", "stacked"),
    [(name, False) for name in ROUTED] + [("", True), ("histories", True), ("everything", True)],
)
def test_cached_decoding_equals_the_full_forward_at_every_position(name, stacked):
    """Ragged prompts are prefilled together, then decoded token by token to the end."""
    routing, gate = under(ROUTED[name])
    full, _ = small.logits(params(), tokens(), positions(), routing, gate)
    lengths = np.array([3, 1, 5, 2, 4])
    where = jnp.where(jnp.arange(SEQ)[None] < lengths[:, None], jnp.arange(SEQ)[None], -1)
    prefilled, kv = small.logits(params(), tokens(), where, routing, gate)
    cache = from_prefill(kv, SEQ, stacked=stacked)
    weights = params() if stacked else unstack_blocks(params())
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(prefilled[row, :length], full[row, :length], atol=2e-5)
    for _ in range(SEQ - int(lengths.min())):
        at = np.minimum(lengths, SEQ - 1)
        running = lengths < SEQ
        ids = np.asarray(tokens())[np.arange(BATCH), at][:, None]
        now = jnp.where(running, at, -1)[:, None]
        logits, cache = small.step(weights, cache, jnp.asarray(ids), now, routing, gate)
        for row in np.flatnonzero(running):
            np.testing.assert_allclose(logits[row, 0], full[row, at[row]], atol=2e-5)
        lengths = lengths + running
    assert lengths.min() == SEQ


def test_scanned_and_unrolled_blocks_agree():
    scanned, kv = run(params(), tokens(), positions())
    unrolled, layers = run(unstack_blocks(params()), tokens(), positions())
    np.testing.assert_allclose(scanned, unrolled, atol=1e-5)
    for i, layer in enumerate(layers):
        np.testing.assert_allclose(kv.key[i], layer.key, atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ROUTED)
def test_padding_on_either_side_changes_nothing(name, side):
    """Six tokens alone (the first six of a longer row are that), and beside five of padding."""
    routing, gate = under(ROUTED[name])
    full, _ = small.logits(params(), tokens(), positions(), routing, gate)
    pad = ((0, 0), (5, 0)) if side == "left" else ((0, 0), (0, 5))
    ids = jnp.pad(tokens()[:, :6], pad, constant_values=7)
    where = jnp.pad(positions()[:, :6], pad, constant_values=-1)
    padded, _ = small.logits(params(), ids, where, routing, gate)
    real = padded[:, 5:] if side == "left" else padded[:, :6]
    np.testing.assert_allclose(real, full[:, :6], atol=2e-5)
    assert bool(jnp.isfinite(padded).all())


def test_a_token_does_not_see_its_future():
    changed = tokens().at[:, 6:].set(0)
    a, _ = run(params(), tokens(), positions())
    b, _ = run(params(), changed, positions())
    np.testing.assert_array_equal(a[:, :6], b[:, :6])
    assert float(jnp.abs(a[:, 6:] - b[:, 6:]).max()) > 0.1


def test_a_tap_sees_what_every_block_reads_and_makes():
    options = ForwardOptions(tap=lambda block: block)
    out = forward(params(), CONFIG, tokens(), positions(), options=options)
    taps = out.taps
    assert taps.trunk.shape == (LAYERS, BATCH, SEQ, CONFIG.hidden_size)
    x0 = params()["embed_tokens"][tokens()]
    np.testing.assert_array_equal(
        taps.attention_input, jnp.concatenate([x0[None], taps.trunk[:-1]])
    )
    np.testing.assert_allclose(
        taps.mlp_input, taps.attention_input + taps.attention_update, atol=1e-6
    )
    np.testing.assert_allclose(taps.trunk, taps.mlp_input + taps.mlp_update, atol=1e-6)
    np.testing.assert_array_equal(out.residual, taps.trunk[-1])
    last = np.asarray(taps.trunk[-1], float)
    size = np.sqrt((last**2).mean(-1, keepdims=True) + CONFIG.rms_norm_eps)
    np.testing.assert_allclose(
        out.hidden, last / size * np.asarray(params()["final_norm"]), atol=1e-5
    )
    assert taps.first_attention.shape == (LAYERS, BATCH, SEQ)
    np.testing.assert_allclose(taps.first_attention[:, :, 0], 1, atol=1e-6)  # there is no other


def test_blocks_and_cache_are_stacked_alike():
    _, kv = run(params(), tokens(), positions())
    for weights, stacked in ((params(), False), (unstack_blocks(params()), True)):
        cache = from_prefill(kv, SEQ, stacked=stacked)
        with pytest.raises(ValueError, match="both be stacked"):
            run(weights, tokens(), positions(), cache=cache)


def test_attention_in_blocks_of_queries_is_attention(monkeypatch):
    """Blocks that do not divide the prompt, padding inside a block, and a block of padding."""
    columns, lengths = jnp.arange(SEQ)[None], jnp.array([11, 8, 5, 4, 1])[:, None]
    where = jnp.where(columns < lengths, columns, -1)
    plain, _ = run(params(), tokens(), where)
    monkeypatch.setattr(attention, "QUERY_BLOCK", 4)
    blocked, _ = run(params(), tokens(), where)
    real = np.asarray(where) >= 0
    np.testing.assert_allclose(blocked[real], plain[real], atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("shape", [(1,), (1, 1), (2,), (2, 3)])
def test_logits_copy_no_weight(tied: bool, shape: tuple[int, ...]) -> None:
    """Of one row and a tied table XLA makes a transposed copy for the CPU, if left to itself."""
    config = DecoderConfig(**{**vars(CONFIG), "tie_word_embeddings": tied})
    weights = init_params(config, jax.random.key(0))
    hidden = jax.random.normal(jax.random.key(1), (*shape, config.hidden_size))
    compiled = jax.jit(partial(unembed, config=config)).lower(weights, hidden=hidden).compile()
    head = np.asarray(weights["embed_tokens"]).T if tied else np.asarray(weights["lm_head"])
    expected = np.asarray(hidden) @ head
    np.testing.assert_allclose(compiled(weights, hidden=hidden), expected, rtol=1e-4, atol=1e-4)
    sizes = r"= f32\[([\d,]+)\]\S* ([\w\-]+)\("
    for sides, operation in re.findall(sizes, compiled.as_text()):
        of_the_head = sorted(map(int, sides.split(","))) == sorted(head.shape)
        assert not of_the_head or operation in ("parameter", "bitcast"), operation


@pytest.mark.parametrize("tied", [True, False])
def test_one_declaration_gives_shapes_and_axes(tied):
    config = DecoderConfig(**{**vars(CONFIG), "tie_word_embeddings": tied})
    shapes = jax.tree.map(lambda leaf: leaf.shape, abstract_params(config))
    drawn = init_params(config, jax.random.key(0), "bfloat16")
    assert jax.tree.map(lambda leaf: leaf.shape, drawn) == shapes
    assert {leaf.dtype for leaf in jax.tree.leaves(drawn)} == {jnp.dtype("bfloat16")}
    named = jax.tree.map(
        lambda axes: tuple(config.axis_sizes[axis] for axis in axes),
        logical_axes(config),
        is_leaf=lambda node: isinstance(node, tuple),
    )
    assert named == shapes
    assert shapes["blocks"]["attention"]["o_proj"] == (4, 4, 12, 32)
    assert ("lm_head" in shapes) == (not tied)


HF = {
    "model_type": "qwen3",
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-6,
    "rope_theta": 5000000,
    "tie_word_embeddings": True,
    "max_position_embeddings": 512,
}


def test_config_reads_both_rope_layouts():
    assert config_from_hf(HF).rope_theta == 5e6
    new = {k: v for k, v in HF.items() if k != "rope_theta"}
    new["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e6}
    assert config_from_hf(new).rope_theta == 1e6
    assert config_from_hf(config_to_hf(config_from_hf(HF))) == config_from_hf(HF)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "qwen3_moe"}, "model_type is 'qwen3_moe'"),
        ({"rope_scaling": {"type": "yarn", "factor": 4}}, "rotary scaling of type 'yarn'"),
        ({"use_sliding_window": True}, "use_sliding_window is not implemented"),
        ({"attention_bias": True}, "attention_bias"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"rope_theta": None}, "rope_theta must be a valid number, not None"),
        ({"hidden_size": None}, "hidden_size must be a valid integer, not None"),
        ({"num_key_value_heads": 3}, "multiple"),
    ],
)
def test_configs_that_are_not_implemented_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        config_from_hf({**HF, **changes})
