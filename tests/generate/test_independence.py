"""What a row becomes is decided by the row alone, bit for bit, whatever runs beside it."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jroute.distributed.mesh import make_mesh, replicate
from jroute.generate import shapes
from jroute.generate.config import EngineConfig
from jroute.generate.decoding import NEAR_TIE, Completion, Decoding
from jroute.generate.engine import Engine
from jroute.generate.programs import ChunkControl, DecodeState, Rows, decode, empty, insert, prefill
from jroute.generate.requests import FrozenModel, Request
from jroute.generate.sampling import Choice, choose
from jroute.lm import LanguageModel
from jroute.model.decoder import forward, unembed
from jroute.routing.mixing import Routing
from tests.generate import dummy
from tests.model.tiny import chat_prompts

POOL = 40


def alone(engine: Engine, requests: list[Request]) -> list[Completion]:
    """Every request in a run of its own, among dummies."""
    return [engine.run([request])[0] for request in requests]


def check_schedules(
    engine: Engine,
    requests: list[Request],
    expected: list[Completion],
    *,
    count: int,
    most: int,
    seed: int,
) -> int:
    """Random subsets in random orders; returns how many rows were compared."""
    rng, compared = np.random.default_rng(seed), 0
    for _ in range(count):
        chosen = rng.permutation(len(requests))[: rng.integers(2, most + 1)]
        completions = dict(engine.stream([requests[i] for i in chosen]))
        assert {i: expected[i] for i in chosen} == {chosen[i]: c for i, c in completions.items()}
        compared += len(chosen)
    return compared


@pytest.fixture(scope="module")
def pool() -> list[Request]:
    return dummy.requests(POOL, seed=1, limit=120)


@pytest.fixture(scope="module")
def small_capacities():
    """Caches short enough to grow within these runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shapes, "SMALLEST_CAPACITY", 128)
        yield


SHAPES = {
    "one row at a time": (EngineConfig(slots=4, chunk=8), (), 500, 9),
    "stop strings": (EngineConfig(slots=4, chunk=6, ahead=5), ("A", "+,", "0"), 200, 9),
    "no steps ahead": (EngineConfig(slots=4, chunk=3, ahead=0), (), 100, 9),
    "two rows at a time": (EngineConfig(slots=32, chunk=5, ahead=1), (), 120, POOL),
    "scanned": (EngineConfig(slots=3, chunk=8, unroll=False), (), 100, 9),
}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.usefixtures("small_capacities")
def test_random_schedules_of_a_dummy_model(tiny_lm: LanguageModel, pool, name: str) -> None:
    shape, stop, count, most = SHAPES[name]
    decoding = Decoding(temperature=1.0, max_new_tokens=120, stop=stop)
    options: dict[str, Any] = {"shape": shape, "logprobs": "raw", "margins": True}
    engine = dummy.engine(tiny_lm.tokenizer, decoding=decoding, **options)
    assert engine.plan(pool).capacities == (128, 192)  # so neighbours change a row's capacity
    expected = alone(engine, pool)
    assert len({completion.tokens for completion in expected}) > 0.9 * POOL
    reasons = {completion.stop_reason for completion in expected}
    assert reasons == {"end_token", "length", *(["stop_string"] if stop else [])}
    compared = check_schedules(engine, pool, expected, count=count, most=most, seed=count)
    assert compared > 3 * count


def test_random_schedules_of_the_tiny_model(tiny_lm: LanguageModel) -> None:
    """Its first two blocks, with gates of all kinds, sampled; prompts of three widths."""
    lm = first_blocks(tiny_lm, 2)
    engine = Engine(
        FrozenModel(lm.params, lm.config, lm.tokenizer, lm.end_token_ids, lm.routing),
        Decoding(temperature=1.0, top_p=0.95, max_new_tokens=24),
        EngineConfig(slots=4, chunk=6),
        logprobs="truncated",
    )
    rng = np.random.default_rng(0)
    whole = [lm.encode(prompt) for prompt in chat_prompts(lm.tokenizer, 14)]
    cuts = rng.integers(1, 64, len(whole))
    gates = rng.choice([0.0, 0.5, 1.0, -0.25], (len(whole), 2)).astype(np.float32)
    pool = [
        Request(row[:cut], gate, seed=int(seed), shared=int(cut > 40 and 8))
        for row, cut, gate, seed in zip(
            whole, cuts, gates, rng.integers(0, 2**31, len(whole)), strict=True
        )
    ]
    expected = alone(engine, pool)
    assert check_schedules(engine, pool, expected, count=50, most=10, seed=2) > 200


