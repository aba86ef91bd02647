"""Judged runs side by side: the same arms on the same problems, paired."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pydantic

from jroute.arms import registry
from jroute.experiment.config import Experiment
from jroute.experiment.items import check_items, read_items
from jroute.experiment.judged_grades import check_grades
from jroute.experiment.run_folder import RunFolder
from jroute.statistics.contrasts import linear_contrast
from jroute.statistics.holm import holm
from jroute.statistics.intervals import accuracy
from jroute.utils.config import load as load_config
from jroute.utils.digested import read_digested
from jroute.utils.errors import UserError
from jroute.utils.json_files import Record
from jroute.utils.keys import stored
from jroute.utils.together import settled

GAIN = "gain"
"""Row of RL minus the best fixed gate, beside the arms."""

ArmValues = Mapping[str, np.ndarray]
"""Arm -> ``[seeds, problems]``, problems in the order of their ids."""


class ComparedSplit(NamedTuple):
    """A judged split of a run.

    Attributes:
        split: Name of the split.
        n: Number of its problems.
        items: Digest of its problems; runs are compared only where it is the same.
        values: What every arm scores.
    """

    split: str
    n: int
    items: str
    values: ArmValues


class _JudgedSplit(Record):
    """What is compared of a judged split in ``results.json``; see ``ComparedSplit``."""

    n: pydantic.PositiveInt
    items: str


class _Results(_JudgedSplit):
    """What is compared in ``results.json``: the primary split, and the others by name."""

    split: str
    outcomes: str = ""
    items_sha256: str = ""
    other_splits: dict[str, _JudgedSplit]


def read_judged(directory: Path, split: str | None) -> ComparedSplit:
    """Read a split of a judged run.

    Args:
        directory: The run folder.
        split: The split; by default the primary one.

    Raises:
        UserError: The run was not judged, or not on that split.
    """
    results_file, items_file = directory / "results.json", directory / "items.parquet"
    if not results_file.is_file() or not items_file.is_file():
        raise UserError(
            f"{directory} was not judged: run python -m jroute.evaluate --run {directory} first"
        )
    remedy = f"judge the run again with python -m jroute.evaluate --run {directory}"
    with settled(directory):
        results = read_digested(results_file, _Results, remedy)
        if (directory / "config.yaml").is_file():
            experiment = load_config(Experiment, directory / "config.yaml")
            folder = RunFolder(directory, Path(experiment.run))
            check_grades(folder, experiment, results.outcomes)
        split = split or results.split
        splits = {results.split: results, **results.other_splits}
        if split not in splits:
            raise UserError(f"{directory} was not judged on {split!r}, only on {', '.join(splits)}")
        check_items(items_file, results.items_sha256)
        items = read_items(items_file, split, ("arm", "seed", "problem", "value"))
    arms, seeds, problems, scores = map(np.asarray, items)
    values = {}
    for arm in dict.fromkeys(arms.tolist()):
        own = arms == arm
        order = np.lexsort((problems[own], seeds[own]))
        scored = int(seeds[own].max()) + 1, splits[split].n
        if own.sum() != scored[0] * scored[1] or not np.isfinite(scores[own]).all():
            raise UserError(f"{items_file} lacks scores of {arm} on {split!r}; {remedy}")
        values[arm] = scores[own][order].reshape(scored)
    if not values:
        raise UserError(f"{items_file} has no scores on {split!r}; {remedy}")
    return ComparedSplit(split, splits[split].n, splits[split].items, values)


def read_runs(directories: Sequence[Path], split: str | None) -> dict[str, ComparedSplit]:
    """Read the same split of several runs.

    Args:
        directories: Run folders.
        split: The split; by default the primary one of the first run.

    Raises:
        UserError: A run was not judged on the split, or on other problems than the first.
    """
    runs: dict[str, ComparedSplit] = {}
    for directory in directories:
        runs[str(directory)] = judged = read_judged(directory, split)
        split = judged.split
    first, *others = runs
    for name in others:
        if runs[name].items != runs[first].items:
            raise UserError(
                f"{name} and {first} were judged on different problems in {split!r}; only runs on "
                "the same problems can be compared"
            )
    return runs


def shared_rows(runs: Mapping[str, ArmValues]) -> list[str]:
    """Return the rows that all runs have, of those that are compared by default."""
    shared = set.intersection(*(set(values) for values in runs.values()))
    rows = [arm for arm in registry.headline() if arm in shared]
    return rows + ([GAIN] if {registry.SUBJECT, registry.BEST_FIXED} <= shared else [])


def compare_runs(
    runs: Mapping[str, ArmValues],
    names: Sequence[str],
    *,
    replicates: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Return the accuracy of each arm in each run, and the difference to the first run.

    Args:
        runs: Run -> arm -> values of the same problems.
        names: Arms, or ``gain``.
        replicates: Bootstrap resamples.
        seed: Seed of the resampling.

    Returns:
        One row for each arm and run: ``accuracy``, or ``gain`` in its place, and ``minus_first``,
        whose p-values are adjusted together (Holm).

    Raises:
        UserError: A run lacks an arm.
    """
    sampling = {"replicates": replicates, "seed": seed}
    first = next(iter(runs))

    def contrast(*terms: tuple[str, float], name: str) -> dict[str, Any]:
        weighted = [
            (values, sign * weight)
            for run, sign in terms
            for values, weight in _weighted(runs[run], name)
        ]
        values, weights = zip(*weighted, strict=True)
        return stored(linear_contrast(values, weights, **sampling))

    rows = []
    for name in names:
        for run in runs:
            _check_arms(run, runs[run], name)
            row: dict[str, Any] = {"arm": name, "run": run}
            if name == GAIN:
                row["gain"] = contrast((run, 1.0), name=name)
            else:
                row["accuracy"] = stored(accuracy(runs[run][name], **sampling))
            if run != first:
                row["minus_first"] = contrast((run, 1.0), (first, -1.0), name=name)
            rows.append(row)
    differences = [row["minus_first"] for row in rows if "minus_first" in row]
    adjusted = holm([difference["p"] for difference in differences])
    for difference, p in zip(differences, adjusted, strict=True):
        difference["p_holm"] = p
    return rows


