"""How many programs a run compiles: those that it lists, and none when it runs again."""

import logging
from collections import Counter
from collections.abc import Callable

import jax
import pytest

from jroute.generate import shapes
from jroute.generate.config import EngineConfig
from jroute.generate.decoding import Decoding
from jroute.generate.requests import Request
from jroute.generate.shapes import BatchPlan, Width
from tests.generate import dummy

# Shapes that no other test has, so that everything is compiled here.
SHAPE = EngineConfig(slots=5, chunk=9, ahead=3)
DECODING = Decoding(max_new_tokens=90)


@pytest.fixture
def compiled(caplog) -> Callable[[Callable[[], object]], Counter[str]]:
    def count(call: Callable[[], object]) -> Counter[str]:
        caplog.clear()
        with jax.log_compiles(), caplog.at_level(logging.WARNING, logger="jax"):
            call()
        messages = [record.getMessage() for record in caplog.records]
        names = [m.split()[4] for m in messages if m.startswith("Finished XLA compilation")]
        return Counter(name.removeprefix("jit(").removesuffix(")") for name in names)

    return count


def prompts(seed: int, count: int, shared: int = 0, length: int = 40) -> list[Request]:
    """Prompts of one width, some of which run long enough for the longest cache."""
    begin = list(range(20, 20 + shared))
    made = dummy.requests(count, seed, longest=length - shared)
    return [
        r._replace(
            tokens=[*begin, *([5] * (length - shared) + list(r.tokens))[-(length - shared) :]],
            shared=shared,
            limit=90 if i % 4 == 0 else r.limit,
        )
        for i, r in enumerate(made)
    ]


@pytest.mark.parametrize("shared", [0, 8], ids=["plain", "shared prefix"])
def test_a_run_compiles_what_it_lists_and_another_run_nothing(
    tiny_lm, compiled, monkeypatch, shared: int
) -> None:
    monkeypatch.setattr(shapes, "SMALLEST_CAPACITY", 64)
    jax.clear_caches()
    engine = dummy.engine(tiny_lm.tokenizer, decoding=DECODING, ends=(-1,), shape=SHAPE)
    requests = prompts(seed=0, count=24, shared=shared)
    plan = engine.plan(requests)
    assert len(plan.widths) == 1 and len(plan.capacities) == 2
    listed = Counter(program.name for program in engine.programs(requests))
    expected = {"unstack_blocks": 1, "prefill": 1, "empty": 1, "widen": 1, "insert": 2, "decode": 2}
    assert listed == expected | ({"read_prefix": 1} if shared else {})
    assert compiled(lambda: engine.run(requests)) == listed
    # Other prompts, gates, seeds and limits, and more of them, under an engine of its own.
    other = dummy.engine(tiny_lm.tokenizer, decoding=DECODING, ends=(-1,), shape=SHAPE)
    more = prompts(seed=1, count=37, shared=shared)
    assert compiled(lambda: other.run(more)) == Counter()
    assert compiled(lambda: list(engine.stream(requests[:7]))) == Counter()


def test_every_program_is_listed_once() -> None:
    requests = [(length, 0, 1000) for length in range(1, 200)]
    plan = BatchPlan.make(requests, EngineConfig(), slots=64, replicas=1)
    widths = [256, 192, 128, 96, 64, 48, 32, 16]
    assert [width.own for width in plan.widths] == widths
    assert plan.rows == {Width(0, width): min(8, 512 // width) for width in widths}
    listed = plan.programs(chunk=16, unroll=True)
    assert len(set(listed)) == len(listed)
    counts = Counter(program.name for program in listed)
    capacities = len(plan.capacities)
    assert capacities <= 4
    assert counts == {
        "unstack_blocks": 1,
        "prefill": len(widths),
        "empty": 1,
        "decode": capacities,
        "widen": capacities - 1,
        "insert": len(widths) * capacities,
    }
    assert "prefill 4 x 128" in map(str, listed)


def test_no_requests_need_no_program(tiny_lm, compiled) -> None:
    engine = dummy.engine(tiny_lm.tokenizer)
    assert engine.programs([]) == () and engine.run([]) == [] and list(engine.stream([])) == []
