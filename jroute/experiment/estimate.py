"""Plans of long commands: what is there, what is missing, and how long it is going to take."""

import dataclasses
import time
from collections.abc import Iterable, Sequence
from math import prod
from statistics import fmean

import jax
import numpy as np

from jroute.ablate.grid import Laboratory
from jroute.experiment.cost import Memory, Plan, Rate, duration
from jroute.experiment.setting import Setting
from jroute.generate.memory import plan_batch
from jroute.outcomes import generation as cells
from jroute.outcomes.generation import Cell
from jroute.ppo import compilation, learner
from jroute.probe.mixing import MixingConfig
from jroute.tasks import Split

TRIAL = 10
"""PPO updates that a trial measures."""


def before_mixing(setting: Setting) -> tuple[Setting, str]:
    """A setting to plan with while mixing weights are still to be learned, and what that takes.

    It has the routing's own weights, and no table yet. A setting that learns none, or has learned
    them, is given back as it is.
    """
    config = setting.experiment.mixing
    if config.method == "none":
        return setting, ""
    progress, finished = (
        setting.mixing_progress() if setting.mixing_file.is_file() else (None, False)
    )
    if finished:
        return setting, ""
    plain = dataclasses.replace(setting.experiment, mixing=MixingConfig(), outcomes="")
    steps = config.steps - (progress.step if progress else 0)
    each = {
        "gradient": f"batches of {config.batch_size} of {config.problems} problems",
        "search": f"{config.problems} completions each",
    }[config.method]
    told = f"{'mixing':<12} {steps} steps of {config.method} come first, of {each}; not in the time"
    unmixed = Setting(setting.directory, plain)
    unmixed.base = setting.base  # loaded once
    return unmixed, told


def plan_outcomes(setting: Setting, wanted: dict[Split, list[Cell]]) -> Plan:
    """Plans the filling of the table; nothing is written.

    The time comes from cells of the table that were made on such devices in the same execution
    shape, if they would fill a batch, or else from a trial: one batch, made twice.
    """
    setting, first = before_mixing(setting)
    e, lm = setting.experiment, setting.lm
    rest = {split: cells.missing(setting, some) for split, some in wanted.items()}
    every = [cell for some in rest.values() for cell in some]
    lengths = {
        problem.id: len(lm.encode(setting.render(problem.question)))
        for problem in {cell.problem.id: cell.problem for cell in every}.values()
    }
    device = jax.devices()[0]
    return Plan(
        cells={split: (len(some), len(some) - len(rest[split])) for split, some in wanted.items()},
        prompt_tokens=sum(lengths[cell.problem.id] for cell in every),
        limit=e.decoding.max_new_tokens,
        memory=memory(setting, lengths.values() or [1]),
        rate=(known_rate(setting) or trial(setting, every)) if every else None,
        devices=1 if lm.mesh is None else lm.mesh.size,
        gpu=device.platform == "gpu",
        first=first,
    )


def plan_ablation(laboratory: Laboratory) -> Plan:
    """Plans an ablation: every cell of its grid solves all its problems."""
    grid, run = laboratory.grid, laboratory.run
    files = {laboratory.file(v, gate) for v in laboratory.variants for gate in grid.gates}
    rest = sum(not file.is_file() for file in files)
    problems = run.problems(grid.split)[: grid.problems or None]
    lengths = [len(row) for row in run.first_prompts(grid.split, len(problems))]
    device = jax.devices()[0]
    return Plan(
        cells={grid.split: (len(files) * len(problems), (len(files) - rest) * len(problems))},
        prompt_tokens=rest * sum(lengths),
        limit=grid.decoding.max_new_tokens,
        memory=memory(run, lengths),
        rate=trial(run, [Cell(problem, grid.gates[-1]) for problem in problems]) if rest else None,
        devices=1 if run.base.mesh is None else run.base.mesh.size,
        gpu=device.platform == "gpu",
    )


def memory(setting: Setting, lengths: Iterable[int]) -> Memory:
    """What generation keeps on one device for prompts of so many tokens, by the engine's rules."""
    e, lm = setting.experiment, setting.lm
    longest, common = e.decoding.max_new_tokens, setting.shared_tokens
    prompts = [(length, min(common, length - 1), longest) for length in lengths]
    with lm.devices():
        plan, estimate = plan_batch(
            prompts, e.engine, lm.params, lm.config, routed_streams=lm.routing.config.size
        )
    leaves = jax.tree.leaves(lm.params)
    weights = sum(prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)
    # The weights are on the device already.
    limit = 0 if estimate.free is None else weights + estimate.free
    return Memory(weights, round(estimate.slot * plan.slots), estimate.fixed, limit)


