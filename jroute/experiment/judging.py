"""Judging a run: every arm on the judged splits, from its table or from live rollouts."""

import logging
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from jroute.arms import controls, registry
from jroute.arms.columns import arm_values, gate_counts
from jroute.arms.resolve import table_columns
from jroute.arms.rl import decisions_of_seeds
from jroute.arms.supervised import Cells
from jroute.distributed.processes import is_first_process
from jroute.experiment.items import (
    Columns,
    Values,
    digest_problems,
    item_rows,
    write_items,
)
from jroute.experiment.run import Run
from jroute.experiment.training import seed_correctness
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
from jroute.utils.files import write_json
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

    Runs with live rollouts judge RL against the baseline and gate 0.5, all generated; the arms that
    need a table are named under ``not_available``.

    Returns:
        The content of ``results.json``.
    """
    live = run.experiment.rollouts == "live"
    judge_split = judge_live_split if live else judge_table_split
    splits: dict[str, dict[str, Any]] = {}
    items = []
    for split in progress_bar(
        run.experiment.judged, desc="judge", unit="split", disable=not is_first_process()
    ):
        judged = judge_split(run, split)
        splits[split] = judged.results
        items.append(
            item_rows(split, run.data.problems(split), run.grid, judged.values, judged.columns)
        )
    primary = run.experiment.judged[0]
    results = {
        "split": primary,
        **splits[primary],
        "other_splits": {name: part for name, part in splits.items() if name != primary},
        **(_describe_live_run(run) if live else _describe_table_run(run)),
    }
    write_items(run.folder, items)
    write_json(run.folder.results, results)
    logger.info("every arm judged on %s", ", ".join(run.experiment.judged))
    return results


def _describe_table_run(run: Run) -> dict[str, Any]:
    """Return what the results of a run with a table say of the run."""
    e, trained, outcomes = run.experiment, run.controllers.trained, run.outcomes
    return {
        "gates": list(e.gates),
        "best_fixed_gate": e.gates[int(trained["best_fixed"])],
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


def train_controls(run: Run) -> dict[str, Any]:
    """Return the control arms of a run, training them the first time.

    Returns:
        See ``jroute.arms.controls.fit_controls``.

    Raises:
        UserError: Training has not finished, or the run has no table.
    """
    e, controllers = run.experiment, run.controllers
    if e.rollouts != "table":
        raise UserError(
            f"{run.directory} learned from live rollouts and has no table of all gates; the arms "
            "that need one (best_fixed, oracle, exact_gradient, …) do not exist there"
        )
    if not controllers.have_controls:
        controllers.save_controls(
            controls.fit_controls(
                _rewards(run, "train"),
                _rewards(run, "validation"),
                controllers.trained["seeds"],
                ppo=e.ppo,
                supervised=e.supervised,
                key=jax.random.fold_in(jax.random.key(e.seed), hash_text("controls")),
            )
        )
    return controllers.controls


def _rewards(run: Run, split: Split) -> Cells:
    """Return the features of a split's problems, and what every gate pays on them."""
    return run.controllers.observations(split), run.outcomes.matrix(split, "reward")


def judge_table_split(run: Run, split: Split) -> JudgedSplit:
    """Judge every arm on one split of a run with a table."""
    config = run.experiment.judge
    observations, trained = run.controllers.observations(split), run.controllers.trained
    columns = table_columns(observations, run.grid.values, trained, train_controls(run))
    values = arm_values(run.outcomes.matrix(split), columns)
    sampling = {"replicates": config.replicates, "seed": config.seed}
    best_fixed = int(trained["best_fixed"])
    split_headroom = headroom(
        (observations, run.outcomes.matrix(split)),
        _learned_cells(run),
        best_fixed,
        folds=config.folds,
        **sampling,
    )
    floor = run.outcomes.noise_floor()
    results = arm_results(
        values, config, registry.roles(), split_headroom, floor and floor["correct"]
    )
    samples = run.outcomes.samples(split)
    if samples.shape[-1] > 1:
        gains = sampled(samples, best_fixed, **sampling)
        results["headroom"]["samples"] = samples.shape[-1]
        results["headroom"] |= {name: as_gain(gain) for name, gain in gains.items()}
    results["gates_chosen"] = gate_counts(columns, len(run.grid.values))
    results["items"] = digest_problems(run.data.problems(split))
    return JudgedSplit(results, values, columns)


def _learned_cells(run: Run) -> tuple[Float[np.ndarray, "_ _"], Float[np.ndarray, "_ _"]]:
    """Return features and correctness of the problems that controllers learn from or choose on."""
    splits: tuple[Split, ...] = ("train", "validation")
    return (
        np.concatenate([run.controllers.observations(split) for split in splits]),
        np.concatenate([run.outcomes.matrix(split) for split in splits]),
    )


# A run with live rollouts -------------------------------------------------------------------------


def judge_live_split(run: Run, split: Split) -> JudgedSplit:
    """Judge RL against the baseline and gate 0.5 on one split, all of them generated."""
    choices = decisions_of_seeds(
        run.controllers.trained["seeds"], run.controllers.observations(split)
    )
    selected = int(run.controllers.trained["selected"])
    problems, grid = run.data.problems(split), run.grid
    backend = run.outcomes.backend(live=True)
    correct = seed_correctness(choices, problems, grid, backend)
    columns = {"rl": choices, "rl_selected": choices[selected]}
    values = {"rl": correct, "rl_selected": correct[selected]}
    for name, gate in (("baseline", 0.0), ("fixed:0.5", 0.5)):
        columns[name] = np.full(choices.shape[1:], grid.values.index(gate))
        values[name] = seed_correctness(columns[name][None], problems, grid, backend)[0]
    counts = np.stack(
        [(choices == i).sum(axis=1) for i in range(len(grid.values))], axis=-1
    )  # [seeds, dims, gates]
    results = {
        **_live_statistics(values, run.experiment.judge),
        "gates_chosen": {"rl": counts.sum(axis=1).tolist()},  # [seeds, gates]
        "gates_chosen_by_part": {"rl": counts.sum(axis=0).tolist()},  # [dims, gates]
        "not_available": registry.unavailable_live(),
        "items": digest_problems(problems),
    }
    return JudgedSplit(results, values, columns)


def _live_statistics(values: Values, config: JudgeConfig) -> dict[str, Any]:
    """Return accuracies, and RL's contrasts with the arms that need no table."""
    sampling: dict[str, Any] = {"replicates": config.replicates, "seed": config.seed}
    paired = {
        name: paired_contrast(values["rl"], values[name], **sampling)
        for name in ("fixed:0.5", "baseline")
    }
    adjusted = holm([contrast.p for contrast in paired.values()])
    return {
        "n": values["rl"].shape[1],
        "arms": {name: stored(accuracy(scores, **sampling)) for name, scores in values.items()},
        "contrasts": [
            {"a": "rl", "b": name, **stored(contrast), "p_holm": p}
            for (name, contrast), p in zip(paired.items(), adjusted, strict=True)
        ],
    }
