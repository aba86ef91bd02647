"""Plans of long commands (``--plan``): what exists, what is missing, and what it will cost."""

import dataclasses
import time
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from statistics import fmean
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jroute.arms.resolve import live_decisions
from jroute.envs.functional import TableEnv
from jroute.experiment.config import Experiment
from jroute.experiment.controllers import Controllers
from jroute.experiment.estimate import Estimate, MemoryUse, Rate, format_duration, hours_unit
from jroute.experiment.regeneration import regenerable_arms
from jroute.experiment.run import Run
from jroute.experiment.run_outcomes import RunOutcomes
from jroute.experiment.task_data import TaskData
from jroute.generate.memory import plan_batch
from jroute.outcomes.cells import Cell, missing_cells
from jroute.outcomes.generation import CellGenerator
from jroute.outcomes.grid import GateGrid
from jroute.outcomes.table import OutcomeTable
from jroute.ppo import compilation, learner
from jroute.probe.mixing import MixingConfig
from jroute.tasks import Split

TRIAL_UPDATES = 10
"""PPO updates that a trial measures."""

CellsBySplit = Mapping[Any, list[Cell]]


def plan_training(run: Run) -> str:
    """Return the plan of a whole run: its outcome table and its controllers, or live rollouts."""
    if run.experiment.rollouts == "table":
        cells = {split: run.outcomes.cells(split) for split in run.experiment.splits}
        controllers = plan_ppo(run.experiment, len(run.data.problems("train")))
        return f"{plan_outcomes(run, cells)}\n{controllers}"
    return _plan_live_training(run)


def plan_outcomes(run: Run, cells: CellsBySplit) -> Estimate:
    """Estimate the cost of filling cells of the table; nothing is written.

    The time comes from cells of the table that were made on such devices in the same execution
    shape, if they would fill a batch, or else from a trial: one batch, generated twice.
    """
    run, first = without_mixing(run)
    generator = run.generator
    missing = {
        split: missing_cells(_table_of(run.outcomes, part), part) for split, part in cells.items()
    }
    every = [cell for part in missing.values() for cell in part]
    questions = {cell.problem.id: cell.problem.question for cell in every}
    lengths = {
        problem: len(run.lm.encode(run.data.render(question)))
        for problem, question in questions.items()
    }
    rate = None
    if every:
        rate = known_rate(run.outcomes.memo, generator) or measure_rate(generator, every)
    return Estimate(
        cells={
            split: (len(part), len(part) - len(missing[split])) for split, part in cells.items()
        },
        prompt_tokens=sum(lengths[cell.problem.id] for cell in every),
        limit=generator.decoding.max_new_tokens,
        memory=memory_use(generator, lengths.values() or [1]),
        rate=rate,
        first=first,
        **devices_of(run.base.mesh),
    )


def plan_judging(run: Run) -> str:
    """Return the plan of judging: cells that are missing, controls that are not trained."""
    e = run.experiment
    if e.rollouts == "live":
        cells = {
            split: _judged_cells(split, run.data, run.grid, run.controllers) for split in e.judged
        }
        return str(plan_outcomes(run, cells))
    lines = [str(plan_outcomes(run, {split: run.outcomes.cells(split) for split in e.splits}))]
    if not run.controllers.have_controls:
        controllers = plan_ppo(e, len(run.data.problems("train")))
        lines.append(f"controllers on random rewards are to be trained:\n{controllers}")
    return "\n".join(lines)


