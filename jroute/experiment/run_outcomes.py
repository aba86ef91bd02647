"""The outcomes of a run: its tables, and the backends that look cells up or generate them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import Float

from jroute.controller.features import trunk_change
from jroute.experiment.learned_mixing import LearnedMixing
from jroute.experiment.run_folder import RunFolder
from jroute.experiment.task_data import TaskData
from jroute.generate.decoding import Decoding
from jroute.generate.finite import rows_named
from jroute.lm import LanguageModel
from jroute.outcomes.backends import LiveBackend, OutcomeBackend, Shaping, TableBackend
from jroute.outcomes.cells import Cell, select_cells
from jroute.outcomes.generation import CellGenerator
from jroute.outcomes.grid import GateGrid, GatePer
from jroute.outcomes.outcome import Outcome
from jroute.outcomes.replicates import NoiseFloor
from jroute.outcomes.table import OutcomeTable
from jroute.routing.gate import Gate
from jroute.tasks import Problem, Split, TaskConfig, gold_answers
from jroute.tasks.prompts import PromptConfig, meaning
from jroute.tasks.rewards import RewardConfig
from jroute.utils.errors import UserError
from jroute.utils.fingerprint import semantic_fingerprint

Column = Literal["correct", "reward", "tokens"]


def describe_cells(
    lm: LanguageModel,
    mixing: LearnedMixing,
    task: TaskConfig,
    prompt: PromptConfig,
    decoding: Decoding,
    seed: int,
) -> dict[str, Any]:
    """Return everything that decides what a cell means; its fingerprint names the table."""
    tokenizer = lm.tokenizer.backend_tokenizer.to_str()
    description = {
        "model": lm.fingerprint,
        "tokenizer": semantic_fingerprint({"tokenizer": tokenizer}),
        "chat_template": lm.tokenizer.chat_template if prompt.chat else "",
        "end_tokens": lm.end_token_ids,
        "routing": lm.routing.config,
        "dtype": str(jax.tree.leaves(lm.params)[0].dtype),
        "task": {"name": task.name, "seed": task.seed},  # ids name the problems of a task
        "prompt": meaning(prompt, lm.tokenizer),
        "decoding": decoding,
    }
    if decoding.temperature > 0:
        description["seed"] = seed
    if mixing.enabled:
        description["mixing"] = mixing.progress()[0].raw.tolist()
    return description


@dataclass(frozen=True, eq=False)
class RunOutcomes:
    """The outcome tables of a run.

    Attributes:
        folder: The run folder.
        tables: Folder of outcome tables, which several runs may share.
        data: Problems and prompts.
        generator: Generates the cells of this run.
        reward: How completions are rewarded.
        gate_per: What one number of a gate holds for.
        description: What decides the meaning of a cell (see ``describe_cells``).
    """

    folder: RunFolder
    tables: Path
    data: TaskData
    generator: CellGenerator
    reward: RewardConfig
    gate_per: GatePer
    description: dict[str, Any]
    _changes: dict[tuple[str, Gate], float] = field(default_factory=dict, init=False, repr=False)

    @property
    def grid(self) -> GateGrid:
        """Return the grid of gates."""
        return self.generator.grid

    @cached_property
    def table(self) -> OutcomeTable:
        """The outcome table, with one gate per prompt; rewards in it are exact match."""
        return OutcomeTable(
            self.tables,
            semantic_fingerprint(self.description),
            self.description,
            answers=lambda: self.gold_answers,
        )

    @cached_property
    def memo(self) -> OutcomeTable:
        """What live rollouts generated: the table itself, or that of gates per band or layer."""
        if self.grid.num_gate_dims == 1:
            return self.table
        description = {**self.description, "gate_per": self.gate_per}
        return OutcomeTable(
            self.folder.memo,
            semantic_fingerprint(description),
            description,
            num_gate_dims=self.grid.num_gate_dims,
            answers=lambda: self.gold_answers,
        )

    @cached_property
    def gold_answers(self) -> dict[str, str]:
        """The gold answers of the task, by problem id."""
        return gold_answers(self.data.task)

    def changed_grades(self, *splits: Split) -> str:
        """Return a digest of the grades that stored parts of the memo hold otherwise.

        It is empty while there are none. It stands beside the fingerprint in the name of whatever
        is computed from the memo, so that nothing computed from earlier grades is taken for it.

        Args:
            *splits: The splits that are computed from.
        """
        ids = [problem.id for split in splits for problem in self.data.problems(split)]
        changed = self.memo.changed_grades(ids)
        return semantic_fingerprint({"grades": changed})[:16] if changed else ""

    def cells(self, split: Split) -> list[Cell]:
        """Return the cells of a split's table: every problem under every gate of the grid."""
        return select_cells(self.data.problems(split), self.grid.values)

    def backend(self, *, live: bool = False) -> OutcomeBackend:
        """Return what gives outcomes, rewarded as the experiment says: the table, or the model."""
        limit = self.generator.decoding.max_new_tokens
        shaping = Shaping(self.reward, limit, self.trunk_changes)
        if not live:
            return TableBackend(self.memo, shaping)
        return LiveBackend(self.generator.generate, shaping, self.memo)

    def trunk_changes(
        self, problems: Sequence[Problem], gates: Sequence[Gate]
    ) -> Float[np.ndarray, " cells"]:
        """Return how far gates move the trunk, relative to its norm, over all mixing sites."""
        lm, known = self.generator.lm, self._changes
        pairs = list(zip([problem.id for problem in problems], gates, strict=True))
        new = {pair: i for i, pair in enumerate(pairs) if pair not in known}
        if new:
            tokens = [lm.encode(self.data.render(problems[i].question)) for i in new.values()]
            layers = lm.routing.layer_gates(self.grid.array([gate for _, gate in new]), len(new))
            slots = self.generator.engine.batch
            named = list(new.values())
            with lm.devices(), rows_named(lambda row: f"problem {problems[named[row]].id}"):
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
