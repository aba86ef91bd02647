"""At gate 0 the routed model is the plain one, bit for bit; values are compared, so -0 = +0.

Every comparison is between two programs: the plain model's, and one with the streams in it and a
traced gate, in which some rows are mixed and some are not.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jroute.distributed.mesh import make_mesh, place, replicate, shardings
from jroute.generate import programs
from jroute.generate.cache import from_prefill
from jroute.lm import LanguageModel
from jroute.model.decoder import forward
from jroute.model.params import abstract_params, logical_axes, unstack_blocks
from jroute.routing.mixing import Routing
from jroute.routing.presets import preset_names
from tests.model import small
from tests.model.small import BATCH, CONFIG, CONFIGS, LAYERS, SEQ, params, positions, tokens
from tests.model.tiny import chat_prompts

NAMES = [*preset_names(), "scaled updates", "everything"]
ZERO = np.asarray(small.MIXED_GATES) == 0


def hold(mixed, at_zero, plain, zero=ZERO) -> None:
    """Rows at gate 0 are the plain model's, in both batches; the others are not."""
    assert np.isfinite(plain).all()
    np.testing.assert_array_equal(at_zero, plain)
    np.testing.assert_array_equal(mixed[zero], plain[zero])
    assert (np.abs(mixed - plain).reshape(len(zero), -1).max(axis=1)[~zero] > 0.01).all()


def cases(drivers: dict[str, bool]):
    """Every routing in both dtypes under one driver each, and one routing under both."""
    every_routing = [(name, dtype, drivers[dtype]) for name in NAMES for dtype in drivers]
    return every_routing + [("histories", dtype, not drivers[dtype]) for dtype in drivers]


@pytest.mark.parametrize(
    ("name", "dtype", "unrolled"), cases({"float32": False, "bfloat16": False})
)
def test_without_a_cache(name, dtype, unrolled) -> None:
    mixed, at_zero = (
        np.asarray(small.routed(CONFIGS[name], gate, dtype, unrolled=unrolled))
        for gate in (small.MIXED_GATES, 0.0)
    )
    hold(mixed, at_zero, np.asarray(small.plain(dtype, unrolled=unrolled)))


@functools.cache
def prefilled(dtype: str):
    return small.logits(params(dtype), tokens()[:, :-1], positions()[:, :-1])[1]


@pytest.mark.parametrize(("name", "dtype", "unrolled"), cases({"float32": True, "bfloat16": False}))
def test_with_a_cache(name, dtype, unrolled) -> None:
    """One decode step; the keys that it adds are compared too."""
    weights = unstack_blocks(params(dtype)) if unrolled else params(dtype)
    cache = from_prefill(prefilled(dtype), SEQ, stacked=not unrolled)
    routing = Routing.create(CONFIGS[name], LAYERS)
    last = tokens()[:, -1:], positions()[:, -1:]
    plain, plain_kv = small.step(weights, cache, *last)
    mixed, _ = small.step(
        weights, cache, *last, routing, routing.layer_gates(small.MIXED_GATES, BATCH)
    )
    at_zero, kv = small.step(weights, cache, *last, routing, routing.layer_gates(0.0, BATCH))
    hold(*(np.asarray(x) for x in (mixed, at_zero, plain)))
    jax.tree.map(np.testing.assert_array_equal, kv, plain_kv)


@functools.cache
def over_eight_devices(dtype: str, cached: bool):
    """A mesh, a program, what it takes of the plain model, and the logits of that.

    Rows, embedding and heads are cut in two each.
    """
    # Half the heads' vocabulary must divide: 61 rows become 60.
    config = dataclasses.replace(CONFIG, vocab_size=60)
    whole = {**params(dtype), "embed_tokens": params(dtype)["embed_tokens"][:60]}
    mesh = make_mesh(2, 2, 2)
    placed = jax.device_put(whole, shardings(logical_axes(config), abstract_params(config), mesh))
    ids = np.resize(np.asarray(tokens()) % 60, (8, SEQ)), np.asarray(positions(8))
    with jax.set_mesh(mesh):
        every, before, last = (
            [place(x[:, part], ("batch", "seq")) for x in ids]
            for part in (slice(None), slice(-1), slice(-1, None))
        )
        program, inputs = sharded_logits, (placed, *every)
        if cached:
            kv = small.logits(placed, *before)[1]
            program, inputs = sharded_step, (placed, from_prefill(kv, SEQ, stacked=True), *last)
        assert inputs[-1].addressable_shards[0].data.shape == (4, 1 if cached else SEQ)
        plain = program(*inputs)
        assert len(plain.sharding.device_set) == 8
        assert plain.addressable_shards[0].data.shape == (4, 1 if cached else SEQ, 30)
    return mesh, program, inputs, np.asarray(plain)