def plan_regeneration(
    run: Run, split: Split, names: Sequence[str] = (), *, limit: int | None = None
) -> Estimate:
    """Estimate the most that ``regenerate`` takes; arms that agree on a gate share its cell.

    Raises:
        UserError: An arm that cannot be generated.
    """
    grid, generator = run.grid, run.generator
    names = regenerable_arms(run.experiment, grid, names)
    problems = run.data.problems(split)[:limit]
    columns = min(len(names), len(grid.values)) if grid.num_gate_dims == 1 else len(names)
    lengths = [len(tokens) for tokens in run.data.tokens(split, len(problems))]
    rate = known_rate(run.outcomes.memo, generator)
    if rate is None:
        gates = [gate for value in grid.values for gate in grid.keys(np.array([value]))]
        rate = measure_rate(generator, [Cell(p, gate) for gate in gates for p in problems])
    return Estimate(
        cells={split: (columns * len(problems), 0)},
        prompt_tokens=columns * sum(lengths),
        limit=generator.decoding.max_new_tokens,
        memory=memory_use(generator, lengths),
        rate=rate,
        **devices_of(run.base.mesh),
    )


def _judged_cells(
    split: Split, data: TaskData, grid: GateGrid, controllers: Controllers
) -> list[Cell]:
    """Return the different cells that judging a run with live rollouts needs."""
    problems = data.problems(split)
    decisions = live_decisions(controllers.observations(split), grid.values, controllers.trained)
    keys = dict.fromkeys(
        key
        for of_arm in decisions.values()
        for of_seed in of_arm.reshape(-1, len(problems), grid.num_gate_dims)
        for key in enumerate(grid.gates(of_seed))
    )
    return [Cell(problems[i], gate) for i, gate in keys]


def plan_ppo(experiment: Experiment, problems: int) -> str:
    """Return the plan of training controllers from the table, by a trial on made-up features.

    Args:
        experiment: The experiment.
        problems: Number of train problems.
    """
    e, rng = experiment, np.random.default_rng(0)
    features = e.features.components + 16
    env = TableEnv.create(
        rng.normal(size=(problems, features)).astype(np.float32),
        rng.integers(0, 2, (problems, len(e.gates))).astype(np.float32),
    )
    started = time.perf_counter()
    program = compilation.compile_train(e.ppo, TRIAL_UPDATES)
    state = learner.init_seeds(e.ppo, features, (len(e.gates),), jax.random.key(0))
    state, _ = jax.block_until_ready(program(env, state))
    compiled = time.perf_counter()
    jax.block_until_ready(program(env, state))
    per_update = (time.perf_counter() - compiled) / TRIAL_UPDATES
    total = compiled - started + per_update * e.ppo.updates
    episodes = e.ppo.updates * e.ppo.batch_size * e.ppo.seeds
    return (
        f"{'ppo':<12} {e.ppo.updates} updates x {e.ppo.seeds} seeds = {episodes} episodes, about "
        f"{format_duration(total)} by a trial of {TRIAL_UPDATES} updates "
        f"({format_duration(compiled - started)} to compile)"
    )


def _plan_live_training(run: Run) -> str:
    """Return the plan of live rollouts: the most cells they can ask for."""
    run, first = without_mixing(run)
    e, data, generator = run.experiment, run.data, run.generator
    episodes = e.ppo.updates * e.ppo.batch_size * e.ppo.seeds
    problems = data.problems("train")
    most = min(episodes, len(problems) * len(e.gates) ** run.grid.num_gate_dims)
    # Every seed chooses on validation and is judged, and so are the baseline and gate 0.5.
    after = e.ppo.seeds * len(data.problems("validation"))
    after += (e.ppo.seeds + 2) * sum(len(data.problems(split)) for split in e.judged)
    (gate,) = run.grid.keys(np.array([e.gates[-1]]))
    rate = measure_rate(generator, [Cell(problem, gate) for problem in problems[: e.engine.batch]])
    seconds = (most + after) * rate.seconds
    devices = devices_of(run.base.mesh)["devices"]
    return "\n".join(
        [
            *([first] if first else []),
            f"{'live':<12} {episodes} episodes, at most {most} different cells on train, and "
            f"{after} to choose a seed and to judge: {(most + after) * e.decoding.max_new_tokens} "
            "tokens",
            f"{'memory':<12} {memory_use(generator, map(len, data.tokens('train')))}",
            f"{'time':<12} at most {format_duration(seconds)} on {devices} "
            f"device{'s' if devices > 1 else ''}: {seconds * devices / 3600:.2g} "
            f"{hours_unit(devices_of(run.base.mesh)['gpu'])}",
            f"{'by':<12} {rate.source}; the learner's own time is not in it",
        ]
    )


