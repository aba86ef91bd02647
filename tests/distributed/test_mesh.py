"""Meshes, the rules of what lies where on them, and arrays on their way there and back.

That a sharded model computes what an unsharded one does is the business of ``tests/sharding``.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jroute.distributed.mesh import (
    AXES,
    MeshConfig,
    constrain,
    fetch,
    make_mesh,
    place,
    replicate,
    shardings,
    spec,
)
from jroute.model.params import abstract_params, logical_axes
from jroute.utils.errors import UserError
from tests.distributed.decoder import CONFIG


def test_a_mesh_takes_all_devices_or_the_first_ones() -> None:
    assert len(jax.devices()) == 8
    assert dict(make_mesh().shape) == {"data": 8, "fsdp": 1, "tensor": 1}
    assert dict(make_mesh(fsdp=2, tensor=2).shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    mesh = make_mesh(2, 2, 2)
    assert mesh.axis_names == AXES
    assert [device.id for device in mesh.devices.ravel()] == list(range(8))
    small = MeshConfig(1, 1, 4).make()
    assert dict(small.shape) == {"data": 1, "fsdp": 1, "tensor": 4}
    assert [device.id for device in small.devices.ravel()] == [0, 1, 2, 3]
    assert MeshConfig().make().size == 1
    assert MeshConfig(data=0, tensor=4).make().shape["data"] == 2


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((8, 2, 1), r"mesh of 8 x 2 x 1 .* needs 16 devices, there are 8"),
        ((0, 3, 1), r"data x 3 x 1 .* takes a multiple of 3 devices, there are 8"),
        ((0, 4, 4), r"data x 4 x 4 .* takes a multiple of 16 devices, there are 8"),
        ((1, 0, 1), r"mesh of 1 x 0 x 1 .* is impossible; give sizes of 1 or more"),
        ((-1, 1, 1), r"mesh of -1 x 1 x 1 .* is impossible"),
    ],
)
def test_a_mesh_that_does_not_fit_is_told(sizes: tuple[int, int, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_mesh(*sizes)


def test_a_mesh_of_several_processes_leaves_none_out(monkeypatch) -> None:
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert make_mesh(2, 2, 2).size == 8
    with pytest.raises(UserError, match=r"needs 4 devices, there are 8 in several processes, and"):
        make_mesh(1, 1, 4)


def test_where_an_array_lies() -> None:
    mesh = make_mesh(2, 2, 2)
    states = spec(("streams", "batch", "seq", "embed"), (4, 8, 6, 48), mesh)
    assert states == PartitionSpec(None, "data", None, "fsdp")
    cache = spec(("slots", "keys", "kv_heads", "head_dim"), (8, 6, 4, 16), mesh)
    assert cache == PartitionSpec("data", None, "tensor", None)


def test_a_size_that_cannot_be_cut_is_told_with_array_axis_and_sizes() -> None:
    with pytest.raises(
        UserError,
        match=r"attention/k_proj: axis 'kv_heads' of size 4 .* 8 parts of mesh axis 'tensor'",
    ):
        shardings(logical_axes(CONFIG), abstract_params(CONFIG), make_mesh(1, 1, 8))
    with pytest.raises(UserError, match=r"tokens: axis 'batch' of size 6 .* 8 parts .* 'data'"):
        spec(("batch", "seq"), (6, 12), make_mesh(), "tokens")


def test_axes_without_a_place_are_told() -> None:
    mesh = make_mesh(2, 2, 2)
    with pytest.raises(UserError, match=r"scores has an axis 'colour' that no sharding rule names"):
        spec(("batch", "colour"), (8, 8), mesh, "scores")
    with pytest.raises(UserError, match=r"scores .*'heads', 'mlp'.* one mesh axis twice"):
        spec(("heads", "mlp"), (8, 8), mesh, "scores")
    with pytest.raises(UserError, match=r"scores of shape \(8, 8\) does not have the axes"):
        spec(("heads",), (8, 8), mesh, "scores")


def test_without_a_mesh_nothing_is_placed() -> None:
    x, tree = np.ones((3, 5), np.float32), {"a": np.ones(2)}
    text = str(jax.make_jaxpr(lambda x: constrain(x, ("batch", "embed")) + 1)(x))
    assert "sharding" not in text
    assert place(x, ("batch", "embed")) is x
    assert replicate(tree) is tree
    with pytest.raises(UserError, match=r"scores has an axis 'colour'"):
        jax.jit(lambda x: constrain(x, ("batch", "colour"), "scores"))(x)


def test_constrain_moves_an_array_to_where_the_rules_say() -> None:
    x = np.arange(8 * 48, dtype=np.float32).reshape(8, 48)

    @jax.jit
    def shifted(x):
        return constrain(x + 1, ("batch", "embed"), "states")

    with jax.set_mesh(make_mesh(2, 2, 2)):
        moved = shifted(x)
        with pytest.raises(UserError, match=r"states: axis 'batch' of size 5 .* 2 parts .* 'data'"):
            shifted(x[:5])
    assert moved.sharding.spec == PartitionSpec("data", "fsdp")
    assert moved.addressable_shards[0].data.shape == (4, 24)
    np.testing.assert_array_equal(moved, x + 1)


def test_arrays_go_to_the_mesh_and_come_back() -> None:
    x = np.arange(8 * 6, dtype=np.int32).reshape(8, 6)
    with jax.set_mesh(make_mesh(2, 2, 2)):
        rows = place(x, ("batch", "seq"), "tokens")
        everywhere = replicate({"a": x, "b": jnp.float32(3)})
        with pytest.raises(UserError, match=r"tokens: axis 'batch' of size 7 .* 2 parts .* 'data'"):
            place(x[:7], ("batch", "seq"), "tokens")
    assert rows.sharding.spec == PartitionSpec("data", None)
    np.testing.assert_array_equal(rows.addressable_shards[7].data, x[4:])
    assert everywhere["a"].sharding.is_fully_replicated
    assert len(everywhere["a"].addressable_shards) == 8
    assert everywhere["b"].dtype == np.float32
    back = fetch({"rows": rows, **everywhere})
    assert all(isinstance(value, np.ndarray) for value in back.values())
    np.testing.assert_array_equal(back["rows"], x)
