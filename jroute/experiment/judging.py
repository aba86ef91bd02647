"""Judging a run: every arm from the outcome table, and the final ones by generating anew."""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, Int

from jroute.arms import controls, registry
from jroute.arms.columns import arm_values, gate_counts
from jroute.arms.resolve import table_columns
from jroute.arms.rl import decisions_of_seeds
from jroute.arms.supervised import Cells
from jroute.checkpoint import latest_step, save_state
from jroute.controller import networks
from jroute.distributed.processes import is_first_process
from jroute.experiment import estimate
from jroute.experiment.cost import Plan
from jroute.experiment.run import Run
from jroute.generate.sampling import hash_text
from jroute.observe.progress import progress_bar
from jroute.outcomes import generation
from jroute.outcomes.generation import Cell, generate
from jroute.routing.gate import Gate
from jroute.statistics.contrasts import paired_contrast
from jroute.statistics.headroom import headroom, sampled
from jroute.statistics.holm import holm
from jroute.statistics.intervals import accuracy
from jroute.statistics.results import arm_results, as_gain
from jroute.tasks import Split
from jroute.utils.errors import UserError
from jroute.utils.files import atomic_write, write_text
from jroute.utils.keys import stored

logger = logging.getLogger(__name__)

ITEMS = "items.parquet"
"""The gate every arm gave to every problem and what it scored, in the run folder."""


def features_of(run: Run, split: Split) -> Float[np.ndarray, "problems features"]:
    """What controllers see of a split's problems."""
    return run.featurizer(run.raw_features(split)).astype(np.float32)


def cells_of(run: Run, split: Split) -> Cells:
    """Features of a split's problems and what every gate pays on them."""
    return features_of(run, split), run.matrix(split, "reward")


def train_controls(run: Run) -> dict[str, Any]:
    """The control arms of a run, trained when they are first asked for; see ``fit_controls``.

    Raises:
        UserError: Training has not finished, or the run has no table.
    """
    e = run.experiment
    if e.rollouts != "table":
        raise UserError(
            f"{run.directory} learnt from live rollouts and has no table of all gates; the arms "
            "that need one (best_fixed, oracle, exact_gradient, …) do not exist there"
        )
    if latest_step(run.controls_folder) is None:
        fitted = controls.fit_controls(
            cells_of(run, "train"),
            cells_of(run, "validation"),
            run.controller["seeds"],
            ppo=e.ppo,
            supervised=e.supervised,
            key=jax.random.fold_in(jax.random.key(e.seed), hash_text("controls")),
        )
        save_state(run.controls_folder, 0, fitted)
    return run.controls


def columns_of(run: Run, split: Split) -> dict[str, Int[np.ndarray, "..."]]:
    """Which gate of the grid every arm gives to every problem of a split."""
    return table_columns(
        features_of(run, split), run.gate_values, run.controller, train_controls(run)
    )


def judge_split(run: Run, split: Split) -> tuple[dict[str, Any], pa.Table]:
    """The results of one split, and what every arm did with every problem."""
    config, columns = run.experiment.judge, columns_of(run, split)
    values = arm_values(run.matrix(split), columns)
    learnt: tuple[Split, ...] = ("train", "validation")
    best_fixed = int(run.controller["best_fixed"])
    sampling = {"replicates": config.replicates, "seed": config.seed}
    found = headroom(
        (features_of(run, split), run.matrix(split)),
        (
            np.concatenate([features_of(run, name) for name in learnt]),
            np.concatenate([run.matrix(name) for name in learnt]),
        ),
        best_fixed,
        folds=config.folds,
        **sampling,
    )
    floor = run.noise_floor
    results = arm_results(values, config, registry.roles(), found, floor and floor["correct"])
    samples = run.samples(split)
    if samples.shape[-1] > 1:
        told = sampled(samples, best_fixed, **sampling)
        results["headroom"]["samples"] = samples.shape[-1]
        results["headroom"] |= {name: as_gain(one) for name, one in told.items()}
    results["gates_chosen"] = gate_counts(columns, len(run.gate_values))
    results["items"] = digest(run, split)
    return results, _item_rows(run, split, values, columns)


