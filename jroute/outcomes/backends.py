"""Who can say what gates give on problems: a table, a model, or a model with a memory."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from jroute.outcomes.outcome import Outcome
from jroute.outcomes.table import OutcomeTable
from jroute.routing.gate import Gate
from jroute.tasks.answers import ParsedAnswer
from jroute.tasks.numbers import parse_number
from jroute.tasks.problem import Problem
from jroute.tasks.rewards import RewardConfig, reward


@runtime_checkable
class OutcomeBackend(Protocol):
    """Whoever can say what gates give on problems."""

    def outcomes(self, problems: Sequence[Problem], gates: Sequence[Any]) -> list[Outcome]:
        """The outcome of each problem under the gate at the same position."""
        ...


@dataclass(frozen=True)
class Shaping:
    """Pays what the experiment says for outcomes that only know whether they are right.

    Attributes:
        config: The amounts; all 0 pays exact match.
        max_tokens: The decoding's limit, which the length penalty is measured against.
        change: How far a gate moves the trunk of a problem's prompt, relative to its norm and on
            average over mixing sites; asked for only if there is a stability penalty.
    """

    config: RewardConfig
    max_tokens: int
    change: Callable[[Sequence[Problem], Sequence[Gate]], Float[np.ndarray, " cells"]] | None = None

    def __call__(self, problems: Sequence[Problem], outcomes: Sequence[Outcome]) -> list[Outcome]:
        """The same outcomes with the reward that is paid for them."""
        if self.config == RewardConfig():
            return list(outcomes)
        moved = np.zeros(len(outcomes))
        if self.config.stability_penalty:
            assert self.change is not None, "a stability penalty needs stream metrics"
            moved = self.change(problems, [outcome.gate for outcome in outcomes])
        pairs = zip(problems, outcomes, moved, strict=True)
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
    """Outcomes looked up in a table; a missing cell raises `MissingOutcome`.

    Attributes:
        table: Where they are looked up.
        shaping: What is paid for them; exact match if not given.
    """

    table: OutcomeTable
    shaping: Shaping | None = None

    def outcomes(self, problems: Sequence[Problem], gates: Sequence[Gate]) -> list[Outcome]:
        """The outcome of each problem under the gate at the same position."""
        found = [
            self.table.outcome(problem.id, gate)
            for problem, gate in zip(problems, gates, strict=True)
        ]
        return found if self.shaping is None else self.shaping(problems, found)


@dataclass(frozen=True)
class LiveBackend:
    """Outcomes generated and judged now.

    Attributes:
        generate: Problems and one gate for each, to one outcome for each.
        shaping: What is paid for them; exact match if not given.
        memo: If given, what was generated before is looked up there, and what is generated now is
            filed; a cell that is asked for twice at once is generated once.
    """

    generate: Callable[[Sequence[Problem], Sequence[Gate]], Sequence[Outcome]]
    shaping: Shaping | None = None
    memo: OutcomeTable | None = None

    def outcomes(self, problems: Sequence[Problem], gates: Sequence[Gate]) -> list[Outcome]:
        """The outcome of each problem under the gate at the same position."""
        if self.memo is None:
            pairs = zip(problems, self.generate(problems, gates), strict=True)
            found = [outcome for _, outcome in pairs]
        else:
            unknown = {
                (problem.id, gate): problem
                for problem, gate in zip(problems, gates, strict=True)
                if (problem.id, gate, 0) not in self.memo
            }
            if unknown:
                fresh = self.generate(list(unknown.values()), [gate for _, gate in unknown])
                self.memo.append(fresh)
            found = TableBackend(self.memo).outcomes(problems, gates)
        return found if self.shaping is None else self.shaping(problems, found)
