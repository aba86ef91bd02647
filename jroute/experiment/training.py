"""Training of a run's controllers: PPO over a table or over a model, and the arms beside it."""

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float, Int

from jroute.arms import supervised
from jroute.arms.registry import BEST_FIXED, SUBJECT, SUPERVISED
from jroute.arms.rl import decisions_of_seeds
from jroute.checkpoint import resume_state, save_state
from jroute.controller import networks
from jroute.controller.features import Featurizer
from jroute.envs.functional import LiveEnv, TableEnv
from jroute.experiment.config import Experiment
from jroute.experiment.environments import environment_of
from jroute.experiment.run import Run
from jroute.generate.sampling import hash_text
from jroute.observe.progress import progress_bar
from jroute.observe.scalars import Scalars
from jroute.outcomes.backends import OutcomeBackend
from jroute.outcomes.grid import GateGrid
from jroute.ppo import compilation, learner
from jroute.ppo.config import PPOConfig
from jroute.ppo.metrics import Metrics, named_scalars
from jroute.ppo.rollout import MAX_CELL_NUMBERS, add_rewards, number_cells
from jroute.ppo.types import LearnerState
from jroute.tasks import Problem
from jroute.utils.keys import stored

logger = logging.getLogger(__name__)

CHECKPOINT_EVERY = 50
"""PPO updates between two checkpoints."""

CHECKPOINT_LIVE_EVERY = 10
"""The same for live rollouts, which are repeated from the memo."""

Updates = Callable[[LearnerState, int], tuple[LearnerState, Metrics]]
"""A state and a number of updates to the new state and the metrics of each update."""


def train_controllers(run: Run) -> dict[str, Any]:
    """Fit the featurizer, train PPO and, over a table, the arms that only a table can teach.

    Controllers learn from train cells only; validation cells choose the hyperparameters of the
    supervised arm and the seed that is deployed.

    Returns:
        The tree that is stored; see ``Controllers.trained``.
    """
    controllers = run.controllers
    if controllers.are_trained:
        controllers.describe()
        return controllers.trained
    e = run.experiment
    featurizer = Featurizer.fit(run.features.raw("train"), e.features)
    observations = {
        split: featurizer(run.features.raw(split)).astype(np.float32)
        for split in ("train", "validation")
    }
    table_arms: dict[str, Any] = {}
    backend = run.outcomes.backend(live=e.rollouts == "live")
    if e.rollouts == "live":
        env = LiveEnv(
            environment_of("train", run.data, run.features, featurizer, run.grid, backend)
        )
    else:
        rewards = {
            split: run.outcomes.matrix(split, "reward").astype(np.float32)
            for split in ("train", "validation")
        }
        env = TableEnv.create(observations["train"], rewards["train"])
        table_arms = {
            SUPERVISED: _fit_supervised(e, observations, rewards),
            BEST_FIXED: int(run.outcomes.matrix("train").mean(axis=0).argmax()),
        }
    state = train_ppo_of(run, env)
    # Only the policies leave the learner: values of the seeds are [seeds, ...].
    decisions = decisions_of_seeds(state.params, observations["validation"])
    correct = correctness(decisions, run.data.problems("validation"), run.grid, backend)
    selected = int(correct.mean(axis=1).argmax())
    controllers.save(
        {
            "featurizer": featurizer.tree(),
            "seeds": jax.device_get(state.params),
            "selected": selected,
            SUBJECT: jax.tree.map(lambda leaf: np.asarray(leaf[selected]), state.params),
            **table_arms,
        },
        e.ppo.updates,
    )
    logger.info("controllers of %d seeds trained; seed %d is selected", e.ppo.seeds, selected)
    return controllers.trained


def _fit_supervised(
    experiment: Experiment, observations: dict[str, np.ndarray], rewards: dict[str, np.ndarray]
) -> networks.Params:
    """Fit the arm that predicts every gate's reward from the length of the prompt alone."""
    train, validation = (
        (observations[split][:, supervised.LENGTH], rewards[split])
        for split in ("train", "validation")
    )
    key = jax.random.fold_in(jax.random.key(experiment.seed), hash_text("supervised"))
    return jax.device_get(supervised.fit_supervised(train, validation, experiment.supervised, key))


def train_ppo_of(run: Run, env: TableEnv | LiveEnv) -> LearnerState:
    """Train all seeds of a run in one of its environments, going on from the last checkpoint."""
    e, checkpoints = run.experiment, run.folder.learner(run.controllers.training)
    initial = _initial_state(e.ppo, env, run.grid, e.seed)
    start = resume_state(checkpoints, initial) or (0, initial)
    scalars = Scalars(run.folder.curves, purge_step=start[0], track=e.track, config=stored(e))
    state = train_ppo(env, e.ppo, run.grid, start, checkpoints, scalars, mesh=run.base.mesh)
    scalars.close()
    return state