def without_mixing(run: Run) -> tuple[Run, str]:
    """Return a run to plan with while its mixing weights are not learned, and what that takes.

    It has the routing's own weights and no table yet. A run that learns no weights, or has learned
    them, is returned as it is.
    """
    config = run.experiment.mixing
    if not run.mixing.enabled:
        return run, ""
    done = 0
    if run.mixing.file.is_file():
        progress, finished = run.mixing.progress()
        if finished:
            return run, ""
        done = progress.step
    steps = {
        "gradient": f"batches of {config.batch_size} of {config.problems} problems",
        "search": f"{config.problems} completions each",
    }[config.method]
    plain = dataclasses.replace(run.experiment, mixing=MixingConfig(), outcomes="")
    sentence = (
        f"{'mixing':<12} {config.steps - done} steps of {config.method} come first, of {steps}; "
        "not in the time"
    )
    return Run(run.directory, plain, run.base), sentence


def _table_of(outcomes: RunOutcomes, cells: Sequence[Cell]) -> OutcomeTable:
    """Return the table that cells belong to; for gates per band or layer it is the memo."""
    several = bool(cells) and isinstance(cells[0].gate, tuple)
    return outcomes.memo if several else outcomes.table


# What estimates rest on ---------------------------------------------------------------------------


def memory_use(generator: CellGenerator, lengths: Iterable[int]) -> MemoryUse:
    """Return the memory that generation takes on one device, by the engine's own rules.

    Args:
        generator: Generates the cells.
        lengths: Tokens of the prompts.
    """
    lm, engine, shared = generator.lm, generator.engine, generator.shared_tokens
    limit = generator.decoding.max_new_tokens
    prompts = [(length, min(shared, length - 1), limit) for length in lengths]
    with lm.devices():
        plan, estimate = plan_batch(
            prompts, engine, lm.params, lm.config, routed_streams=lm.routing.config.size
        )
    leaves = jax.tree.leaves(lm.params)
    weights = sum(prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)
    # The weights are on the device while its free memory is measured.
    total = 0 if estimate.free is None else weights + estimate.free
    return MemoryUse(weights, round(estimate.slot * plan.slots), estimate.fixed, total)


def known_rate(table: OutcomeTable, generator: CellGenerator) -> Rate | None:
    """Return the rate of a table's cells made under present conditions, if they fill a batch."""
    now = generator.provenance()
    alike = [
        (cell.tokens, cell.made.seconds)
        for cell in table.cells()
        if cell.made is not None
        and (cell.made.machine, cell.made.execution) == (now.machine, now.execution)
    ]
    if len(alike) < generator.engine.batch:
        return None
    return Rate(
        seconds=fmean(seconds for _, seconds in alike),
        tokens=fmean(tokens for tokens, _ in alike),
        cells=len(alike),
        source=f"{len(alike)} cells that were made like this, compilation included",
    )


def measure_rate(generator: CellGenerator, cells: Sequence[Cell]) -> Rate:
    """Generate one batch of cells twice and discard it; the first time compiles."""
    step = max(len(cells) // generator.engine.batch, 1)
    batch = cells[::step][: generator.engine.batch]
    generator.generate(batch)
    started = time.perf_counter()
    outcomes = generator.generate(batch)
    seconds = (time.perf_counter() - started) / len(batch)
    tokens = fmean(outcome.tokens for outcome in outcomes)
    source = f"a trial of {len(batch)} cells, without compilation"
    return Rate(seconds, tokens, len(batch), source)


def devices_of(mesh: Mesh | None) -> dict[str, Any]:
    """Return the number of devices of a mesh, one without it, and whether they are GPUs."""
    gpu = jax.devices()[0].platform == "gpu"
    return {"devices": 1 if mesh is None else mesh.size, "gpu": gpu}
