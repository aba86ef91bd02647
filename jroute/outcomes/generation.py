"""Making cells: from (problem, gate, sample) through the engine to outcomes, filed as they come."""

import dataclasses
import json
import random
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax

from jroute.distributed.processes import is_first_process
from jroute.experiment.setting import Setting
from jroute.generate.config import EngineConfig
from jroute.generate.decoding import Completion
from jroute.generate.requests import Progress
from jroute.generate.sampling import hash_text
from jroute.observe.progress import GenerationBar
from jroute.outcomes.outcome import Outcome, Provenance, judge
from jroute.outcomes.replicates import NoiseFloor
from jroute.routing.gate import Gate
from jroute.tasks import Problem, Split
from jroute.utils.errors import UserError
from jroute.utils.keys import stored
from jroute.utils.machine import describe_machine

CELLS_AT_ONCE = 64
"""Cells of one part of the table at most; what is lost if the process is killed."""

LIBRARIES = ("jroute", "jax", "jaxlib", "flax")
"""Whose versions are noted beside every cell."""


class Cell(NamedTuple):
    """What is to be generated."""

    problem: Problem
    gate: Gate
    sample: int = 0


def cell_seed(problem_id: str, seed: int, sample: int = 0) -> int:
    """Randomness of a cell: not of its gate, so gates are compared under the same draws."""
    key = jax.random.fold_in(jax.random.key(seed), hash_text(problem_id))
    return int(jax.random.bits(jax.random.fold_in(key, sample) if sample else key)) >> 1


def provenance(run: Setting, shape: EngineConfig) -> Provenance:
    """How cells are made now, by this process, in this execution shape; it took no time yet."""
    mesh, described = run.base.mesh, describe_machine()
    device = jax.devices()[0]
    kind = device.device_kind if device.platform != "cpu" else f"{described['cpu']} (CPU)"
    count = 1 if mesh is None else mesh.size
    sizes = [1, 1, 1] if mesh is None else list(mesh.devices.shape)
    execution = {**stored(shape), "mesh": sizes}
    versions = {name: described["versions"].get(name, "") for name in LIBRARIES}
    return Provenance(
        execution=json.dumps(execution, sort_keys=True),
        versions=json.dumps(versions, sort_keys=True),
        machine=f"{count} x {kind}",
        seconds=0.0,
    )


def generate(
    run: Setting,
    cells: Sequence[Cell],
    *,
    shape: EngineConfig | None = None,
    finished: Callable[[list[Outcome]], None] | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> list[Outcome]:
    """Generate and judge cells; they are paid for exact match.

    Args:
        run: Whose model, prompts and decoding.
        cells: Which ones.
        shape: Execution shape; the experiment's own by default.
        finished: Called with outcomes, about a batch of them at a time; also with those that were
            there when the run was ended by an exception or Ctrl-C.
        progress: Called with the engine's counts.
    """
    if not cells:
        return []
    e, lm = run.experiment, run.lm
    shape = shape or e.engine
    plain = provenance(run, shape)
    prompts = {cell.problem.id: cell.problem for cell in cells}
    tokens = {name: lm.encode(run.render(one.question)) for name, one in prompts.items()}
    draws = e.decoding.temperature > 0
    found: dict[int, Outcome] = {}
    fresh: list[Outcome] = []
    before = time.perf_counter()

    def judged(indices: list[int], completions: list[Completion]) -> None:
        nonlocal before
        now = time.perf_counter()
        made = dataclasses.replace(plain, seconds=(now - before) / len(indices))
        before = now
        for i, completion in zip(indices, completions, strict=True):
            problem, gate, sample = cells[i]
            limit = e.decoding.max_new_tokens
            found[i] = judge(problem, gate, completion, max_tokens=limit, sample=sample, made=made)
            fresh.append(found[i])
        if len(fresh) >= min(CELLS_AT_ONCE, shape.batch):
            tell()

    def tell() -> None:
        told, fresh[:] = list(fresh), []
        if finished and told:
            finished(told)

    try:
        lm.generate(
            [tokens[cell.problem.id] for cell in cells],
            run.spread([cell.gate for cell in cells]),
            decoding=e.decoding,
            engine=shape,
            seed=[cell_seed(c.problem.id, e.seed, c.sample) if draws else 0 for c in cells],
            shared=run.shared_tokens,
            logprobs="raw",
            finished=judged,
            progress=progress,
        )
    finally:
        tell()
    return [found[i] for i in range(len(cells))]


def wanted(
    run: Setting,
    split: Split,
    *,
    gates: Sequence[float] = (),
    problems: int | None = None,
    samples: int = 1,
    share: tuple[int, int] = (0, 1),
) -> list[Cell]:
    """Cells of a part of the table, gate by gate: rows of a batch end at about the same time.

    Args:
        run: Whose table.
        split: Of the problems.
        gates: Some of the grid; by default all of it.
        problems: Only the first so many problems.
        samples: Samples of every problem and gate.
        share: ``(i, n)``: of those problems every n-th, from the i-th on.

    Raises:
        UserError: Several samples of a greedy decoding.
    """
    if samples > 1 and run.experiment.decoding.temperature == 0:
        raise UserError(
            f"{samples} samples were asked for, but decoding is greedy and all would be the same; "
            "raise decoding.temperature"
        )
    first, every = share
    some = run.problems(split)[:problems][first::every]
    return [
        Cell(problem, gate, sample)
        for sample in range(samples)
        for gate in gates or run.experiment.gates
        for problem in some
    ]


def missing(run: Setting, cells: Sequence[Cell]) -> list[Cell]:
    """Those that the table, or of gates per band or layer the memo, lacks."""
    table = run.memo if cells and isinstance(cells[0].gate, tuple) else run.table
    table.refresh()
    return [c for c in cells if (c.problem.id, c.gate, c.sample) not in table]


def fill(run: Setting, cells: Sequence[Cell], title: str) -> int:
    """Generate the cells that the table lacks; returns how many it had to make."""
    rest = missing(run, cells)
    if rest:
        with GenerationBar(len(rest), title, "cell", quiet=not is_first_process()) as progress:
            generate(run, rest, finished=run.table.append, progress=progress)
    return len(rest)


def other_width(slots: int, replicas: int) -> int:
    """A batch width other than ``slots`` that as many replicas divide: the half, or the double."""
    half = slots // 2 // replicas * replicas
    return half or 2 * slots


def replicate(run: Setting, cells: Sequence[Cell], count: int) -> NoiseFloor | None:
    """Make a sample of the table's cells once more, in another order and width.

    Cells that were replicated before count, so an interrupted or repeated command goes on.

    Args:
        run: Whose table.
        cells: The cells to draw from; those that the table lacks are passed over.
        count: How many replicates there shall be among them.

    Returns:
        How often they differ, over all replicates of the table.
    """
    run.table.refresh()
    done = {(a.problem_id, a.gate, a.sample) for a, _ in run.table.replicates()}
    rng = random.Random("replicates")
    there = [c for c in cells if (c.problem.id, c.gate, c.sample) in run.table]
    chosen = rng.sample(there, min(count, len(there)))
    rest = [c for c in chosen if (c.problem.id, c.gate, c.sample) not in done]
    shape = run.experiment.engine
    replicas = 1 if run.base.mesh is None else run.base.mesh.shape["data"]
    shape = dataclasses.replace(shape, slots=other_width(shape.batch, replicas))
    with GenerationBar(len(rest), "replicates", "cell", quiet=not is_first_process()) as progress:
        generate(run, rest, shape=shape, finished=run.table.add_replicates, progress=progress)
    return NoiseFloor.of(run.table.replicates())