def judge(run: Run) -> dict[str, Any]:
    """Judges every arm on the judged splits; writes ``results.json`` and ``items.parquet``."""
    e, controller = run.experiment, run.controller
    splits: dict[str, Any] = {}
    items = []
    for split in progress_bar(e.judged, "judge", unit="split", disable=not is_first_process()):
        splits[split], rows = judge_split(run, split)
        items.append(rows)
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
        "noise_floor": run.noise_floor,
        "generation": run.generation,
    }
    _write(run, results, items)
    logger.info("every arm judged on %s", ", ".join(run.experiment.judged))
    return results


def _write(run: Run, results: Mapping[str, Any], items: Sequence[pa.Table]) -> None:
    with atomic_write(run.directory / ITEMS) as partial:
        pq.write_table(pa.concat_tables(items), partial)
    write_text(run.directory / "results.json", json.dumps(results, indent=2) + "\n")


def digest(run: Run, split: Split) -> str:
    """Names the problems of a split: runs are compared only where it is the same."""
    told = [[p.id, p.question, str(p.answer)] for p in run.problems(split)]
    return hashlib.sha256(json.dumps(sorted(told)).encode()).hexdigest()


def _item_rows(
    run: Run,
    split: Split,
    values: Mapping[str, Float[np.ndarray, "..."]],
    columns: Mapping[str, Int[np.ndarray, "..."]],
) -> pa.Table:
    """One row for every arm, seed and problem; no gate where an arm is an expectation.

    Columns of the grid are ``[problems]`` or ``[seeds, problems]``, and with several parts of a
    decision ``[..., problems, parts]``.
    """
    ids, grid = [problem.id for problem in run.problems(split)], np.asarray(run.gate_values)
    names = ("split", "arm", "seed", "problem", "gate", "value")
    told: dict[str, list[Any]] = {name: [] for name in names}
    for arm, scored in values.items():
        seeds = np.atleast_2d(scored)
        several = () if run.num_gate_dims == 1 else (run.num_gate_dims,)
        gates = grid[columns[arm]].reshape(-1, *several).tolist() if arm in columns else None
        told["arm"] += [arm] * seeds.size
        told["seed"] += np.repeat(np.arange(len(seeds)), len(ids)).tolist()
        told["problem"] += ids * len(seeds)
        told["gate"] += gates or [None] * seeds.size
        told["value"] += seeds.ravel().tolist()
    told["split"] = [split] * len(told["arm"])
    kind = pa.float64() if run.num_gate_dims == 1 else pa.list_(pa.float64())
    return pa.table({**told, "gate": pa.array(told["gate"], kind)})


def gates_of(run: Run, arm: str, prompts: Sequence[str]) -> list[Gate]:
    """The gate a final arm gives to each prompt, from the prompt alone, features read anew."""
    fixed = registry.parse_arm(arm).gate
    if fixed is not None:
        return [fixed if run.num_gate_dims == 1 else (fixed,) * run.num_gate_dims] * len(prompts)
    if run.num_gate_dims > 1:
        observations = run.featurizer(run.read_features(prompts)).astype(np.float32)
        return run.gates_of(
            np.asarray(networks.act(run.controller["rl"], jnp.asarray(observations)))
        )
    if arm in registry.from_controls():
        train_controls(run)
    return run.gates(arm, prompts).tolist()


def final_arms(run: Run, names: Sequence[str] = ()) -> Sequence[str]:
    """The arms to generate anew: those named, or else all that the run has.

    Raises:
        UserError: An arm that cannot be generated.
    """
    live = run.experiment.rollouts == "live"
    final = registry.generable(live=live)
    grid = [] if live else [registry.fixed_name(gate) for gate in run.gate_values]
    if unknown := [name for name in names if name not in final and name not in grid]:
        raise UserError(f"arm {unknown[0]!r} cannot be generated; choose of {', '.join(final)}")
    return names or final


