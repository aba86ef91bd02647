"""Puts runs side by side: the same arms on the same problems, paired.

    python -m jroute.compare runs/a runs/b [runs/c ...] [--arms rl best_fixed ...] [--split test]
    python -m jroute.compare runs/a/lm_eval/baseline runs/vllm [--task gsm8k_cot_llama]

Every run must have been judged (``python -m jroute.train`` or ``jroute.evaluate``) on the same
problems. Differences are to the first run; their p-values are adjusted together (Holm). ``gain`` is
RL minus the best fixed gate of the same run.

Two folders with samples of lm-eval (or two such files) are compared document by document: prompt,
text, answer and score, whatever backend made them.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jroute.utils.cli import command, run_command
from jroute.utils.errors import UserError
from jroute.utils.keys import stored

GAIN = "gain"
"""RL minus best fixed."""

ARMS = ("baseline", "best_fixed", "supervised_features", "rl", GAIN)
NEEDS = {GAIN: {"rl", "best_fixed"}}


def read(directory: Path, split: str | None) -> tuple[str, dict[str, Any], dict[str, np.ndarray]]:
    """A judged run: the split, its results, and ``[seeds, problems]`` of every arm, by problem id.

    Raises:
        UserError: The run was not judged, or not on that split.
    """
    import pyarrow.parquet as pq

    results_file, items_file = directory / "results.json", directory / "items.parquet"
    if not results_file.is_file() or not items_file.is_file():
        raise UserError(
            f"{directory} was not judged: run python -m jroute.evaluate --run {directory} first"
        )
    results = json.loads(results_file.read_text())
    split = split or results["split"]
    splits = {results["split"]: results, **results["other_splits"]}
    if split not in splits:
        raise UserError(f"{directory} was not judged on {split!r}, only on {', '.join(splits)}")
    rows = pq.read_table(items_file, filters=[("split", "==", split)]).to_pydict()
    arm, seed, problem = (np.asarray(rows[name]) for name in ("arm", "seed", "problem"))
    values, found = np.asarray(rows["value"], np.float64), {}
    for name in dict.fromkeys(rows["arm"]):
        here = arm == name
        order = np.lexsort((problem[here], seed[here]))
        found[name] = values[here][order].reshape(int(seed[here].max()) + 1, -1)
    return str(split), splits[split], found


def compare(
    runs: Mapping[str, Mapping[str, np.ndarray]],
    names: Sequence[str],
    *,
    replicates: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Accuracy of each arm in each run, and the difference to the first run.

    Args:
        runs: Run -> arm -> values of the same problems.
        names: Arms, or ``gain``.
        replicates: Bootstrap resamples.
        seed: Of the resampling.
    """
    from jroute.statistics.contrasts import linear_contrast
    from jroute.statistics.holm import holm
    from jroute.statistics.intervals import accuracy

    sampling = {"replicates": replicates, "seed": seed}
    first = next(iter(runs))

    def terms(run: str, name: str, sign: float) -> list[tuple[np.ndarray, float]]:
        if name == GAIN:
            return [(runs[run]["rl"], sign), (runs[run]["best_fixed"], -sign)]
        return [(runs[run][name], sign)]

    def contrast(parts: list[tuple[np.ndarray, float]]) -> dict[str, Any]:
        values, weights = zip(*parts, strict=True)
        return stored(linear_contrast(values, weights, **sampling))

    found = []
    for name in names:
        for run in runs:
            if missing := [arm for arm in ("rl", name) if arm not in (*runs[run], GAIN)]:
                raise UserError(f"{run} has no arm {missing[0]!r}; it has {', '.join(runs[run])}")
            row: dict[str, Any] = {"arm": name, "run": run}
            if name == GAIN:
                row["gain"] = contrast(terms(run, name, 1.0))
            else:
                row["accuracy"] = stored(
                    accuracy(runs[run][name], **sampling)  # type: ignore[arg-type]
                )
            if run != first:
                row["minus_first"] = contrast(terms(run, name, 1.0) + terms(first, name, -1.0))
            found.append(row)
    differences = [row["minus_first"] for row in found if "minus_first" in row]
    adjusted = holm([one["p"] for one in differences])
    for one, p in zip(differences, adjusted, strict=True):
        one["p_holm"] = p
    return found


