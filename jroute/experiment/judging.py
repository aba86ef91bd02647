"""Judging a run: every arm on the judged splits, from its table or from live rollouts."""

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jroute.arms import registry
from jroute.arms.columns import arm_values, gate_counts
from jroute.arms.controls import fit_controls
from jroute.arms.registry import BEST_FIXED, SUBJECT
from jroute.arms.resolve import live_decisions, table_columns
from jroute.arms.supervised import Cells
from jroute.distributed.processes import is_first_process
from jroute.experiment.config import Experiment
from jroute.experiment.controllers import Controllers
from jroute.experiment.items import (
    Columns,
    Values,
    digest_problems,
    item_rows,
    write_results,
)
from jroute.experiment.run import Run
from jroute.experiment.run_outcomes import RunOutcomes
from jroute.experiment.task_data import TaskData
from jroute.experiment.training import correctness
from jroute.generate.sampling import hash_text
from jroute.observe.progress import progress_bar
from jroute.statistics.config import JudgeConfig
from jroute.statistics.contrasts import paired_contrast
from jroute.statistics.headroom import headroom, sampled
from jroute.statistics.holm import holm
from jroute.statistics.intervals import accuracy
from jroute.statistics.results import arm_results, as_gain
from jroute.tasks import Split
from jroute.utils.errors import UserError
from jroute.utils.keys import stored

logger = logging.getLogger(__name__)


class JudgedSplit(NamedTuple):
    """One judged split.

    Attributes:
        results: Its part of ``results.json``.
        values: What every arm scored on every problem.
        columns: Which gate of the grid every arm gave to every problem.
    """

    results: dict[str, Any]
    values: Values
    columns: Columns


def judge(run: Run) -> dict[str, Any]:
    """Judge every arm on the judged splits; write ``results.json`` and ``items.parquet``.

    No other process trains or judges in the run folder meanwhile.

    Runs with live rollouts judge RL against the baseline and gate 0.5, all generated; the arms that
    need a table are named under ``not_available``.

    Returns:
        The content of ``results.json``.

    Raises:
        UserError: Training has not finished; another process has the run folder.
    """
    with run.owned():
        return _judge(run)


def _judge(run: Run) -> dict[str, Any]:
    e, data = run.experiment, run.data
    live = e.rollouts == "live"
    controls = {} if live else train_controls(e, run.outcomes, run.controllers)
    splits: dict[str, dict[str, Any]] = {}
    items = []
    for split in progress_bar(e.judged, desc="judge", unit="split", disable=not is_first_process()):
        judged = (
            judge_live_split(split, data, run.outcomes, run.controllers, e.judge)
            if live
            else judge_table_split(split, data, run.outcomes, run.controllers, controls, e.judge)
        )
        splits[split] = judged.results
        items.append(
            item_rows(split, data.problems(split), run.grid, judged.values, judged.columns)
        )
    primary = e.judged[0]
    results = {
        "split": primary,
        **splits[primary],
        "other_splits": {name: part for name, part in splits.items() if name != primary},
        **(_describe_live_run(run) if live else _describe_table_run(run)),
    }
    written = write_results(run.folder, results, items)
    logger.info("every arm judged on %s", ", ".join(e.judged))
    return written


def _describe_table_run(run: Run) -> dict[str, Any]:
    """Return what the results of a run with a table say of the run."""
    e, trained, outcomes = run.experiment, run.controllers.trained, run.outcomes
    return {
        "gates": list(e.gates),
        "best_fixed_gate": e.gates[int(trained[BEST_FIXED])],
        "seeds": e.ppo.seeds,
        "selected_seed": int(trained["selected"]),
        "train_cells": len(run.data.problems("train")) * len(e.gates),
        "rewards_sampled_by_each_rl_seed": e.ppo.updates * e.ppo.batch_size,
        "model": run.lm.fingerprint,
        "outcomes": outcomes.table.fingerprint,
        "training": run.controllers.training,
        "noise_floor": outcomes.noise_floor(),
        "generation": outcomes.generation_cost(),
    }


def _describe_live_run(run: Run) -> dict[str, Any]:
    """Return what the results of a run with live rollouts say of the run."""
    e, outcomes = run.experiment, run.outcomes
    return {
        "gates": list(e.gates),
        "gate_per": e.gate_per,
        "parts": run.grid.num_gate_dims,
        "seeds": e.ppo.seeds,
        "selected_seed": int(run.controllers.trained["selected"]),
        "cells_generated": len(outcomes.memo),
        "generation": outcomes.generation_cost(),
        "rewards_sampled_by_each_rl_seed": e.ppo.updates * e.ppo.batch_size,
        "model": run.lm.fingerprint,
        "outcomes": outcomes.memo.fingerprint,
        "training": run.controllers.training,
    }


# A run with a table -------------------------------------------------------------------------------


