"""Judge every arm of a run from its outcome table, or generate the arms again and compare.

    python -m jroute.evaluate --run runs/demo --split test
    python -m jroute.evaluate --run runs/demo --split test --live [--problems 200] [--arms rl ...]
    python -m jroute.evaluate --run runs/demo [--live ...] --plan

The first writes ``results.json`` and ``items.parquet`` and prints the split. With ``--live``,
prompts are read, gates chosen, completions generated and answers parsed again; they must agree with
the table, except for no more cells than replicates flip (Fisher's exact test). The third prints
what it would take, and stops.
"""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jroute.utils.arguments import Parser, path, text, whole_number
from jroute.utils.cli import command, run_command
from jroute.utils.errors import UserError

if TYPE_CHECKING:
    from jroute.tasks import Split


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the command line's options.

    Raises:
        UserError: Options that do not belong together.
    """
    parser = Parser(
        prog="python -m jroute.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--run", required=True, type=path, help="run folder")
    parser.add_argument("--split", type=text, help="a judged split; by default all of them")
    parser.add_argument("--live", action="store_true", help="generate the arms again")
    first = "with --live: only the first N, at least 2 for an interval"
    parser.add_argument("--problems", type=whole_number(2), metavar="N", help=first)
    parser.add_argument("--arms", nargs="+", type=text, default=(), help="with --live: which arms")
    parser.add_argument("--plan", action="store_true", help="print what it would take, and stop")
    args = parser.parse_args(argv)
    if not args.live and (args.problems or args.arms):
        raise UserError("--problems and --arms belong to --live; the table judges all of them")
    return args


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Parse, judge, print."""
    args = parse_args(argv)
    from jroute.experiment import judging, plan, regeneration
    from jroute.experiment.run import load_run
    from jroute.report.text import results_text

    run = load_run(args.run)
    if not args.plan:
        run.folder.clean()
    judged = run.experiment.judged
    if args.split and args.split not in judged:
        raise UserError(f"split {args.split!r} is not judged in {args.run}: {', '.join(judged)}")
    splits: list[Split] = [split for split in judged if args.split in (None, split)]
    if args.plan and args.live:
        for split in splits:
            print(plan.plan_regeneration(run, split, args.arms, limit=args.problems), end="\n\n")
    elif args.plan:
        print(plan.plan_judging(run))
    elif args.live:
        for text in regeneration.regenerate_splits(run, splits, args.arms, limit=args.problems):
            print(text)
    else:
        results = judging.judge(run)
        for split in splits:
            part = results if split == results["split"] else results["other_splits"][split]
            print(f"{results_text(part, split)}\n")
        print(f"{run.folder.results}: arms, contrasts, verdict")
        print(f"{run.folder.items}: what every arm scored on every problem (Parquet)")


if __name__ == "__main__":
    run_command(main, "nothing was changed")
