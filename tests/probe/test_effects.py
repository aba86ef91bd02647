"""What the probe measures, against torch and NumPy; and every way of doing nothing, named so."""

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jroute.generate.finite import NotFiniteError
from jroute.lm import LanguageModel
from jroute.model.config import DecoderConfig
from jroute.probe import effects, plots, text
from jroute.probe.effects import (
    DESTRUCTIVE_ABOVE,
    INERT_BELOW,
    STRONG_ABOVE,
    Divergence,
    Probe,
    composite_gain,
    probe,
    verdict,
)
from jroute.routing.config import RoutingConfig
from jroute.routing.mixing import Routing
from jroute.routing.presets import preset_names, routing_file
from jroute.utils.config import load
from jroute.utils.errors import UserError
from tests.model import reference, small
from tests.model.tiny import chat_prompts, torch_logits
from tests.support import in_a_hurry

GATES = (0.0, 1.0, -0.5)


@pytest.fixture(autouse=True, scope="module")
def compiled_in_a_hurry():
    with in_a_hurry(effects, "_hidden", "_diverge", "_measure"):
        yield


@pytest.fixture(scope="module")
def prompts(tiny_lm: LanguageModel) -> list[list[int]]:
    """Of different lengths, so that there is padding."""
    whole = [tiny_lm.encode(prompt) for prompt in chat_prompts(tiny_lm.tokenizer, 3)]
    return [whole[0][:31], whole[1][:20], whole[2][:7]]


def of_tiny(lm: LanguageModel, prompts, config: RoutingConfig, gates=GATES, raw=None) -> Probe:
    routing = Routing.create(config, lm.config.num_hidden_layers, raw)
    return probe(lm.params, lm.config, routing, prompts, gates)


# Numbers --------------------------------------------------------------------------------------


PAIRS = ((0, 1), (0, 2), (1, 2))


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def test_numbers_equal_torch_and_numpy(tiny_lm, tiny_torch, prompts) -> None:
    """The base's distribution is torch's, the gated one the NumPy reference's.

    There are three hooks and three prompts, which must not be taken for one another.
    """
    rows, hooks = ((0.4, 0.3, 0.3), (0.2, 0.6, 0.2)), ("attention", "mlp", "block")
    config = RoutingConfig(("persistent", "mlp"), "fixed", rows=rows, hooks=hooks)
    layers, gate = tiny_lm.config.num_hidden_layers, 0.7
    matrices = reference.mixing(config, config.initial_raw(layers))
    traces = [
        reference.forward(tiny_lm.params, tiny_lm.config, row, config, gate, matrices)
        for row in prompts
    ]
    effect = of_tiny(tiny_lm, prompts, config, [gate]).effects[0]
    kl, same = [], []
    for row, trace in zip(prompts, traces, strict=True):
        base = log_softmax(torch_logits(tiny_torch, row).astype(float))
        gated = log_softmax(trace.logits)
        kl += list((np.exp(base) * (base - gated)).sum(-1))
        same += list(base.argmax(-1) == gated.argmax(-1))
    assert effect.kl == pytest.approx(np.mean(kl), rel=1e-3)
    assert effect.kl > 0.01
    assert effect.kl_largest == pytest.approx(np.max(kl), rel=1e-3)
    assert effect.agreement == pytest.approx(np.mean(same), abs=1e-6)
    assert 0 < effect.agreement < 1

    def over_tokens(of) -> np.ndarray:
        """Mean over all real tokens of every block and hook."""
        return np.array(
            [
                [
                    np.concatenate([np.ravel(of(t.seen[layer, name])) for t in traces]).mean()
                    for name in hooks
                ]
                for layer in range(layers)
            ]
        )

    def norm(x):
        return np.linalg.norm(x, axis=-1)

    def cosine(x, y):
        return (x * y).sum(-1) / norm(x) / norm(y)

    change = over_tokens(lambda m: norm(m.after - m.before) / norm(m.before))
    np.testing.assert_allclose(effect.change, change, rtol=1e-3)
    angle = over_tokens(
        lambda m: np.arccos((m.after * m.before).sum(-1) / norm(m.after) / norm(m.before))
    )
    np.testing.assert_allclose(effect.angle, np.degrees(angle), rtol=1e-4)
    diversity = over_tokens(
        lambda m: 1 - np.mean([cosine(m.streams[i], m.streams[j]) for i, j in PAIRS], axis=0)
    )
    np.testing.assert_allclose(effect.diversity, diversity, atol=1e-5)
    parts = np.stack(
        [over_tokens(lambda m, i=i: rows[0][i] * norm(m.streams[i])) for i in range(3)]
    )
    # Each prompt has shares of its own; their mean over prompts, by tokens, is what is told.
    np.testing.assert_allclose(effect.dominance.transpose(2, 0, 1), parts / parts.sum(0), atol=0.02)
    np.testing.assert_allclose(effect.dominance.sum(-1), 1, atol=1e-5)
    for i in range(3):
        size = over_tokens(lambda m, i=i: reference.rms(m.streams[i]))
        np.testing.assert_allclose(effect.rms[..., i], size, rtol=1e-4)
    first = [
        np.concatenate([t.first_attention[layer] for t in traces]).mean() for layer in range(layers)
    ]
    np.testing.assert_allclose(effect.first_attention, first, atol=1e-5)
    # Guards are off, so what every block reads is the composition of its sources, token by token.
    for trace in traces:
        sources = [trace.attention_input[0]]
        for a, m in zip(trace.attention_update, trace.mlp_update, strict=True):
            sources += [a, m]
        readers = [
            read
            for pair in zip(trace.attention_input, trace.mlp_input, strict=True)
            for read in pair
        ]
        rebuilt = np.tensordot(effect.composition, np.stack(sources), 1)
        np.testing.assert_allclose(rebuilt, [*readers, trace.residual], atol=2e-4)
    step = np.eye(3) + gate * (np.array([*rows, [0, 0, 1]]) - np.eye(3))
    step[2] = [0, 0, 1]  # histories have no row of their own
    product = np.linalg.matrix_power(step, layers * len(hooks))
    assert effect.gain == pytest.approx(
        (np.abs(product).sum(1).max(), np.abs(product).sum(0).max()), rel=1e-5
    )


