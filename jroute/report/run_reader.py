"""Read a run folder into the content of a report; it loads no model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from jroute.arms.registry import BASELINE, SELECTED, SUBJECT
from jroute.controller.features import RawFeatures
from jroute.experiment.config import Experiment
from jroute.experiment.feature_store import read_features
from jroute.experiment.items import read_items
from jroute.experiment.judged_grades import check_grades, find_table
from jroute.experiment.results_file import read_results
from jroute.experiment.run_folder import RunFolder
from jroute.observe.scalars import read_curves
from jroute.outcomes.outcome import Outcome
from jroute.outcomes.table import OutcomeTable
from jroute.probe.files import read_probe
from jroute.report.report_data import ProblemRow, ReportData, SplitReport
from jroute.routing.gate import Gate, as_gate, gate_text
from jroute.tasks import Problem, Split, TaskConfig, gold_answers, load_problems
from jroute.utils.config import load as load_config
from jroute.utils.errors import UserError

ArmGates = dict[str, Float[np.ndarray, "seeds problems gate_dims"]]
"""Gates by arm; an arm without seeds counts as one seed."""


def read_run(directory: str | Path) -> ReportData:
    """Read a finished run.

    If anything besides ``results.json`` is missing, its part of the report stays empty.

    Raises:
        UserError: The folder holds no finished run.
    """
    directory = Path(directory)
    folder = RunFolder(directory, directory)
    for file in (folder.config, folder.results):
        if not file.is_file():
            raise UserError(
                f"{directory} has no {file.name}, so it is not a finished run; run python -m "
                "jroute.train with its config first"
            )
    experiment = load_config(Experiment, folder.config)
    folder = RunFolder(directory, Path(experiment.run))
    results = read_results(folder.results)
    check_grades(folder, experiment, str(results.get("outcomes", "")))
    by_split = {results["split"]: results, **results.get("other_splits", {})}
    curves, curves_by_seed = read_curves(folder.curves)
    probe = directory / "probe" / "probe.json"
    return ReportData(
        name=directory.absolute().name,
        results=results,
        splits=tuple(
            _read_split(folder, experiment, results, split, part)
            for split, part in by_split.items()
        ),
        curves=curves,
        curves_by_seed=curves_by_seed,
        batch=experiment.ppo.batch_size,
        probe=read_probe(probe) if probe.exists() else None,
        config=folder.config.read_text("utf-8-sig"),
        decoding=experiment.decoding,
    )


def _read_split(
    folder: RunFolder,
    experiment: Experiment,
    results: Mapping[str, Any],
    split: Split,
    split_results: Mapping[str, Any],
) -> SplitReport:
    """Return one split; if its problems cannot be read, the reason instead of them."""
    try:
        problems = load_problems(experiment.task, split)
        table = find_table(folder, experiment, str(results.get("outcomes", "")))
        cells = _read_cells(table, experiment.task)
        features, raw = _read_features(folder, split, len(problems))
        arm_gates = _read_gates(folder, split, problems)
        if not arm_gates:
            arm_gates = _decide(folder, results, raw, experiment.gates)
        if missing := {SUBJECT, SELECTED} - arm_gates.keys():
            raise UserError(f"{folder.items} lacks {min(missing)}; judge the run again")
        prompts = _render_prompts(folder, experiment, problems)
        rows = _problem_rows(problems, prompts, features, cells, arm_gates)
    except UserError as error:
        return SplitReport(split, split_results, missing=f"The problems cannot be shown: {error}.")
    return SplitReport(split, split_results, rows, arm_gates[SUBJECT])


def _problem_rows(
    problems: Sequence[Problem],
    prompts: Sequence[str],
    features: Sequence[Mapping[str, float]],
    cells: Mapping[str, Mapping[Gate, Outcome]],
    arm_gates: ArmGates,
) -> tuple[ProblemRow, ...]:
    """Join each problem with its prompt, features, outcomes and gates.

    Raises:
        UserError: The plain model's cell or the deployed controller's is missing.
    """
    without_seeds = {name: gates[0] for name, gates in arm_gates.items() if len(gates) == 1}
    baseline = _gate(np.zeros(arm_gates[SUBJECT].shape[-1]))
    rows = []
    for i, problem in enumerate(problems):
        arms = {BASELINE: baseline}
        arms |= {name: _gate(gates[i]) for name, gates in without_seeds.items()}
        by_gate = cells.get(problem.id, {})
        for gate in (baseline, arms[SELECTED]):
            if gate not in by_gate:
                raise UserError(f"problem {problem.id} has no outcome at gate {gate_text(gate)}")
        gates = sorted(by_gate)
        rows.append(
            ProblemRow(
                problem=problem,
                prompt=prompts[i],
                features=features[i],
                cells=tuple(by_gate[gate] for gate in gates),
                base=gates.index(baseline),
                rl=gates.index(arms[SELECTED]),
                arms=arms,
            )
        )
    return tuple(rows)


def _gate(numbers: Float[np.ndarray, " gate_dims"]) -> Gate:
    """Return the gate of one prompt as tables name it: one number as a plain number."""
    return as_gate(numbers if len(numbers) > 1 else numbers[0])


# Outcomes and features --------------------------------------------------------------------------


def _read_cells(folder: Path, task: TaskConfig) -> dict[str, dict[Gate, Outcome]]:
    """Return the first sample of every cell, by problem and gate."""
    cells: dict[str, dict[Gate, Outcome]] = {}
    for outcome in OutcomeTable.open(folder, lambda: gold_answers(task)).cells():
        if outcome.sample == 0:
            cells.setdefault(outcome.problem_id, {})[outcome.gate] = outcome
    return cells


def _read_features(
    folder: RunFolder, split: str, count: int
) -> tuple[list[dict[str, float]], RawFeatures]:
    """Return the features of every prompt by name, and as a controller takes them.

    Raises:
        UserError: There are none, or they belong to another number of problems.
    """
    features = folder.features_folder
    files = [*features.glob(f"{split}.npz"), *features.glob(f"{split}-*.npz")]
    if not files:
        raise UserError(f"{features} has no features of {split}; train again to compute them")
    newest = max(files, key=lambda file: file.stat().st_mtime_ns)
    raw = read_features(newest, "remove it and train again to compute them")
    if len(raw.scalars) != count:
        raise UserError(f"{newest} holds {len(raw.scalars)} problems, but the task has {count} now")
    return [dict(zip(raw.names, row, strict=True)) for row in raw.scalars.tolist()], raw


# Gates of the arms ------------------------------------------------------------------------------


def _read_gates(folder: RunFolder, split: str, problems: Sequence[Problem]) -> ArmGates:
    """Return the gates of every arm as judging wrote them; empty if it did not.

    Raises:
        UserError: The file belongs to other problems, or lacks some.
    """
    path = folder.items
    if not path.is_file():
        return {}
    fields = ("arm", "seed", "problem", "gate")
    arm_names, seed_indices, ids, item_gates = read_items(path, split, fields)
    places = {problem.id: i for i, problem in enumerate(problems)}
    if not places.keys() >= set(ids):
        raise UserError(f"{path} belongs to other problems; judge the run again")
    columns = np.array([places[problem_id] for problem_id in ids], int)
    arms = np.array(arm_names)
    seeds = np.array(seed_indices, int)
    gates = [np.ravel(np.nan if gate is None else gate) for gate in item_gates]
    dims = max(map(len, gates), default=1)
    if not {len(gate) for gate in gates} <= {1, dims}:
        raise UserError(f"{path} has gates of different lengths; judge the run again")
    values = np.array([np.broadcast_to(gate, dims) for gate in gates], float)
    arm_gates: ArmGates = {}
    for arm in sorted(set(arms.tolist())):
        rows = arms == arm
        if np.isnan(values[rows]).any():
            continue  # an arm that is judged by its expectation has no gates
        shape = int(seeds[rows].max()) + 1, len(problems), dims
        if shape[0] * shape[1] != rows.sum():
            raise UserError(f"{path} lacks problems; judge the run again")
        chosen = np.full(shape, np.nan)
        chosen[seeds[rows], columns[rows]] = values[rows]
        if np.isnan(chosen).any():
            raise UserError(f"{path} lacks problems; judge the run again")
        arm_gates[arm] = chosen
    return arm_gates


def _decide(
    folder: RunFolder, results: Mapping[str, Any], raw: RawFeatures, grid: Sequence[float]
) -> ArmGates:
    """Recompute gates from the saved controllers, for runs whose judging wrote none.

    Raises:
        UserError: There are no controllers, or a version wrote them that cannot be read.
    """
    from jroute.arms.resolve import learned_decisions
    from jroute.checkpoint import load_state
    from jroute.controller.features import Featurizer

    controllers = folder.controllers(str(results.get("training", "")))
    if not results.get("training") or not controllers.is_dir():
        raise UserError(f"{controllers} is missing; train again to get the controllers")
    tree = load_state(controllers, remedy=f"delete {controllers} and train again")[1]
    try:
        featurizer = Featurizer.of(tree["featurizer"])
    except KeyError as error:
        raise UserError(
            f"{controllers} was written by an older version (no {error}); train again"
        ) from error
    gates = {
        name: np.asarray(grid, float)[decisions]
        for name, decisions in learned_decisions(featurizer(raw), tree).items()
    }
    return {
        name: arm_gates if name == SUBJECT else arm_gates[None] for name, arm_gates in gates.items()
    }


def _render_prompts(
    folder: RunFolder, experiment: Experiment, problems: Sequence[Problem]
) -> Sequence[str]:
    """Return the prompts as the model reads them; empty texts without its tokenizer."""
    from jroute.tasks.prompts import render
    from jroute.tasks.special_tokens import without_marks
    from jroute.tasks.tokenizer import load_tokenizer

    model = Path(experiment.model)
    for path in (model, folder.path / model.name):
        try:
            tokenizer = load_tokenizer(path)
        except UserError:
            continue
        return [
            without_marks(render(problem.question, experiment.prompt, tokenizer))
            for problem in problems
        ]
    return [""] * len(problems)
