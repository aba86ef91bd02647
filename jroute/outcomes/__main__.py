"""Fills the outcome table of an experiment, or a part of it, and says how often it was right.

    python -m jroute.outcomes --config configs/qwen3_4b_gsm8k.yaml --split train,test
    python -m jroute.outcomes --config … --split test --gates 0 --problems 50
    python -m jroute.outcomes --config … --plan
    python -m jroute.outcomes --config … --share 0/4
    python -m jroute.outcomes --config … --split test --replicate 200

Cells that the table holds are not made again, so an interrupted command goes on where it stopped,
and training finds what was made here. The second line is a sanity check of the baseline, the third
says what the whole would take and stops. The fourth makes a quarter: give the others their own on
as many machines as there are; parts merge by lying in one folder. The last makes 200 cells once
more in another order and width, and says how many come out otherwise. Outcomes are data, and those
of a routing that does nothing are a control like any other: where training is refused, this warns.
On a mesh that needs several processes, start it with ``python -m jroute.launch`` or with ``srun``.
"""

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jroute.distributed.processes import is_first_process, join_processes
from jroute.experiment.config import Experiment
from jroute.tasks import Split
from jroute.utils.cli import command, run_command
from jroute.utils.config import parse
from jroute.utils.errors import UserError

if TYPE_CHECKING:
    from jroute.experiment.run import Run
    from jroute.outcomes.generation import Cell


@dataclass(frozen=True)
class Part:
    """Which part of the table to fill, and how.

    Attributes:
        split: Splits; empty takes all that the experiment uses.
        only_gates: Gates of the grid; empty takes all of them. ``--gates`` is the same here.
        problems: Only the first so many problems of each split; 0 takes all.
        samples: Samples of every problem and gate; several need a temperature.
        share: ``i/n`` takes every n-th problem from the i-th on, counted from 0.
        replicate: So many cells are made once more afterwards, in another order and width.
        plan: Say what it would take, and stop.
    """

    split: tuple[Split, ...] = ()
    only_gates: tuple[float, ...] = ()
    problems: int = 0
    samples: int = 1
    share: str = "0/1"
    replicate: int = 0
    plan: bool = False

    def __post_init__(self) -> None:
        for name, least in (("problems", 0), ("replicate", 0), ("samples", 1)):
            if getattr(self, name) < least:
                raise UserError(f"{name} is {getattr(self, name)}; give a number from {least} on")
        if not 0 <= self.shares[0] < self.shares[1]:
            raise UserError(f"share is {self.share!r}; the shares of 4 are 0/4, 1/4, 2/4 and 3/4")

    @property
    def shares(self) -> tuple[int, int]:
        """The share as two numbers."""
        found = re.fullmatch(r"(\d+)/(\d+)", self.share)
        if not found:
            raise UserError(f"share is {self.share!r}; give i/n, like 0/4")
        return int(found[1]), int(found[2])


def summarise(run: "Run", split: Split, some: "Sequence[Cell]") -> str:
    """Accuracy, truncation and length at every gate, one line each."""
    lines = [f"{split:12} {'n':>6} {'correct':>8} {'accuracy':>9} {'truncated':>10} {'tokens':>7}"]
    for gate in dict.fromkeys(cell.gate for cell in some):
        cells = [
            run.table.outcome(cell.problem.id, gate, sample=cell.sample)
            for cell in some
            if cell.gate == gate
        ]
        right = sum(cell.correct for cell in cells)
        truncated = sum(cell.stop_reason == "length" for cell in cells) / len(cells)
        tokens = sum(cell.tokens for cell in cells) / len(cells)
        lines.append(
            f"gate {gate:<7g} {len(cells):>6} {right:>8} {right / len(cells):>9.1%} "
            f"{truncated:>10.1%} {tokens:>7.1f}"
        )
    return "\n".join(lines)


def _lists(argv: Sequence[str]) -> list[str]:
    """Lets lists do without brackets, and ``--gates`` mean gates of the grid, not another grid."""
    named = [re.sub(r"^--gates(?==|$)", "--only_gates", word) for word in argv]
    words: list[str] = []
    for word in named:
        name, equals, text = word.partition("=")
        if words and words[-1] in ("--split", "--only_gates") and not word.startswith("["):
            word = f"[{word}]"
        elif name in ("--split", "--only_gates") and equals and not text.startswith("["):
            word = f"{name}=[{text}]"
        words.append(word)
    return words


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Parse, generates, prints."""
    experiment, part = parse(
        Experiment,
        _lists(sys.argv[1:] if argv is None else argv),
        prog="python -m jroute.outcomes",
        description=__doc__ or "",
        extra=Part,
    )
    if unknown := sorted(set(part.only_gates) - set(experiment.gates)):
        raise UserError(
            f"--gates names {unknown[0]:g}, which is not in the experiment's gates "
            f"{list(experiment.gates)}"
        )
    if unused := [split for split in part.split if split not in experiment.splits]:
        raise UserError(
            f"split {unused[0]!r} is not used by the experiment, which has "
            f"{', '.join(experiment.splits)}; name it in judged"
        )
    join_processes()
    from jroute.experiment.estimate import plan_outcomes
    from jroute.experiment.pipeline import inert, learn_mixing
    from jroute.experiment.run import Run
    from jroute.outcomes import generation
    from jroute.outcomes.generation import Cell

    run = Run.start(experiment, keep=not part.plan)
    if not part.plan:
        learn_mixing(run)
    wanted: dict[Split, list[Cell]] = {
        split: generation.wanted(
            run,
            split,
            gates=part.only_gates,
            problems=part.problems or None,
            samples=part.samples,
            share=part.shares,
        )
        for split in part.split or experiment.splits
    }
    if part.plan:
        plan = plan_outcomes(run, wanted)
        if is_first_process():
            print(plan)
        return
    asked = any(cell.gate for some in wanted.values() for cell in generation.missing(run, some))
    if asked and not experiment.allow_inert and (reason := inert(run)) and is_first_process():
        print(f"warning: {reason}; cells of all gates will be alike", file=sys.stderr)
    for split, some in wanted.items():
        made = generation.fill(run, some, f"outcomes {split}")
        if is_first_process():
            print(f"{summarise(run, split, some)}\n{made} cells made now\n")
    if part.replicate:
        every = [cell for some in wanted.values() for cell in some]
        floor = generation.replicate(run, every, part.replicate)
        if is_first_process():
            print(f"{floor}\n")
    if is_first_process():
        print(f"{run.table.folder}: outcome table (Parquet)")


if __name__ == "__main__":
    run_command(main, "give the same command again to go on from here")