def plan_judge(run: Run) -> str:
    """What judging takes: cells that are missing, controls that are not trained."""
    wanted: dict[Split, list[Cell]]
    if run.experiment.rollouts == "live":
        wanted = {split: _live_cells(run, split) for split in run.experiment.judged}
        return str(estimate.plan_outcomes(run, wanted))
    splits = run.experiment.splits
    wanted = {split: generation.wanted(run, split) for split in splits}
    told = [str(estimate.plan_outcomes(run, wanted))]
    if latest_step(run.controls_folder) is None:
        told.append(f"controllers on random rewards are to be trained:\n{estimate.plan_ppo(run)}")
    return "\n".join(told)


def _live_cells(run: Run, split: Split) -> list[Cell]:
    """The different cells that judging a run with live rollouts asks for."""
    decided = decisions_of_seeds(run.controller["seeds"], features_of(run, split))
    fixed = [np.full(decided.shape[1:], run.gate_values.index(gate)) for gate in (0.0, 0.5)]
    asked = [run.gates_of(decisions) for decisions in (*decided, *fixed)]
    problems = run.problems(split)
    pairs = {(i, gate): None for gates in asked for i, gate in enumerate(gates)}
    return [Cell(problems[i], gate) for i, gate in pairs]


def plan_live(
    run: Run, split: Split, names: Sequence[str] = (), *, problems: int | None = None
) -> Plan:
    """What ``judge_live`` takes at most; arms that agree on a gate share its cell.

    Raises:
        UserError: An arm that cannot be generated.
    """
    names = final_arms(run, names)
    asked, e, mesh = run.problems(split)[:problems], run.experiment, run.lm.mesh
    each = min(len(names), len(run.gate_values)) if run.num_gate_dims == 1 else len(names)
    lengths = [len(run.lm.encode(run.render(problem.question))) for problem in asked]
    rows = np.repeat(np.arange(len(run.gate_values))[:, None], run.num_gate_dims, axis=1)
    grid = [Cell(problem, gate) for gate in run.gates_of(rows) for problem in asked]
    return Plan(
        cells={split: (each * len(asked), 0)},
        prompt_tokens=each * sum(lengths),
        limit=e.decoding.max_new_tokens,
        memory=estimate.memory(run, lengths),
        rate=estimate.known_rate(run) or estimate.trial(run, grid),
        devices=1 if mesh is None else mesh.size,
        gpu=jax.devices()[0].platform == "gpu",
    )


def judge_live(
    run: Run, split: Split, names: Sequence[str] = (), *, problems: int | None = None
) -> dict[str, Any]:
    """Generate arms anew, prompt to gate to completion, and compare them with what is stored.

    Args:
        run: A finished run.
        split: Of the problems.
        names: Arms, as ``final_arms`` takes them.
        problems: Only the first so many.

    Returns:
        ``arms`` (name -> accuracy now and in the table, with interval and ``n``), ``cells``
        generated, ``other_text`` and ``other_correct`` among them (problem and gate of each).

    Raises:
        UserError: An arm that cannot be generated.
    """
    names = final_arms(run, names)
    asked = run.problems(split)[:problems]
    prompts = run.prompts(split)[:problems]
    gates = {name: gates_of(run, name, prompts) for name in names}
    pairs = dict.fromkeys((i, gate) for column in gates.values() for i, gate in enumerate(column))
    wanted = sorted(pairs, key=lambda pair: np.ravel(pair[1]).tolist())
    made = generate(run, [Cell(asked[i], gate) for i, gate in wanted])
    now = dict(zip(wanted, made, strict=True))
    then = {pair: run.memo.outcome(asked[pair[0]].id, pair[1]) for pair in wanted}
    found: dict[str, Any] = {"split": split, "n": len(asked), "cells": len(wanted), "arms": {}}
    for name, column in gates.items():
        rows = list(enumerate(column))
        scored = accuracy([float(now[row].correct) for row in rows])
        before = float(np.mean([then[row].correct for row in rows]))
        found["arms"][name] = {**stored(scored), "in_table": before}
    for key, differs in (
        ("other_text", lambda pair: now[pair].completion != then[pair].completion),
        ("other_correct", lambda pair: now[pair].correct != then[pair].correct),
    ):
        found[key] = [[asked[i].id, gate] for i, gate in wanted if differs((i, gate))]
    return found


