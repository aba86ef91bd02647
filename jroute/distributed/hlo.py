"""The collectives of a compiled program, read from its HLO text (``compiled.as_text()``).

The compiler, not the source, decides what a program sends between devices. This module lists every
collective with its results on a device, the mesh axes along which it runs, and how often it runs.
"""

import itertools
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

_KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
_BITS = re.compile(r"\d+")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
_COLLECTIVE = re.compile(rf"= (.*?) ({'|'.join(_KINDS)})(-start)?\(")
_ASYNC_END = re.compile(r" async-(update|done)\(")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_CALLS = re.compile(
    r"\b(body|condition|calls|to_apply|branch_computations|true_computation|false_computation|"
    r"called_computations)=(\{[^}]*\}|%?[\w.\-]+)"
)
_MESH_GROUPS = re.compile(
    r"mesh\[(?P<axes>.*?)\]"
    r"(?:, device_ids=\("
    r"(?:\[(?P<order>[\d,]+)\](?:T\((?P<turned>[\d,]+)\))?|(?P<listed>[\d,]+))\))?"
    r" \{(?P<members>.*?)\}"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


class Collective(NamedTuple):
    """One collective of a program.

    Attributes:
        kind: Name in HLO, without ``-start``.
        results: Element type and shape of its results on one device.
        axes: Axes of the mesh along which the devices of one of its groups differ.
        loops: Number of loops around it; with 0 it runs once.
        times: How often it runs in one pass of the loops whose trip count the compiler does not
            know: the product of the known trip counts (a scan over layers).
    """

    kind: str
    results: tuple[tuple[str, tuple[int, ...]], ...]
    axes: tuple[str, ...]
    loops: int
    times: int

    @property
    def bytes(self) -> int:
        """Bytes of its results on one device, each time it runs."""
        return sum(math.prod(shape) * _bits(kind) // 8 for kind, shape in self.results)


class Traffic(NamedTuple):
    """The number of collectives that run, and the bytes of their results on one device."""

    calls: int
    bytes: int


def collectives(text: str, mesh: Mapping[str, int]) -> list[Collective]:
    """List the collectives of a program in the order of its text.

    Collectives among single devices, which send nothing, are left out.

    Args:
        text: ``compiled.as_text()``.
        mesh: Names and sizes of the mesh's axes, in order (``mesh.shape``).

    Raises:
        ValueError: The text is not an HLO module, or its groups have an unknown notation.
    """
    computations, entry = _computations(text)

    def walk(name: str, loops: int, times: int) -> Iterator[Collective]:
        for line in computations[name]:
            if match := _COLLECTIVE.search(line):
                axes = _axes(_groups(line), mesh)
                if axes:
                    yield Collective(match[2], _results(*match.groups()), axes, loops, times)
                continue
            if _ASYNC_END.search(line):
                continue  # it names what `async-start` has run already
            trips = int(known[1]) if (known := _TRIPS.search(line)) else 1
            for role, names in _CALLS.findall(line):
                inside = role in ("body", "condition")
                for called in re.findall(r"[\w.\-]+", names):
                    yield from walk(called, loops + inside, times * (trips if inside else 1))

    return list(walk(entry, 0, 1))


def summary(listed: Iterable[Collective]) -> dict[str, Traffic]:
    """Add collectives up by kind, each counted as often as it runs (see ``Collective.times``)."""
    total: dict[str, Traffic] = {}
    for collective in listed:
        calls, size = total.get(collective.kind, Traffic(0, 0))
        total[collective.kind] = Traffic(
            calls + collective.times, size + collective.times * collective.bytes
        )
    return total


def gathered_parameters(
    listed: Iterable[Collective], params: Mapping[str, Any]
) -> list[tuple[str, Collective]]:
    """Find all-gathers that reassemble a parameter that the mesh has cut.

    A result is recognized by its shape, whatever the order of its axes, and even if some are
    merged or split at a cut; stacked blocks are recognized whole and by the layer. Undoing only
    part of the cuts of a parameter counts as well.

    Args:
        listed: Collectives of a program.
        params: Parameters, or their ``ShapeDtypeStruct``, with shardings.

    Returns:
        For every such all-gather the path of the parameter (the first of those with the same shape)
        and the collective.
    """
    forms: dict[tuple[int, ...], str] = {}
    others: dict[tuple[int, ...], str] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        cut = leaf.sharding.shard_shape(leaf.shape)
        stacked = name.startswith("blocks/") and not isinstance(params["blocks"], tuple)
        for start in range(1 + stacked):
            if cut != leaf.shape:
                forms.setdefault(_sorted(leaf.shape[start:]), name)
            for form in _forms(leaf.shape[start:], cut[start:]):
                others.setdefault(form, name)
    forms = others | forms  # of parameters that look alike, the one with exactly this shape
    return [
        (forms[form], collective)
        for collective in listed
        if collective.kind == "all-gather"
        for _, shape in collective.results
        if (form := _sorted(shape)) in forms
    ]


def _forms(whole: tuple[int, ...], cut: tuple[int, ...]) -> set[tuple[int, ...]]:
    """Return every shape that an array can have once at least one of its cuts is undone."""
    forms: set[tuple[int, ...]] = set()
    choices = [{(b,), (a,), (a // b, b)} for a, b in zip(whole, cut, strict=True)]
    local = math.prod(cut)
    for chosen in itertools.product(*choices):
        sizes = [size for sizes in chosen for size in sizes if size > 1]
        if math.prod(sizes) > local:
            forms |= {_sorted(map(math.prod, parts)) for parts in _partitions(sizes)}
    return forms


def _sorted(sizes: Iterable[int]) -> tuple[int, ...]:
    return tuple(sorted(size for size in sizes if size > 1))


def _partitions(items: list[int]) -> Iterator[list[list[int]]]:
    """Yield every way to group items."""
    if not items:
        yield []
        return
    first, *others = items
    for groups in _partitions(others):
        yield [[first], *groups]
        for i, group in enumerate(groups):
            yield [*groups[:i], [first, *group], *groups[i + 1 :]]


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """Return the lines of every computation by name, and the name of the first to run."""
    computations: dict[str, list[str]] = {}
    entry, current = "", []
    for line in text.splitlines():
        if header := _HEADER.match(line):
            current = computations.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        else:
            current.append(line)
    if not entry:
        raise ValueError("this is not the text of an HLO module: it has no ENTRY")
    return computations, entry


def _bits(kind: str) -> int:
    """Return the width of an element type such as ``f32``, ``bf16``, ``f8e4m3fn`` or ``pred``."""
    width = _BITS.search(kind)
    return int(width[0]) if width else 8


def _results(kind_of_type: str, kind: str, start: str | None):
    arrays = [
        (name, tuple(int(size) for size in sizes.split(",") if size))
        for name, sizes in _ARRAY.findall(kind_of_type)
    ]
    if start and kind == "collective-permute":
        arrays = arrays[1:2]  # operand, result, then two counters
    elif start and kind != "all-reduce":
        arrays = arrays[len(arrays) // 2 :]  # operands, then results
    return tuple(arrays)


def _axes(groups: list[list[int]], mesh: Mapping[str, int]) -> tuple[str, ...]:
    """Return the axes along which members of a group differ; devices are in row-major order."""
    sizes = tuple(mesh.values())
    groups = groups or [list(range(math.prod(sizes)))]
    along = np.zeros(len(sizes), bool)
    for group in groups:
        places = np.stack(np.unravel_index(group, sizes))
        along |= (places != places[:, :1]).any(axis=1)
    return tuple(axis for axis, used in zip(mesh, along, strict=True) if used)


def _groups(line: str) -> list[list[int]]:
    """Return the groups of devices that take part together; an empty list means all of them."""
    if pairs := re.search(r"source_target_pairs=\{(.*?)\}\}|source_target_pairs=\{\}", line):
        return [[int(a), int(b)] for a, b in re.findall(r"(\d+),(\d+)", pairs[0])] or [[0]]
    text = line.split("replica_groups=", 1)[-1]
    if text.startswith("mesh["):
        return _mesh_groups(text)
    if iota := re.match(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text):
        return _iota(*iota.groups()).tolist()
    if text.startswith("{"):
        return [
            json.loads(f"[{group}]") for group in re.findall(r"\{([\d,]+)\}", text.split(" ")[0])
        ]
    raise ValueError(f"replica groups have an unknown notation: {line.strip()[:300]}")


def _iota(shape: str, order: str, turned: str | None) -> np.ndarray:
    sizes = json.loads(f"[{order}]")
    devices = np.arange(math.prod(sizes)).reshape(sizes)
    if turned:
        devices = devices.transpose(json.loads(f"[{turned}]"))
    return devices.reshape(json.loads(f"[{shape}]"))


def _mesh_groups(text: str) -> list[list[int]]:
    """Parse groups given as axes of a mesh: ``mesh['x'=2,'y'=4] {'y':(2)2}`` (half of ``y``).

    The devices of the mesh may be permuted: ``, device_ids=([4,2]T(1,0))``.
    """
    match = _MESH_GROUPS.match(text)
    if not match:
        raise ValueError(f"replica groups have an unknown notation: {text[:300]}")
    axes = {name: int(size) for name, size in re.findall(r"'(.*?)'=(\d+)", match["axes"])}
    if match["listed"]:
        devices = np.array(json.loads(f"[{match['listed']}]"))
    else:
        count = str(math.prod(axes.values()))
        devices = _iota(count, match["order"] or count, match["turned"])
    used = {
        name: (int(before), int(size)) if size else (1, axes[name])
        for name, before, size in re.findall(r"'(.*?)'(?::\((\d+)\)(\d+))?", match[5])
    }
    sizes, inside = [], []
    for name, size in axes.items():
        before, part = used.get(name, (size, 1))
        inside.append(len(sizes) + 1)
        sizes += [before, part, size // (before * part)]
    turned = np.moveaxis(devices.reshape(sizes), inside, range(-len(inside), 0))
    return turned.reshape(-1, math.prod(sizes[i] for i in inside)).tolist()
