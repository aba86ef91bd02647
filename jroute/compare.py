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
from jroute.utils.cli import command, run_command
from jroute.utils.errors import UserError


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, compare runs or samples, print and write the rows."""
    args = _parser().parse_args(argv)
    folders: list[Path] = args.runs
    if len(set(folders)) < 2 or len(set(folders)) != len(folders):
        raise UserError("give at least two different runs to compare")
    if args.replicates < 100:
        raise UserError(f"--replicates is {args.replicates}; an interval needs at least 100")
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m jroute.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add, rows = parser.add_argument, ", ".join([*registry.headline(), "gain"])
    add("runs", nargs="+", type=Path, metavar="RUN")
    add("--task", help="of lm-eval's samples, only those of this task")
    add("--split", help="by default the first run's primary split")
    add("--arms", nargs="+", help=f"by default those of {rows} that all runs have")
    add("--replicates", type=int, default=10_000)
    add("--seed", type=int, default=0)
    add("--report", type=Path, help="also write this JSON")
    return parser


def _holds_samples(path: Path) -> bool:
    """Return whether a path is a file, or a folder of lm-eval's results instead of a run."""
    if (path / "results.json").is_file():
        return False
    return path.is_file() or any(path.rglob("samples_*.jsonl"))


if __name__ == "__main__":
    run_command(main, "nothing was changed")
