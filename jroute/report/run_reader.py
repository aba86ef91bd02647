"""From the files of a run folder to what a report shows; no model is loaded for it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float

from jroute.controller.features import SCALARS, RawFeatures
from jroute.experiment.config import Experiment
from jroute.observe.scalars import read_curves
from jroute.report.report_data import Cell, ProblemRow, ReportData, SplitReport
from jroute.routing.gate import Gate
from jroute.tasks import Problem, Split, load_problems
from jroute.utils.config import load as load_config
from jroute.utils.errors import UserError

ITEMS = "items.parquet"
"""The gate every arm gave to every problem, where judging wrote it down."""

_COLUMNS = tuple(name for name in Cell.__dataclass_fields__ if name != "gate")

Choices = dict[str, Float[np.ndarray, "seeds problems parts"]]
"""Gates by arm; those without seeds have one."""


def read_run(directory: str | Path) -> ReportData:
    """Read a finished run.

    What is missing beside ``results.json`` leaves its place empty.

    Raises:
        UserError: There is no finished run in the folder.
    """
    directory = Path(directory)
    for name in ("config.yaml", "results.json"):
        if not (directory / name).is_file():
            raise UserError(
                f"{directory} has no {name}, so it is not a finished run; run python -m "
                "jroute.train with its config first"
            )
    experiment = load_config(Experiment, directory / "config.yaml")
    results = json.loads((directory / "results.json").read_text())
    named = {results["split"]: results, **results.get("other_splits", {})}
    curves, banded = read_curves(directory / "tensorboard")
    probe = directory / "probe" / "probe.json"
    return ReportData(
        name=directory.absolute().name,
        results=results,
        splits=tuple(
            _judged(directory, experiment, results, name, part) for name, part in named.items()
        ),
        curves=curves,
        banded=banded,
        batch=experiment.ppo.batch_size,
        probe=json.loads(probe.read_text()) if probe.is_file() else None,
        settings=(directory / "config.yaml").read_text(),
        decoding=vars(experiment.decoding),
    )


def _judged(
    directory: Path,
    experiment: Experiment,
    results: Mapping[str, Any],
    split: Split,
    part: Mapping[str, Any],
) -> SplitReport:
    try:
        problems = load_problems(experiment.task, split)
        folder = _table(directory, experiment, str(results.get("outcomes", "")))
        cells = _cells(folder)
        features, raw = _features(directory, split, len(problems))
        chosen = _recorded(directory, split, problems)
        if not chosen:
            chosen = _acted(directory, results, raw, experiment.gates)
        rows = _rows(problems, _prompts(directory, experiment, problems), features, cells, chosen)
    except UserError as error:
        return SplitReport(split, part, absent=f"The problems cannot be shown: {error}.")
    return SplitReport(split, part, rows, chosen["rl"])


def _rows(
    problems: Sequence[Problem],
    prompts: Sequence[str],
    features: Sequence[Mapping[str, float]],
    cells: Mapping[str, Mapping[Gate, Cell]],
    chosen: Choices,
) -> tuple[ProblemRow, ...]:
    alone = {name: gates[0].tolist() for name, gates in chosen.items() if len(gates) == 1}
    plain = (0.0,) * chosen["rl"].shape[-1]
    rows = []
    for i, problem in enumerate(problems):
        arms = {"baseline": plain} | {name: tuple(gates[i]) for name, gates in alone.items()}
        known = cells.get(problem.id, {})
        for gate in (plain, arms["rl_selected"]):
            if gate not in known:
                raise UserError(f"problem {problem.id} has no outcome at gate {gate}")
        order = sorted(known)
        base, rl = (order.index(gate) for gate in (plain, arms["rl_selected"]))
        found = tuple(known[gate] for gate in order)
        rows.append(ProblemRow(problem, prompts[i], features[i], found, base, rl, arms))
    return tuple(rows)


def _table(directory: Path, experiment: Experiment, fingerprint: str) -> Path:
    """The folder of the cells: in the run, or where several runs share their tables."""
    shared = Path(getattr(experiment, "outcomes", "") or directory)
    run, here = Path(experiment.run), directory.absolute()
    if here.parts[-len(run.parts) :] == run.parts:  # where the paths of the experiment start
        shared = Path(*here.parts[: -len(run.parts)]) / shared
    places = [directory / "outcomes", directory / "memo", shared]
    for place in places:
        if fingerprint and (place / fingerprint).is_dir():
            return place / fingerprint
    raise UserError(f"no outcome table {fingerprint[:16]} is in {places[0]}; train again")


def _cells(folder: Path) -> dict[str, dict[Gate, Cell]]:
    """First samples by problem and gate."""
    found: dict[str, dict[Gate, Cell]] = {}
    for part in sorted(folder.glob("part-*.parquet")):
        try:
            rows = pq.read_table(part, columns=["problem_id", "gate", "sample", *_COLUMNS])
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{part} cannot be read ({error})") from error
        for row in rows.to_pylist():
            gate = row["gate"]
            gate = tuple(gate) if isinstance(gate, list) else (gate,)
            if row["sample"] == 0:
                cell = Cell(gate, *(row[name] for name in _COLUMNS))
                found.setdefault(row["problem_id"], {})[gate] = cell
    return found


def _features(
    directory: Path, split: str, count: int
) -> tuple[list[dict[str, float]], RawFeatures]:
    """What was read of every prompt: by name, and as a controller takes it."""
    folder = directory / "features"
    files = [*folder.glob(f"{split}.npz"), *folder.glob(f"{split}-*.npz")]
    if not files:
        raise UserError(f"{folder} has no features of {split}, train again to have them made anew")
    newest = max(files, key=lambda file: file.stat().st_mtime_ns)
    with np.load(newest) as stored:
        raw = RawFeatures(stored["scalars"], stored["hidden"])
        names = list(map(str, stored["names"])) if "names" in stored.files else SCALARS
    if len(raw.scalars) != count:
        raise UserError(f"{newest} holds {len(raw.scalars)} problems, but the task has {count} now")
    return [dict(zip(names, row, strict=True)) for row in raw.scalars.tolist()], raw


def _recorded(directory: Path, split: str, problems: Sequence[Problem]) -> Choices:
    """Gates of every arm as judging wrote them down; nothing if it did not."""
    path = directory / ITEMS
    if not path.is_file():
        return {}
    items = pq.read_table(path, filters=[("split", "=", split)])
    places = {problem.id: i for i, problem in enumerate(problems)}
    if not places.keys() >= set(items["problem"].to_pylist()):
        raise UserError(f"{path} is of other problems; judge the run again")
    at = np.array([places[problem] for problem in items["problem"].to_pylist()], int)
    arms = np.array(items["arm"].to_pylist())
    seeds = np.array(items["seed"].to_pylist(), int)
    gates_told = [np.nan if gate is None else gate for gate in items["gate"].to_pylist()]
    values = np.array([np.ravel(gate) for gate in gates_told], float)  # [rows, parts]
    found: Choices = {}
    for arm in sorted(set(arms.tolist())):
        own = arms == arm
        if np.isnan(values[own]).any():
            continue  # an expectation
        shape = int(seeds[own].max()) + 1, len(problems), values.shape[1]
        gates = np.full(shape, np.nan)
        gates[seeds[own], at[own]] = values[own]
        if np.isnan(gates).any():
            raise UserError(f"{path} lacks problems; judge the run again")
        found[arm] = gates
    return found


def _acted(
    directory: Path, results: Mapping[str, Any], raw: RawFeatures, grid: Sequence[float]
) -> Choices:
    """Gates of every seed and of the deployed controller, asked anew."""
    import jax
    import jax.numpy as jnp

    from jroute.checkpoint import load_state
    from jroute.controller import networks
    from jroute.controller.features import Featurizer

    folder = directory / "controller" / str(results.get("training", ""))
    if not results.get("training") or not folder.is_dir():
        raise UserError(f"{folder} is missing, train again to have the controllers")
    tree = load_state(folder)[1]
    try:
        featurizer = Featurizer.of(tree["featurizer"])
    except KeyError as error:
        raise UserError(f"{folder} is of an older version (no {error}), train again") from error
    observations = jnp.asarray(featurizer(raw), jnp.float32)
    decided = jax.vmap(networks.act, in_axes=(0, None))(tree["seeds"], observations)
    gates = np.asarray(grid)[np.asarray(decided)]
    found = {"rl": gates, "rl_selected": gates[int(tree["selected"])][None]}
    if "best_fixed" in tree:
        found["best_fixed"] = np.full_like(gates[:1], grid[int(tree["best_fixed"])])
    return found


def _prompts(directory: Path, experiment: Experiment, problems: Sequence[Problem]) -> Sequence[str]:
    """Prompts as the model reads them; empty texts where its tokenizer is out of reach."""
    from jroute.tasks.prompts import render
    from jroute.tasks.tokenizer import load_tokenizer

    model = Path(experiment.model)
    for folder in (model, directory / model.name):
        try:
            tokenizer = load_tokenizer(folder)
        except UserError:
            continue
        return [render(problem.question, experiment.prompt, tokenizer) for problem in problems]
    return [""] * len(problems)
