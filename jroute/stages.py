"""The stages of a run: mixing weights, outcomes, features, controllers, judgement; each resumes."""

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from tqdm import tqdm

from jroute.checkpoint import latest_step, load_state, save_state
from jroute.controller import arms
from jroute.controller.features import Featurizer
from jroute.envs.functional import TableEnv
from jroute.envs.outcomes import Outcome
from jroute.envs.outcomes import judge as judge_completion
from jroute.errors import UserError
from jroute.evaluation import mixing, probing, report
from jroute.files import write_text
from jroute.generate.decoding import Completion
from jroute.mesh import is_first, make_mesh
from jroute.observe.progress import GenerationBar
from jroute.observe.scalars import Scalars
from jroute.ppo import learner
from jroute.run import Run
from jroute.tasks import Split

CHECKPOINT_EVERY = 50
"""PPO updates between two checkpoints."""

CELLS_AT_ONCE = 64
"""Cells of one part of the outcome table; what is lost if the process is killed."""

PROBED = 8
"""Train prompts on which a routing must show that it does something."""


def learn_mixing(run: Run) -> None:
    """Learns the mixing weights if the experiment says so; goes on from where it was."""
    e, base, config = run.experiment, run.base, run.experiment.mixing
    if config.method == "none":
        return
    start = base.routing.config.initial_raw(base.config.num_hidden_layers)
    if not start.size:
        raise UserError(
            f"mixing.method is {config.method}, but this routing has no weights to learn; choose "
            "side streams and another operator than fixed"
        )
    progress = mixing.Progress(0, start, [], [])
    if run.mixing_file.is_file():
        progress, finished = run.mixing_progress()
        if finished:
            return
    common = {"seed": hash_text(f"mixing/{e.seed}"), "progress": progress}
    with tqdm(
        total=config.steps, initial=progress.step, desc=f"mixing by {config.method}", unit="step"
    ) as bar:

        def save(now: mixing.Progress) -> None:
            mixing.save_progress(run.mixing_file, run.mixing_about, now, config.steps)
            bar.update(now.step - bar.n)
            bar.set_postfix({"value": f"{now.values[-1]:.4f}"})

        if config.method == "gradient":
            examples = mixing.pad_examples(run.mixing_pairs, base.context)
            arguments = (base.params, base.config, base.routing, examples, config)
            with base.devices():
                mixing.learn_by_gradient(*arguments, **common, save=save)
        else:
            sites = base.routing.config.site_indices(base.config.num_hidden_layers)
            mixing.learn_by_search(partial(_solved, run), sites, config, **common, save=save)


def _solved(run: Run, raw: np.ndarray) -> float:
    """Share of the problems to learn from that are solved with these mixing weights."""
    e = run.experiment
    problems = run.problems("train")[: e.mixing.problems]
    completions = run.base.routed(run.base.routing.config, raw).generate(
        [prompt for prompt, _ in run.mixing_pairs],
        e.mixing.gate,
        **vars(e.decoding),
        seed=[_cell_seed(problem.id, e.seed) for problem in problems],
        **vars(e.engine),
    )
    limits = {"max_tokens": e.decoding.max_new_tokens, "rewards": e.reward}
    pairs = zip(problems, completions, strict=True)
    return float(
        np.mean([judge_completion(p, e.mixing.gate, c, **limits).correct for p, c in pairs])
    )


def inert(run: Run) -> str:
    """Why nothing can be learned from the gates of a run, or ``""`` if one of them does something.

    It is inert if on ``PROBED`` train prompts all gates leave the next token's distribution as it
    was.
    """
    e, lm = run.experiment, run.lm
    prompts, gates = run.first_prompts("train", PROBED), [gate for gate in e.gates if gate]
    with lm.devices():
        found = probing.divergence(lm.params, lm.config, lm.routing, prompts, gates)
    largest = probing.furthest(found)
    if probing.verdict(largest.kl) != "inert":
        return ""
    return (
        f"this routing is inert: no gate moves the next-token distribution by more than "
        f"{largest.kl:.1e} nats (mean KL on {len(prompts)} train prompts, at gate "
        f"{largest.gate:g}), below the floor of {probing.INERT_BELOW:g}, so there is "
        "nothing to learn"
    )


def refuse_inert(run: Run) -> None:
    """Refuses to train where no gate of the grid does anything, unless forced.

    Raises:
        UserError: The routing is inert.
    """
    if not run.experiment.allow_inert and (reason := inert(run)):
        raise UserError(
            f"{reason}; choose another routing or larger gates with the help of python -m "
            "jroute.probe, or force it with --allow_inert true"
        )


