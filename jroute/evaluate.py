"""Judges every arm of a run, from its outcome table, or the final ones by generating anew.

    python -m jroute.evaluate --run runs/demo --split test
    python -m jroute.evaluate --run runs/demo --split test --live [--problems 200] [--arms rl ...]
    python -m jroute.evaluate --run runs/demo [--live ...] --plan

The first writes ``results.json`` and ``items.parquet`` and prints the split. With ``--live`` arms
are read, decided, generated and parsed again, problem by problem, and must agree with the table,
but for no more cells than replicates flip (Fisher's exact test). The third says what it would take.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jroute.utils.cli import command, run_command
from jroute.utils.errors import UserError

if TYPE_CHECKING:
    from jroute.tasks import Split


def show_live(found: Mapping[str, Any]) -> None:
    """Print accuracies now and in the table, and how many cells differ."""
    print(f"{found['split']}, generated anew: n = {found['n']} problems, {found['cells']} cells")
    print(f"{'arm':<20}{'now':>8}  95 % interval  {'in the table':>14}")
    for name, arm in found["arms"].items():
        low, high = arm["ci95"]
        print(
            f"{name:<20}{arm['accuracy']:>8.1%}  [{100 * low:.1f}, {100 * high:.1f}]"
            f"{arm['in_table']:>15.1%}"
        )
    print(
        f"{found['cells'] - len(found['other_text'])} of {found['cells']} cells agree in text, "
        f"{found['cells'] - len(found['other_correct'])} in correctness"
    )


def more_than_noise(differing: int, cells: int, flips: int, replicates: int) -> float:
    """Fisher's exact p that cells differ no more often than replicates flip."""
    from scipy import stats

    table = [[differing, cells - differing], [flips, replicates - flips]]
    found: Any = stats.fisher_exact(table, alternative="greater")
    return float(found.pvalue)


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Parse, judges, prints."""
    parser = argparse.ArgumentParser(
        prog="python -m jroute.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--run", required=True, type=Path, help="run folder")
    parser.add_argument("--split", help="a judged split; by default all of them")
    parser.add_argument("--live", action="store_true", help="generate the final arms anew")
    parser.add_argument("--problems", type=int, help="with --live: only the first so many")
    parser.add_argument("--arms", nargs="+", help="with --live: which arms")
    parser.add_argument("--plan", action="store_true", help="say what it would take, and stop")
    args = parser.parse_args(argv)
    if not args.live and (args.problems or args.arms):
        raise UserError("--problems and --arms belong to --live; the table judges all of them")
    if args.problems is not None and args.problems < 2:
        raise UserError(f"--problems is {args.problems}; an interval needs at least 2")
    from jroute.experiment import judging
    from jroute.experiment.run import load_run
    from jroute.report.text import results_text

    run = load_run(args.run)
    judged = run.experiment.judged
    if args.split and args.split not in judged:
        raise UserError(f"split {args.split!r} is not judged in {args.run}: {', '.join(judged)}")
    splits: list[Split] = [split for split in judged if not args.split or split == args.split]
    live: dict[str, Any] = {"names": args.arms or (), "problems": args.problems}
    if args.plan:
        plans = [judging.plan_live(run, split, **live) for split in splits if args.live]
        print(*(plans or [judging.plan_judge(run)]), sep="\n\n")
        return
    if not args.live:
        rollouts = run.experiment.rollouts
        results = (
            judging.judge(run) if rollouts == "table" else judging.judge_without_results_text(run)
        )
        for split in splits:
            found = results if split == results["split"] else results["other_splits"][split]
            print(f"{results_text(found, split)}\n")
        print(f"{args.run / 'results.json'}: arms, contrasts, verdict")
        print(f"{args.run / judging.ITEMS}: what every arm scored on every problem (Parquet)")
        return
    cells, differing = 0, []
    for split in splits:
        found = judging.judge_live(run, split, **live)
        show_live(found)
        cells, differing = cells + found["cells"], differing + found["other_text"]
    if not differing:
        return
    floor = run.noise_floor and run.noise_floor["text"]
    share = f"{len(differing)} of {cells} cells came out otherwise than in the table"
    if floor is None:
        raise UserError(
            f"{share}, e.g. {json.dumps(differing[0])} (problem, gate); measure the noise floor "
            "with python -m jroute.outcomes --replicate 200"
        )
    flips, replicates = floor["flips"], floor["n"]
    p = more_than_noise(len(differing), cells, flips, replicates)
    told = f"of the noise floor's replicates {flips} of {replicates} did (p = {p:.2g})"
    if p <= 0.05:
        raise UserError(f"{share}, e.g. {json.dumps(differing[0])} (problem, gate); {told}")
    print(f"{share}; {told}")


if __name__ == "__main__":
    run_command(main, "nothing was changed")
