"""Training states, one per step: saved atomically and restored bit for bit.

A step is a folder with two Orbax items, the arrays and a description of every leaf, and a file with
the digests of all other files, which are checked before anything else is read. The description says
that there are digests; that of an earlier version does not, and has only the leaves.
"""

import hashlib
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pydantic
from jax.sharding import Sharding
from jax.tree_util import DictKey, GetAttrKey, keystr, tree_leaves_with_path

from jroute.checkpoint.storage import quiet, restore_args
from jroute.utils.disk import disk_errors, make_folder, shown_as
from jroute.utils.errors import UserError
from jroute.utils.files import write_json
from jroute.utils.json_files import Record, read_json
from jroute.utils.keys import stored_keys
from jroute.utils.temporary import HIDDEN, remove_leftovers, temporary_folder, temporary_path
from jroute.utils.trees import nest

logger = logging.getLogger(__name__)

DIGESTS = "digests.json"
"""Name of the file of digests in the folder of a step."""

_NUMBERS: Mapping[str, type] = {kind.__name__: kind for kind in (bool, int, float)}


class Leaf(Record):
    """What is stored of a leaf beside its values.

    Attributes:
        kind: ``jax``, ``numpy``, ``bool``, ``int`` or ``float``, or ``key:`` and the name of a
            generator of random keys.
        dtype: Type of its values.
        shape: Shape of its values.
        keys: Its path: keys of dictionaries, ``None`` for a place in any other node.
    """

    kind: Annotated[str, pydantic.Field(pattern=r"^(jax|numpy|bool|int|float|key:.+)$")]
    dtype: str
    shape: list[pydantic.NonNegativeInt]
    keys: list[str | int | float | bool | None]


class Digests(Record):
    """The content of ``digests.json``.

    Attributes:
        files: SHA-256 of every other file of the step, by its path in it.
    """

    files: dict[str, str]


class DamagedState(UserError):
    """A step that cannot be read, or does not hold what was saved."""


def save_state(
    directory: str | os.PathLike[str],
    step: int,
    state: Any,
    *,
    keep: int = 2,
    replace: bool = False,
) -> None:
    """Save a training state under its step, and delete all but the newest ``keep`` steps.

    Args:
        directory: Folder of the checkpoints, which only this process writes; created if missing.
        step: Number of the step.
        state: Any tree of arrays, typed PRNG keys, and numbers. Fields of classes with
            ``stored_keys`` are stored under those.
        keep: How many steps to keep.
        replace: Delete this step and later ones first, which ``resume_state`` passed over.

    Raises:
        UserError: This step was saved before, or the folder cannot be written.
    """
    folder = Path(directory)
    remove_leftovers(folder, alone=True)
    steps = saved_steps(folder)
    if replace:
        _delete(folder, [later for later in steps if later >= step])
    elif step in steps:
        raise UserError(
            f"{folder} already holds step {step}; resume from it or choose another run folder"
        )
    leaves = {name: _plain(leaf) for name, leaf in _leaves(state).items()}
    make_folder(folder)
    needed = sum(leaf.nbytes for leaf in leaves.values())
    with (
        disk_errors(folder / str(step), needed),
        temporary_folder(folder / str(step)) as hidden,
        shown_as(hidden, folder),
    ):
        partial = hidden / str(step)
        with quiet(), _checkpointer() as checkpointer:
            checkpointer.save(
                partial.absolute(),
                ocp.args.Composite(
                    # Orbax stores no empty arrays; their description holds everything.
                    state=ocp.args.PyTreeSave({n: leaf for n, leaf in leaves.items() if leaf.size}),
                    description=ocp.args.JsonSave({"leaves": _describe(state), "digests": DIGESTS}),
                ),
            )
        # What a power failure might leave does not match its digests, and an earlier step is kept.
        write_json(partial / DIGESTS, Digests(files=_digest_files(partial)).model_dump())
        os.rename(partial, folder / str(step))
    _delete(folder, saved_steps(folder)[:-keep])


def load_state(
    directory: str | os.PathLike[str],
    like: Any = None,
    *,
    step: int | None = None,
    remedy: str = "delete that folder and give the command again",
) -> tuple[int, Any]:
    """Load a training state, equal bit for bit to the one that was saved.

    Args:
        directory: Folder of the checkpoints.
        like: A state of the same structure, shapes and types. The counterpart of a ``jax.Array``
            that is committed to devices is placed like it. May be left out if the state consists
            of nested dictionaries alone.
        step: Which step; by default the newest.
        remedy: What the user should do if the step is damaged.

    Returns:
        The step and the state.

    Raises:
        UserError: There is no such checkpoint, or it has another structure than ``like``.
        DamagedState: The step is damaged.
    """
    step = latest_step(directory) if step is None else step
    if step is None or not (Path(directory) / str(step)).is_dir():
        which = "" if step is None else f" of step {step}"
        raise UserError(f"{directory} holds no checkpoint{which}; start a new run")
    folder = Path(directory) / str(step)
    try:
        checked = _check_digests(folder)
    except (UserError, OSError) as error:
        raise _damaged(folder, error, remedy) from None
    try:
        leaves, described = _restore(folder, like, checked)
    except (UserError, MemoryError):
        raise
    except Exception as error:  # whatever Orbax and what lies beneath it think of damaged files
        raise _damaged(folder, error, remedy) from error
    if like is None:
        return step, _nest(described, leaves)
    return step, jax.tree.unflatten(jax.tree.structure(like), [leaves[n] for n in _leaves(like)])


