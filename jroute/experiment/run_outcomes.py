"""The outcomes of a run: its tables, and the backends that look cells up or generate them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import Float

from jroute.controller.features import trunk_change
from jroute.experiment.config import Experiment
from jroute.experiment.learned_mixing import LearnedMixing
from jroute.experiment.run_folder import RunFolder
from jroute.experiment.task_data import TaskData
from jroute.lm import LanguageModel
from jroute.outcomes.backends import LiveBackend, OutcomeBackend, Shaping, TableBackend
from jroute.outcomes.cells import Cell
from jroute.outcomes.generation import CellGenerator
from jroute.outcomes.grid import GateGrid
from jroute.outcomes.outcome import Outcome
from jroute.outcomes.replicates import NoiseFloor
from jroute.outcomes.table import OutcomeTable
from jroute.routing.gate import Gate
from jroute.tasks import Problem, Split
from jroute.tasks.prompts import meaning
from jroute.utils.errors import UserError
from jroute.utils.fingerprint import semantic_fingerprint

Column = Literal["correct", "reward", "tokens"]


def describe_cells(
    experiment: Experiment, lm: LanguageModel, mixing: LearnedMixing
) -> dict[str, Any]:
    """Return everything that decides what a cell means; its fingerprint names the table."""
    e = experiment
    tokenizer = lm.tokenizer.backend_tokenizer.to_str()
    description = {
        "model": lm.fingerprint,
        "tokenizer": semantic_fingerprint({"tokenizer": tokenizer}),
        "chat_template": lm.tokenizer.chat_template if e.prompt.chat else "",
        "end_tokens": lm.end_token_ids,
        "routing": lm.routing.config,
        "dtype": str(jax.tree.leaves(lm.params)[0].dtype),
        "task": {"name": e.task.name, "seed": e.task.seed},  # ids name the problems of a task
        "prompt": meaning(e.prompt, lm.tokenizer),
        "decoding": e.decoding,
    }
    if e.decoding.temperature > 0:
        description["seed"] = e.seed
    if mixing.enabled:
        description["mixing"] = mixing.progress()[0].raw.tolist()
    return description


@dataclass(frozen=True, eq=False)
class RunOutcomes:
    """The outcome tables of a run.

    Attributes:
        experiment: The experiment.
        folder: The run folder.
        lm: The gated model.
        data: Problems and prompts.
        grid: The grid of gates.
        description: What decides the meaning of a cell (see ``describe_cells``).
    """

    experiment: Experiment
    folder: RunFolder
    lm: LanguageModel
    data: TaskData
    grid: GateGrid
    description: dict[str, Any]
    _changes: dict[tuple[str, Gate], float] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def table(self) -> OutcomeTable:
        """The outcome table, with one gate per prompt; rewards in it are exact match."""
        shared = self.experiment.outcomes
        root = self.folder.locate(shared) if shared else self.folder.path / "outcomes"
        return OutcomeTable(root, semantic_fingerprint(self.description), self.description)

    @cached_property
    def memo(self) -> OutcomeTable:
        """What live rollouts generated: the table itself, or that of gates per band or layer."""
        if self.grid.num_gate_dims == 1:
            return self.table
        description = {**self.description, "gate_per": self.experiment.gate_per}
        return OutcomeTable(
            self.folder.path / "memo",
            semantic_fingerprint(description),
            description,
            num_gate_dims=self.grid.num_gate_dims,
        )

    @cached_property
    def generator(self) -> CellGenerator:
        """What generates the cells of this run."""
        e = self.experiment
        return CellGenerator(
            lm=self.lm,
            render=self.data.render,
            grid=self.grid,
            decoding=e.decoding,
            engine=e.engine,
            seed=e.seed,
            # Gates of several dimensions hardly ever agree, so no two prompts share a prefix.
            shared_tokens=self.data.shared_tokens() if self.grid.num_gate_dims == 1 else 0,
        )

    def backend(self, *, live: bool = False) -> OutcomeBackend:
        """Return what gives outcomes, rewarded as the experiment says: the table, or the model."""
        shaping = Shaping(
            self.experiment.reward, self.experiment.decoding.max_new_tokens, self.trunk_changes
        )
        if not live:
            return TableBackend(self.memo, shaping)

        def generate(problems: Sequence[Problem], gates: Sequence[Gate]) -> list[Outcome]:
            cells = [Cell(*pair) for pair in zip(problems, gates, strict=True)]
            # Filed as they come, so that an interruption loses no more than a batch.
            return self.generator.generate(cells, on_outcomes=self.memo.append)

        return LiveBackend(generate, shaping, self.memo)

    def trunk_changes(
        self, problems: Sequence[Problem], gates: Sequence[Gate]
    ) -> Float[np.ndarray, " cells"]:
        """Return how far gates move the trunk, relative to its norm, over all mixing sites."""
        lm, known = self.lm, self._changes
        pairs = list(zip([problem.id for problem in problems], gates, strict=True))
        new = {pair: i for i, pair in enumerate(pairs) if pair not in known}
        if new:
            tokens = [lm.encode(self.data.render(problems[i].question)) for i in new.values()]
            layers = lm.routing.layer_gates(self.grid.array([gate for _, gate in new]), len(new))
            slots = self.experiment.engine.batch
            with lm.devices():
                changes = trunk_change(
                    lm.params, lm.config, tokens, lm.routing, layers, slots=slots
                )
            known.update(zip(new, changes.tolist(), strict=True))
        return np.array([known[pair] for pair in pairs])

    def outcome(self, split: Split, problem_id: str, gate: float) -> Outcome:
        """Return the outcome that training recorded for one cell.

        Raises:
            UserError: The split has no such problem.
            MissingOutcome: The cell was not generated.
        """
        if problem_id not in {problem.id for problem in self.data.problems(split)}:
            raise UserError(f"no problem {problem_id!r} in split {split!r} of {self.folder.path}")
        return self.table.outcome(problem_id, gate)

    def matrix(
        self, split: Split, column: Column = "correct"
    ) -> Float[np.ndarray, "problems gates"]:
        """Return a column of the table, problems down and gates across.

        ``reward`` is what the experiment pays, shaping included.

        Raises:
            MissingOutcome: A cell was not generated.
        """
        problems, gates = self.data.problems(split), self.grid.values
        if column != "reward":
            return self.table.matrix([problem.id for problem in problems], gates, column)
        pairs = [(problem, gate) for problem in problems for gate in gates]
        outcomes = self.backend().outcomes([p for p, _ in pairs], [gate for _, gate in pairs])
        rewards = np.array([outcome.reward for outcome in outcomes], np.float64)
        return rewards.reshape(len(problems), len(gates))

    def samples(
        self, split: Split, column: Column = "correct"
    ) -> Float[np.ndarray, "problems gates samples"]:
        """Return a column of all samples that every cell of the split has.

        Raises:
            MissingOutcome: A cell has none.
        """
        ids, gates = [problem.id for problem in self.data.problems(split)], self.grid.values
        columns: list[np.ndarray] = []
        while not columns or not any(self.table.missing(ids, gates, sample=len(columns))):
            columns.append(self.table.matrix(ids, gates, column, sample=len(columns)))
        return np.stack(columns, axis=-1)

    def noise_floor(self) -> dict[str, Any] | None:
        """Return how often replicates differ from their cells; ``None`` without replicates."""
        floor = NoiseFloor.of(self.table.replicates())
        return None if floor is None else floor.as_dict()

    def generation_cost(self) -> dict[str, dict[str, float]]:
        """Return what generating the memo's cells took, by machine.

        Returns:
            ``cells``, ``tokens`` and ``seconds`` of each kind of machine. Seconds are wall time,
            compilation included; those of several processes add up.
        """
        costs: dict[str, dict[str, float]] = {}
        for cell in self.memo.cells():
            if cell.made is None:
                continue
            cost = costs.setdefault(cell.made.machine, {"cells": 0, "tokens": 0, "seconds": 0.0})
            cost["cells"] += 1
            cost["tokens"] += cell.tokens
            cost["seconds"] += cell.made.seconds
        return costs
