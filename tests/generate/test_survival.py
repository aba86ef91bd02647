"""A run that is cut short has told what had finished, and leaves nothing on the device."""

import gc
import signal

import jax
import pytest

from jroute.generate.config import EngineConfig
from jroute.generate.decoding import Decoding
from jroute.generate.engine import Engine
from jroute.generate.requests import Progress, Request
from tests.generate import dummy

COUNT = 30


def live() -> tuple[int, int]:
    """Arrays on the devices, and their bytes."""
    gc.collect()
    arrays = jax.live_arrays()
    return len(arrays), sum(array.nbytes for array in arrays)


@pytest.fixture(scope="module")
def requests() -> list[Request]:
    begin = list(range(20, 28))
    return [
        r._replace(tokens=[*begin, *r.tokens], shared=len(begin) * (i % 2))
        for i, r in enumerate(dummy.requests(COUNT, seed=3))
    ]


@pytest.fixture(scope="module")
def engine(tiny_lm) -> Engine:
    return dummy.engine(tiny_lm.tokenizer, shape=EngineConfig(slots=4, chunk=4), margins=True)


@pytest.fixture(scope="module")
def whole(engine, requests):
    return engine.run(requests)


@pytest.fixture
def before(whole) -> tuple[int, int]:
    return live()


def test_a_run_leaves_nothing(engine, requests, whole, before) -> None:
    assert engine.run(requests) == whole
    assert live() == before


def test_closing_the_iterator(engine, requests, whole, before) -> None:
    stream = engine.stream(requests)
    completions = [next(stream) for _ in range(7)]
    assert live()[1] > before[1]
    stream.close()  # type: ignore[attr-defined]
    assert live() == before
    assert all(whole[i] == completion for i, completion in completions)


def test_an_exception_in_the_callback(engine, requests, whole, before) -> None:
    reported: dict[int, object] = {}

    def finished(indices, completions) -> None:
        reported.update(zip(indices, completions, strict=True))
        if len(reported) > 8:
            raise ValueError("full")

    with pytest.raises(ValueError, match="full") as caught:
        engine.run(requests, finished=finished)
    assert live() == before, "while the exception and its traceback are still there"
    assert caught.value and 8 < len(reported) < COUNT
    assert all(whole[i] == completion for i, completion in reported.items())


def test_an_interrupt_between_the_device_and_the_callback(engine, requests, whole, before) -> None:
    """It comes when completions have been read and nobody has been told of them yet."""
    reported: dict[int, object] = {}
    seen: list[Progress] = []

    def progress(now: Progress) -> None:
        seen.append(now)
        if now.finished > len(reported) > 5:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as caught:
        engine.run(
            requests,
            finished=lambda indices, completions: reported.update(
                zip(indices, completions, strict=True)
            ),
            progress=progress,
        )
    assert live() == before, "while the interrupt and its traceback are still there"
    assert caught.value is not None and 5 < len(reported) < COUNT
    assert len(reported) == seen[-1].finished  # none was lost
    assert all(whole[i] == completion for i, completion in reported.items())
    assert engine.run(requests) == whole  # and the engine goes on


def test_what_progress_says_adds_up(engine, requests, whole) -> None:
    seen: list[Progress] = []
    engine.run(requests, progress=seen.append)
    assert (seen[0].finished, seen[0].tokens, seen[0].steps) == (0, 0, 0)
    last = seen[-1]
    assert (last.finished, last.total, last.slots) == (COUNT, COUNT, 4)
    assert last.tokens == sum(len(completion.tokens) for completion in whole)
    # A prefill makes the first token of a row, every live step of a slot one more.
    assert last.active_steps == last.tokens - COUNT
    assert 0.5 < last.occupancy == last.active_steps / (4 * last.steps) < 1
    assert [now.finished for now in seen] == sorted(now.finished for now in seen)
    assert last.programs == engine.programs(requests)


def test_a_row_that_met_its_stop_string_does_not_run_on(tiny_lm) -> None:
    shape, seen = EngineConfig(slots=2, chunk=4, ahead=1), []
    requests = [r._replace(limit=0) for r in dummy.requests(2, seed=6)]
    options = {"ends": (-1,), "shape": shape}
    whole = dummy.engine(tiny_lm.tokenizer, **options).run(requests)
    decoding = Decoding(temperature=1.0, max_new_tokens=120, stop=(whole[0].text[:6],))
    engine = dummy.engine(tiny_lm.tokenizer, decoding=decoding, **options)
    short, long = engine.run(requests, progress=seen.append)
    assert short.stop_reason == "stop_string" and len(long.tokens) == 120
    generated = len(short.tokens) + len(long.tokens)
    # Until the host has looked it runs on: a chunk, and the steps ahead of it, twice.
    assert generated - 2 <= seen[-1].active_steps <= generated + 2 * (4 + 1)
