"""The routing benchmark: what it compares, and what it tells of programs above the goal."""

import jax
import jax.numpy as jnp
import pytest

from jroute.routing.routing import LARGEST, preset_names
from jroute.utils.errors import UserError
from scripts.bench import bench_routing as bench


def test_any_number_of_streams_may_be_compared() -> None:
    assert bench._widths("1,2,3,4,5,6,7,8") == tuple(range(1, LARGEST + 1))
    for text in ("", "0", "9", "2,", "four"):
        with pytest.raises(UserError, match=r"give numbers from 1 to 8"):
            bench._widths(text)
    found = bench.routings(range(1, LARGEST + 1))
    assert found.pop("plain") is found.pop("plain again") is None
    assert [found.pop(name).size > 1 for name in preset_names()] == [True] * len(preset_names())
    sizes = [routing.size for routing in found.values()]
    assert sizes == [1, *(n for n in range(2, 9) for _ in range(2))]


def test_what_is_slower_than_the_goal_shows_its_operations_and_bytes() -> None:
    x = jnp.ones((64, 64))
    programs = {"plain": lambda x: x @ x, "slow": lambda x: (x @ x).T @ x + 1}
    found = {
        name: {
            "sizes": dict.fromkeys(
                ("prefill", "decode"), bench.compiled_size(jax.jit(program).lower(x).compile())
            ),
            "prefill time / plain": {"median": 1.0 if name == "plain" else 1.2},
            "decode time / plain": {"median": 1.0},
        }
        for name, program in programs.items()
    }
    size = found["slow"]["sizes"]["prefill"]
    assert size["operations"]["dot"] == 2 and size["bytes_accessed"] >= 5 * 64 * 64 * 4
    told = bench.above(found, 1.1)
    assert told.startswith("slow, prefill: 1.20 x the time, ")
    assert "dot 1 -> 2" in told and "\n" not in told
    assert bench.above(found, 1.25) == "none takes more than 1.25 x the time of the plain model"
