"""The stages of a run: mixing weights, outcomes, features, controllers, judgement; each resumes."""

import json
import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jroute.arms.rl import decisions_of_seeds
from jroute.arms.supervised import fit_supervised
from jroute.checkpoint import latest_step, load_state, save_state
from jroute.controller.features import Featurizer
from jroute.envs.functional import LiveEnv, TableEnv
from jroute.experiment import judging
from jroute.experiment.run import Run
from jroute.generate.sampling import hash_text
from jroute.observe.progress import progress_bar
from jroute.observe.scalars import Scalars
from jroute.outcomes import generation
from jroute.outcomes.generation import cell_seed
from jroute.outcomes.outcome import judge as judge_completion
from jroute.ppo import compilation, learner
from jroute.ppo.metrics import Metrics, named_scalars
from jroute.ppo.rollout import MAX_CELL_NUMBERS, add_rewards, number_cells
from jroute.ppo.types import LearnerState
from jroute.probe import effects, mixing
from jroute.tasks import Split
from jroute.utils.errors import UserError
from jroute.utils.files import write_text
from jroute.utils.keys import stored

logger = logging.getLogger(__name__)

CHECKPOINT_EVERY = 50
"""PPO updates between two checkpoints."""

CHECKPOINT_LIVE_EVERY = 10
"""The same for live rollouts, which are repeated from memory."""

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
    with progress_bar(
        total=config.steps, initial=progress.step, desc=f"mixing by {config.method}", unit="step"
    ) as bar:

        def save(now: mixing.Progress) -> None:
            mixing.save_progress(run.mixing_file, run.mixing_about, now, config.steps)
            bar.set_postfix({"value": f"{now.values[-1]:.4f}"}, refresh=False)
            bar.update(now.step - bar.n)

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
        decoding=e.decoding,
        engine=e.engine,
        seed=[cell_seed(problem.id, e.seed) for problem in problems],
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
    logger.info("looking whether any gate moves the model, on %d train prompts", len(prompts))
    with lm.devices():
        found = effects.divergence(lm.params, lm.config, lm.routing, prompts, gates)
    largest = effects.furthest(found)
    if effects.verdict(largest.kl) != "inert":
        return ""
    return (
        f"this routing is inert: no gate moves the next-token distribution by more than "
        f"{largest.kl:.1e} nats (mean KL on {len(prompts)} train prompts, at gate "
        f"{largest.gate:g}), below the floor of {effects.INERT_BELOW:g}, so there is "
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
    """Generate the cells of a split that the table lacks; returns how many it had to make.

    Args:
        run: The run whose table is filled.
        split: Of the problems.
        gates: Some of the grid; by default all of it.
        problems: Only the first so many problems.
    """
    learn_mixing(run)
    some = generation.wanted(run, split, gates=gates, problems=problems)
    made = generation.fill(run, some, f"outcomes {split}")
    logger.info("outcomes of %s: %d cells, %d made now", split, len(some), made)
    return made


def train_ppo(run: Run, env: TableEnv | LiveEnv) -> LearnerState:
    """Trains all seeds, with a checkpoint every few updates; goes on from the last one.

    Over a table many updates are one program. Over a model the host goes back and forth: gates of
    all seeds, what they pay, an update; what was generated before an interruption is remembered.
    """
    config, gates = run.experiment.ppo, run.experiment.gates
    folder = run.directory / "learner" / run.training
    mesh, sharding = run.base.mesh, None
    if mesh is not None and config.batch_size // config.minibatches % mesh.shape["data"] == 0:
        sharding = NamedSharding(mesh, PartitionSpec("data"))
    live = isinstance(env, LiveEnv)
    observations = env.prompts.observations if live else env.observations
    key = jax.random.fold_in(jax.random.key(run.experiment.seed), hash_text("ppo"))
    num_cells = len(observations) * len(gates) ** run.num_gate_dims
    if live:
        num_cells = min(num_cells, MAX_CELL_NUMBERS)
    nvec = (len(gates),) * run.num_gate_dims
    state = learner.init_seeds(config, observations.shape[1], nvec, key, num_cells=num_cells)
    done = latest_step(folder) or 0
    if done:
        done, state = load_state(folder, state)
    every = CHECKPOINT_LIVE_EVERY if live else CHECKPOINT_EVERY
    updates = _live_updates(run, env, sharding) if live else _table_updates(run, env, sharding)
    scalars = Scalars(
        run.directory / "tensorboard",
        purge_step=done,
        track=run.experiment.track,
        config=stored(run.experiment),
    )
    with progress_bar(
        total=config.updates, initial=done, desc=f"ppo x {config.seeds} seeds", unit="update"
    ) as bar:
        while done < config.updates:
            steps = min(every - done % every, config.updates - done)
            started = time.perf_counter()
            state, metrics = jax.block_until_ready(updates(state, steps))
            elapsed = time.perf_counter() - started
            named = named_scalars(jax.device_get(metrics), gates)
            named["charts/SPS"] = np.full(steps, steps * config.batch_size * config.seeds / elapsed)
            scalars.write(named, done)
            done += steps
            save_state(folder, done, state)
            earned = named["charts/episodic_return"][:, -1].mean()
            bar.set_postfix({"return": f"{earned:.3f}"}, refresh=False)
            bar.update(steps)
    scalars.close()
    return state


Updates = Callable[[LearnerState, int], tuple[LearnerState, Metrics]]


def _table_updates(run: Run, env: TableEnv, sharding: NamedSharding | None) -> Updates:
    """Some updates of all seeds over a table, as one program."""
    programs: dict[int, Callable[..., Any]] = {}

    def updates(state: LearnerState, steps: int) -> tuple[LearnerState, Metrics]:
        if steps not in programs:
            programs[steps] = compilation.compile_train(
                run.experiment.ppo, steps, sharding=sharding
            )
        return programs[steps](env, state)

    return updates


def _live_updates(run: Run, env: LiveEnv, sharding: NamedSharding | None) -> Updates:
    """Some updates of all seeds over a model: the cells of all seeds are generated together."""
    config, choices = run.experiment.ppo, len(run.experiment.gates)
    decide = compilation.compile_decide(config, sharding=sharding)
    update = compilation.compile_update(config, sharding=sharding)

    def updates(state: LearnerState, steps: int) -> tuple[LearnerState, Metrics]:
        told = []
        for _ in range(steps):
            decisions = decide(env.prompts, state)
            problems, actions = jax.device_get((decisions.states.problem, decisions.choices))
            rewards = env.rewards(problems, actions)
            numbers = number_cells(problems, actions, choices)
            state, metrics = update(state, add_rewards(decisions, rewards, numbers))
            told.append(metrics)
        return state, jax.tree.map(lambda *leaves: jnp.stack(leaves, axis=1), *told)

    return updates


def train_controllers(run: Run) -> dict[str, Any]:
    """Fits the featurizer, trains PPO and, over a table, the rest that only a table can teach.

    Only train cells are learnt from; validation cells choose the supervised arm's settings and the
    seed that is deployed.
    """
    e = run.experiment
    folder = run.controller_folder
    if folder.is_dir() and latest_step(folder) is not None:
        return run.controller
    splits: tuple[Split, ...] = ("train", "validation")
    raw = {split: run.raw_features(split) for split in splits}
    featurizer = Featurizer.fit(raw["train"], e.features)
    observations = {split: featurizer(raw[split]).astype(np.float32) for split in splits}
    learnt: dict[str, Any] = {}
    if e.rollouts == "live":
        state = train_ppo(run, LiveEnv(run.env_data("train", featurizer, live=True)))
    else:
        rewards = {split: run.matrix(split, "reward").astype(np.float32) for split in splits}
        state = train_ppo(run, TableEnv.create(observations["train"], rewards["train"]))
        supervised = fit_supervised(
            (observations["train"][:, :1], rewards["train"]),
            (observations["validation"][:, :1], rewards["validation"]),
            e.supervised,
            jax.random.fold_in(jax.random.key(e.seed), hash_text("supervised")),
        )
        learnt = {
            "supervised": jax.device_get(supervised),
            "best_fixed": int(run.matrix("train").mean(axis=0).argmax()),
        }
    # Only the policies leave the learner: values of the seeds are [seeds, ...].
    choices = decisions_of_seeds(state.params, observations["validation"])
    selected = int(judging.correct_of(run, "validation", choices).mean(axis=1).argmax())
    tree = {
        "featurizer": featurizer.tree(),
        "seeds": jax.device_get(state.params),
        "selected": selected,
        "rl": jax.tree.map(lambda leaf: np.asarray(leaf[selected]), state.params),
        **learnt,
    }
    save_state(folder, e.ppo.updates, tree)
    logger.info("controllers of %d seeds trained; seed %d is selected", e.ppo.seeds, selected)
    write_text(folder.with_suffix(".json"), json.dumps(run.training_parts) + "\n")
    return run.controller


def train(run: Run) -> dict[str, Any]:
    """The whole run: mixing weights, outcomes of every split, controllers, judgement.

    With live rollouts no table is filled: cells are generated as they are asked for.

    Returns:
        The results.

    Raises:
        UserError: The routing is inert.
    """
    learn_mixing(run)
    refuse_inert(run)
    if run.experiment.rollouts == "live":
        train_controllers(run)
        return judging.judge_without_table(run)
    for split in run.experiment.splits:
        fill_outcomes(run, split)
    train_controllers(run)
    return judging.judge(run)


def written(directory: Path) -> list[str]:
    """What a run folder holds, one line each."""
    known = {
        "config.yaml": "the resolved config",
        "mixing": "learned mixing weights",
        "controller": "controllers (Orbax)",
        "tensorboard": "TensorBoard scalars",
        "outcomes": "outcome table (Parquet)",
        "memo": "outcomes of gates per band or layer (Parquet)",
        "results.json": "arms, contrasts, verdict",
        "items.parquet": "what every arm did with every problem (Parquet)",
        "lm_eval": "lm-eval's own results",
    }
    return [
        f"{directory / name}: {what}" for name, what in known.items() if (directory / name).exists()
    ]
