"""The cache: its blocks, what is put into it, and that a row does not feel how long it is."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jroute.generate import cache as caches
from jroute.model import attention
from jroute.model.attention import KeyValue, update_cache
from jroute.model.params import unstack_blocks
from jroute.routing.mixing import Routing
from tests.model import small
from tests.model.small import CONFIG, CONFIGS, LAYERS, params

SLOTS = 4
LENGTHS = (1, 64, 65, 128, 200, 256, 257, 400, 512, 700, 1000, 5000, 40_000)


def test_blocks_end_where_they_end_in_every_longer_cache() -> None:
    assert caches.block_sizes(1000) == (64, 64, 64, 64, 128, 128, 256, 256)
    longest = caches.block_sizes(LENGTHS[-1])
    for length in LENGTHS:
        sizes = caches.block_sizes(length)
        assert sizes == longest[: len(sizes)]
        assert caches.capacity_for(length) == sum(sizes) >= length
        assert sum(sizes[:-1]) < max(length, 65), "a block too many"
        assert sum(sizes) <= max(128, 64 * -(-length // 64), 1.5 * length)
    assert len(longest) < 25


@functools.cache
def fresh(rows: int, seq: int, seed: int = 0) -> KeyValue:
    """Keys and values as a prefill returns them."""
    rng = np.random.default_rng(seed)
    shape = (LAYERS, rows, seq, CONFIG.num_key_value_heads, CONFIG.head_dim)
    return KeyValue(*(jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in range(2)))


def by_position(cache: caches.Cache) -> tuple[np.ndarray, np.ndarray]:
    """Keys and values as ``[layers, batch, positions, kv_heads, head_dim]``."""
    layers = [cache] if isinstance(cache, KeyValue) else list(cache)
    keys = [np.concatenate(layer.key, axis=-1) for layer in layers]
    values = [np.concatenate(layer.value, axis=-2) for layer in layers]
    stacked = isinstance(cache, KeyValue)
    key, value = (x[0] if stacked else np.stack(x) for x in (keys, values))
    return np.moveaxis(key, -1, -3), np.moveaxis(value, -2, -3)


@pytest.mark.parametrize("stacked", [True, False])
@pytest.mark.parametrize("one_block", [True, False])
def test_from_prefill_then_growth(stacked: bool, one_block: bool, monkeypatch) -> None:
    if one_block:  # as on a GPU
        monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    kv = fresh(3, 70)
    cache = caches.from_prefill(kv, 100, stacked=stacked)
    assert caches.capacity(cache) == 128
    layers = [cache] if isinstance(cache, KeyValue) else list(cache)
    assert {len(layer.key) for layer in layers} == {1 if one_block else 2}
    grown = [caches.grow(layer, 300) for layer in layers]
    if not one_block:
        assert all(a is b for a, b in zip(grown[0].key, layers[0].key, strict=False)), "copied"
    for filled in (cache, grown[0] if stacked else tuple(grown)):
        for part, expected in zip(by_position(filled), kv, strict=True):
            np.testing.assert_array_equal(part[:, :, :70], expected)
            assert not part[:, :, 70:].any()
    assert caches.capacity(grown[0]) == (320 if one_block else 384)
    assert caches.grow(grown[0], 100) is grown[0]
    empty = caches.allocate(CONFIG, 3, 100, "float32", stacked=stacked)
    assert jax.tree.map(jnp.shape, empty) == jax.tree.map(jnp.shape, cache)
    assert not any(block.any() for block in jax.tree.leaves(empty))


@pytest.mark.parametrize("stacked", [True, False])
@pytest.mark.parametrize("one_block", [True, False])
def test_rows_go_into_their_slots(stacked: bool, one_block: bool, monkeypatch) -> None:
    if one_block:
        monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    old, new = fresh(SLOTS, 200), fresh(3, 100, seed=1)
    cache = caches.from_prefill(old, 200, stacked=stacked)
    rows = caches.from_prefill(new, 100, stacked=stacked)
    changed = jax.jit(caches.insert)(cache, rows, jnp.array([2, SLOTS, 0]))  # the second nowhere
    for part, before, after in zip(by_position(changed), old, new, strict=True):
        np.testing.assert_array_equal(part[:, [1, 3], :200], before[:, [1, 3]])
        np.testing.assert_array_equal(part[:, [2, 0], :100], after[:, [0, 2]])
        np.testing.assert_array_equal(part[:, [0, 2], 128:200], before[:, [0, 2], 128:])


def test_keys_are_written_at_their_positions_and_nowhere_else() -> None:
    """At the ends of blocks, beyond the capacity, and not at all for padding."""
    layer = caches.from_prefill(fresh(5, 200), 200)[0]
    new = KeyValue(*(part[0] for part in fresh(5, 2, seed=1)))
    positions = np.array([[63, 64], [-1, 0], [127, 191], [255, 256], [-1, -1]])
    written = by_position((jax.jit(update_cache)(layer, new, jnp.asarray(positions)),))
    for part, before, added in zip(written, by_position((layer,)), new, strict=True):
        expected = before.copy()
        for row, column in zip(*np.nonzero((positions >= 0) & (positions < 256)), strict=True):
            expected[0, row, positions[row, column]] = added[row, column]
        np.testing.assert_array_equal(part, expected)


def test_after_a_prefix_every_row_begins_with_it() -> None:
    prefix = fresh(1, 50)
    cache = caches.after_prefix(prefix, 3, 30)
    assert caches.capacity(cache) == 128
    for part, expected in zip(by_position(cache), prefix, strict=True):
        np.testing.assert_array_equal(part[:, :, :50], np.repeat(expected, 3, axis=1))
    apart = caches.from_prefill(cache, caches.capacity(cache))
    for part, expected in zip(by_position(apart), by_position(cache), strict=True):
        np.testing.assert_array_equal(part, expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("seq", [1, 7])
def test_attention_to_a_cache_against_its_formula(dtype: str, seq: int, monkeypatch) -> None:
    """Several blocks of queries and of keys, in float64 with explicit heads."""
    monkeypatch.setattr(attention, "QUERY_BLOCK", 3)
    rng = np.random.default_rng(3)
    batch, kv_heads, groups, head_dim, sizes = 3, 2, 3, 8, (4, 4, 8)
    keys = [rng.normal(size=(batch, kv_heads, head_dim, n)).astype(dtype) for n in sizes]
    values = [rng.normal(size=(batch, kv_heads, n, head_dim)).astype(dtype) for n in sizes]
    query = rng.normal(size=(batch, seq, kv_heads * groups, head_dim)).astype(dtype)
    last = np.array([[0], [5], [9]]) + np.arange(seq)
    last[0, seq // 2 :] = -1  # padding
    arguments = ([*map(jnp.asarray, part)] for part in (keys, values))
    attended = attention.attend_cached(jnp.asarray(query), *arguments, jnp.asarray(last))
    assert np.isfinite(np.asarray(attended, float)).all()
    key = np.concatenate(keys, axis=-1).astype(float)
    value = np.concatenate(values, axis=-2).astype(float)
    for b, s in zip(*np.nonzero(last >= 0), strict=True):
        for h in range(kv_heads * groups):
            seen = slice(last[b, s] + 1)
            scores = query[b, s, h].astype(float) @ key[b, h // groups, :, seen] / head_dim**0.5
            weights = np.exp(scores - scores.max())
            expected = weights @ value[b, h // groups, seen] / weights.sum()
            tolerance = {"atol": 1e-5} if dtype == "float32" else {"atol": 0.02}
            np.testing.assert_allclose(np.asarray(attended[b, s, h], float), expected, **tolerance)


@pytest.mark.parametrize("shape", [(16, 8, 4, 64, 1), (1, 4, 4, 16, 1), (4, 8, 2, 32, 5)], ids=str)
def test_blocks_of_which_nothing_is_seen_change_no_bit(shape: tuple[int, ...]) -> None:
    """At larger sizes, for which the compiler may choose otherwise; whatever the blocks hold."""
    batch, heads, kv_heads, head_dim, seq = shape
    rng = np.random.default_rng(1)

    def draw(*sizes: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=sizes), jnp.float32)

    sizes = caches.block_sizes(1000)
    keys = [draw(batch, kv_heads, head_dim, n) for n in sizes]
    values = [draw(batch, kv_heads, n, head_dim) for n in sizes]
    query = draw(batch, seq, heads, head_dim)
    positions = jnp.asarray(rng.integers(0, 120, (batch, 1)) + np.arange(seq) % 4)
    run = jax.jit(attention.attend_cached)
    expected = run(query, keys[:2], values[:2], positions)
    for blocks in (3, 5, len(sizes)):
        attended = run(query, keys[:blocks], values[:blocks], positions)
        np.testing.assert_array_equal(attended, expected)
    whole = [jnp.concatenate(keys, axis=-1)], [jnp.concatenate(values, axis=-2)]  # as on a GPU
    np.testing.assert_allclose(run(query, *whole, positions), expected, atol=1e-5)


def decoded(capacity: int, lengths: list[int], *, unrolled: bool, routed: bool, steps: int = 3):
    """Logits and keys of some steps; every row's tokens and earlier keys are its own."""
    past = KeyValue(*(part[:, : len(lengths)] for part in fresh(8, 64, seed=2)))
    cache = caches.from_prefill(past, capacity, stacked=not unrolled)
    weights = unstack_blocks(params()) if unrolled else params()
    routing = Routing.create(CONFIGS["histories"], LAYERS) if routed else None
    gate = None if routing is None else routing.layer_gates(0.7, len(lengths))
    at, by_step = np.array(lengths), []
    for step in range(steps):
        ids = (np.arange(len(lengths))[:, None] * 7 + step) % CONFIG.vocab_size
        where = jnp.asarray(np.where(at < 0, at, at + step)[:, None])
        logits, cache = small.step(weights, cache, jnp.asarray(ids), where, routing, gate)
        by_step.append(np.asarray(logits[:, 0]))
    return np.stack(by_step, axis=1), by_position(cache)[0][:, :, :64]