def _weighted(values: ArmValues, name: str) -> list[tuple[np.ndarray, float]]:
    """Return the arms of a row with their weights."""
    if name == GAIN:
        return [(values[registry.SUBJECT], 1.0), (values[registry.BEST_FIXED], -1.0)]
    return [(values[name], 1.0)]


def _check_arms(run: str, values: ArmValues, name: str) -> None:
    needed = (registry.SUBJECT, registry.BEST_FIXED if name == GAIN else name)
    missing = [arm for arm in needed if arm not in values]
    if missing:
        raise UserError(f"{run} has no arm {missing[0]!r}; it has {', '.join(values)}")


def comparison_text(rows: Sequence[Mapping[str, Any]], split: str, n: int) -> str:
    """Return the rows of ``compare_runs`` as a table.

    Args:
        rows: The rows.
        split: Name of the split.
        n: Number of its problems.
    """
    width = max(len(row["run"]) for row in rows) + 2
    lines = [
        f"{split}: n = {n} problems, the same in all runs",
        f"{'arm':<20}{'run':<{width}}{'value':>7}  {'95 % interval':<15}minus the first run",
    ]
    for row in rows:
        value = row.get("gain") or row["accuracy"]
        mean = value.get("difference", value.get("accuracy"))
        low, high = (100 * end for end in value["ci95"])
        line = f"{row['arm']:<20}{row['run']:<{width}}{100 * mean:>7.1f}  "
        line += f"{f'[{low:.1f}, {high:.1f}]':<15}"
        if "minus_first" in row:
            difference = row["minus_first"]
            low, high = (100 * end for end in difference["ci95"])
            line += f"{100 * difference['difference']:+.1f} [{low:+.1f}, {high:+.1f}]"
            line += f"  p {difference['p']:.2g} ({difference['p_holm']:.2g})"
        lines.append(line.rstrip())
    return "\n".join(lines)
