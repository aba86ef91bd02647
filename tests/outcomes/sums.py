"""A little experiment without a model: sums, three gates, and a generator that is easily fooled."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pytest

from jroute.envs.data import EnvData
from jroute.outcomes.backends import LiveBackend, TableBackend
from jroute.outcomes.cells import Cell
from jroute.outcomes.outcome import Outcome, grade
from jroute.outcomes.table import OutcomeTable
from jroute.routing.gate import Gate
from jroute.tasks.problem import Problem
from jroute.utils.fingerprint import semantic_fingerprint

GATES = (0.0, 0.5, 1.0)


@dataclass(frozen=True)
class Text:
    """What an engine would return."""

    text: str
    tokens: tuple[int, ...]
    stop_reason: str


def _prompt(problem: Problem) -> str:
    return f"Q: {problem.question}\nA:"


class Generator:
    """Adds the two numbers of a prompt; gates that do not sum to the right one make it err."""

    def __init__(self) -> None:
        self.calls: list[list[tuple[str, Gate]]] = []

    def __call__(
        self,
        cells: Sequence[Cell],
        *,
        on_outcomes: Callable[[list[Outcome]], None] | None = None,
    ) -> list[Outcome]:
        self.calls.append([(_prompt(cell.problem), cell.gate) for cell in cells])
        answers = [self._answer(*pair) for pair in self.calls[-1]]
        outcomes = [
            grade(cell.problem, cell.gate, answer, max_tokens=64)
            for cell, answer in zip(cells, answers, strict=True)
        ]
        if on_outcomes:
            on_outcomes(outcomes)
        return outcomes

    def _answer(self, prompt: str, gate: Gate) -> Text:
        total = sum(int(number) for number in re.findall(r"\d+", prompt))
        right = GATES[total % len(GATES)] == float(np.sum(gate)) % 1.5
        text = f"So it is {total}.\n#### {total if right else total + 1}"
        return Text(text, tuple(range(total)), "end_token")


@pytest.fixture
def problems() -> list[Problem]:
    return [
        Problem(id=f"sums/test/{i}", question=f"What is {i} + 2?", answer=str(i + 2))
        for i in range(1, 8)
    ]


@pytest.fixture
def generator() -> Generator:
    return Generator()


@pytest.fixture
def live(generator: Generator) -> LiveBackend:
    return LiveBackend(generator)


@pytest.fixture
def table(tmp_path, problems, live) -> OutcomeTable:
    """Every cell, generated live."""
    description = {"model": "none", "gates": GATES}
    table = OutcomeTable(tmp_path / "outcomes", semantic_fingerprint(description), description)
    for gate in GATES:
        table.append(live.outcomes(problems, [gate] * len(problems)))
    return table


@pytest.fixture
def make_data(problems) -> Callable[..., EnvData]:
    """Environment data over any backend; a problem's features name it."""

    def make(backend, **changes) -> EnvData:
        count = len(problems)
        length = np.array([len(_prompt(problem)) for problem in problems])
        bucket = np.full(count, 16)  # constant on purpose
        row = np.arange(count)
        fields = {
            "problems": problems,
            "prompts": [_prompt(problem) for problem in problems],
            "observations": np.stack([length, bucket, row, -(row**2)], axis=1).astype(np.float32),
            "feature_names": ("prompt_length", "length_bucket", "row", "square"),
            "gates": GATES,
            "backend": backend,
        }
        return EnvData(**(fields | changes))

    return make


@pytest.fixture
def data(make_data, table) -> EnvData:
    return make_data(TableBackend(table))