@pytest.mark.parametrize("unrolled", [True, False])
@pytest.mark.parametrize("routed", [True, False])
def test_a_row_is_the_same_whatever_the_capacity_and_its_neighbours(unrolled, routed) -> None:
    """Bit for bit. The first two rows are looked at; the others are long, short, or free."""
    options = {"unrolled": unrolled, "routed": routed}
    logits, keys = decoded(64, [20, 3, -1, 0, 40], **options)
    for capacity, others in [
        (128, [100, -1, 80]),
        (192, [3, 3, 3]),
        (256, [250, 190, 130]),
        (384, [-1, -1, 380]),
        (1024, [1000, 600, 5]),
    ]:
        at_capacity, written = decoded(capacity, [20, 3, *others], **options)
        np.testing.assert_array_equal(at_capacity[:2], logits[:2])
        np.testing.assert_array_equal(written[:, :2], keys[:, :2])
        assert np.isfinite(at_capacity).all()


def test_what_overflowed_in_a_row_does_not_reach_the_next_one_in_its_slot() -> None:
    weights = unstack_blocks(params())
    broken = {**weights, "embed_tokens": weights["embed_tokens"].at[5].set(jnp.inf)}
    clean = caches.allocate(CONFIG, 2, 200, "float32")
    at = jnp.array([[190], [190]])  # in a block that the next row's prompt does not reach
    logits, cache = small.step(broken, clean, jnp.array([[5], [6]]), at)
    assert not np.isfinite(logits[0]).any() and np.isfinite(np.delete(logits[1], 5)).all()
    after = caches.insert(cache, caches.from_prefill(fresh(1, 4), 4), jnp.array([0]))
    expected = caches.insert(clean, caches.from_prefill(fresh(1, 4), 4), jnp.array([0]))
    ids, at = jnp.array([[1], [2]]), jnp.array([[4], [4]])
    logits, reference = (small.step(weights, c, ids, at)[0] for c in (after, expected))
    np.testing.assert_array_equal(logits, reference)
    assert np.isfinite(logits).all()


