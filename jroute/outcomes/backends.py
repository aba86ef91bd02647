"""Backends that give outcomes: a table, a model, or a model with a memo."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from jroute.outcomes.cells import Cell
from jroute.outcomes.outcome import Outcome
from jroute.outcomes.table import OutcomeTable
from jroute.routing.gate import Gate
from jroute.tasks.answers import ParsedAnswer
from jroute.tasks.numbers import parse_number
from jroute.tasks.problem import Problem
from jroute.tasks.rewards import RewardConfig, reward


@runtime_checkable
class OutcomeBackend(Protocol):
    """Anything that gives the outcomes of problems under gates."""

    def outcomes(self, problems: Sequence[Problem], gates: Sequence[Any]) -> list[Outcome]:
        """Return the outcome of each problem under the gate at the same position."""
        ...


@runtime_checkable
class Generate(Protocol):
    """Anything that generates cells, as ``CellGenerator.generate`` does."""

    def __call__(
        self,
        cells: Sequence[Cell],
        *,
        on_outcomes: Callable[[list[Outcome]], None] | None = None,
    ) -> list[Outcome]:
        """Return one outcome per cell, in order; pass each to ``on_outcomes`` when it is made."""
        ...


@dataclass(frozen=True)
class Shaping:
    """Computes the experiment's reward of outcomes that record only correctness.

    Attributes:
        config: The amounts; all 0 pays exact match.
        max_tokens: The decoding's limit, which the length penalty is relative to.
        change: How far a gate moves the trunk of a problem's prompt, relative to its norm and on
            average over mixing sites; called only if there is a stability penalty.
    """

    config: RewardConfig
    max_tokens: int
    change: Callable[[Sequence[Problem], Sequence[Gate]], Float[np.ndarray, " cells"]] | None = None

    def __call__(self, problems: Sequence[Problem], outcomes: Sequence[Outcome]) -> list[Outcome]:
        """Return the outcomes with the reward that is paid for them."""
        if self.config == RewardConfig():
            return list(outcomes)
        changes = np.zeros(len(outcomes))
        if self.config.stability_penalty:
            assert self.change is not None, "a stability penalty needs stream metrics"
            changes = self.change(problems, [outcome.gate for outcome in outcomes])
        pairs = zip(problems, outcomes, changes, strict=True)
        return [
            dataclasses.replace(outcome, reward=self._paid(problem, outcome, float(change)))
            for problem, outcome, change in pairs
        ]

    def _paid(self, problem: Problem, outcome: Outcome, change: float) -> float:
        value = parse_number(outcome.parsed) if outcome.status == "ok" else None
        paid = reward(
            ParsedAnswer(outcome.status, value, outcome.parsed),  # type: ignore[arg-type]
            problem.answer,
            tokens=outcome.tokens,
            max_tokens=self.max_tokens,
            config=self.config,
        )
        return paid - self.config.stability_penalty * change


@dataclass(frozen=True)
class TableBackend:
    """Outcomes looked up in a table; a missing cell raises ``MissingOutcome``.

    Attributes:
        table: The table.
        shaping: The reward; exact match if not given.
    """

    table: OutcomeTable
    shaping: Shaping | None = None

    def outcomes(self, problems: Sequence[Problem], gates: Sequence[Gate]) -> list[Outcome]:
        """Return the outcome of each problem under the gate at the same position."""
        outcomes = [
            self.table.outcome(problem.id, gate)
            for problem, gate in zip(problems, gates, strict=True)
        ]
        return outcomes if self.shaping is None else self.shaping(problems, outcomes)


@dataclass(frozen=True)
class LiveBackend:
    """Outcomes that are generated when they are needed.

    Attributes:
        generate: Generates cells.
        shaping: The reward; exact match if not given.
        memo: A table that remembers outcomes: cells in it are not generated again, and a cell that
            is requested twice at once is generated once. Outcomes are filed as they come, so an
            interruption loses no more than a batch.
    """

    generate: Generate
    shaping: Shaping | None = None
    memo: OutcomeTable | None = None

    def outcomes(self, problems: Sequence[Problem], gates: Sequence[Gate]) -> list[Outcome]:
        """Return the outcome of each problem under the gate at the same position."""
        cells = [Cell(*pair) for pair in zip(problems, gates, strict=True)]
        if self.memo is None:
            pairs = zip(cells, self.generate(cells), strict=True)
            outcomes = [outcome for _, outcome in pairs]
        else:
            unknown = {cell.key: cell for cell in cells if cell.key not in self.memo}
            if unknown:
                self.generate(list(unknown.values()), on_outcomes=self.memo.append)
            outcomes = TableBackend(self.memo).outcomes(problems, gates)
        return outcomes if self.shaping is None else self.shaping(problems, outcomes)