def show(found: Sequence[Mapping[str, Any]], split: str, n: int) -> None:
    """Print the comparison."""
    wide = max(len(row["run"]) for row in found) + 2
    print(f"{split}: n = {n} problems, the same in all runs")
    print(f"{'arm':<20}{'run':<{wide}}{'value':>7}  {'95 % interval':<15}minus the first run")
    for row in found:
        value = row.get("gain") or row["accuracy"]
        mean = value.get("difference", value.get("accuracy"))
        low, high = (100 * end for end in value["ci95"])
        line = f"{row['arm']:<20}{row['run']:<{wide}}{100 * mean:>7.1f}  "
        line += f"{f'[{low:.1f}, {high:.1f}]':<15}"
        if "minus_first" in row:
            one = row["minus_first"]
            low, high = (100 * end for end in one["ci95"])
            line += f"{100 * one['difference']:+.1f} [{low:+.1f}, {high:+.1f}]"
            line += f"  p {one['p']:.2g} ({one['p_holm']:.2g})"
        print(line.rstrip())


def _holds_samples(where: Path) -> bool:
    """Whether a path is a file, or a folder of lm-eval's results instead of a run."""
    if (where / "results.json").is_file():
        return False
    return where.is_file() or any(where.rglob("samples_*.jsonl"))


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Parse, reads, compares, prints."""
    parser = argparse.ArgumentParser(
        prog="python -m jroute.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--task", help="of lm-eval's samples, only those of this task")
    parser.add_argument("--split", help="by default the first run's primary split")
    parser.add_argument(
        "--arms", nargs="+", help=f"by default those of {', '.join(ARMS)} that all runs have"
    )
    parser.add_argument("--replicates", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", type=Path, help="also write this JSON")
    args = parser.parse_args(argv)
    if len(set(args.runs)) < 2 or len(set(args.runs)) != len(args.runs):
        raise UserError("give at least two different runs to compare")
    if args.replicates < 100:
        raise UserError(f"--replicates is {args.replicates}; an interval needs at least 100")
    if len(args.runs) == 2 and all(map(_holds_samples, args.runs)):
        from jroute.harness import agreement

        found = agreement.compare_samples(args.runs[0], args.runs[1], args.task)
        print(agreement.table(found, (str(args.runs[0]), str(args.runs[1]))))
        return
    if absent := [run for run in args.runs if not run.exists()]:
        raise UserError(f"there is no folder {absent[0]}; give runs, or two folders of samples")
    for run in args.runs:
        if _holds_samples(run):
            raise UserError(f"{run} holds samples of lm-eval; give two such folders, and no run")
    split, runs, items, n = args.split, {}, {}, 0
    for directory in args.runs:
        split, results, runs[str(directory)] = read(directory, split)
        items[str(directory)], n = results["items"], results["n"]
    first = str(args.runs[0])
    for name, digest in items.items():
        if digest != items[first]:
            raise UserError(
                f"{name} and {first} were judged on other problems in {split!r}; runs are compared "
                "on the same ones only"
            )
    shared = set.intersection(*(set(arms) for arms in runs.values()))
    names = args.arms or [name for name in ARMS if NEEDS.get(name, {name}) <= shared]
    found = compare(runs, names, replicates=args.replicates, seed=args.seed)
    show(found, str(split), n)
    if args.report:
        from jroute.utils.files import write_text

        told = {"split": split, "n": n, "items": items[first], "rows": found}
        write_text(args.report, json.dumps(told, indent=2) + "\n")


if __name__ == "__main__":
    run_command(main, "nothing was changed")