def test_gain_multiplies_what_is_carried_in_the_order_of_depth() -> None:
    rows = ((2.0, -1.0), (0.5, 0.5))
    config = RoutingConfig(("persistent",), "fixed", rows=rows)
    gates = np.array([[1.0, 0.5]], np.float32)
    m = np.array(rows)
    late = np.eye(2) + 0.5 * (m - np.eye(2))
    product = np.abs(late @ m)
    gain = composite_gain(Routing.create(config, 2), gates)
    assert gain == pytest.approx((product.sum(1).max(), product.sum(0).max()), rel=1e-6)
    read_only = Routing.create(dataclasses.replace(config, injection="read_only"), 2)
    # What the first block reads, (2, -1), is furthest; only what is read counts.
    assert composite_gain(read_only, gates) == pytest.approx((3.0, 2.0), rel=1e-6)
    assert composite_gain(Routing.create(RoutingConfig((), scale=0.5), 2), gates) == (1.0, 1.0)


def test_gain_of_read_only_mixing_is_of_what_its_own_rows_carried() -> None:
    """By hand: five times (-1, 2) under (1, 0) is (-31, 32), and half of each is read."""
    rows = ((0.5, 0.5), (-1.0, 2.0))
    config = RoutingConfig(("persistent",), "fixed", rows=rows, injection="read_only")
    ones = np.ones((1, 6), np.float32)
    assert composite_gain(Routing.create(config, 6), ones) == (31.0, 16.0)  # (-15, 16) is read
    history = dataclasses.replace(config, streams=("mlp",))  # has no row of its own
    assert composite_gain(Routing.create(history, 6), ones) == (1.0, 0.5)
    # What the hook after the MLP brings is not read where there is one after the block too.
    for hooks, expected in ((("attention", "mlp"), 9.0), (("attention", "mlp", "block"), 3.0)):
        routing = Routing.create(dataclasses.replace(config, hooks=hooks), 1)
        large = dataclasses.replace(routing, mixing=routing.mixing.at[0, 1, 0].set([5.0, -4.0]))
        carried = large.mixing.at[0, :2, 1].set([0.0, 1.0])  # the streams stay as they are
        large = dataclasses.replace(large, mixing=carried.at[0, 0, 0].set([2.0, -1.0]))
        assert composite_gain(large, ones[:, :1])[0] == expected