@pytest.mark.parametrize(
    ("name", "dtype", "cached"),
    [(name, *kind) for name in NAMES for kind in (("float32", False), ("bfloat16", True))]
    + [("everything", "float32", True), ("everything", "bfloat16", False)],
)
def test_over_eight_devices(name, dtype, cached) -> None:
    """Every routing in both dtypes, with and without a cache; the fullest one in all four ways."""
    zero = np.array([True, False, True, True, False, True, False, True])
    routing = Routing.create(CONFIGS[name], LAYERS)
    mesh, program, inputs, plain = over_eight_devices(dtype, cached)
    with jax.set_mesh(mesh):
        spread = replicate(routing)
        mixed, at_zero = (
            program(
                *inputs, spread, place(np.asarray(routing.layer_gates(g, 8)), ("batch", "layers"))
            )
            for g in (np.where(zero, 0.0, 0.7), 0.0)
        )
        hold(*(np.asarray(x) for x in (mixed, at_zero, plain)), zero=zero)


def test_without_a_gate_there_is_not_one_operation_more(tiny_lm: LanguageModel) -> None:
    """Streams that are configured but not gated are not in the program, whatever they are."""

    def program(routing, gate, cache=None) -> str:
        def logits(weights, ids, where):
            options = {"cache": cache, "routing": routing, "gate": gate}
            return forward(weights, CONFIG, ids, where, **options).hidden

        ids, where = tokens(), positions()
        if cache is not None:
            ids, where = ids[:, -1:], where[:, -1:]
        return jax.jit(logits).lower(params(), ids, where).as_text()

    routing = Routing.create(CONFIGS["everything"], LAYERS)
    zero = jnp.asarray(routing.layer_gates(0.0, BATCH))
    for cache in (None, from_prefill(prefilled("float32"), SEQ, stacked=True)):
        plain = program(None, None, cache)
        assert program(routing, None, cache) == program(None, zero, cache) == plain
        assert program(routing, zero, cache).count("stablehlo.") > 1.5 * plain.count("stablehlo.")
    # The engine asks for no other program than the plain model's either.
    prompt, options = [[1, 2, 3]], {"max_new_tokens": 2, "slots": 1, "chunk": 1, "unroll": False}
    first = tiny_lm.generate(prompt, **options)
    made = programs.prefill._cache_size(), programs.decode._cache_size()
    assert tiny_lm.routed(CONFIGS["mhc"]).generate(prompt, **options) == first
    assert (programs.prefill._cache_size(), programs.decode._cache_size()) == made


@jax.jit
def sharded_logits(weights, ids, where, routing=None, gate=None):
    return small.logits(weights, ids, where, routing, gate)[0]


@jax.jit
def sharded_step(weights, cache, ids, at, routing=None, gate=None):
    return small.step(weights, cache, ids, at, routing, gate)[0]


@pytest.mark.parametrize("name", ["lopsided persistent", "everything", "scaled updates"])
def test_streams_that_overflow(name) -> None:
    """0 * inf must not reach a row whose gate is 0, nor renormalisation and caps of what it is."""
    routing = Routing.create(CONFIGS[name], LAYERS)
    broken = dataclasses.replace(routing, mixing=routing.mixing * jnp.inf)
    for gate in (0.0, small.MIXED_GATES):
        logits, _ = small.logits(
            params(), tokens(), positions(), broken, routing.layer_gates(gate, BATCH)
        )
        zero = np.broadcast_to(np.asarray(gate) == 0, BATCH)
        np.testing.assert_array_equal(logits[zero], small.plain()[zero])
        assert not np.isfinite(np.asarray(logits)[~zero]).any(axis=(1, 2)).all() or zero.all()


@pytest.mark.parametrize("name", preset_names())
def test_greedy_tokens_through_the_engine(name, tiny_lm: LanguageModel) -> None:
    prompts = chat_prompts(tiny_lm.tokenizer, 6)
    lm = LanguageModel(
        tiny_lm.params,
        tiny_lm.config,
        tiny_lm.tokenizer,
        CONFIGS[name],
        end_token_ids=tiny_lm.end_token_ids,
        directory=tiny_lm.directory,
        fingerprint=tiny_lm.fingerprint,
    )
    options = {"max_new_tokens": 16, "slots": 6, "unroll": False}
    gates = [0.0, 1.0, 0.0, -1.0, 0.0, 0.0]
    plain, mixed = lm.generate(prompts, **options), lm.generate(prompts, gates, **options)
    same = [a == b for a, b in zip(plain, mixed, strict=True)]
    assert [s for s, gate in zip(same, gates, strict=True) if gate == 0] == [True] * 4
    assert not all(same)
