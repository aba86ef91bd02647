"""How the learner's arrays are laid out on several devices."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec


def constrain(tree: Any, sharding: NamedSharding | None) -> Any:
    """Lay out the leading axis of every array as ``sharding`` says; inside a program."""
    return tree if sharding is None else jax.lax.with_sharding_constraint(tree, sharding)


def with_replicated_arguments(
    program: Callable[..., Any], sharding: NamedSharding | None
) -> Callable[..., Any]:
    """Make a program copy its arguments to all devices of the sharding's mesh first."""
    if sharding is None:
        return program
    replicated = NamedSharding(sharding.mesh, PartitionSpec())
    return lambda *arguments: program(*jax.device_put(arguments, replicated))