def fill_outcomes(
    run: Run, split: Split, *, gates: Sequence[float] = (), problems: int | None = None
) -> int:
    """Generates the cells of a split that the table lacks; returns how many it had to make.

    Args:
        run: The run whose table is filled.
        split: Of the problems.
        gates: Some of the grid; by default all of it.
        problems: Only the first so many problems.
    """
    learn_mixing(run)
    e, lm, table = run.experiment, run.lm, run.table
    gates = gates or e.gates
    some = {p.id: p for p in run.problems(split)[:problems]}
    prompts = dict(zip(some, run.prompts(split)[:problems], strict=True))
    # Gate by gate, so that a batch holds rows that end at about the same time.
    missing = sorted(table.missing(list(some), gates), key=lambda cell: gates.index(cell[1]))
    if not missing:
        return 0
    encoded = {
        problem_id: lm.encode(prompts[problem_id]) for problem_id in {cell[0] for cell in missing}
    }
    kept: list[Outcome] = []

    def finished(indices: list[int], completions: list[Completion]) -> None:
        for i, completion in zip(indices, completions, strict=True):
            problem_id, gate = missing[i]
            limits = {"max_tokens": e.decoding.max_new_tokens, "rewards": e.reward}
            kept.append(judge_completion(some[problem_id], gate, completion, **limits))
        if len(kept) >= CELLS_AT_ONCE:
            keep()

    def keep() -> None:
        table.append(kept)
        kept.clear()

    title, quiet = f"outcomes {split}", not is_first()
    with GenerationBar(len(missing), title, "cell", quiet=quiet) as progress:
        try:
            lm.generate(
                [encoded[problem_id] for problem_id, _ in missing],
                [gate for _, gate in missing],
                **vars(e.decoding),
                seed=[_cell_seed(problem_id, e.seed) for problem_id, _ in missing],
                **vars(e.engine),
                shared=run.shared_tokens,
                finished=finished,
                progress=progress,
            )
        finally:
            if kept:
                keep()
    return len(missing)


def _cell_seed(problem_id: str, seed: int) -> int:
    """Randomness of a cell: of the problem only, so gates are compared under the same draws."""
    return (
        int(jax.random.bits(jax.random.fold_in(jax.random.key(seed), hash_text(problem_id)))) >> 1
    )