def correct_of(
    run: Run, split: Split, decisions: Int[np.ndarray, "seeds problems gate_dims"]
) -> Float[np.ndarray, "seeds problems"]:
    """Whether decisions solve the problems of a split: looked up, or generated with live rollouts.

    All seeds together, so what several of them decide is generated once.
    """
    seeds, count, _ = decisions.shape
    problems = run.problems(split) * seeds
    gates = run.gates_of(decisions.reshape(seeds * count, -1))
    found = run.backend(live=run.experiment.rollouts == "live").outcomes(problems, gates)
    return np.array([outcome.correct for outcome in found], np.float64).reshape(seeds, count)


def judge_without_table(run: Run) -> dict[str, Any]:
    """Judges RL against the baseline and gate 0.5, all generated; writes as ``judge`` does.

    The arms that need a table are named under ``not_available``.
    """
    e, controller = run.experiment, run.controller
    sampling: dict[str, Any] = {"replicates": e.judge.replicates, "seed": e.judge.seed}
    splits: dict[str, Any] = {}
    items = []
    for split in progress_bar(e.judged, "judge", unit="split", disable=not is_first_process()):
        decided = decisions_of_seeds(controller["seeds"], features_of(run, split))
        chosen = np.stack([(decided == i).sum(axis=1) for i in range(len(e.gates))], axis=-1)
        rl = correct_of(run, split, decided)
        columns = {"rl": decided, "rl_selected": decided[int(controller["selected"])]}
        scores = {"rl": rl, "rl_selected": rl[int(controller["selected"])]}
        for name, gate in (("baseline", 0.0), ("fixed:0.5", 0.5)):
            columns[name] = np.full(decided.shape[1:], e.gates.index(gate))
            scores[name] = correct_of(run, split, columns[name][None])[0]
        items.append(_item_rows(run, split, scores, columns))
        against = {
            name: paired_contrast(rl, scores[name], **sampling)
            for name in ("fixed:0.5", "baseline")
        }
        adjusted = holm([contrast.p for contrast in against.values()])
        splits[split] = {
            "n": rl.shape[1],
            "arms": {name: stored(accuracy(values, **sampling)) for name, values in scores.items()},
            "contrasts": [
                {"a": "rl", "b": name, **stored(contrast), "p_holm": p}
                for (name, contrast), p in zip(against.items(), adjusted, strict=True)
            ],
            "gates_chosen": {"rl": chosen.sum(axis=1).tolist()},  # [seeds, gates]
            "gates_chosen_by_part": {"rl": chosen.sum(axis=0).tolist()},  # [parts, gates]
            "not_available": registry.unavailable_live(),
            "items": digest(run, split),
        }
    primary = e.judged[0]
    results = {
        "split": primary,
        **splits[primary],
        "other_splits": {split: found for split, found in splits.items() if split != primary},
        "gates": list(e.gates),
        "gate_per": e.gate_per,
        "parts": run.num_gate_dims,
        "seeds": e.ppo.seeds,
        "selected_seed": int(controller["selected"]),
        "cells_generated": len(run.memo),
        "generation": run.generation,
        "rewards_sampled_by_each_rl_seed": e.ppo.updates * e.ppo.batch_size,
        "model": run.lm.fingerprint,
        "outcomes": run.memo.fingerprint,
        "training": run.training,
    }
    _write(run, results, items)
    logger.info("every arm judged on %s", ", ".join(run.experiment.judged))
    return results