def first_blocks(lm: LanguageModel, count: int) -> LanguageModel:
    return LanguageModel(
        {**lm.params, "blocks": jax.tree.map(lambda x: x[:count], lm.params["blocks"])},
        dataclasses.replace(lm.config, num_hidden_layers=count),
        lm.tokenizer,
        lm.routing.config,
        end_token_ids=lm.end_token_ids,
        directory=lm.directory,
        fingerprint=f"first {count} blocks",
    )


def test_every_token_is_what_its_row_draws_from_the_full_forward(tiny_lm, pool) -> None:
    """Of all that a slot holds, nothing is left of the row before."""
    options: dict[str, Any] = {"logprobs": "raw", "margins": True}
    completions = dummy.engine(
        tiny_lm.tokenizer, shape=EngineConfig(slots=4, chunk=8), **options
    ).run(pool)
    rows = [[*r.tokens, *c.tokens] for r, c in zip(pool, completions, strict=True)]
    tokens = np.zeros((POOL, 160), np.int32)
    for to, row in zip(tokens, rows, strict=True):
        to[: len(row)] = row
    gate = np.stack([np.asarray(request.gate) for request in pool])
    assert len(np.unique(gate)) == 4
    routing = Routing.create(dummy.ROUTING, 1)

    @jax.jit
    def read(tokens, gate):
        at = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        out = forward(dummy.parameters(), dummy.CONFIG, tokens, at, routing=routing, gate=gate)
        return unembed(dummy.parameters(), dummy.CONFIG, out.hidden)

    logits = np.asarray(read(tokens, gate))
    drawing = jax.jit(choose, static_argnums=3)
    for i, (request, completion) in enumerate(zip(pool, completions, strict=True)):
        start, count = len(request.tokens), len(completion.tokens)
        at = np.arange(start, start + 120)  # always so many, of which the first are real
        own = logits[i, np.minimum(at, 159) - 1]
        seeds = np.full(120, request.seed, np.int32)
        drawn = drawing(own, seeds, at.astype(np.int32), Choice((), logprobs="raw"))
        assert completion.margin is not None and completion.margin > NEAR_TIE
        assert completion.tokens == tuple(np.asarray(drawn.token)[:count].tolist())
        np.testing.assert_allclose(completion.logprobs, drawn.logprob[:count], atol=1e-5)
        assert count <= request.limit


# Arrival --------------------------------------------------------------------------------------


