"""Execution shapes, memory before it is taken, and which request goes where."""

import jax
import numpy as np
import pytest

from jroute.generate import memory, programs
from jroute.generate.cache import capacity_for
from jroute.generate.config import EngineConfig
from jroute.generate.decoding import Decoding
from jroute.generate.memory import MemoryEstimate
from jroute.generate.requests import Request
from jroute.generate.shapes import BatchPlan, Width
from jroute.generate.slots import Kind, Slots
from jroute.utils.errors import UserError
from tests.generate import dummy

GIB = 2**30


@pytest.mark.parametrize(
    ("free", "prompts", "replicas", "slots"),
    [
        (10 * GIB, 10**6, 1, 64),  # 9 GiB less 1 fixed: 80 fit
        (10 * GIB, 40, 1, 48),
        (10 * GIB, 1, 1, 1),
        (10 * GIB, 5, 4, 8),
        (10 * GIB, 10**6, 8, 64),
        (None, 10**6, 1, memory.MAX_AUTO_SLOTS),
        (1000 * GIB, 10**6, 1, memory.MAX_AUTO_SLOTS),
        (1.35 * GIB, 10**6, 1, 2),
    ],
    ids=str,
)
def test_auto_takes_what_fits_and_no_more_than_there_is(free, prompts, replicas, slots) -> None:
    estimate = MemoryEstimate(slot=0.1 * GIB, fixed=GIB, free=None if free is None else int(free))
    assert memory.choose_slots(lambda _: estimate, prompts, replicas) == slots


def test_what_does_not_fit_is_refused_with_the_numbers(tiny_lm, monkeypatch) -> None:
    requests = [Request([5] * 30, None)] * 3
    roomy = dummy.engine(tiny_lm.tokenizer, shape=EngineConfig(slots=64))
    of = roomy.model.params, roomy.model.config
    estimate = memory.estimate_memory(*of, roomy.plan(requests), roomy.config, None)
    free = int((estimate.fixed + 40.5 * estimate.slot) / memory.MEMORY_SHARE)
    monkeypatch.setattr(memory, "free_memory", lambda: free)
    before = len(jax.live_arrays())
    with pytest.raises(
        UserError, match=r"64 slots needs 0\.\d+ GiB .* 90% may be used; .* at most 40, or to auto"
    ):
        roomy.run(requests)
    assert len(jax.live_arrays()) == before
    assert len(dummy.engine(tiny_lm.tokenizer, shape=EngineConfig(slots=40)).run(requests)) == 3
    auto = dummy.engine(tiny_lm.tokenizer, shape=EngineConfig(slots="auto"))
    assert auto.plan(requests).slots == 3
    assert auto.plan(requests * 100).slots == 32
    monkeypatch.setattr(memory, "free_memory", lambda: 1000)
    with pytest.raises(UserError, match=r"engine\.unroll to false, shorten prompts"):
        auto.run(requests)


@pytest.mark.parametrize("unroll", [True, False], ids=["unrolled", "scanned"])
def test_the_cache_takes_what_was_planned(unroll: bool) -> None:
    params, config = dummy.parameters(), dummy.CONFIG
    shape = EngineConfig(slots=6, unroll=unroll)
    plan = BatchPlan.make([(40, 0, 400), (20, 0, 10)], shape, slots=6, replicas=1)
    assert len(plan.capacities) > 1
    state = programs.empty(
        params, config=config, slots=6, capacity=plan.capacities[0], routed=True, unroll=unroll
    )
    state = programs.with_capacity(state, plan.capacities[-1])
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(state.cache))
    exact = 6 * plan.capacities[-1] * config.num_key_value_heads * config.head_dim * 2 * 4
    assert held == exact
    planned = memory.estimate_memory(params, config, plan, shape, None).slot * 6
    logits = 6 * 4 * 4 * config.vocab_size
    assert exact < planned - logits <= 2 * exact  # the longest, and while it grows the one before


def test_free_memory_is_known() -> None:
    free = memory.free_memory()
    assert free is not None and 2**20 < free < 2**50


def test_the_cache_grows_to_what_the_longest_row_needs() -> None:
    shape = EngineConfig()
    short = BatchPlan.make([(30, 0, 20)], shape, 4, 1)
    assert short.capacities == (capacity_for(50),)
    plan = BatchPlan.make([(30, 0, 20), (500, 0, 1000)], shape, 4, 1)
    assert plan.capacities[-1] >= 1500 and plan.capacities[0] >= 512
    assert all(b >= 1.5 * a for a, b in zip(plan.capacities, plan.capacities[1:], strict=False))
    with_prefix = BatchPlan.make([(90, 60, 10)], shape, 4, 1)
    assert with_prefix.widths == (Width(64, 32),)
    assert with_prefix.capacities[0] >= 96


# Slots ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("slots", "replicas"), [(4, 1), (32, 1), (128, 2), (64, 8)], ids=str)
def test_every_request_gets_one_slot_of_its_replica(slots: int, replicas: int) -> None:
    rng = np.random.default_rng(slots + replicas)
    shape = EngineConfig(slots=slots, prefill_tokens=128)
    lengths = rng.integers(1, 90, 100)
    plan = BatchPlan.make([(int(n), 0, 20) for n in lengths], shape, slots, replicas)
    kinds = [Kind(Width.of(int(n), 0), None) for n in lengths]
    table, seen, dummies = Slots(plan, kinds, replicas), [], 0
    each = slots // replicas
    while table.needed is not None or table.taken:
        while (refill := table.refill()) is not None:
            rows = plan.rows[refill.kind.width]
            assert rows == len(refill.members) == len(refill.at)
            for row, (index, at, slot) in enumerate(
                zip(refill.members, refill.at, refill.slots, strict=True)
            ):
                if index is None:
                    assert at == each
                    dummies += 1
                    continue
                assert slot == row // (rows // replicas) * each + at
                assert table.owners[slot] == index and kinds[index] == refill.kind
                seen.append(index)
        taken = [slot for slot, owner in enumerate(table.owners) if owner is not None]
        for slot in rng.permutation(taken)[: rng.integers(1, 6)]:
            table.release(int(slot))
    assert sorted(seen) == list(range(100))
    if replicas == 1:  # a prefill has dummies only where no more prompts of its width wait
        assert dummies == sum(
            -sum(kind.width == width for kind in kinds) % plan.rows[width] for width in plan.widths
        )


def test_wide_prompts_first_and_a_request_without_a_limit_has_the_decodings(tiny_lm) -> None:
    decoding = Decoding(max_new_tokens=7)
    engine = dummy.engine(tiny_lm.tokenizer, decoding=decoding, ends=(-1,))
    completions = engine.run(
        [Request([5], None), Request([5] * 60, None), Request([5], None, limit=2)]
    )
    assert [len(completion.tokens) for completion in completions] == [7, 7, 2]
    for wrong in ({"limit": 8}, {"limit": -1}, {"shared": -1}):
        with pytest.raises(UserError, match="may not pass max_new_tokens, 7"):
            engine.run([Request([5], None, **wrong)])
