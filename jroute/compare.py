"""Compare runs on the same arms and problems, paired.

    python -m jroute.compare runs/a runs/b [runs/c ...] [--arms rl best_fixed ...] [--split test]
    python -m jroute.compare runs/a/lm_eval/baseline runs/vllm [--task gsm8k_cot_llama]

Every run must have been judged (``python -m jroute.train`` or ``jroute.evaluate``) on the same
problems. Differences are to the first run; their p-values are adjusted together (Holm). ``gain`` is
RL minus the best fixed gate of the same run.

Two folders with samples of lm-eval (or two such files) are compared document by document: prompt,
text, answer and score, whatever backend generated them.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from jroute.arms import registry
from jroute.utils.arguments import Parser, path, text, whole_number
from jroute.utils.cli import command, run_command
from jroute.utils.errors import UserError
from jroute.utils.paths import output_file

MAX_REPLICATES = 10**7
"""Most bootstrap resamples; they are held in memory."""


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, compare runs or samples, print and write the rows."""
    args = _parser().parse_args(argv)
    folders: list[Path] = args.runs
    if len(set(folders)) < 2 or len(set(folders)) != len(folders):
        raise UserError("give at least two different runs to compare")
    if args.report:
        output_file(args.report, "--report")
    if len(folders) == 2 and all(map(_holds_samples, folders)):
        from jroute.harness import agreement

        samples = agreement.compare_samples(folders[0], folders[1], args.task)
        print(agreement.agreement_table(samples, (str(folders[0]), str(folders[1]))))
        return
    for folder in folders:
        if not folder.exists():
            raise UserError(f"there is no folder {folder}; give runs, or two folders of samples")
    for folder in folders:
        if _holds_samples(folder):
            raise UserError(f"{folder} holds samples of lm-eval; give two such folders and no runs")
    from jroute.experiment.comparison import compare_runs, comparison_text, read_runs, shared_rows
    from jroute.utils.files import write_json

    runs = read_runs(folders, args.split)
    first = runs[str(folders[0])]
    values = {name: run.values for name, run in runs.items()}
    names = args.arms or shared_rows(values)
    rows = compare_runs(values, names, replicates=args.replicates, seed=args.seed)
    print(comparison_text(rows, first.split, first.n))
    if args.report:
        report = {"split": first.split, "n": first.n, "items": first.items, "rows": rows}
        write_json(args.report, report)


def _parser() -> Parser:
    parser = Parser(
        prog="python -m jroute.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add, rows = parser.add_argument, ", ".join([*registry.headline(), "gain"])
    add("runs", nargs="+", type=path, metavar="RUN")
    add("--task", type=text, help="of lm-eval's samples, only those of this task")
    add("--split", type=text, help="by default the first run's primary split")
    add("--arms", nargs="+", type=text, help=f"by default those of {rows} that all runs have")
    add("--replicates", type=whole_number(100, MAX_REPLICATES), default=10_000)
    add("--seed", type=whole_number(0), default=0)
    add("--report", type=path, help="also write this JSON")
    return parser


def _holds_samples(path: Path) -> bool:
    """Return whether a path is a file, or a folder of lm-eval's results instead of a run."""
    if (path / "results.json").is_file():
        return False
    return path.is_file() or any(path.rglob("samples_*.jsonl"))


if __name__ == "__main__":
    run_command(main, "nothing was changed")