def resume_state(directory: str | os.PathLike[str], like: Any) -> tuple[int, Any] | None:
    """Load the newest step that is whole, with a warning for each that is not.

    Args:
        directory: Folder of the checkpoints.
        like: As for ``load_state``.

    Returns:
        The step and the state; ``None`` if no step was saved.

    Raises:
        UserError: All steps are damaged, or one has another structure than ``like``.
    """
    damaged = None
    remove_leftovers(Path(directory), alone=True)
    for step in reversed(saved_steps(directory)):
        try:
            return load_state(directory, like, step=step, remedy="an earlier step is tried")
        except DamagedState as error:
            logger.warning("%s", error)
            damaged = error
    if damaged is not None:
        raise UserError(
            f"every saved state in {directory} is damaged; delete that folder to train from the "
            "start"
        ) from damaged
    return None


def latest_step(directory: str | os.PathLike[str]) -> int | None:
    """Return the newest step that was saved completely, or ``None``."""
    return max(saved_steps(directory), default=None)


def saved_steps(directory: str | os.PathLike[str]) -> list[int]:
    """Return the steps that were saved completely, in order.

    Raises:
        UserError: The folder cannot be read.
    """
    folder = Path(directory)
    try:
        names = [path.name for path in folder.iterdir() if path.is_dir()]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(
            f"{folder} is not a readable folder of states ({error.strerror}); "
            "remove it and give the command again"
        ) from None
    return sorted(int(name) for name in names if name.isdecimal() and name == str(int(name)))


def _damaged(folder: Path, error: Exception, remedy: str) -> DamagedState:
    reason = f"{error}".splitlines()[0] if str(error) else type(error).__name__
    return DamagedState(
        f"the state {folder} is damaged or cannot be read ({reason:.200}); {remedy}"
    )


def _delete(folder: Path, steps: Sequence[int]) -> None:
    """Delete steps; one is gone at once or not at all."""
    for step in steps:
        hidden = temporary_path(folder / str(step), HIDDEN)
        os.rename(folder / str(step), hidden)
        shutil.rmtree(hidden, ignore_errors=True)


def _check_digests(folder: Path) -> bool:
    """Compare all files of a step with the digests that were stored with it, if they are there.

    Raises:
        UserError: There are digests, and a file is missing or not what it was.
        OSError: A file cannot be read.
    """
    if not os.path.lexists(folder / DIGESTS):
        return False
    expected = read_json(folder / DIGESTS, Digests, "it was saved with one").files
    files = _digest_files(folder)
    for name, digest in expected.items():
        if name not in files:
            raise UserError(f"{name} is missing")
        if files[name] != digest:
            raise UserError(f"{name} does not match its digest in {DIGESTS}")
    return True


def _digest_files(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file in a folder but that of the digests."""
    digests = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path != folder / DIGESTS:
            with path.open("rb") as file:
                name = path.relative_to(folder).as_posix()
                digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def _restore(
    folder: Path, like: Any, checked: bool
) -> tuple[dict[str, Any], Mapping[str, dict[str, Any]]]:
    """Return the leaves of a step, whose digests were checked if it had any, and their description.

    Raises:
        UserError: The step has another structure than ``like``.
        Exception: The step is damaged.
    """
    placed: dict[str, Sharding | None] = {}
    with quiet(), _checkpointer() as checkpointer:
        args = ocp.args.Composite(description=ocp.args.JsonRestore())
        described = checkpointer.restore(folder.absolute(), args).description
        if isinstance(described.get("digests"), str):  # a leaf of this name is a mapping
            if not checked:
                raise FileNotFoundError(f"{DIGESTS} is missing")
            described = described["leaves"]
        elif not checked:
            logger.info("%s was saved by an earlier version, without digests to check", folder)
        pydantic.TypeAdapter(dict[str, Leaf]).validate_python(described)
        if like is not None:
            saved, described = described, _describe(like)
            _refuse_other_structure(saved, described, str(folder))
            placed = {name: _sharding(_plain(leaf)) for name, leaf in _leaves(like).items()}
        stored = {name: leaf for name, leaf in described.items() if 0 not in leaf["shape"]}
        one_by_one = {name: restore_args(placed.get(name)) for name in stored}
        args = ocp.args.Composite(state=ocp.args.PyTreeRestore(restore_args=one_by_one))
        values = checkpointer.restore(folder.absolute(), args).state
    leaves = {
        name: _unplain(values[name] if name in stored else _empty(leaf), leaf)
        for name, leaf in described.items()
    }
    return leaves, described


def _checkpointer() -> ocp.Checkpointer:
    return ocp.Checkpointer(ocp.CompositeCheckpointHandler())


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
