"""Mutated inputs for each reader: what valid input becomes when bytes, keys or values change."""

import copy
import gc
import json
import random
import resource
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from jroute.utils.errors import UserError
from tests.campaign.trials import MEGABYTES, SECONDS, Trial

Read = Callable[[Any], object]

ODD_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([0, -1, 10**30, 1.5, 1e308, float("nan"), float("inf"), "", "x" * 1000]),
    st.floats(),
    st.text(max_size=20),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=3),
    st.just([[[[]]]]),
)

FRAGMENTS = (
    *(b"{", b"}", b"[", b"]", b'"', b":", b",", b"\\", b"\n", b"\0", b"\xff", b"\xef\xbb\xbf"),
    *(b"-", b".", b"1e999", b"NaN", b"Infinity", b"null", b"true", b"9" * 400, b"0" * 50),
    *(b"\\ud800", "½²٣−，".encode(), b"&a ", b"*a", b"!!int ", b"<<: ", b"[" * 300, b"{" * 300),
    *(b"\\boxed{", b"\\frac{1}{2}", b"####", b"####  ", b"{{ x }}", b"{% for a in b %}", b"\t"),
)


@st.composite
def bytes_like(draw: st.DrawFn, valid: bytes) -> bytes:
    """Draw the bytes of a valid input with a few places cut, doubled, flipped or filled in."""
    content = bytearray(valid)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(content)))
        length = draw(st.one_of(st.integers(0, 8), st.integers(0, len(content))))
        match draw(st.sampled_from(("cut", "double", "flip", "insert", "replace", "end"))):
            case "cut":
                del content[at : at + length]
            case "double":
                content[at:at] = content[at : at + length]
            case "flip" if at < len(content):
                content[at] ^= 1 << draw(st.integers(0, 7))
            case "insert":
                content[at:at] = draw(st.sampled_from(FRAGMENTS))
            case "replace":
                content[at : at + length] = draw(st.sampled_from(FRAGMENTS))
            case "end":
                del content[at:]
    return bytes(content)


@st.composite
def json_like(draw: st.DrawFn, valid: Any) -> bytes:
    """Draw the JSON of a valid document with a few values replaced, removed or nested."""
    tree = json.loads(json.dumps(valid))
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(tree))
        if not places:
            break
        parent, key = draw(st.sampled_from(places))
        match draw(st.sampled_from(("replace", "replace", "remove", "nest", "add"))):
            case "replace":
                parent[key] = copy.deepcopy(draw(ODD_VALUES))
            case "remove":
                del parent[key]
            case "nest":
                parent[key] = [parent[key]]
            case "add" if isinstance(parent, dict):
                parent[draw(st.text(max_size=8))] = copy.deepcopy(draw(ODD_VALUES))
    return json.dumps(tree).encode("utf-8", "surrogatepass")


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in list(items):
        yield tree, key
        if isinstance(value, (dict, list)):
            yield from _places(value)


def mutations(
    name: str, inputs: st.SearchStrategy[Any], read: Read, rng: random.Random, count: int
) -> Iterator[Trial]:
    """Read mutated inputs: each is read, or refused with one sentence, soon and in little memory.

    Args:
        name: Name of the reader.
        inputs: What it is given.
        read: The reader; it may raise ``UserError`` alone.
        rng: Chooses the seed.
        count: How many inputs.
    """
    trials: list[Trial] = []

    @seed(rng.randrange(2**32))
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(inputs)
    def run(value: Any) -> None:
        trials.append(Trial(f"{name}: {value!r:.200}", name, tuple(_judge(read, value))))

    read_once = 0
    while len(trials) < count and read_once < 5:  # it may stop before, where few inputs exist
        run()
        read_once += 1
    yield from trials


def _judge(read: Read, value: Any) -> Iterator[tuple[str, str]]:
    gc.freeze()  # a collection of all that the campaign holds would count as the reader's time
    memory, began = _peak(), time.process_time()
    try:
        read(value)
    except UserError as error:
        if len(str(error)) > 1000:
            yield "status", f"a sentence of {len(str(error)):,} characters"
    except Exception as error:
        yield "traceback", "".join(traceback.format_exception(error)[-2:])
    if (seconds := time.process_time() - began) > SECONDS:
        yield "slow", f"{seconds:.1f} s"
    if (megabytes := _peak() - memory) > MEGABYTES:
        yield "large", f"{megabytes:.0f} MB"
    gc.unfreeze()


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def reading(file: Path, read: Callable[[], object]) -> Read:
    """Return a reader of a file's content, for a reader of the file."""

    def write_and_read(content: bytes) -> object:
        file.write_bytes(content)
        return read()

    return write_and_read
