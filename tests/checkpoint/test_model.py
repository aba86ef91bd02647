"""Model directories and learner checkpoints."""

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from converters import mapping
from jroute.checkpoint import (
    ModelWriter,
    latest_step,
    load_model,
    load_state,
    model_fingerprint,
    read_manifest,
    save_model,
    save_state,
)
from jroute.utils.errors import UserError
from jroute.utils.trees import flatten
from tests.converters.tiny import CONFIG, CONFIGS, random_tensors, write_source


def random_params(config: Any = CONFIG, dtype: str = "float32", seed: int = 0) -> dict[str, Any]:
    return mapping.from_hf(random_tensors(config, dtype, seed), config)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A finished model directory."""
    save_model(tmp_path / "model", random_params(), CONFIG)
    return tmp_path / "model"


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_model_comes_back_exactly(
    tmp_path: Path, config: Any, dtype: str, capfd: pytest.CaptureFixture[str]
) -> None:
    params = random_params(config, dtype)
    manifest = save_model(tmp_path / "model", jax.tree.map(jnp.asarray, params), config)
    loaded, loaded_config = load_model(tmp_path / "model")
    assert loaded_config == config
    assert jax.tree.structure(loaded) == jax.tree.structure(params)
    for path, leaf in flatten(loaded).items():
        assert isinstance(leaf, jax.Array)
        assert leaf.dtype == jnp.dtype(dtype)
        assert np.asarray(leaf).tobytes() == flatten(params)[path].tobytes()
    assert manifest == read_manifest(tmp_path / "model")
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert (manifest["parameters"], manifest["dtype"]) == (count, dtype)
    assert capfd.readouterr() == ("", "")  # Orbax has been told to be quiet


@pytest.mark.parametrize("dtype", ["bfloat16", jnp.bfloat16])
def test_dtype_is_cast_to_the_nearest(model: Path, dtype: Any) -> None:
    loaded, _ = load_model(model, dtype=dtype)
    expected = jax.tree.map(lambda leaf: leaf.astype(ml_dtypes.bfloat16), random_params())
    jax.tree.map(np.testing.assert_array_equal, loaded, expected)


def test_shardings(model: Path) -> None:
    params = random_params()
    mesh = jax.make_mesh((2, 2), ("data", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    replicated = NamedSharding(mesh, PartitionSpec())
    wanted = jax.tree.map(lambda _: replicated, params)
    split = NamedSharding(mesh, PartitionSpec(None, "data", "tensor"))
    wanted["blocks"]["attention"]["q_proj"] = split
    loaded, _ = load_model(model, shardings=wanted, dtype="float32")
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    query = loaded["blocks"]["attention"]["q_proj"]
    assert query.sharding == split
    assert query.addressable_shards[0].data.shape == (3, 6, 2, 6)
    assert loaded["final_norm"].sharding == replicated
    one = SingleDeviceSharding(jax.devices()[3])
    placed, _ = load_model(model, shardings=one)
    assert all(leaf.devices() == {jax.devices()[3]} for leaf in jax.tree.leaves(placed))
    default, _ = load_model(model)
    assert not any(leaf.committed for leaf in jax.tree.leaves(default))


def test_fingerprint_tells_models_apart(tmp_path: Path) -> None:
    other_theta = dataclasses.replace(CONFIG, rope_theta=1e6)
    saved = {
        "same": (random_params(), CONFIG),
        "again": (random_params(), CONFIG),
        "other weights": (random_params(seed=1), CONFIG),
        "other type": (random_params(dtype="bfloat16"), CONFIG),
        "other config": (random_params(), other_theta),
    }
    for name, (params, config) in saved.items():
        save_model(tmp_path / name, params, config)
    fingerprints = {name: model_fingerprint(tmp_path / name) for name in saved}
    assert fingerprints["same"] == fingerprints["again"]
    assert len(set(fingerprints.values())) == 4
    assert all(len(value) == 64 for value in fingerprints.values())


def test_companions_are_copied_and_nothing_else(tmp_path: Path) -> None:
    source = write_source(tmp_path / "hf", CONFIG, random_tensors(CONFIG))
    files = [source / "tokenizer.json", source / "routing.yaml"]
    manifest = save_model(tmp_path / "model", random_params(), CONFIG, files)
    names = {file.name for file in (tmp_path / "model").iterdir()}
    expected = {"params", "manifest.json", "config.json", "tokenizer.json", "routing.yaml"}
    assert names == expected
    assert manifest["companions"].keys() == {"config.json", "tokenizer.json", "routing.yaml"}
    assert (tmp_path / "model" / "routing.yaml").read_text() == "preset: histories\n"


def test_missing_and_foreign_directories(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no model directory"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"not a finished .* manifest\.json"):
        load_model(tmp_path)
    write_source(tmp_path / "hf", CONFIG, random_tensors(CONFIG))
    with pytest.raises(UserError, match="is a Hugging Face folder"):
        load_model(tmp_path / "hf")


def test_unfinished_directory(model: Path) -> None:
    (model / "manifest.json").unlink()
    with pytest.raises(UserError, match="not a finished jroute model"):
        load_model(model)


@pytest.mark.parametrize("number", [1, 99])
def test_other_format(model: Path, number: int) -> None:
    manifest = json.loads((model / "manifest.json").read_text())
    (model / "manifest.json").write_text(json.dumps({**manifest, "format": number}))
    with pytest.raises(UserError, match=rf"was written in format {number} .* convert again"):
        load_model(model)


def test_truncated_and_missing_parts(model: Path) -> None:
    stored = (model / "params").glob("*/c.*")
    largest = max(stored, key=lambda file: file.stat().st_size)
    content = largest.read_bytes()
    largest.write_bytes(content[:-1])
    with pytest.raises(UserError, match=rf"is damaged: .* has {len(content) - 1:,} bytes"):
        load_model(model)
    largest.unlink()
    with pytest.raises(UserError, match=r"is damaged: .* is missing"):
        load_model(model)
    largest.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # in its index
    with pytest.raises(UserError, match=r"is damaged: .* cannot be read"):
        load_model(model)
    largest.write_bytes(content)
    load_model(model)


def test_config_that_was_edited_afterwards(model: Path) -> None:
    content = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**content, "rope_theta": 1e6}))
    with pytest.raises(UserError, match="was changed after the conversion"):
        load_model(model)


def test_what_stands_there_is_replaced_only_when_asked(model: Path) -> None:
    before = model_fingerprint(model)
    with pytest.raises(UserError, match="already holds another model"):
        save_model(model, random_params(seed=1), CONFIG)
    assert model_fingerprint(model) == before
    save_model(model, random_params(seed=1), CONFIG, overwrite=True)
    assert model_fingerprint(model) != before
    assert [entry.name for entry in model.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_foreign_files_are_never_replaced(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("Once")
    with pytest.raises(UserError, match="is not a jroute model directory"):
        save_model(tmp_path / "thesis", random_params(), CONFIG, overwrite=overwrite)
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "Once"
    (tmp_path / "empty").mkdir()
    save_model(tmp_path / "empty", random_params(), CONFIG)
    load_model(tmp_path / "empty")


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        save_model(tmp_path / "file" / "model", random_params(), CONFIG)


def test_an_error_half_way_leaves_nothing(tmp_path: Path) -> None:
    tensors = random_tensors(CONFIG)
    seen = []
    with (
        pytest.raises(KeyboardInterrupt),
        ModelWriter(tmp_path / "model", CONFIG, "float32") as writer,
    ):
        writer.add("embed_tokens", tensors.__getitem__)
        seen = [entry.name for entry in tmp_path.iterdir()]
        raise KeyboardInterrupt
    assert sorted(seen)[0] == ".model.lock"
    assert sorted(seen)[1].startswith("model.partial-")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_behind_goes(tmp_path: Path) -> None:
    with ModelWriter(tmp_path / "model", CONFIG, "float32") as writer:
        (entry,) = tmp_path.glob("model.partial-*")
        for path in mapping.layout(CONFIG):
            writer.add(path, random_tensors(CONFIG).__getitem__)
    beginning, _, *rest = entry.name.rsplit("-", 3)
    stale = tmp_path / "-".join([beginning, str(2**22 + 1), *rest])  # no process has this number
    shutil.copytree(tmp_path / "model", stale)
    save_model(tmp_path / "model", random_params(), CONFIG, overwrite=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_a_model_that_another_process_put_there_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    tensors, directory = random_tensors(CONFIG), tmp_path / "model"
    with (
        pytest.raises(UserError, match="already holds another model"),
        ModelWriter(directory, CONFIG, "float32") as writer,
    ):
        for path in mapping.layout(CONFIG):
            writer.add(path, tensors.__getitem__)
        other = save_model(tmp_path / "other", random_params(seed=1), CONFIG)
        os.rename(tmp_path / "other", directory)
    assert read_manifest(directory) == other
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_tensors_of_another_shape_are_refused(tmp_path: Path) -> None:
    tensors = random_tensors(CONFIG)
    tensors["model.layers.1.self_attn.q_norm.weight"] = np.ones(7, np.float32)
    with (
        pytest.raises(ValueError, match=r"layers\.1\.self_attn\.q_norm\.weight has shape \(7,\)"),
        ModelWriter(tmp_path / "model", CONFIG, "float32") as writer,
    ):
        writer.add("blocks/attention/q_norm", tensors.__getitem__)
    params = random_params()
    params["final_norm"] = params["final_norm"][1:]
    with pytest.raises(ValueError, match=r"final_norm has shape \(11,\), not \(12,\)"):
        save_model(tmp_path / "model", params, CONFIG)
    params["final_norm"] = np.ones(12, np.int32)
    with pytest.raises(ValueError, match="of several types"):
        save_model(tmp_path / "model", params, CONFIG)
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_lacks_an_array_is_not_finished(tmp_path: Path) -> None:
    params = random_params()
    del params["blocks"]["mlp"]["up_proj"]
    with pytest.raises(ValueError, match="blocks/mlp/up_proj"):
        save_model(tmp_path / "model", params, CONFIG)
    assert list(tmp_path.iterdir()) == []


class Inner(NamedTuple):
    """A node that is no dictionary, as Optax has them."""

    count: Any
    moments: Any


def learner_state(offset: float = 0.0) -> dict[str, Any]:
    """All kinds of leaves that a learner has."""
    payload = np.array([0x7FC12345, 0x80000000, 0x00000001], np.uint32)  # NaN with payload, -0
    return {
        "params": {"dense": {"kernel": jnp.arange(6.0).reshape(2, 3) / 3 + offset}},
        "optimizer": (Inner(jnp.int32(7), [jnp.full(3, 1e-30, jnp.bfloat16)]), Inner(None, ())),
        "key": jax.random.key(3),
        "keys": jax.random.split(jax.random.key(4, impl="rbg"), 2),
        "bits": payload.view(np.float32),
        "wide": np.array([1 / 3]),
        "flags": jnp.array([True, False]),
        "empty": jnp.zeros((0, 4)),
        "step": 12,
        "rate": 0.1,
        "done": True,
    }


def bits(leaf: Any) -> Any:
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return str(jax.random.key_impl(leaf)), np.asarray(jax.random.key_data(leaf)).tobytes()
    return type(leaf), str(np.asarray(leaf).dtype), np.shape(leaf), np.asarray(leaf).tobytes()


def test_state_comes_back_to_the_bit(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    state = learner_state()
    save_state(tmp_path / "state", 5, state)
    step, loaded = load_state(tmp_path / "state", learner_state(offset=1.0))
    assert step == 5
    assert jax.tree.structure(loaded) == jax.tree.structure(state)
    assert list(map(bits, jax.tree.leaves(loaded))) == list(map(bits, jax.tree.leaves(state)))
    draw = jax.random.normal(loaded["key"], (4,))
    assert np.array_equal(draw, jax.random.normal(state["key"], (4,)))
    assert capfd.readouterr() == ("", "")


def test_dictionaries_come_back_without_being_told_what_they_are_like(tmp_path: Path) -> None:
    state = {name: leaf for name, leaf in learner_state().items() if name != "optimizer"}
    state["layers"] = {0: {"bias": np.zeros(2, np.int8)}, 1: {"bias": jnp.ones(2)}}
    save_state(tmp_path, 1, state)
    step, loaded = load_state(tmp_path)
    assert step == 1
    assert jax.tree.structure(loaded) == jax.tree.structure(state)
    assert list(map(bits, jax.tree.leaves(loaded))) == list(map(bits, jax.tree.leaves(state)))
    save_state(tmp_path, 2, learner_state())
    with pytest.raises(ValueError, match="optimizer/0/count is not in dictionaries alone"):
        load_state(tmp_path)


def test_state_goes_back_to_its_devices(tmp_path: Path) -> None:
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    batch = jax.device_put(jnp.arange(8.0), sharding)
    keys = jax.device_put(jax.random.split(jax.random.key(0), 4), sharding)
    save_state(tmp_path, 1, {"batch": batch, "keys": keys, "free": jnp.ones(2)})
    like = {"batch": jnp.zeros_like(batch), "keys": keys, "free": jnp.zeros(2)}
    _, loaded = load_state(tmp_path, like)
    assert loaded["batch"].sharding == sharding
    assert loaded["keys"].sharding.is_equivalent_to(sharding, 1)
    assert not loaded["free"].committed
    assert np.array_equal(loaded["batch"], np.arange(8.0))
    assert bits(loaded["keys"]) == bits(keys)


def test_only_the_newest_states_are_kept(tmp_path: Path) -> None:
    assert latest_step(tmp_path / "state") is None
    for step in (1, 2, 10):
        save_state(tmp_path / "state", step, {"x": jnp.float32(step)})
    assert sorted(entry.name for entry in (tmp_path / "state").iterdir()) == ["10", "2"]
    assert latest_step(tmp_path / "state") == 10
    like = {"x": jnp.float32(0)}
    assert load_state(tmp_path / "state", like) == (10, {"x": 10.0})
    assert load_state(tmp_path / "state", like, step=2) == (2, {"x": 2.0})
    with pytest.raises(UserError, match="holds no checkpoint of step 1"):
        load_state(tmp_path / "state", like, step=1)
    with pytest.raises(UserError, match="already holds step 10"):
        save_state(tmp_path / "state", 10, like)


def test_a_state_whose_writing_was_killed_is_not_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_state(tmp_path, 1, {"x": jnp.ones(3)})

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        # Orbax makes a step visible by one rename; the kill comes just before it.
        patch.setattr(os, "rename", killed)
        patch.setattr(os, "replace", killed)
        patch.setattr(shutil, "move", killed)
        patch.setattr(Path, "rename", killed)
        patch.setattr(shutil, "rmtree", killed)  # the dead tidy nothing up
        with pytest.raises(KeyboardInterrupt):
            save_state(tmp_path, 2, {"x": jnp.zeros(3)})
    assert len(list(tmp_path.iterdir())) > 1  # the proof that the kill came mid-way
    assert latest_step(tmp_path) == 1
    assert np.array_equal(load_state(tmp_path, {"x": jnp.zeros(3)})[1]["x"], np.ones(3))
    save_state(tmp_path, 2, {"x": jnp.full(3, 2.0)})
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["1", "2"]
    assert load_state(tmp_path, {"x": jnp.zeros(3)})[1]["x"].tolist() == [2.0, 2.0, 2.0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"rate": jnp.zeros(3)},
            r"rate is float64\[\] there and float32\[3\] here",
        ),
        ({"more": 1.0}, r"more is absent there"),
        ({"flags": jnp.zeros(2)}, r"flags is bool\[2\] there"),
    ],
    ids=["shape", "structure", "type"],
)
def test_state_of_another_configuration(tmp_path: Path, change: dict, message: str) -> None:
    save_state(tmp_path, 1, learner_state())
    with pytest.raises(UserError, match=message):
        load_state(tmp_path, {**learner_state(), **change})


def test_no_state(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match="holds no checkpoint; start a new run"):
            load_state(folder, {"x": 1.0})