def test_histories_favour_what_is_early_and_attention(tiny_lm, prompts) -> None:
    """As the preset's comment says, with realised scales."""
    config = load(RoutingConfig, routing_file("histories"))
    last = of_tiny(tiny_lm, prompts, config, [1.0]).effects[0].composition[-1]
    attention, mlp = last[1::2], last[2::2]
    assert last[0] > 2 * attention[0]
    assert (np.diff(attention) < 0).all()
    assert (np.diff(mlp) < 0).all()
    assert (attention > mlp).all()
    assert attention[0] > 1.3
    assert mlp[-1] < 0.8


def test_verdicts_follow_the_stated_bounds() -> None:
    bounds = (INERT_BELOW, STRONG_ABOVE, DESTRUCTIVE_ABOVE)
    assert bounds == (1e-4, 0.1, 1.0)
    below = [verdict(bound * 0.999) for bound in bounds]
    assert below == ["inert", "gentle", "strong"]
    assert [verdict(bound) for bound in bounds] == ["gentle", "strong", "destructive"]
    assert [verdict(kl) for kl in (np.nan, np.inf)] == ["destructive"] * 2


@pytest.mark.parametrize("at", range(3))
def test_what_is_not_finite_is_destructive_wherever_it_is(at) -> None:
    kls = [0.0, 1e-6, 2e-6]
    kls[at] = float("nan")
    assert effects.furthest([Divergence(0.0, kl, kl, 1.0) for kl in kls]).kl is kls[at]


def test_a_plain_model_that_is_not_finite_is_not_measured() -> None:
    """A gate that breaks a model is told; of a broken model there is nothing to tell."""
    config = dataclasses.replace(small.CONFIG, tie_word_embeddings=False)
    params = dict(small.drawn_params(config, 3))
    params["embed_tokens"] = jnp.asarray(params["embed_tokens"]).at[9].set(np.nan)
    routing = Routing.create(RoutingConfig(), config.num_hidden_layers)
    sound, rows = [[1, 2, 3], [4, 5]], [[1, 2, 3], [4, 5, 9]]
    (measured,) = effects.divergence(params, config, routing, sound, [0.5])
    assert np.isfinite(measured.kl)
    message = r"of prompt 1 are not finite .*at gate 0: they begin in the embedding at position 2"
    for measure in (
        lambda: effects.divergence(params, config, routing, rows, [0.5]),
        lambda: probe(params, config, routing, rows, [0.0, 1.0]),
        lambda: effects.sink_norms(params, config, rows),
    ):
        with pytest.raises(NotFiniteError, match=message):
            measure()


def test_at_gate_zero_there_is_no_divergence_at_all(tiny_lm, prompts, monkeypatch) -> None:
    """Compiled as in earnest, where programs of different contents round differently."""
    for name in ("_hidden", "_diverge"):
        program = getattr(effects, name).__wrapped__
        monkeypatch.setattr(effects, name, jax.jit(program, static_argnames=("config",)))
    config = load(RoutingConfig, routing_file("histories"))
    effect, other = of_tiny(tiny_lm, prompts, config, [0.0, 1.0]).effects
    assert (effect.kl, effect.kl_largest, effect.agreement) == (0, 0, 1)
    assert other.kl > 0.01


