"""Training states, one per step: saved atomically and restored bit for bit."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Sharding
from jax.tree_util import DictKey, GetAttrKey, keystr, tree_leaves_with_path

from jroute.checkpoint.storage import quiet, restore_args
from jroute.utils.errors import UserError
from jroute.utils.keys import stored_keys
from jroute.utils.trees import nest

_NUMBERS: Mapping[str, type] = {kind.__name__: kind for kind in (bool, int, float)}


def save_state(directory: str | os.PathLike[str], step: int, state: Any, *, keep: int = 2) -> None:
    """Save a training state under its step, and delete all but the newest ``keep`` steps.

    Args:
        directory: Folder of the checkpoints; created if missing.
        step: Number of the step.
        state: Any tree of arrays, typed PRNG keys, and numbers. Fields of classes with
            ``stored_keys`` are stored under those.
        keep: How many steps to keep.

    Raises:
        UserError: This step was saved before.
    """
    leaves = {name: _plain(leaf) for name, leaf in _leaves(state).items()}
    with quiet(), _manager(directory, keep=keep) as manager:
        if step in manager.all_steps():
            raise UserError(
                f"{directory} already holds step {step}; "
                "resume from it or choose another run folder"
            )
        manager.save(
            step,
            args=ocp.args.Composite(
                # Orbax stores no empty arrays; their description holds everything.
                state=ocp.args.PyTreeSave({n: leaf for n, leaf in leaves.items() if leaf.size}),
                description=ocp.args.JsonSave(_describe(state)),
            ),
        )


def load_state(
    directory: str | os.PathLike[str], like: Any = None, *, step: int | None = None
) -> tuple[int, Any]:
    """Load a training state, equal bit for bit to the one that was saved.

    Args:
        directory: Folder of the checkpoints.
        like: A state of the same structure, shapes and types. The counterpart of a ``jax.Array``
            that is committed to devices is placed like it. May be left out if the state consists
            of nested dictionaries alone.
        step: Which step; by default the newest.

    Returns:
        The step and the state.

    Raises:
        UserError: There is no such checkpoint, or it has another structure than ``like``.
    """
    step = latest_step(directory) if step is None else step
    if step is None or not (Path(directory) / str(step)).is_dir():
        which = "" if step is None else f" of step {step}"
        raise UserError(f"{directory} holds no checkpoint{which}; start a new run")
    with quiet(), _manager(directory) as manager:
        json_args = ocp.args.Composite(description=ocp.args.JsonRestore())
        described = manager.restore(step, args=json_args).description
        placed: dict[str, Sharding | None] = {}
        if like is not None:
            saved, described = described, _describe(like)
            _refuse_other_structure(saved, described, f"step {step} in {directory}")
            placed = {name: _sharding(_plain(leaf)) for name, leaf in _leaves(like).items()}
        stored = {name: leaf for name, leaf in described.items() if 0 not in leaf["shape"]}
        args = {name: restore_args(placed.get(name)) for name in stored}
        tree_args = ocp.args.Composite(state=ocp.args.PyTreeRestore(restore_args=args))
        values = manager.restore(step, args=tree_args).state
    leaves = {
        name: _unplain(values[name] if name in values else _empty(leaf), leaf)
        for name, leaf in described.items()
    }
    if like is None:
        return step, _nest(described, leaves)
    return step, jax.tree.unflatten(jax.tree.structure(like), [leaves[n] for n in _leaves(like)])


def latest_step(directory: str | os.PathLike[str]) -> int | None:
    """Return the newest step that was saved completely, or ``None``."""
    if not Path(directory).is_dir():
        return None
    with quiet(), _manager(directory) as manager:
        return manager.latest_step()


def _manager(
    directory: str | os.PathLike[str], *, keep: int | None = None
) -> ocp.CheckpointManager:
    """Open a manager that keeps ``keep`` steps and may create the folder, or only reads."""
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep, create=keep is not None, enable_async_checkpointing=False
    )
    return ocp.CheckpointManager(Path(directory).absolute(), options=options)


def _leaves_with_path(tree: Any) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yield every leaf with its path, in JAX's order, under the ``stored_keys`` of classes."""
    children = tree_leaves_with_path(tree, is_leaf=lambda node: node is not tree)
    keys = stored_keys(type(tree)) if hasattr(tree, "stored_keys") else {}
    for path, child in children:
        if not path:  # the tree itself is a leaf
            yield (), tree
            return
        key = path[0]
        if isinstance(key, GetAttrKey) and keys:
            key = GetAttrKey(keys[key.name])
        for below, leaf in _leaves_with_path(child):
            yield (key, *below), leaf


