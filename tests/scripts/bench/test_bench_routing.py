"""The routing benchmark: what it compares, and what it tells of programs above the goal."""

import jax
import jax.numpy as jnp
import pytest

from jroute.routing.config import MAX_STREAMS
from jroute.routing.presets import preset_names
from jroute.utils.errors import UserError
from scripts.bench import bench_routing as bench


def test_any_number_of_streams_may_be_compared() -> None:
    assert bench._widths("1,2,3,4,5,6,7,8") == tuple(range(1, MAX_STREAMS + 1))
    for text in ("", "0", "9", "2,", "four"):
        with pytest.raises(UserError, match=r"give numbers from 1 to 8"):
            bench._widths(text)
    figures = bench.routings(range(1, MAX_STREAMS + 1))
    assert figures.pop("plain") is figures.pop("plain again") is None
    assert [figures.pop(name).size > 1 for name in preset_names()] == [True] * len(preset_names())
    sizes = [routing.size for routing in figures.values()]
    assert sizes == [1, *(n for n in range(2, 9) for _ in range(2))]


def test_what_is_slower_than_the_goal_shows_its_operations_and_bytes() -> None:
    x = jnp.ones((64, 64))
    programs = {"plain": lambda x: x @ x, "slow": lambda x: (x @ x).T @ x + 1}
    figures = {
        name: {
            "sizes": dict.fromkeys(
                ("prefill", "decode"), bench.compiled_size(jax.jit(program).lower(x).compile())
            ),
            "prefill time / plain": {"median": 1.0 if name == "plain" else 1.2},
            "decode time / plain": {"median": 1.0},
        }
        for name, program in programs.items()
    }
    size = figures["slow"]["sizes"]["prefill"]
    assert size["operations"]["dot"] == 2 and size["bytes_accessed"] >= 5 * 64 * 64 * 4
    text = bench.above(figures, 1.1)
    assert text.startswith("slow, prefill: 1.20 x the time, ")
    assert "dot 1 -> 2" in text and "\n" not in text
    assert bench.above(figures, 1.25) == "none takes more than 1.25 x the time of the plain model"