def train_controls(
    experiment: Experiment, outcomes: RunOutcomes, controllers: Controllers
) -> dict[str, Any]:
    """Return the control arms of a run, training them the first time.

    Args:
        experiment: The experiment.
        outcomes: The outcomes of the run.
        controllers: What training left.

    Returns:
        See ``jroute.arms.controls.fit_controls``.

    Raises:
        UserError: Training has not finished, or the run has no table.
    """
    e = experiment
    if e.rollouts != "table":
        raise UserError(
            f"{controllers.folder.path} learned from live rollouts and has no table of all gates; "
            f"the arms that need one ({', '.join(registry.unavailable_live())}) do not exist there"
        )
    if not controllers.have_controls:
        controllers.save_controls(
            fit_controls(
                _rewards("train", outcomes, controllers),
                _rewards("validation", outcomes, controllers),
                controllers.trained["seeds"],
                ppo=e.ppo,
                supervised=e.supervised,
                key=jax.random.fold_in(jax.random.key(e.seed), hash_text("controls")),
            )
        )
    return controllers.controls


def _rewards(split: Split, outcomes: RunOutcomes, controllers: Controllers) -> Cells:
    """Return the features of a split's problems, and what every gate pays on them."""
    return controllers.observations(split), outcomes.matrix(split, "reward")


def judge_table_split(
    split: Split,
    data: TaskData,
    outcomes: RunOutcomes,
    controllers: Controllers,
    controls: Mapping[str, Any],
    config: JudgeConfig,
) -> JudgedSplit:
    """Judge every arm on one split of a run with a table.

    Args:
        split: The split.
        data: Problems and prompts.
        outcomes: The outcomes of the run.
        controllers: What training left.
        controls: The control arms; see ``train_controls``.
        config: Intervals and contrasts.
    """
    observations, trained = controllers.observations(split), controllers.trained
    grid = outcomes.grid.values
    columns = table_columns(observations, grid, trained, controls)
    values = arm_values(outcomes.matrix(split), columns)
    sampling = {"replicates": config.replicates, "seed": config.seed}
    best_fixed = int(trained[BEST_FIXED])
    split_headroom = headroom(
        (observations, outcomes.matrix(split)),
        _learned_cells(outcomes, controllers),
        best_fixed,
        folds=config.folds,
        **sampling,
    )
    floor = outcomes.noise_floor()
    results = arm_results(
        values, config, registry.roles(), split_headroom, floor and floor["correct"]
    )
    samples = outcomes.samples(split)
    if samples.shape[-1] > 1:
        gains = sampled(samples, best_fixed, **sampling)
        results["headroom"]["samples"] = samples.shape[-1]
        results["headroom"] |= {name: as_gain(gain) for name, gain in gains.items()}
    results["gates_chosen"] = gate_counts(columns, len(grid))
    results["items"] = digest_problems(data.problems(split))
    return JudgedSplit(results, values, columns)


def _learned_cells(outcomes: RunOutcomes, controllers: Controllers) -> Cells:
    """Return features and correctness of the problems that controllers learn from or choose on."""
    splits: tuple[Split, ...] = ("train", "validation")
    return (
        np.concatenate([controllers.observations(split) for split in splits]),
        np.concatenate([outcomes.matrix(split) for split in splits]),
    )


# A run with live rollouts -------------------------------------------------------------------------


def judge_live_split(
    split: Split,
    data: TaskData,
    outcomes: RunOutcomes,
    controllers: Controllers,
    config: JudgeConfig,
) -> JudgedSplit:
    """Judge RL against the baseline and gate 0.5 on one split, all of them generated.

    Args:
        split: The split.
        data: Problems and prompts.
        outcomes: The outcomes of the run.
        controllers: What training left.
        config: Intervals and contrasts.
    """
    problems, grid = data.problems(split), outcomes.grid
    backend = outcomes.backend(live=True)
    decisions = live_decisions(controllers.observations(split), grid.values, controllers.trained)
    values = {
        name: correctness(indices, problems, grid, backend) for name, indices in decisions.items()
    }
    counts = np.stack(
        [(decisions[SUBJECT] == i).sum(axis=1) for i in range(len(grid.values))], axis=-1
    )  # [seeds, dims, gates]
    results = {
        **_live_statistics(values, config),
        "gates_chosen": {SUBJECT: counts.sum(axis=1).tolist()},  # [seeds, gates]
        "gates_chosen_by_part": {SUBJECT: counts.sum(axis=0).tolist()},  # [dims, gates]
        "not_available": registry.unavailable_live(),
        "items": digest_problems(problems),
    }
    return JudgedSplit(results, values, decisions)


def _live_statistics(values: Values, config: JudgeConfig) -> dict[str, Any]:
    """Return accuracies, and RL's contrasts with the arms that need no table."""
    sampling: dict[str, Any] = {"replicates": config.replicates, "seed": config.seed}
    paired = {
        name: paired_contrast(values[SUBJECT], values[name], **sampling)
        for name in registry.DECLARED
        if name in values
    }
    adjusted = holm([contrast.p for contrast in paired.values()])
    return {
        "n": values[SUBJECT].shape[1],
        "arms": {name: stored(accuracy(scores, **sampling)) for name, scores in values.items()},
        "contrasts": [
            {"a": SUBJECT, "b": name, **stored(contrast), "p_holm": p}
            for (name, contrast), p in zip(paired.items(), adjusted, strict=True)
        ],
    }