@pytest.mark.parametrize("slots", [1, 8])
def test_a_step_copies_nothing_of_the_size_of_the_cache(slots: int) -> None:
    """In the compiled loop only the writes in place give what is as large as a block."""
    capacity = 256

    def run(weights, cache, ids, at):
        def step(_, carry):
            cache, ids, at = carry
            logits, cache = small.step.__wrapped__(weights, cache, ids, at)
            return cache, jnp.argmax(logits[:, 0], axis=-1)[:, None].astype(ids.dtype), at + 1

        return jax.lax.fori_loop(0, 5, step, (cache, ids, at))

    cache = caches.allocate(CONFIG, slots, capacity, "float32")
    rows = jnp.zeros((slots, 1), jnp.int32)
    compiled = jax.jit(run, donate_argnums=1).lower(unstack_blocks(params()), cache, rows, rows)
    text = compiled.compile().as_text()
    block, written = cache[0].key[0], 0
    for name, sides, operation in re.findall(r"%([\w.\-]+) = f32\[([\d,]+)\]\S* ([\w\-]+)\(", text):
        shape = [*map(int, sides.split(","))]
        if np.prod(shape) != block.size or block.shape[-1] not in shape or operation in LAYOUT_ONLY:
            continue
        assert "scatter" in name or operation == "scatter", (name, shape, operation)
        written += "wrapped_scatter" in name and operation == "fusion"
    assert written == 2 * LAYERS * len(cache[0].key)
    weights = max(leaf.size for leaf in jax.tree.leaves(unstack_blocks(params())))
    memory = compiled.compile().memory_analysis()
    assert memory.temp_size_in_bytes < 16 * (block.size + 2 * weights), "the cache is held twice"


LAYOUT_ONLY = ("bitcast", "get-tuple-element", "parameter", "while", "tuple")