def hash_text(text: str) -> int:
    """A 31-bit number of a text, the same on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


def train_ppo(run: Run, env: TableEnv, gates: tuple[float, ...]) -> learner.LearnerState:
    """Trains all seeds, with a checkpoint every few updates; goes on from the last one."""
    config = run.experiment.ppo
    folder = run.directory / "learner" / run.training
    mesh = make_mesh()
    sharding = None
    if mesh.size > 1 and config.batch_size // config.minibatches % mesh.size == 0:
        sharding = NamedSharding(mesh, PartitionSpec("data"))
    key = jax.random.fold_in(jax.random.key(run.experiment.seed), hash_text("ppo"))
    state = learner.init_seeds(config, env.observations.shape[1], (len(gates),), key)
    done = latest_step(folder) or 0
    if done:
        done, state = load_state(folder, state)
    programs: dict[int, Callable[..., Any]] = {}
    scalars = Scalars(
        run.directory / "tensorboard",
        purge_step=done,
        track=run.experiment.track,
        config=dataclasses.asdict(run.experiment),
    )
    with tqdm(
        total=config.updates, initial=done, desc=f"ppo x {config.seeds} seeds", unit="update"
    ) as bar:
        while done < config.updates:
            steps = min(CHECKPOINT_EVERY, config.updates - done)
            if steps not in programs:
                programs[steps] = learner.compile_train(config, steps, sharding=sharding)
            started = time.perf_counter()
            state, metrics = jax.block_until_ready(programs[steps](env, state))
            elapsed = time.perf_counter() - started
            named = learner.scalars(jax.device_get(metrics), gates)
            named["charts/SPS"] = np.full(steps, steps * config.batch_size * config.seeds / elapsed)
            scalars.write(named, done)
            done += steps
            save_state(folder, done, state)
            bar.update(steps)
            bar.set_postfix({"return": f"{named['charts/episodic_return'][:, -1].mean():.3f}"})
    scalars.close()
    return state


def train_controllers(run: Run) -> dict[str, Any]:
    """Fits the featurizer, trains PPO and the supervised arm, and picks the best fixed gate.

    Only train cells are learnt from; validation cells choose the supervised arm's settings and the
    seed that is deployed.
    """
    e = run.experiment
    folder = run.directory / "controller" / run.training
    if folder.is_dir() and latest_step(folder) is not None:
        return run.controller
    splits: tuple[Split, ...] = ("train", "validation")
    raw = {split: run.raw_features(split) for split in splits}
    featurizer = Featurizer.fit(raw["train"], e.features)
    observations = {split: featurizer(raw[split]).astype(np.float32) for split in splits}
    rewards = {split: run.matrix(split, "reward").astype(np.float32) for split in splits}
    correct = {split: run.matrix(split) for split in splits}
    state = train_ppo(run, TableEnv.create(observations["train"], rewards["train"]), e.gates)
    # Only the policies leave the learner: values of the seeds are [seeds, ...].
    choices = seed_choices(state.params, observations["validation"])
    rows = np.arange(choices.shape[1])
    selected = int(correct["validation"][rows[None], choices].mean(axis=1).argmax())
    supervised = arms.fit_supervised(
        (observations["train"][:, :1], rewards["train"]),
        (observations["validation"][:, :1], rewards["validation"]),
        e.supervised,
        jax.random.fold_in(jax.random.key(e.seed), hash_text("supervised")),
    )
    tree = {
        "featurizer": featurizer.tree(),
        "seeds": jax.device_get(state.params),
        "selected": selected,
        "rl": jax.tree.map(lambda leaf: np.asarray(leaf[selected]), state.params),
        "supervised": jax.device_get(supervised),
        "best_fixed": int(correct["train"].mean(axis=0).argmax()),
    }
    save_state(folder, e.ppo.updates, tree)
    return run.controller


def seed_choices(params: Any, observations: np.ndarray) -> np.ndarray:
    """Gate index ``[seeds, problems]`` of every seed's controller."""
    seeds = jax.tree.leaves(params)[0].shape[0]
    each = (jax.tree.map(lambda leaf, i=i: leaf[i], params) for i in range(seeds))
    return np.stack([arms.choices_of_policy(one, observations) for one in each])


def judge(run: Run) -> dict[str, Any]:
    """Judges every arm on the judged splits and writes ``results.json``."""
    e, controller = run.experiment, run.controller
    splits: dict[str, Any] = {}
    for split in e.judged:
        raw = run.raw_features(split)
        arm_values = report.arm_values(
            run.matrix(split),
            e.gates,
            best_fixed=int(controller["best_fixed"]),
            supervised=run.choices("supervised", run.prompts(split), raw),
            rl=seed_choices(controller["seeds"], run.featurizer(raw).astype(np.float32)),
            selected=int(controller["selected"]),
        )
        splits[split] = report.judge(arm_values, e.judge)
    primary = e.judged[0]
    results = {
        "split": primary,
        **splits[primary],
        "other_splits": {split: found for split, found in splits.items() if split != primary},
        "gates": list(e.gates),
        "best_fixed_gate": e.gates[int(controller["best_fixed"])],
        "seeds": e.ppo.seeds,
        "selected_seed": int(controller["selected"]),
        "train_cells": len(run.problems("train")) * len(e.gates),
        "rewards_sampled_by_each_rl_seed": e.ppo.updates * e.ppo.batch_size,
        "model": run.lm.fingerprint,
        "outcomes": run.table.fingerprint,
        "training": run.training,
    }
    write_text(run.directory / "results.json", json.dumps(results, indent=2) + "\n")
    return results


def train(run: Run) -> dict[str, Any]:
    """The whole run: mixing weights, outcomes of every split, controllers, judgement.

    Returns:
        The results.

    Raises:
        UserError: The routing is inert.
    """
    learn_mixing(run)
    refuse_inert(run)
    for split in run.experiment.splits:
        fill_outcomes(run, split)
    train_controllers(run)
    return judge(run)


def written(directory: Path) -> list[str]:
    """What a run folder holds, one line each."""
    known = {
        "config.yaml": "the resolved config",
        "mixing": "learned mixing weights",
        "controller": "controllers (Orbax)",
        "tensorboard": "TensorBoard scalars",
        "outcomes": "outcome table (Parquet)",
        "results.json": "arms and contrasts",
        "lm_eval": "lm-eval's own results",
    }
    return [
        f"{directory / name}: {what}" for name, what in known.items() if (directory / name).exists()
    ]
