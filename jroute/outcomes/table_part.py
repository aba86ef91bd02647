"""The part of an outcome table that one command fills, and a summary of it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from jroute.outcomes.cells import Cell, select_cells
from jroute.outcomes.table import OutcomeTable
from jroute.tasks import Problem, Split
from jroute.utils.errors import UserError


@dataclass(frozen=True)
class TablePart:
    """Options of ``python -m jroute.outcomes``: which part of the table to fill, and how.

    Attributes:
        split: Splits; empty takes all that the experiment uses.
        only_gates: Gates of the grid; empty takes all of them. ``--gates`` is the same here.
        problems: Only the first ``problems`` of each split; 0 takes all.
        samples: Samples of every problem and gate; several need a temperature.
        share: ``i/n`` takes every n-th problem from the i-th on, counted from 0.
        replicate: Cells to generate again afterwards, in another order and batch width.
        plan: Print the plan, and stop.
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
                raise UserError(f"{name} is {getattr(self, name)}; give {least} or more")
        if not 0 <= self.shares[0] < self.shares[1]:
            raise UserError(f"share is {self.share!r}; the shares of 4 are 0/4, 1/4, 2/4 and 3/4")

    @property
    def shares(self) -> tuple[int, int]:
        """Return the share as two numbers."""
        match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", self.share)
        if not match:
            raise UserError(f"share is {self.share!r:.60}; give i/n, like 0/4")
        return int(match[1]), int(match[2])

    def cells(self, problems: Sequence[Problem], gates: Sequence[float]) -> list[Cell]:
        """Return the cells of the part that belong to a split.

        Args:
            problems: The problems of the split.
            gates: The experiment's grid.
        """
        return select_cells(
            problems[: self.problems or None],
            list(dict.fromkeys(self.only_gates or gates)),
            samples=self.samples,
            share=self.shares,
        )

    def check(self, gates: Sequence[float], splits: Sequence[Split], *, temperature: float) -> None:
        """Refuse a part that the experiment does not have.

        Args:
            gates: The experiment's grid.
            splits: The experiment's splits.
            temperature: The experiment's temperature.

        Raises:
            UserError: A gate outside the grid, an unused split, several greedy samples.
        """
        if unknown := sorted(set(self.only_gates) - set(gates)):
            raise UserError(
                f"--gates names {unknown[0]:g}, which is not in the experiment's gates "
                f"{list(gates)}"
            )
        if unused := [split for split in self.split if split not in splits]:
            raise UserError(
                f"split {unused[0]!r} is not used by the experiment, which has "
                f"{', '.join(splits)}; name it in judged"
            )
        if self.samples > 1 and temperature == 0:
            raise UserError(
                f"samples is {self.samples}, but greedy decoding makes them identical; raise "
                "decoding.temperature"
            )


def list_arguments(argv: Sequence[str]) -> list[str]:
    """Add the brackets that lists may omit, and read ``--gates`` as gates of the grid."""
    options = [re.sub(r"^--gates(?==|$)", "--only_gates", word) for word in argv]
    words: list[str] = []
    for word in options:
        name, equals, text = word.partition("=")
        if words and words[-1] in ("--split", "--only_gates") and not word.startswith("["):
            word = f"[{word}]"
        elif name in ("--split", "--only_gates") and equals and not text.startswith("["):
            word = f"{name}=[{text}]"
        words.append(word)
    return words


def summarise(table: OutcomeTable, title: str, cells: Sequence[Cell]) -> str:
    """Return accuracy, truncation and length at every gate, one line each."""
    lines = [f"{title:12} {'n':>6} {'correct':>8} {'accuracy':>9} {'truncated':>10} {'tokens':>7}"]
    for gate in dict.fromkeys(cell.gate for cell in cells):
        outcomes = [
            table.outcome(cell.problem.id, gate, sample=cell.sample)
            for cell in cells
            if cell.gate == gate
        ]
        n = len(outcomes)
        correct = sum(outcome.correct for outcome in outcomes)
        truncated = sum(outcome.stop_reason == "length" for outcome in outcomes) / n
        tokens = sum(outcome.tokens for outcome in outcomes) / n
        lines.append(
            f"gate {gate:<7g} {n:>6} {correct:>8} {correct / n:>9.1%} {truncated:>10.1%} "
            f"{tokens:>7.1f}"
        )
    return "\n".join(lines)
