"""Regeneration of arms, from prompt to gate to completion, for comparison with the table."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from jroute.arms.registry import fixed_name, from_controls, generable, parse_arm
from jroute.arms.resolve import resolve
from jroute.experiment.config import Experiment
from jroute.experiment.judging import train_controls
from jroute.experiment.run import Run
from jroute.outcomes.cells import Cell
from jroute.outcomes.grid import GateGrid
from jroute.outcomes.outcome import Outcome
from jroute.routing.gate import Gate
from jroute.statistics.intervals import accuracy
from jroute.tasks import Problem, Split
from jroute.utils.errors import UserError
from jroute.utils.keys import stored

ProblemGate = tuple[int, Gate]
"""A problem's position in its split, and a gate."""


def regenerable_arms(
    experiment: Experiment, grid: GateGrid, names: Sequence[str] = ()
) -> Sequence[str]:
    """Return the arms to regenerate: those named, or else all that the run has.

    Args:
        experiment: The experiment.
        grid: The grid of gates.
        names: Arms as the user named them.

    Raises:
        UserError: An arm that cannot be generated.
    """
    live = experiment.rollouts == "live"
    arms = generable(live=live)
    fixed = [] if live else [fixed_name(gate) for gate in grid.values]
    if unknown := [name for name in names if name not in arms and name not in fixed]:
        raise UserError(f"arm {unknown[0]!r} cannot be generated; choose from {', '.join(arms)}")
    return names or arms


def regenerate_splits(
    run: Run, splits: Sequence[Split], names: Sequence[str] = (), *, limit: int | None = None
) -> Iterator[str]:
    """Regenerate arms of splits; yield each comparison, then a test against the noise floor.

    Args:
        run: A finished run.
        splits: Splits of the problems.
        names: Arms, as ``regenerable_arms`` takes them.
        limit: Only the first ``limit`` problems of each split.

    Raises:
        UserError: An arm that cannot be generated; more cells differ than replicates do.
    """
    cells, differing = 0, []
    for split in splits:
        results = regenerate(run, split, names, limit=limit)
        yield format_regeneration(results)
        cells, differing = cells + results["cells"], differing + results["other_text"]
    if differing:
        floor = run.outcomes.noise_floor()
        yield compare_with_noise(cells, differing, floor and floor["text"])


def regenerate(
    run: Run, split: Split, names: Sequence[str] = (), *, limit: int | None = None
) -> dict[str, Any]:
    """Regenerate arms and compare them with the table.

    Args:
        run: A finished run.
        split: The split of the problems.
        names: Arms, as ``regenerable_arms`` takes them.
        limit: Only the first ``limit`` problems.

    Returns:
        ``arms`` (name -> accuracy now and in the table, with interval and ``n``), the number of
        ``cells`` generated, and ``other_text`` and ``other_correct`` among them (problem and gate
        of each).

    Raises:
        UserError: An arm that cannot be generated.
    """
    names = regenerable_arms(run.experiment, run.grid, names)
    if not set(from_controls()).isdisjoint(names):
        train_controls(run.experiment, run.outcomes, run.controllers)
    problems, prompts = run.data.problems(split)[:limit], run.data.prompts(split)[:limit]
    inputs, grid = run.arm_inputs(), run.grid
    gates = {name: grid.keys(resolve(parse_arm(name), prompts, inputs)) for name in names}
    unique = dict.fromkeys(key for column in gates.values() for key in enumerate(column))
    keys = sorted(unique, key=lambda key: np.ravel(key[1]).tolist())
    outcomes = run.generator.generate([Cell(problems[i], gate) for i, gate in keys])
    regenerated = dict(zip(keys, outcomes, strict=True))
    recorded = {(i, gate): run.outcomes.memo.outcome(problems[i].id, gate) for i, gate in keys}
    arms = {}
    for name, column in gates.items():
        pairs = list(enumerate(column))
        interval = accuracy([float(regenerated[key].correct) for key in pairs])
        in_table = float(np.mean([recorded[key].correct for key in pairs]))
        arms[name] = {**stored(interval), "in_table": in_table}
    return {
        "split": split,
        "n": len(problems),
        "cells": len(keys),
        "arms": arms,
        "other_text": _differing(
            problems, regenerated, recorded, lambda outcome: outcome.completion
        ),
        "other_correct": _differing(
            problems, regenerated, recorded, lambda outcome: outcome.correct
        ),
    }


def _differing(
    problems: Sequence[Problem],
    regenerated: dict[ProblemGate, Outcome],
    recorded: dict[ProblemGate, Outcome],
    field: Callable[[Outcome], Any],
) -> list[list[Any]]:
    """Return problem id and gate of the cells whose ``field`` differs."""
    return [
        [problems[i].id, gate]
        for i, gate in regenerated
        if field(regenerated[i, gate]) != field(recorded[i, gate])
    ]


def format_regeneration(results: Mapping[str, Any]) -> str:
    """Return accuracies now and in the table, and how many cells agree, as text."""
    cells = results["cells"]
    lines = [
        f"{results['split']}, generated again: n = {results['n']} problems, {cells} cells",
        f"{'arm':<20}{'now':>8}  95 % interval  {'in the table':>14}",
    ]
    for name, arm in results["arms"].items():
        low, high = (100 * end for end in arm["ci95"])
        lines.append(
            f"{name:<20}{arm['accuracy']:>8.1%}  [{low:.1f}, {high:.1f}]{arm['in_table']:>15.1%}"
        )
    lines.append(
        f"{cells - len(results['other_text'])} of {cells} cells agree in text, "
        f"{cells - len(results['other_correct'])} in correctness"
    )
    return "\n".join(lines)


def compare_with_noise(
    cells: int, differing: Sequence[Any], text_floor: Mapping[str, Any] | None
) -> str:
    """Test whether regenerated cells differ more often than replicates.

    Args:
        cells: Cells that were generated again.
        differing: Problem and gate of those whose text differs; at least one.
        text_floor: The noise floor's ``flips`` of ``n`` replicates in text, if measured.

    Returns:
        A sentence.

    Raises:
        UserError: Cells differ more often than replicates do (Fisher's exact test at 5 %), or there
            are no replicates.
    """
    share = f"{len(differing)} of {cells} cells differ from the table"
    example = f"e.g. {json.dumps(differing[0])} (problem, gate)"
    if text_floor is None:
        raise UserError(
            f"{share}, {example}; measure the noise floor with python -m jroute.outcomes "
            "--replicate 200"
        )
    flips, replicates = text_floor["flips"], text_floor["n"]
    p = _fisher_p(len(differing), cells, flips, replicates)
    noise = f"of the noise floor's replicates {flips} of {replicates} did (p = {p:.2g})"
    if p <= 0.05:
        raise UserError(f"{share}, {example}; {noise}")
    return f"{share}; {noise}"


def _fisher_p(differing: int, cells: int, flips: int, replicates: int) -> float:
    """Return Fisher's exact p that cells differ no more often than replicates flip."""
    table = [[differing, cells - differing], [flips, replicates - flips]]
    test: Any = stats.fisher_exact(table, alternative="greater")
    return float(test.pvalue)