def train_ppo(
    env: TableEnv | LiveEnv,
    config: PPOConfig,
    grid: GateGrid,
    start: tuple[int, LearnerState],
    checkpoints: Path,
    scalars: Scalars,
    *,
    mesh: Mesh | None = None,
) -> LearnerState:
    """Train all seeds, with a checkpoint every few updates.

    Over a table many updates are one program. Over a model the host goes back and forth: gates of
    all seeds, their rewards, an update; what was generated before an interruption is remembered.

    Args:
        env: The environment.
        config: Configuration of the learner.
        grid: The grid of gates.
        start: Number of updates that were made, and the state after them.
        checkpoints: Folder of checkpoints.
        scalars: Writes the training curves.
        mesh: Devices that minibatches are spread over.
    """
    sharding = _batch_sharding(config, mesh)
    step, state = start
    live = isinstance(env, LiveEnv)
    every = CHECKPOINT_LIVE_EVERY if live else CHECKPOINT_EVERY
    run_updates = (
        _live_updates(config, env, sharding) if live else _table_updates(config, env, sharding)
    )
    with progress_bar(
        total=config.updates, initial=step, desc=f"ppo x {config.seeds} seeds", unit="update"
    ) as bar:
        while step < config.updates:
            updates = min(every - step % every, config.updates - step)
            started = time.perf_counter()
            state, metrics = jax.block_until_ready(run_updates(state, updates))
            elapsed = time.perf_counter() - started
            values = named_scalars(jax.device_get(metrics), grid.values)
            episodes = updates * config.batch_size * config.seeds
            values["charts/SPS"] = np.full(updates, episodes / elapsed)
            scalars.write(values, step)
            step += updates
            save_state(checkpoints, step, state, replace=True)
            mean_return = values["charts/episodic_return"][:, -1].mean()
            bar.set_postfix({"return": f"{mean_return:.3f}"}, refresh=False)
            bar.update(updates)
    return state


def _initial_state(
    config: PPOConfig, env: TableEnv | LiveEnv, grid: GateGrid, seed: int
) -> LearnerState:
    """Return the untrained state of all seeds."""
    choices, dims = len(grid.values), grid.num_gate_dims
    observations = env.prompts.observations if isinstance(env, LiveEnv) else env.observations
    num_cells = len(observations) * choices**dims
    if isinstance(env, LiveEnv):
        num_cells = min(num_cells, MAX_CELL_NUMBERS)
    key = jax.random.fold_in(jax.random.key(seed), hash_text("ppo"))
    return learner.init_seeds(
        config, observations.shape[1], (choices,) * dims, key, num_cells=num_cells
    )


def _batch_sharding(config: PPOConfig, mesh: Mesh | None) -> NamedSharding | None:
    """Return the sharding of minibatches over replicas, where these divide them evenly."""
    if mesh is None or config.batch_size // config.minibatches % mesh.shape["data"]:
        return None
    return NamedSharding(mesh, PartitionSpec("data"))


def _table_updates(config: PPOConfig, env: TableEnv, sharding: NamedSharding | None) -> Updates:
    """Return updates of all seeds over a table, as one program for each number of updates."""
    programs: dict[int, Callable[..., Any]] = {}

    def run_updates(state: LearnerState, updates: int) -> tuple[LearnerState, Metrics]:
        if updates not in programs:
            programs[updates] = compilation.compile_train(config, updates, sharding=sharding)
        return programs[updates](env, state)

    return run_updates


def _live_updates(config: PPOConfig, env: LiveEnv, sharding: NamedSharding | None) -> Updates:
    """Return updates of all seeds over a model: the cells of all seeds are generated together."""
    choices = len(env.data.gates)
    decide = compilation.compile_decide(config, sharding=sharding)
    update = compilation.compile_update(config, sharding=sharding)

    def run_updates(state: LearnerState, updates: int) -> tuple[LearnerState, Metrics]:
        metrics_of_updates = []
        for _ in range(updates):
            decisions = decide(env.prompts, state)
            problems, actions = jax.device_get((decisions.states.problem, decisions.choices))
            rewards = env.rewards(problems, actions)
            numbers = number_cells(problems, actions, choices)
            state, metrics = update(state, add_rewards(decisions, rewards, numbers))
            metrics_of_updates.append(metrics)
        stack = jax.tree.map(lambda *leaves: jnp.stack(leaves, axis=1), *metrics_of_updates)
        return state, stack

    return run_updates


def correctness(
    decisions: Int[np.ndarray, "*seeds problems dims"],
    problems: Sequence[Problem],
    grid: GateGrid,
    backend: OutcomeBackend,
) -> Float[np.ndarray, "*seeds problems"]:
    """Return whether decisions solve problems.

    All seeds go together, so a cell that several of them choose is generated once.

    Args:
        decisions: Indices into the grid.
        problems: The problems.
        grid: The grid of gates.
        backend: Looks outcomes up, or generates them.
    """
    rows = decisions.reshape(-1, decisions.shape[-1])
    repeated = [*problems] * (len(rows) // len(problems))
    outcomes = backend.outcomes(repeated, grid.gates(rows))
    solved = np.array([outcome.correct for outcome in outcomes], np.float64)
    return solved.reshape(decisions.shape[:-1])