@pytest.mark.parametrize("large", [2.0**19, 9e5])
def test_a_model_that_breaks_is_told_in_json_and_figures(tiny_lm, prompts, large, tmp_path) -> None:
    config = RoutingConfig(
        ("persistent",),
        "fixed",
        rows=((0.0, 1.0), (-large, 1 + large)),
        hooks=("attention", "mlp", "block"),
        bands=2,
    )
    result = of_tiny(tiny_lm, prompts, config, [0.0, 1.0])
    assert result.effects[0].kl == 0
    assert result.verdict == verdict(result.effects[1].kl) == "destructive"
    assert not np.isfinite(np.hstack([np.ravel(x) for x in result.effects[1]])).all()
    routing = Routing.create(config, tiny_lm.config.num_hidden_layers)
    written = json.dumps(text.probe_numbers(result, routing), allow_nan=False)
    assert "null" in written
    assert json.loads(written)["effects"][0]["kl"] == 0
    printed = text.probe_text(result, routing)
    assert printed.startswith("one gate for all blocks: bands have no effect here\n")
    assert all(file.is_file() for file in plots.plot_probe(result, routing, tmp_path))


def test_the_largest_gate_decides(tiny_lm, prompts) -> None:
    config = load(RoutingConfig, routing_file("soft_repeat"))
    result = of_tiny(tiny_lm, prompts, config, [0.0, 1e-4, 1.0])
    kls = [effect.kl for effect in result.effects]
    assert kls[0] == 0
    assert kls[0] <= kls[1] < INERT_BELOW < kls[2]
    assert result.effects[0].agreement == 1
    assert result.verdict == verdict(kls[2]) != "inert"
    assert Probe(result.effects[:2]).verdict == "inert"


def test_prompts_that_cannot_be_probed_are_refused(tiny_lm, prompts) -> None:
    with pytest.raises(UserError, match="at least one prompt"):
        of_tiny(tiny_lm, [], RoutingConfig())
    with pytest.raises(UserError, match="empty"):
        of_tiny(tiny_lm, [[]], RoutingConfig())


# Ways of doing nothing ------------------------------------------------------------------------

IDENTICAL: dict[str, dict[str, Any]] = {
    "copies of the trunk": {
        "streams": ("copies",) * 3,
        "rows": ((0.25,) * 4,),
        "hooks": ("attention", "block"),
    },
    "far from its copy and back": {"streams": ("copies",), "rows": ((2.0, -1.0),)},
    "the same history twice": {
        "streams": ("delay(1)", "ema(1.0)", "embedding", "embedding"),
        "rows": ((1.0, 0.5, -0.5, 0.8, -0.8),),
    },
    "streams that the trunk never reads": {
        "streams": ("persistent", "persistent"),
        "rows": ((1.0, 0.0, 0.0), (0.5, 0.5, 0.0), (0.2, 0.2, 0.6)),
    },
}


@pytest.mark.parametrize("name", IDENTICAL)
def test_identical_streams_are_inert(tiny_lm, prompts, name) -> None:
    result = of_tiny(tiny_lm, prompts, RoutingConfig(operator="fixed", **IDENTICAL[name]))
    assert result.verdict == "inert"
    assert max(effect.kl for effect in result.effects) < 1e-6
    if "copies" in IDENTICAL[name]["streams"]:
        assert max(effect.diversity.max() for effect in result.effects) < 1e-5


@pytest.mark.parametrize("operator", ["sinkhorn", "permutations"])
def test_doubly_stochastic_mixing_with_uniform_read_out_is_inert(
    tiny_lm, prompts, operator
) -> None:
    """Diverse streams, lopsided matrices, and the trunk takes the mean of what all rows bring."""
    config = RoutingConfig(("rotate", "rotate", "persistent"), operator, readout="mean")
    shape = config.initial_raw(tiny_lm.config.num_hidden_layers).shape
    raw = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    result = of_tiny(tiny_lm, prompts, config, raw=raw)
    assert result.verdict == "inert"
    assert result.effects[1].diversity.max() > 0.01
    # What all rows bring adds up to nothing: the trunk is alone in the mixed trunk.
    np.testing.assert_allclose(result.effects[1].effective_streams, 1, atol=1e-3)
    if operator == "sinkhorn":  # the same matrices do something where the trunk has its own row
        own = of_tiny(tiny_lm, prompts, dataclasses.replace(config, readout="trunk"), raw=raw)
        assert own.verdict != "inert"


