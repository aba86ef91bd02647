"""Devices as a mesh, and the one table that says which logical axis lies on which mesh axis.

The table places everything: parameters, activations, the key-value cache and the streams. Under
``with jax.set_mesh(mesh)`` the model keeps its activations where the table says (``constrain``) and
its inputs are put there (``place``); without a mesh both hand their array back as it is.

The batch is cut along ``data``. ``fsdp`` cuts the embedding axis of parameters *and* activations:
a product with a weight sums small partial activations over ``fsdp`` and never gathers the weight.
``tensor`` cuts heads, the MLP's inner axis and the vocabulary.
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
    """How many devices to use, and for what.

    Attributes:
        data: Replicas, each with its own rows of the batch; 0 takes as many as there are devices.
        fsdp: Parts the embedding axis of the model is cut into.
        tensor: Parts heads, MLP and vocabulary are cut into.
    """

    stored_keys: ClassVar[Keys] = keys("data", "fsdp", "tensor")

    data: int = 1
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self) -> None:
        if self.data < 0 or self.fsdp < 1 or self.tensor < 1:
            raise UserError(
                f"a mesh of {self.data} x {self.fsdp} x {self.tensor} (data x fsdp x tensor) is "
                "none; give sizes of 1 or more (data may be 0: all devices)"
            )

    @classmethod
    def parse(cls, text: str) -> "MeshConfig":
        """Read ``data,fsdp,tensor``.

        Raises:
            UserError: It is not three numbers.
        """
        try:
            data, fsdp, tensor = map(int, text.split(","))
        except ValueError:
            raise UserError(
                f"--mesh is {text!r}; give three numbers data,fsdp,tensor like 8,1,1"
            ) from None
        return cls(data, fsdp, tensor)

    def make(self) -> Mesh:
        """The mesh (see ``make_mesh``)."""
        return make_mesh(self.data, self.fsdp, self.tensor)


def make_mesh(data: int = 0, fsdp: int = 1, tensor: int = 1) -> Mesh:
    """Lays the first devices out as ``data x fsdp x tensor``.

    Args:
        data: Replicas; 0 takes as many as there are devices.
        fsdp: Parts the embedding axis is cut into.
        tensor: Parts heads, MLP and vocabulary are cut into.

    Raises:
        UserError: There are too few devices; they do not divide; or several processes run and
            the mesh would leave devices of some of them out.
    """
    MeshConfig(data, fsdp, tensor)  # refuses sizes that are none
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
    """Where an array with these logical axes lies.

    Raises:
        UserError: An unknown axis, another number of axes than the array has, one mesh axis for
            two axes of the array, or a size that the mesh axis does not divide; the message names
            the array, the axis and the sizes.
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
    """Shardings for a tree of arrays from the tree of their logical axes."""

    def one(path: tuple[Any, ...], array: Any, names: tuple[str, ...]) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return NamedSharding(mesh, spec(names, array.shape, mesh, name))

    return jax.tree_util.tree_map_with_path(one, shapes, axes)


def constrain(x: jax.Array, axes: tuple[str, ...], name: str = "an activation") -> jax.Array:
    """Keep an array inside a jitted program where the table says; ``x`` itself without a mesh.

    Raises:
        UserError: An unknown axis; the array does not fit the mesh (see ``spec``).
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        _check_names(axes, name)
        return x
    return jax.lax.with_sharding_constraint(x, spec(axes, x.shape, mesh, name))


def place(array: Any, axes: tuple[str, ...], name: str = "an input") -> Any:
    """Put a host array on the mesh that is set; ``array`` itself without a mesh.

    With several processes each of them gives the same whole array, and only their own parts are
    copied to their devices.

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
    """Put whole host arrays on every device of the mesh; ``tree`` itself without a mesh."""
    mesh = jax.sharding.get_mesh()
    if mesh.empty:
        return tree
    everywhere = NamedSharding(mesh, PartitionSpec())

    def one(array: Any) -> jax.Array:
        host = np.asarray(array)
        return jax.make_array_from_callback(host.shape, everywhere, lambda index: host[index])

    return jax.tree.map(one, tree)


def fetch(tree: Any) -> Any:
    """Whole arrays on the host of every process; all processes must call it together."""

    def one(array: Any) -> np.ndarray:
        if isinstance(array, jax.Array) and not (
            array.is_fully_addressable or array.is_fully_replicated
        ):
            return multihost_utils.process_allgather(array, tiled=True)  # type: ignore[return-value]
        return np.asarray(array)

    return jax.tree.map(one, tree)


def num_replicas(mesh: Mesh | None = None) -> int:
    """Return the size of the ``data`` axis of a mesh, by default of the one that is set."""
    mesh = jax.sharding.get_mesh() if mesh is None else mesh
    return 1 if mesh.empty else mesh.shape["data"]
