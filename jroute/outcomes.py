"""Fills the outcome table of an experiment, or a part of it, and says how often it was right.

    python -m jroute.outcomes --config configs/qwen3_4b_gsm8k.yaml --split '[test]'
    python -m jroute.outcomes --config … --split '[test]' --only_gates '[0]' --problems 50

Cells that the table holds are not made again, so an interrupted command goes on where it stopped,
and training finds what was made here. The second line is a sanity check of the baseline. Outcomes
are data, and those of a routing that does nothing are a control like any other: where training is
refused, this warns. On a mesh that needs several processes, start it with ``python -m
jroute.launch`` or with ``srun``.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jroute import mesh
from jroute.config import parse
from jroute.door import door, enter
from jroute.errors import UserError
from jroute.experiment import Experiment
from jroute.tasks import Split

if TYPE_CHECKING:
    from jroute.run import Run


@dataclass(frozen=True)
class Part:
    """Which part of the table to fill.

    Attributes:
        split: Splits; empty takes all that the experiment uses.
        only_gates: Gates of the grid; empty takes all of them.
        problems: Only the first so many problems of each split; 0 takes all.
    """

    split: tuple[Split, ...] = ()
    only_gates: tuple[float, ...] = ()
    problems: int = 0


def summarise(run: "Run", split: Split, gates: Sequence[float], problems: int | None) -> str:
    """Accuracy, truncation and length at every gate, one line each."""
    lines = [f"{split:12} {'n':>6} {'correct':>8} {'accuracy':>9} {'truncated':>10} {'tokens':>7}"]
    ids = [problem.id for problem in run.problems(split)[:problems]]
    for gate in gates:
        cells = [run.table.outcome(problem_id, gate) for problem_id in ids]
        right = sum(cell.correct for cell in cells)
        truncated = sum(cell.stop_reason == "length" for cell in cells) / len(cells)
        tokens = sum(cell.tokens for cell in cells) / len(cells)
        lines.append(
            f"gate {gate:<7g} {len(cells):>6} {right:>8} {right / len(cells):>9.1%} "
            f"{truncated:>10.1%} {tokens:>7.1f}"
        )
    return "\n".join(lines)


@door
def main(argv: Sequence[str] | None = None) -> None:
    """Parses, generates, prints."""
    experiment, part = parse(
        Experiment, argv, prog="python -m jroute.outcomes", description=__doc__ or "", extra=Part
    )
    if part.problems < 0:
        raise UserError(f"problems is {part.problems}; give a positive number, or 0 for all")
    if unknown := sorted(set(part.only_gates) - set(experiment.gates)):
        raise UserError(
            f"only_gates holds {unknown[0]:g}, which is not in the experiment's gates "
            f"{list(experiment.gates)}"
        )
    if unused := [split for split in part.split if split not in experiment.splits]:
        raise UserError(
            f"split {unused[0]!r} is not used by the experiment, which has "
            f"{', '.join(experiment.splits)}; name it in judged"
        )
    mesh.start()
    from jroute.run import Run
    from jroute.stages import fill_outcomes, inert, learn_mixing

    run = Run.start(experiment)
    gates, first = part.only_gates or experiment.gates, part.problems or None
    if any(gates) and not experiment.allow_inert:
        learn_mixing(run)
        if (reason := inert(run)) and mesh.is_first():
            print(f"warning: {reason}; cells of all gates will be alike", file=sys.stderr)
    for split in part.split or experiment.splits:
        made = fill_outcomes(run, split, gates=gates, problems=first)
        if mesh.is_first():
            print(f"{summarise(run, split, gates, first)}\n{made} cells made now\n")
    if mesh.is_first():
        print(f"{run.table.folder}: outcome table (Parquet)")


if __name__ == "__main__":
    enter(main, "give the same command again to go on from here")