def _leaves(tree: Any) -> dict[str, Any]:
    leaves = list(_leaves_with_path(tree))
    named = {keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
    if len(named) != len(leaves):
        raise ValueError("two leaves of this state have the same path")
    return named


def _describe(tree: Any) -> dict[str, dict[str, Any]]:
    """Return kind, type, shape and position of every leaf, as JSON."""
    described = {}
    for path, leaf in _leaves_with_path(tree):
        plain = _plain(leaf)
        described[keystr(path, simple=True, separator="/")] = {
            "kind": _kind(leaf),
            "dtype": str(plain.dtype),
            "shape": list(plain.shape),
            # Keys of dictionaries may be numbers; a position in any other node has no key.
            "keys": [part.key if isinstance(part, DictKey) else None for part in path],
        }
    return described


def _kind(leaf: Any) -> str:
    if isinstance(leaf, jax.Array):
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return f"key:{jax.random.key_impl(leaf)}" if is_key else "jax"
    return type(leaf).__name__ if type(leaf).__name__ in _NUMBERS else "numpy"


def _plain(leaf: Any) -> np.ndarray | jax.Array:
    """Return a leaf as Orbax stores it: keys as their words, numbers as arrays."""
    if _kind(leaf).startswith("key:"):
        return jax.random.key_data(leaf)
    return leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)


def _unplain(array: np.ndarray | jax.Array, described: Mapping[str, Any]) -> Any:
    """Invert ``_plain``."""
    kind, _, implementation = described["kind"].partition(":")
    if kind == "key":
        return jax.random.wrap_key_data(jnp.asarray(array), impl=implementation)
    if kind == "jax":
        return jnp.asarray(array)
    return _NUMBERS[kind](array.item()) if kind in _NUMBERS else np.asarray(array)


def _empty(described: Mapping[str, Any]) -> np.ndarray:
    return np.empty(described["shape"], jnp.dtype(described["dtype"]))


def _sharding(leaf: np.ndarray | jax.Array) -> Sharding | None:
    return leaf.sharding if isinstance(leaf, jax.Array) and leaf.committed else None


def _refuse_other_structure(
    saved: Mapping[str, Mapping[str, Any]], here: Mapping[str, Mapping[str, Any]], where: str
) -> None:
    """Raise a ``UserError`` that names the first leaf in which two descriptions differ."""

    def type_of(leaf: Mapping[str, Any] | None) -> str:
        return "absent" if leaf is None else f"{leaf['dtype']}{leaf['shape']}"

    for name in sorted({*saved, *here}):
        there, expected = type_of(saved.get(name)), type_of(here.get(name))
        if there != expected:
            raise UserError(
                f"{where} was saved by another configuration: {name} is {there} there "
                f"and {expected} here; resume with the configuration of that run"
            )


def _nest(described: Mapping[str, Mapping[str, Any]], leaves: Mapping[str, Any]) -> dict[Any, Any]:
    """Rebuild a state that consists of nothing but nested dictionaries."""
    paths = {name: tuple(described[name]["keys"]) for name in leaves}
    for name, path in paths.items():
        if None in path:
            raise ValueError(f"{name} is not in dictionaries alone; pass a state like it")
    return nest({paths[name]: leaf for name, leaf in leaves.items()})
