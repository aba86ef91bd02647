"""Single flipped bits in every file that jroute stores, and what its readers make of them."""

import random
import shutil
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

import jroute
from jroute.ablate.ablation_run import StoredCell
from jroute.checkpoint import latest_step, load_state
from jroute.checkpoint.storage import quiet
from jroute.experiment.comparison import read_judged
from jroute.outcomes.table import OutcomeTable
from jroute.report.run_reader import read_run
from jroute.utils.digested import read_digested
from jroute.utils.errors import UserError
from jroute.utils.trees import nest
from tests.campaign.trials import Trial

Reader = Callable[[Path], Any]


def read_model(folder: Path) -> Any:
    """Load a model directory: parameters, shape, tokenizer, template, routing, end tokens."""
    lm = jroute.load(folder)
    chat = [{"role": "user", "content": "What is 2 + 3?"}]
    return (
        jax.tree.map(np.asarray, lm.params),
        lm.config,
        lm.routing,
        lm.tokenizer.apply_chat_template(chat, tokenize=True, add_generation_prompt=True)
        if lm.tokenizer.chat_template
        else lm.tokenizer.encode("What is 2 + 3?"),
        lm.tokenizer.get_vocab(),
    )


def read_state(folder: Path) -> Any:
    """Load the newest state of a folder of Orbax checkpoints."""
    step, state = load_state(folder)
    return step, jax.tree.map(np.asarray, state)


def learner_reader(folder: Path) -> Reader:
    """Return a reader of a learner, which knows its structure as a resumed training does."""
    with quiet():
        step = folder / str(latest_step(folder)) / "state"
        leaves = ocp.PyTreeCheckpointer().restore(step.absolute())
    like = nest({tuple(name.split("/")): leaf for name, leaf in leaves.items()})

    def read(folder: Path) -> Any:
        step, state = load_state(folder, like)
        return step, jax.tree.map(np.asarray, state)

    return read


def read_table(folder: Path) -> Any:
    """Open an outcome table: its cells, and those that were generated again."""
    table = OutcomeTable.open(folder)
    return table.description, list(map(repr, table.cells())), sorted(map(repr, table.replicates()))


def read_report(folder: Path) -> Any:
    """Read a run as the report and the comparison of runs do."""
    data = read_run(folder)
    for split in data.splits:
        if split.missing:
            raise UserError(split.missing)
    return repr(data), repr(read_judged(folder, None))


def read_cells(folder: Path) -> Any:
    """Read the cells of an ablation, as one that goes on does."""
    files = sorted((folder / "cells").iterdir())
    return {file.name: read_digested(file, StoredCell, "delete it").model_dump() for file in files}


def readers(day: Path) -> Iterator[tuple[str, Reader, Path]]:
    """Yield a file pattern, its reader, and the folder that this reads, for all stored files."""
    yield "model/**/*", read_model, Path("model")
    for folder in ("controller", "controls", "learner"):
        for states in sorted(day.glob(f"run/{folder}/*/")):
            place = states.relative_to(day)
            read = learner_reader(states) if folder == "learner" else read_state
            yield f"{place}/**/*", read, place
    for table in sorted(day.glob("*/outcomes/*/")):
        place = table.relative_to(day)
        yield f"{place}/**/*", read_table, place
    for pattern in ("features/*", "results.json", "items.parquet", "tensorboard/seeds/*"):
        yield f"run/{pattern}", read_report, Path("run")
    yield "run/probe/*.json", read_report, Path("run")
    yield "ablation/cells/*", read_cells, Path("ablation")


def flips(day: Path, folder: Path, rng: random.Random, per_reader: int) -> Iterator[Trial]:
    """Flip bits in the files of each reader, one at a time, and read.

    Each reader may refuse with one sentence or return exactly what it returned before.
    """
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(day, folder)
    for pattern, read, place in readers(folder):
        files = [path for path in sorted(folder.glob(pattern)) if path.is_file()]
        files = [path for path in files if path.stat().st_size]
        if not files:
            continue
        sound = outcome(read, folder / place)
        if isinstance(sound, Exception):
            raise RuntimeError(f"{place} cannot be read undamaged") from sound
        for _ in range(per_reader):
            path = rng.choice(files)
            bit = rng.randrange(path.stat().st_size * 8)
            name = f"bit {bit} of {path.relative_to(folder)}"
            flip(path, bit)
            faults = tuple(_judge(outcome(read, folder / place), sound))
            yield Trial(name, _subject(pattern), faults)
            flip(path, bit)


def _subject(pattern: str) -> str:
    """Return a name without the fingerprints that folders are named by."""
    names = [part for part in Path(pattern).parts if len(part) < 16 and "**" not in part]
    return "/".join(names).removesuffix("/*")


def flip(path: Path, bit: int) -> None:
    """Flip one bit of a file."""
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def outcome(read: Reader, folder: Path) -> Any:
    """Return what a reader returns, or the exception that it raises."""
    try:
        return read(folder)
    except Exception as error:
        return error


def _judge(found: Any, sound: Any) -> Iterator[tuple[str, str]]:
    if isinstance(found, UserError):
        return
    if isinstance(found, Exception):
        yield "traceback", "".join(traceback.format_exception(found)[-3:])
    elif not same(found, sound):
        yield "wrong", "read without complaint, as something else"


def same(one: Any, other: Any) -> bool:
    """Return whether two values are equal, their arrays bit for bit."""
    leaves, tree = jax.tree.flatten(one)
    other_leaves, other_tree = jax.tree.flatten(other)
    return tree == other_tree and all(map(_equal_leaves, leaves, other_leaves))


def _equal_leaves(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):
        return (
            one.dtype == other.dtype
            and one.shape == other.shape
            and one.tobytes() == other.tobytes()
        )
    return bool(one == other)
