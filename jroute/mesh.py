"""Devices as a mesh, and the one table that says which logical axis lies on which mesh axis."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jroute.errors import UserError

AXES = ("data", "fsdp", "tensor")

RULES: Mapping[str, str | None] = {
    "batch": "data",
    "slots": "data",
    "seq": None,
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


def make_mesh(data: int = 0, fsdp: int = 1, tensor: int = 1) -> Mesh:
    """Lays the devices out as ``data x fsdp x tensor``.

    Args:
        data: Replicas; 0 takes as many as the devices allow.
        fsdp: Parts the embedding axis of parameters is cut into.
        tensor: Parts heads, MLP and vocabulary are cut into.

    Raises:
        UserError: The product is not the number of devices.
    """
    devices = jax.devices()
    if data < 0 or fsdp < 1 or tensor < 1:
        raise UserError(f"a mesh of {data} x {fsdp} x {tensor} (data x fsdp x tensor) is none")
    data = data or len(devices) // (fsdp * tensor)
    if data * fsdp * tensor != len(devices):
        raise UserError(
            f"a mesh of {data} x {fsdp} x {tensor} (data x fsdp x tensor) needs "
            f"{data * fsdp * tensor} devices, there are {len(devices)}"
        )
    return Mesh(np.array(devices).reshape(data, fsdp, tensor), AXES)


def spec(
    axes: tuple[str, ...], shape: tuple[int, ...], mesh: Mesh, name: str = "array"
) -> PartitionSpec:
    """Where an array with these logical axes lies.

    Raises:
        UserError: An unknown axis, one mesh axis for two axes of the array, or a size that the
            mesh axis does not divide; the message names the array, the axis and the sizes.
    """
    for axis in axes:
        if axis not in RULES:
            raise UserError(f"{name} has an axis {axis!r} that no sharding rule names")
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


def shardings(axes: Any, shapes: Any, mesh: Mesh) -> Any:
    """Shardings for a tree of arrays from the tree of their logical axes."""

    def one(path: tuple[Any, ...], array: Any, names: tuple[str, ...]) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return NamedSharding(mesh, spec(names, array.shape, mesh, name))

    return jax.tree_util.tree_map_with_path(one, shapes, axes)
