"""The device mesh, and the one table that maps logical axes to mesh axes.

The table lays out everything: parameters, activations, the key-value cache and the streams. Under
``with jax.set_mesh(mesh)`` the model constrains its activations to the table (``constrain``), and
inputs are placed by it (``place``); without a mesh both return their array unchanged.

The mesh axis ``data`` cuts the batch. ``fsdp`` cuts the embedding axis of parameters *and*
activations: a product with a weight sums small partial activations over ``fsdp`` and never gathers
the weight. ``tensor`` cuts heads, the MLP's inner axis and the vocabulary.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from jroute.utils.errors import UserError
from jroute.utils.keys import Keys, keys

AXES = ("data", "fsdp", "tensor")

RULES: Mapping[str, str | None] = {
    "batch": "data",
    "slots": "data",
    "seq": None,
    "keys": None,
    "streams": None,
    "layers": None,
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "head_dim": None,
    "mlp": "tensor",
    "vocab": "tensor",
}
"""Logical axis -> mesh axis; ``None`` keeps an axis whole on every device."""


@dataclass(frozen=True)
class MeshConfig:
    """Number of devices along each axis of the mesh.

    Attributes:
        data: Number of replicas, each with its own rows of the batch; 0 uses all devices.
        fsdp: Number of parts of the embedding axis.
        tensor: Number of parts of heads, MLP and vocabulary.
    """

    stored_keys: ClassVar[Keys] = keys("data", "fsdp", "tensor")

    data: int = 1
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self) -> None:
        if self.data < 0 or self.fsdp < 1 or self.tensor < 1:
            raise UserError(
                f"a mesh of {self.data} x {self.fsdp} x {self.tensor} (data x fsdp x tensor) is "
                "impossible; give sizes of 1 or more (data may be 0: all devices)"
            )

    @classmethod
    def parse(cls, text: str) -> "MeshConfig":
        """Read ``data,fsdp,tensor``.

        Raises:
            UserError: The text is not three numbers.
        """
        try:
            data, fsdp, tensor = map(int, text.split(","))
        except ValueError:
            raise UserError(
                f"--mesh is {text!r}; give three numbers data,fsdp,tensor like 8,1,1"
            ) from None
        return cls(data, fsdp, tensor)

    def make(self) -> Mesh:
        """Make the mesh (see ``make_mesh``)."""
        return make_mesh(self.data, self.fsdp, self.tensor)


def make_mesh(data: int = 0, fsdp: int = 1, tensor: int = 1) -> Mesh:
    """Lay the first devices out as ``data x fsdp x tensor``.

    Args:
        data: Number of replicas; 0 uses all devices.
        fsdp: Number of parts of the embedding axis.
        tensor: Number of parts of heads, MLP and vocabulary.

    Raises:
        UserError: There are too few devices, or a number that the sizes do not divide; or several
            processes run and the mesh would omit devices of some of them.
    """
    MeshConfig(data, fsdp, tensor)  # refuses impossible sizes
    devices = jax.devices()
    if not data and len(devices) % (fsdp * tensor):
        raise UserError(
            f"a mesh of all devices as data x {fsdp} x {tensor} (data x fsdp x tensor) takes a "
            f"multiple of {fsdp * tensor} devices, there are {len(devices)}"
        )
    size = (data or len(devices) // (fsdp * tensor)) * fsdp * tensor
    several = jax.process_count() > 1
    if size > len(devices) or (several and size < len(devices)):
        used = " in several processes, and all must be used" if several else ""
        raise UserError(
            f"a mesh of {data} x {fsdp} x {tensor} (data x fsdp x tensor) needs {size} devices, "
            f"there are {len(devices)}{used}"
        )
    return Mesh(np.array(devices[:size]).reshape(-1, fsdp, tensor), AXES)


def spec(
    axes: tuple[str, ...], shape: tuple[int, ...], mesh: Mesh | AbstractMesh, name: str = "array"
) -> PartitionSpec:
    """Return the partition of an array with these logical axes.

    Raises:
        UserError: An axis is unknown, the number of axes differs from that of the array, two axes
            share a mesh axis, or the mesh axis does not divide a size; the message names the array,
            the axis and the sizes.
    """
    _check_names(axes, name)
    if len(axes) != len(shape):
        raise UserError(f"{name} of shape {shape} does not have the axes {axes}")
    parts = [RULES[axis] for axis in axes]
    used = [part for part in parts if part]
    if len(used) != len(set(used)):
        raise UserError(f"{name} with axes {axes} would lie on one mesh axis twice: {parts}")
    for axis, part, size in zip(axes, parts, shape, strict=True):
        if part and size % mesh.shape[part]:
            raise UserError(
                f"{name}: axis {axis!r} of size {size} cannot be cut into the "
                f"{mesh.shape[part]} parts of mesh axis {part!r}"
            )
    return PartitionSpec(*parts)


def _check_names(axes: tuple[str, ...], name: str) -> None:
    for axis in axes:
        if axis not in RULES:
            raise UserError(f"{name} has an axis {axis!r} that no sharding rule names")


def shardings(axes: Any, shapes: Any, mesh: Mesh) -> Any:
    """Return the shardings of a tree of arrays, from the tree of their logical axes."""

    def sharding_of(path: tuple[Any, ...], array: Any, names: tuple[str, ...]) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return NamedSharding(mesh, spec(names, array.shape, mesh, name))

    return jax.tree_util.tree_map_with_path(sharding_of, shapes, axes)


def constrain(x: jax.Array, axes: tuple[str, ...], name: str = "an activation") -> jax.Array:
    """Lay out an array inside a jitted program by the table; without a mesh return it unchanged.

    Raises:
        UserError: An axis is unknown, or the array does not fit the mesh (see ``spec``).
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        _check_names(axes, name)
        return x
    return jax.lax.with_sharding_constraint(x, spec(axes, x.shape, mesh, name))


def place(array: Any, axes: tuple[str, ...], name: str = "an input") -> Any:
    """Put a host array on the mesh that is set; without a mesh return it unchanged.

    Every process passes the same whole array, and copies only its own parts to its devices.

    Raises:
        UserError: The array does not fit the mesh (see ``spec``).
    """
    mesh = jax.sharding.get_mesh()
    if mesh.empty:
        return array
    host = np.asarray(array)
    sharding = NamedSharding(mesh, spec(axes, host.shape, mesh, name))
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def replicate(tree: Any) -> Any:
    """Copy host arrays to every device of the mesh; without a mesh return them unchanged."""
    mesh = jax.sharding.get_mesh()
    if mesh.empty:
        return tree
    everywhere = NamedSharding(mesh, PartitionSpec())

    def to_all(array: Any) -> jax.Array:
        host = np.asarray(array)
        return jax.make_array_from_callback(host.shape, everywhere, lambda index: host[index])

    return jax.tree.map(to_all, tree)


def fetch(tree: Any) -> Any:
    """Return whole arrays on the host of every process; all processes must call it together."""

    def to_host(array: Any) -> np.ndarray:
        if isinstance(array, jax.Array) and not (
            array.is_fully_addressable or array.is_fully_replicated
        ):
            return multihost_utils.process_allgather(array, tiled=True)  # type: ignore[return-value]
        return np.asarray(array)

    return jax.tree.map(to_host, tree)


def num_replicas(mesh: Mesh | None = None) -> int:
    """Return the size of the ``data`` axis of a mesh, by default of the one that is set."""
    mesh = jax.sharding.get_mesh() if mesh is None else mesh
    return 1 if mesh.empty else mesh.shape["data"]