def known_rate(setting: Setting) -> Rate | None:
    """The rate of the table's cells that were made as they would be made now."""
    now = cells.provenance(setting, setting.experiment.engine)
    alike = [
        (cell.tokens, cell.made.seconds)
        for cell in setting.memo.cells()
        if cell.made is not None
        and (cell.made.machine, cell.made.execution) == (now.machine, now.execution)
    ]
    if len(alike) < setting.experiment.engine.batch:
        return None
    seconds = fmean(each for _, each in alike)
    source = f"{len(alike)} cells that were made like this, compilation included"
    return Rate(seconds, fmean(tokens for tokens, _ in alike), len(alike), source)


def trial(setting: Setting, some: Sequence[Cell]) -> Rate:
    """Make one batch of cells twice and throws it away; the first time compiles."""
    every = max(len(some) // setting.experiment.engine.batch, 1)
    batch = some[::every][: setting.experiment.engine.batch]
    cells.generate(setting, batch)
    started = time.perf_counter()
    outcomes = cells.generate(setting, batch)
    seconds = (time.perf_counter() - started) / len(batch)
    source = f"a trial of {len(batch)} cells, without compilation"
    return Rate(seconds, fmean(outcome.tokens for outcome in outcomes), len(batch), source)


def plan_ppo(setting: Setting) -> str:
    """Plans the training of the controllers from the table, by a trial on made-up features."""
    from jroute.envs.functional import TableEnv

    e, rng = setting.experiment, np.random.default_rng(0)
    features, rows = e.features.components + 16, len(setting.problems("train"))
    env = TableEnv.create(
        rng.normal(size=(rows, features)).astype(np.float32),
        rng.integers(0, 2, (rows, len(e.gates))).astype(np.float32),
    )
    started = time.perf_counter()
    program = compilation.compile_train(e.ppo, TRIAL)
    state = learner.init_seeds(e.ppo, features, (len(e.gates),), jax.random.key(0))
    state, _ = jax.block_until_ready(program(env, state))
    compiled = time.perf_counter()
    jax.block_until_ready(program(env, state))
    each = (time.perf_counter() - compiled) / TRIAL
    total = compiled - started + each * e.ppo.updates
    steps = e.ppo.updates * e.ppo.batch_size * e.ppo.seeds
    return (
        f"{'ppo':<12} {e.ppo.updates} updates x {e.ppo.seeds} seeds = {steps} episodes, about "
        f"{duration(total)} by a trial of {TRIAL} updates ({duration(compiled - started)} to "
        "compile)"
    )


def plan_train(setting: Setting) -> str:
    """Plans a whole run: its outcome table and its controllers, or its live rollouts."""
    e = setting.experiment
    if e.rollouts == "table":
        wanted: dict[Split, list[Cell]] = {
            split: cells.wanted(setting, split) for split in e.splits
        }
        return f"{plan_outcomes(setting, wanted)}\n{plan_ppo(setting)}"
    setting, first = before_mixing(setting)
    episodes, seeds = e.ppo.updates * e.ppo.batch_size * e.ppo.seeds, e.ppo.seeds
    most = min(episodes, len(setting.problems("train")) * len(e.gates) ** setting.num_gate_dims)
    # Every seed chooses on validation and is judged, and so are the baseline and gate 0.5.
    after = seeds * len(setting.problems("validation"))
    after += (seeds + 2) * sum(len(setting.problems(split)) for split in e.judged)
    lengths = [len(setting.base.encode(text)) for text in setting.prompts("train")]
    some = [
        Cell(problem, gate)
        for problem in setting.problems("train")[: e.engine.batch]
        for gate in setting.gates_of(np.full((1, setting.num_gate_dims), len(e.gates) - 1))
    ]
    rate = trial(setting, some)
    seconds = (most + after) * rate.seconds
    devices = 1 if setting.base.mesh is None else setting.base.mesh.size
    unit = "GPU-hours" if jax.devices()[0].platform == "gpu" else "device-hours"
    return "\n".join(
        [
            *([first] if first else []),
            f"{'live':<12} {episodes} episodes, at most {most} different cells on train, and "
            f"{after} to choose a seed and to judge: {(most + after) * e.decoding.max_new_tokens} "
            "tokens",
            f"{'memory':<12} {memory(setting, lengths)}",
            f"{'time':<12} at most {duration(seconds)} on {devices} "
            f"device{'s' if devices > 1 else ''}: {seconds * devices / 3600:.2g} {unit}",
            f"{'by':<12} {rate.source}; the learner's own time is not in it",
        ]
    )
