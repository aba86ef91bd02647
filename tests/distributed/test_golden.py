"""Where everything lies on a mesh, as a committed file; changing it is a decision.

To change it on purpose: ``JROUTE_WRITE_GOLDEN=1 python -m pytest tests/sharding/test_golden.py``,
then read the difference in ``tests/golden/shardings.json`` before committing it.
"""

import json
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import pytest
from jax.sharding import PartitionSpec

from jroute.distributed import mesh as rules
from jroute.distributed.mesh import make_mesh, shardings
from jroute.generate.programs import decode, prefill
from jroute.model.config import DecoderConfig
from jroute.model.params import abstract_params, logical_axes
from jroute.routing.mixing import Routing
from tests.distributed.decoder import CONFIG, UNTIED, placed_inputs, placed_parameters

FILE = Path(__file__).parent.parent / "golden" / "shardings.json"
MESH = (2, 2, 2)


def named(tree: Any) -> dict[str, list[str | None]]:
    """Mesh axis of every axis of every array, by path."""
    pairs, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): [
            *leaf.sharding.spec,
            *[None] * (leaf.ndim - len(leaf.sharding.spec)),
        ]
        for path, leaf in pairs
    }


def of_parameters(config: DecoderConfig) -> dict[str, list[str | None]]:
    shapes = abstract_params(config)
    places = shardings(logical_axes(config), shapes, make_mesh(*MESH))
    return named(
        jax.tree.map(
            lambda shape, place: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=place),
            shapes,
            places,
        )
    )


def measured() -> dict[str, Any]:
    """What the real programs ask for while they are traced, and where their results lie."""
    specs: dict[str, list[str | None]] = {}
    times: Counter[str] = Counter()
    streams: dict[str, set[PartitionSpec]] = {}
    spec, mix = rules.spec, Routing.mix

    def record(axes: tuple[str, ...], *options: Any) -> PartitionSpec:
        result = spec(axes, *options)
        specs[" ".join(axes)] = list(result)
        times[" ".join(axes)] += 1
        return result

    def inspect(self: Routing, *arguments: Any) -> Any:
        trunk, carried, metrics = mix(self, *arguments)
        for name, x in zip(("trunk", *self.config.streams), (trunk, *carried), strict=True):
            jax.debug.inspect_array_sharding(
                x,
                callback=lambda place, name=name: streams.setdefault(name, set()).add(place.spec),
            )
        return trunk, carried, metrics

    mesh = make_mesh(*MESH)
    with pytest.MonkeyPatch.context() as patch, jax.set_mesh(mesh):
        params, inputs = placed_parameters(mesh), placed_inputs(routed=True)
        patch.setattr(rules, "spec", record)
        patch.setattr(Routing, "mix", inspect)
        # Another room and chunk than elsewhere, so that the programs are traced here.
        state, _ = prefill(params, *inputs, config=CONFIG, room=7)
        prefilled = dict(specs)
        specs.clear()
        times.clear()
        state, chunk = decode(params, state, *inputs[1:], config=CONFIG, chunk=2)
    return {
        "parameters": of_parameters(UNTIED),
        "parameters, tied": of_parameters(CONFIG),
        "parameters of qwen2": of_parameters(replace(CONFIG, family="qwen2")),
        "parameters of llama": of_parameters(replace(CONFIG, family="llama")),
        "inputs": named(inputs.rows._asdict()),
        "activations of prefill": prefilled,
        "activations of decoding": specs,
        "how often a decode step of two layers asks": dict(times),
        "streams": {name: [*map(list, sorted(at, key=str))] for name, at in streams.items()},
        "state of decoding": named(state),
        "what a chunk tells": named(chunk),
    }


def test_golden_shardings() -> None:
    now = measured()
    if os.environ.get("JROUTE_WRITE_GOLDEN") == "1":
        sections = (
            f"{json.dumps(title)}: {{\n"
            + ",\n".join(f"  {json.dumps(name)}: {json.dumps(x)}" for name, x in section.items())
            + "\n}"
            for title, section in now.items()
        )
        FILE.write_text("{\n" + ",\n".join(sections) + "\n}\n")
    assert now == json.loads(FILE.read_text())


def test_every_rule_names_an_axis_of_the_mesh() -> None:
    assert set(rules.RULES.values()) <= {None, *rules.AXES}
    assert set(CONFIG.axis_sizes) <= set(rules.RULES)
    assert rules.RULES["streams"] is None