def test_rows_that_are_not_doubly_stochastic_are_not_inert_under_uniform_read_out(
    tiny_lm, prompts
) -> None:
    config = RoutingConfig(("rotate", "rotate", "persistent"), "softmax", readout="mean")
    shape = config.initial_raw(tiny_lm.config.num_hidden_layers).shape
    raw = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    assert of_tiny(tiny_lm, prompts, config, raw=raw).verdict != "inert"


def one_direction() -> tuple[DecoderConfig, dict]:
    """A model whose tokens each have a direction of their own that no block ever leaves.

    Embeddings are multiples of unit vectors, attention writes nothing, and the MLP multiplies
    coordinates with themselves. All histories of a token differ in scale only.
    """
    config = DecoderConfig(
        vocab_size=16,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        rms_norm_eps=1e-6,
        rope_theta=1e4,
        tie_word_embeddings=False,
        max_position_embeddings=64,
    )
    params = small.drawn_params(config, 0)
    eye = jnp.eye(16)
    blocks = params["blocks"]
    blocks["attention"]["o_proj"] = jnp.zeros_like(blocks["attention"]["o_proj"])
    for name in ("gate_proj", "up_proj", "down_proj"):
        blocks["mlp"][name] = jnp.stack([eye] * 4) * (0.3 if name == "down_proj" else 1.0)
    return config, {**params, "embed_tokens": eye * jnp.linspace(1.0, 3.0, 16)[:, None]}


def test_streams_that_differ_only_in_scale_are_inert() -> None:
    """Norms change by half, and nothing else: every reader starts with a norm."""
    config, params = one_direction()
    rng = np.random.default_rng(0)
    tokens = [rng.integers(0, 16, n).tolist() for n in (12, 9)]
    streams = ("delay(1)", "embedding", "mlp", "persistent")
    rows = ((0.2,) * 5, *[(0.0, 0.25, 0.25, 0.25, 0.25)] * 4)
    routing = Routing.create(RoutingConfig(streams, "fixed", rows=rows), 4)
    result = probe(params, config, routing, tokens, [0.0, 0.5, 1.0])
    last = result.effects[-1]
    assert last.change.max() > 0.3
    assert (last.rms.max(-1) / last.rms.min(-1)).max() > 1.5
    assert last.diversity.max() < 1e-5
    assert result.verdict == "inert"
    assert max(effect.kl for effect in result.effects) < 1e-6
    turned = {**params, "embed_tokens": params["embed_tokens"] + 0.3}
    assert probe(turned, config, routing, tokens, [1.0]).verdict != "inert"


def test_a_trunk_that_is_only_scaled_for_its_readers_is_inert(tiny_lm, prompts) -> None:
    """Half of the trunk and of its copies, read only: a matrix that no configuration allows."""
    config = RoutingConfig(
        ("copies",),
        "fixed",
        rows=((0.5, 0.5),),
        hooks=("attention", "block"),
        injection="read_only",
    )
    routing = Routing.create(config, tiny_lm.config.num_hidden_layers)
    halved = dataclasses.replace(routing, mixing=routing.mixing.at[:, :, 0].multiply(0.5))
    result = probe(tiny_lm.params, tiny_lm.config, halved, prompts, GATES)
    np.testing.assert_allclose(result.effects[1].change, 0.5, rtol=1e-5)
    assert result.effects[1].angle.max() < 0.1
    assert result.verdict == "inert"


@pytest.mark.parametrize("name", preset_names())
def test_presets_are_not_inert_but_at_gate_zero(tiny_lm, prompts, name) -> None:
    result = of_tiny(tiny_lm, prompts, load(RoutingConfig, routing_file(name)))
    assert Probe(result.effects[:1]).verdict == "inert"
    assert result.effects[0].kl == result.effects[0].kl_largest == 0
    assert result.effects[0].agreement == 1
    for effect in result.effects[1:]:
        assert effect.kl > 10 * INERT_BELOW
        assert effect.angle.max() > 0.05
    assert result.verdict in ("gentle", "strong")
