"""How the arrays of a model lie on disk, and what of them is read and held."""

import dataclasses
import json
import math
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorstore as ts
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from converters import mapping
from jroute.checkpoint import arrays, digests, load_model, read_manifest, save_model
from jroute.checkpoint.conversion import convert
from jroute.distributed.mesh import AXES, shardings
from jroute.model.params import abstract_params, logical_axes
from jroute.utils.trees import flatten
from tests.converters.tiny import CONFIG, random_tensors, write_source

WIDE = dataclasses.replace(
    CONFIG,
    vocab_size=1024,
    hidden_size=512,
    intermediate_size=1024,
    num_attention_heads=8,
    num_key_value_heads=8,
    head_dim=64,
    num_hidden_layers=2,
)
"""Large enough that every matrix of a block is cut into eight parts on both axes."""


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A model directory, and what is in it."""
    params = mapping.from_hf(random_tensors(WIDE), WIDE)
    directory = tmp_path_factory.mktemp("wide") / "model"
    save_model(directory, params, WIDE)
    return directory, params


def make_mesh(*sizes: int) -> jax.sharding.Mesh:
    auto = (jax.sharding.AxisType.Auto,) * 3
    return jax.make_mesh(sizes, AXES, axis_types=auto, devices=jax.devices()[: math.prod(sizes)])


def bytes_read() -> int:
    """Bytes that tensorstore has read from files so far."""
    (metric,) = ts.experimental_collect_matching_metrics("/tensorstore/kvstore/file/bytes_read")
    return int(metric["values"][0]["value"])


def test_orbax_reads_the_directory_as_one_tree(wide: tuple[Path, dict[str, Any]]) -> None:
    directory, params = wide
    with ocp.PyTreeCheckpointer() as checkpointer:
        read = checkpointer.restore(directory / "params")
    assert jax.tree.structure(read) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, read, params)
    with ocp.StandardCheckpointer() as checkpointer:
        standard = checkpointer.restore(directory / "params")
    jax.tree.map(np.testing.assert_array_equal, standard, params)


def test_orbax_reads_it_onto_a_mesh(wide: tuple[Path, dict[str, Any]]) -> None:
    directory, params = wide
    placed = shardings(logical_axes(WIDE), abstract_params(WIDE), make_mesh(2, 2, 2))
    args = jax.tree.map(lambda where: ocp.ArrayRestoreArgs(sharding=where), placed)
    with ocp.PyTreeCheckpointer() as checkpointer:
        read = checkpointer.restore(directory / "params", restore_args=args)
    assert jax.tree.map(lambda leaf: leaf.sharding, read) == placed
    jax.tree.map(np.testing.assert_array_equal, read, params)


def test_nothing_is_compressed(wide: tuple[Path, dict[str, Any]]) -> None:
    directory, _ = wide
    descriptions = list((directory / "params").glob("*/zarr.json"))
    assert len(descriptions) == len(mapping.layout(WIDE))
    for file in descriptions:
        (sharding,) = json.loads(file.read_text())["codecs"]
        assert [codec["name"] for codec in sharding["configuration"]["codecs"]] == [
            "bytes",
            "crc32c",
        ]


@pytest.mark.parametrize("sizes", [(1, 1, 8), (2, 2, 2), (1, 4, 2), (8, 1, 1)], ids=str)
def test_a_restore_reads_every_byte_once_whatever_the_mesh(
    wide: tuple[Path, dict[str, Any]], sizes: tuple[int, ...]
) -> None:
    directory, params = wide
    placed = shardings(logical_axes(WIDE), abstract_params(WIDE), make_mesh(*sizes))
    before = bytes_read()
    loaded, _ = load_model(directory, shardings=placed)
    read = bytes_read() - before
    assert jax.tree.map(lambda leaf: leaf.sharding, loaded) == placed
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    total = read_manifest(directory)["bytes"]
    assert total <= read < 1.01 * total  # the rest are indices of tiles and descriptions


@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize("path", ["blocks/mlp/gate_proj", "blocks/attention/o_proj"])
def test_an_eighth_of_an_array_is_an_eighth_of_the_reading(
    wide: tuple[Path, dict[str, Any]], path: str, axis: int
) -> None:
    directory, params = wide
    expected = flatten(params)[path]
    axis = 3 if axis == 2 and expected.ndim == 4 else axis
    part = expected.shape[axis] // 8
    index = tuple(
        slice(3 * part, 4 * part) if i == axis else slice(None) for i in range(expected.ndim)
    )
    store = arrays.open_array(directory / "params", path)
    before = bytes_read()
    read = arrays._read_part(store, index, np.dtype("float32"))
    assert bytes_read() - before < 1.05 * expected.nbytes / 8
    np.testing.assert_array_equal(read, expected[index])


def test_what_all_devices_hold_is_read_once(wide: tuple[Path, dict[str, Any]]) -> None:
    directory, params = wide
    store = arrays.open_array(directory / "params", "blocks/mlp/up_proj")
    expected = params["blocks"]["mlp"]["up_proj"]
    mesh = make_mesh(4, 1, 2)
    for spec, parts in ((PartitionSpec(), 1), (PartitionSpec(None, None, "tensor"), 2)):
        before = bytes_read()
        array = arrays.read_array(store, NamedSharding(mesh, spec))
        assert bytes_read() - before < 1.01 * expected.nbytes
        assert len({str(shard.index) for shard in array.addressable_shards}) == parts
        np.testing.assert_array_equal(array, expected)


@pytest.mark.parametrize("piece_bytes", [2**20, 100_000, 4096, 100])
def test_small_pieces_change_nothing_but_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece_bytes: int
) -> None:
    """Blocks in several files, blocks larger than a file, and rows larger than one."""
    config = dataclasses.replace(CONFIG, hidden_size=36, num_hidden_layers=5)
    tensors = random_tensors(config, "bfloat16")
    source = str(write_source(tmp_path / "hf", config, tensors, shards=2))
    whole = convert(source, tmp_path / "whole").manifest
    monkeypatch.setattr(arrays, "PIECE_BYTES", piece_bytes)
    monkeypatch.setattr(arrays, "_TILE_BYTES", 64)
    cut = convert(source, tmp_path / "cut").manifest
    assert (cut["fingerprint"], cut["tensors"]) == (whole["fingerprint"], whole["tensors"])
    assert list(cut["tensors"]) == list(whole["tensors"])
    for path, entry in mapping.layout(config).items():
        sizes = [
            size
            for name, size in cut["stored"].items()
            if name.startswith(f"params/{path.replace('/', '.')}/c.")
        ]
        tiling = arrays.tiling(entry.shape, entry.axes, 2)
        assert arrays.disk_usage(entry.shape, tiling, 2) == (len(sizes), sum(sizes))
    placed = shardings(logical_axes(config), abstract_params(config), make_mesh(1, 2, 1))
    loaded, _ = load_model(tmp_path / "cut", dtype="float32", shardings=placed)
    expected = mapping.from_hf(tensors, config)
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_array_equal(ours, theirs.astype("float32")),
        loaded,
        expected,
    )


AXIS_NAMES = st.sampled_from(["embed", "heads", "head_dim", "mlp", "vocab"])


@given(
    st.lists(st.tuples(AXIS_NAMES, st.integers(1, 60)), min_size=1, max_size=3),
    st.integers(0, 9),
    st.sampled_from([2, 4]),
)
def test_tilings_cover_every_array_exactly(
    inner: list[tuple[str, int]], layers: int, itemsize: int
) -> None:
    axes, shape = tuple(name for name, _ in inner), tuple(size for _, size in inner)
    if layers:
        axes, shape = ("layers", *axes), (layers, *shape)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrays, "PIECE_BYTES", 1000)
        patch.setattr(arrays, "_TILE_BYTES", 10)
        cut = arrays.tiling(shape, axes, itemsize)
    assert all(a % b == 0 for a, b in zip(cut.piece, cut.tile, strict=True))
    assert all(1 <= a <= size for a, size in zip(cut.piece, shape, strict=True))
    row = math.prod(shape[2:] if layers else shape[1:]) * itemsize
    assert math.prod(cut.piece) * itemsize <= max(1000, row)
    seen = np.zeros(shape, np.int8)
    for part in arrays.pieces(shape, cut.piece):
        seen[part] += 1
    assert (seen == 1).all()


def test_the_published_4b_shape_is_cut_as_meshes_are() -> None:
    """Up to eight devices along either axis read their part of every large array and no more."""
    published = dataclasses.replace(
        WIDE,
        vocab_size=151936,
        hidden_size=2560,
        intermediate_size=9728,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=True,
    )
    cuts = {
        path: arrays.tiling(entry.shape, entry.axes, 2)
        for path, entry in mapping.layout(published).items()
    }
    assert cuts["blocks/mlp/gate_proj"] == ((1, 2560, 9728), (1, 320, 1216))
    assert cuts["blocks/mlp/down_proj"] == ((1, 9728, 2560), (1, 1216, 320))
    assert cuts["blocks/attention/q_proj"] == ((3, 2560, 32, 128), (1, 320, 4, 128))
    assert cuts["blocks/attention/k_proj"] == ((12, 2560, 8, 128), (1, 320, 1, 128))
    assert cuts["blocks/attention/o_proj"] == ((3, 32, 128, 2560), (1, 4, 128, 320))
    assert cuts["embed_tokens"] == ((9496, 2560), (1187, 320))
    for path, (piece, _) in cuts.items():
        assert math.prod(piece) * 2 <= 64 * 2**20, path


@pytest.mark.parametrize("dtype", [None, "float32"], ids=["as stored", "cast"])
def test_a_conversion_holds_pieces_and_never_an_array(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: Any
) -> None:
    config = dataclasses.replace(CONFIG, hidden_size=256, intermediate_size=1024, vocab_size=4096)
    source = write_source(tmp_path / "hf", config, random_tensors(config, "bfloat16"))
    tiny = write_source(tmp_path / "tiny", CONFIG, random_tensors(CONFIG))
    monkeypatch.setattr(arrays, "PIECE_BYTES", 2**16)
    monkeypatch.setattr(digests, "_VALUES_AT_ONCE", 2**14)
    convert(str(tiny), tmp_path / "warm-up", dtype=dtype)  # what is made once does not count
    tracemalloc.start()
    try:
        convert(str(source), tmp_path / "model", dtype=dtype)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    largest = 4096 * 256 * (2 if dtype is None else 4)
    objects = 200_000
    assert peak < (arrays.PIECES_IN_FLIGHT + 4) * 2**16 + objects < largest / 2


def test_a_pipeline_bounds_what_is_unfinished() -> None:
    running, most, lock = 0, 0, threading.Lock()
    gate = threading.Semaphore(0)

    def work(number: int) -> int:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        gate.acquire()
        with lock:
            running -= 1
        return number

    results: list[int] = []
    with ThreadPoolExecutor(20) as pool:
        pipeline = arrays.Pipeline(3)
        for number in range(3):
            pipeline.add(pool.submit(work, number), results.append)
        assert results == []
        gate.release(20)
        for number in range(3, 20):
            pipeline.add(pool.submit(work, number), results.append)
            assert len(results) == number - 2
        pipeline.drain()
    assert results == list(range(20))
    assert most <= 4


def test_values_are_cast_to_the_nearest_on_the_way_in(tmp_path: Path) -> None:
    halfway = np.array([1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20] * 4, np.float32)
    params = mapping.from_hf(random_tensors(CONFIG), CONFIG)
    params["final_norm"] = halfway
    save_model(tmp_path / "model", params, CONFIG)
    loaded, _ = load_model(tmp_path / "model", dtype="bfloat16")
    assert loaded["final_norm"][:3].tolist() == [1.0, 1 + 2**-6, 1 + 2**-7]
    np.testing.assert_array_equal(loaded["final_norm"], halfway.astype(ml_dtypes.bfloat16))
