"""A whole run on eight devices: every batch of prompts is cut along ``data``."""

from collections import Counter
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import yaml
from jax.sharding import PartitionSpec

import jroute
from jroute.checkpoint import load_state
from jroute.outcomes.__main__ import main as outcomes
from jroute.ppo import compilation
from jroute.train import main as train

SMALL = {
    "gates": [0.0, 0.5, 1.0],
    "task": {"name": "synthetic", "train": 24, "validation": 8, "test": 16},
    "decoding": {"max_new_tokens": 16},
    "engine": {"slots": 16},
    "features": {"components": 4},
    "ppo": {"updates": 3, "batch_size": 64, "minibatches": 2, "seeds": 2, "hidden": [8]},
    "supervised": {"steps": 50, "learning_rates": [0.003]},
    "judge": {"replicates": 200},
}
SLOTS, DATA = 16, 8


@pytest.fixture(scope="module")
def config(tiny_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("spread") / "small.yaml"
    path.write_text(yaml.safe_dump({"model": str(tiny_directory), "run": "", **SMALL}))
    return path


def test_a_run_on_eight_devices_is_the_run_on_one(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Engine slots, features and the learner's batches lie on ``data``; results are the same."""
    one, eight = config.parent / "one", config.parent / "eight"
    assert train(["--config", str(config), "--run", str(one)]) == 0

    placed: list[jax.Array] = []
    make = jax.make_array_from_callback

    def spy(*arguments: Any) -> jax.Array:
        placed.append(make(*arguments))
        return placed[-1]

    monkeypatch.setattr(jax, "make_array_from_callback", spy)
    shardings = []
    compile_train = compilation.compile_train

    def compile_spy(*arguments: Any, sharding: Any = None, **others: Any) -> Any:
        shardings.append(sharding)
        return compile_train(*arguments, sharding=sharding, **others)

    monkeypatch.setattr(compilation, "compile_train", compile_spy)
    given = ["--config", str(config), "--run", str(eight), "--mesh.data", str(DATA)]
    assert outcomes([*given, "--split", "test"]) == 0
    filled = [array for array in placed if array.shape == (SLOTS,) and array.dtype == bool]
    assert filled and len(jroute.load_run(eight).outcomes.table) == 48  # 16 problems, 3 gates
    assert all(len({s.device for s in array.addressable_shards}) == DATA for array in filled)
    assert train(given) == 0  # finds those, and makes the rest

    # Every batch of prompts was cut: those that the engine reads, and the features'.
    prompts = [array for array in placed if array.ndim == 2 and array.dtype == np.int32]
    sizes = Counter(array.shape[0] for array in prompts)
    # 144 cells, one for each device at a time; features of 24, 8 and 16 problems, of all at once.
    assert sizes.keys() == {DATA, SLOTS} and sizes[DATA] >= 144 // DATA and sizes[SLOTS] >= 4
    # The engine's slots: what is stopped at every look at the device.
    slots = [array for array in placed if array.shape == (SLOTS,) and array.dtype == bool]
    assert slots
    for array in (*prompts, *slots):
        assert {shard.data.shape[0] for shard in array.addressable_shards} == {
            array.shape[0] // DATA
        }
        assert len({shard.device for shard in array.addressable_shards}) == DATA
    assert shardings[0] is not None and shardings[0].spec == PartitionSpec("data")
    assert shardings[0].mesh.shape["data"] == DATA

    a, b = (jroute.load_run(run) for run in (one, eight))
    assert a.outcomes.table.fingerprint == b.outcomes.table.fingerprint
    assert a.outcomes.table.cells() == b.outcomes.table.cells() and len(a.outcomes.table) == 144
    machines = [
        {cell.made.machine for cell in run.outcomes.table.cells() if cell.made} for run in (a, b)
    ]
    assert [machine.split(" x ")[0] for (machine,) in machines] == ["1", "8"]
    for split in ("train", "test"):
        for spread, expected in zip(
            a.features.raw(split)[:2], b.features.raw(split)[:2], strict=True
        ):
            np.testing.assert_allclose(spread, expected, atol=1e-4)
    seeds = [
        load_state(run.directory / "controller" / run.controllers.training)[1]["seeds"]
        for run in (a, b)
    ]
    for spread, expected in zip(*map(jax.tree.leaves, seeds), strict=True):
        np.testing.assert_allclose(spread, expected, atol=2e-3)