def test_rows_arrive_at_any_time_in_any_slot() -> None:
    """The programs alone: rows put into random free slots between chunks of random length."""
    pool = dummy.requests(12, seed=4)
    params, routing = dummy.parameters(), Routing.create(dummy.ROUTING, 1)
    static: dict[str, Any] = {"config": dummy.CONFIG, "choice": Choice((), logprobs="raw")}
    ends = np.asarray(dummy.ENDS, np.int32)
    slots, width = 5, 48
    rng = np.random.default_rng(9)

    def prefilled(request: Request):
        tokens = np.zeros((1, width), np.int32)
        tokens[0, : len(request.tokens)] = request.tokens
        row = (np.array([x], np.int32) for x in (len(request.tokens), request.seed, request.limit))
        assert request.gate is not None
        return prefill(params, Rows(tokens, *row, request.gate[None]), ends, routing, **static)

    def fresh() -> DecodeState:
        return empty(
            params, config=dummy.CONFIG, slots=slots, capacity=128, routed=True, unroll=True
        )

    def play(arrivals: list[tuple[int, int, int]]) -> dict[int, list[tuple[int, float]]]:
        """Runs (chunk of arrival, request, slot) until all are done."""
        state, owners, drawn = fresh(), [-1] * slots, {}
        for now in range(200):
            for _, index, slot in [a for a in arrivals if a[0] == now]:
                rows, chunk = prefilled(pool[index])
                state = insert(state, rows, np.array([slot], np.int32))
                owners[slot] = index
                drawn[index] = [(int(chunk.tokens[0, 0]), float(chunk.logprobs[0, 0]))]
            if now > max(a[0] for a in arrivals) and bool(state.done.all()):
                return drawn
            steps = int(rng.integers(1, 9))
            control = ChunkControl(steps=steps)
            state, chunk = decode(params, state, ends, routing, control, **static, chunk=8)
            tokens, logprobs = np.asarray(chunk.tokens), np.asarray(chunk.logprobs)
            for slot, index in enumerate(owners):
                real = tokens[slot] >= 0
                if index >= 0:
                    pairs = zip(tokens[slot][real], logprobs[slot][real], strict=True)
                    drawn[index] += [(int(t), float(p)) for t, p in pairs]
        raise AssertionError("rows never end")

    expected = {i: play([(0, i, 2)])[i] for i in range(len(pool))}
    for _ in range(40):
        arrivals, at = [], 0
        order = rng.permutation(len(pool))[: slots + 3]
        free_from = [0] * slots
        for index in order:
            slot = int(rng.choice(slots))
            # 30 chunks are enough for whoever was there before.
            at = max(free_from[slot], int(rng.integers(0, 12)))
            free_from[slot] = at + 30
            arrivals.append((at, int(index), slot))
        assert play(arrivals) == {int(i): expected[int(i)] for i in order}


# Across shapes --------------------------------------------------------------------------------


def flips(one: list[Completion], other: list[Completion]) -> tuple[int, int]:
    """Rows with other tokens: those that a near-tie explains, and those that nothing does."""
    differ = [(a, b) for a, b in zip(one, other, strict=True) if a.tokens != b.tokens]
    near = sum(min(a.margin or 0, b.margin or 0) < NEAR_TIE for a, b in differ)
    return near, len(differ) - near


@pytest.mark.parametrize(
    "shape",
    [
        EngineConfig(slots=1),
        EngineConfig(slots=7, chunk=3, ahead=0),
        EngineConfig(slots=48, prefill_tokens=96),
        EngineConfig(slots=16, unroll=False),
    ],
    ids=lambda shape: f"{shape.slots} slots",
)
def test_other_shapes_give_the_same_ids_but_for_near_ties(tiny_lm, pool, shape) -> None:
    base = dummy.engine(tiny_lm.tokenizer, margins=True).run(pool)
    completions = dummy.engine(tiny_lm.tokenizer, shape=shape, margins=True).run(pool)
    assert flips(base, completions)[1] == 0


def test_near_ties_are_told() -> None:
    """Two tokens with the same embedding have the same logits."""
    near = Completion((1, 2), "", "length", margin=3e-6)
    far = Completion((1, 3), "", "length", margin=0.5)
    assert flips([near, far], [far, far]) == (1, 0)
    assert flips([far], [dataclasses.replace(far, tokens=(1,))]) == (0, 1)


def test_slots_on_eight_devices(tiny_lm, pool) -> None:
    """Bit for bit independent there too, and the same ids as on one device."""
    one = dummy.engine(tiny_lm.tokenizer, shape=EngineConfig(slots=16), margins=True).run(pool)
    with jax.set_mesh(make_mesh(8)):
        params, routing = replicate(dummy.parameters()), Routing.create(dummy.ROUTING, 1)
        engine = Engine(
            FrozenModel(params, dummy.CONFIG, tiny_lm.tokenizer, dummy.ENDS, routing),
            Decoding(temperature=1.0, max_new_tokens=120),
            EngineConfig(slots=16, chunk=8),
            margins=True,
        )
        expected = engine.run(pool)
        assert flips(one, expected)[1] == 0
        assert check_schedules(engine, pool, expected, count=12, most=POOL, seed=8) > 150
