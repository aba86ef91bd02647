"""Generation of cells: from (problem, gate, sample) through the engine to graded outcomes."""

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax

from jroute.distributed.processes import is_first_process
from jroute.generate.config import EngineConfig
from jroute.generate.decoding import Completion, Decoding
from jroute.generate.engine import Progress
from jroute.generate.finite import rows_named
from jroute.generate.sampling import hash_text
from jroute.lm import LanguageModel
from jroute.observe.progress import GenerationBar
from jroute.outcomes.cells import Cell, missing_cells
from jroute.outcomes.grid import GateGrid
from jroute.outcomes.outcome import Outcome, Provenance, grade
from jroute.outcomes.table import OutcomeTable
from jroute.utils.keys import stored
from jroute.utils.machine import describe_machine

MAX_CELLS_PER_PART = 64
"""Most cells in one part of the table, hence the most that a killed process loses."""

LIBRARIES = ("jroute", "jax", "jaxlib", "flax")
"""Libraries whose versions are stored with every cell."""


def cell_seed(problem_id: str, seed: int, sample: int = 0) -> int:
    """Return the sampling seed of a cell.

    It does not depend on the gate, so gates are compared under the same draws.
    """
    key = jax.random.fold_in(jax.random.key(seed), hash_text(problem_id))
    return int(jax.random.bits(jax.random.fold_in(key, sample) if sample else key)) >> 1


@dataclass(frozen=True, eq=False)
class CellGenerator:
    """Generates and grades cells of one experiment; rewards are exact match.

    Attributes:
        lm: The gated model.
        render: Turns a question into the prompt that the model reads.
        grid: The grid of gates, which knows how the model takes them.
        decoding: Decoding of every completion.
        engine: Execution shape.
        seed: Experiment seed, used if decoding samples.
        shared_tokens: Leading tokens that all prompts have in common.
    """

    lm: LanguageModel
    render: Callable[[str], str]
    grid: GateGrid
    decoding: Decoding
    engine: EngineConfig
    seed: int
    shared_tokens: int = 0

    def generate(
        self,
        cells: Sequence[Cell],
        *,
        on_outcomes: Callable[[list[Outcome]], None] | None = None,
        progress: Callable[[Progress], None] | None = None,
    ) -> list[Outcome]:
        """Generate and grade cells.

        Args:
            cells: The cells to generate.
            on_outcomes: Called with outcomes, about a batch at a time; also with those that were
                finished when generation ended by an exception or Ctrl-C.
            progress: Called with the engine's counts.

        Returns:
            One outcome per cell, in order.

        Raises:
            NotFiniteError: The logits of a cell are not finite.
        """
        if not cells:
            return []
        batch = _GradedBatch(self, cells, on_outcomes)
        questions = {cell.problem.id: cell.problem.question for cell in cells}
        tokens = {name: self.lm.encode(self.render(text)) for name, text in questions.items()}
        samples = self.decoding.temperature > 0
        try:
            with rows_named(lambda row: f"problem {cells[row].problem.id}"):
                self.lm.generate(
                    [tokens[cell.problem.id] for cell in cells],
                    self.grid.array([cell.gate for cell in cells]),
                    decoding=self.decoding,
                    engine=self.engine,
                    seed=[
                        cell_seed(cell.problem.id, self.seed, cell.sample) if samples else 0
                        for cell in cells
                    ],
                    shared=self.shared_tokens,
                    logprobs="raw",
                    finished=batch.grade,
                    progress=progress,
                )
        finally:
            batch.flush()
        return batch.outcomes()

    def fill(self, table: OutcomeTable, cells: Sequence[Cell], title: str) -> int:
        """Generate the cells that a table lacks and return their number."""
        missing = missing_cells(table, cells)
        table.restore_card()
        if missing:
            with GenerationBar(
                len(missing), title, "cell", quiet=not is_first_process()
            ) as progress:
                self.generate(missing, on_outcomes=table.append, progress=progress)
        return len(missing)

    def provenance(self) -> Provenance:
        """Return how this process generates cells; ``seconds`` is 0."""
        machine, mesh = describe_machine(), self.lm.mesh
        device = jax.devices()[0]
        kind = device.device_kind if device.platform != "cpu" else f"{machine['cpu']} (CPU)"
        sizes = [1, 1, 1] if mesh is None else list(mesh.devices.shape)
        execution = {**stored(self.engine), "mesh": sizes}
        versions = {name: machine["versions"].get(name, "") for name in LIBRARIES}
        return Provenance(
            execution=json.dumps(execution, sort_keys=True),
            versions=json.dumps(versions, sort_keys=True),
            machine=f"{1 if mesh is None else mesh.size} x {kind}",
            seconds=0.0,
        )


class _GradedBatch:
    """Outcomes of the cells that are being generated, handed on a part at a time."""

    def __init__(
        self,
        generator: CellGenerator,
        cells: Sequence[Cell],
        on_outcomes: Callable[[list[Outcome]], None] | None,
    ):
        self.cells = cells
        self.on_outcomes = on_outcomes
        self.max_tokens = generator.decoding.max_new_tokens
        self.part_size = min(MAX_CELLS_PER_PART, generator.engine.batch)
        self.provenance = generator.provenance()
        self.graded: dict[int, Outcome] = {}
        self.unfiled: list[Outcome] = []
        self.last = time.perf_counter()

    def grade(self, indices: list[int], completions: list[Completion]) -> None:
        """Grade completions; they share the time since the last ones evenly."""
        now = time.perf_counter()
        seconds = (now - self.last) / len(indices)
        made = dataclasses.replace(self.provenance, seconds=seconds)
        self.last = now
        for index, completion in zip(indices, completions, strict=True):
            problem, gate, sample = self.cells[index]
            self.graded[index] = grade(
                problem, gate, completion, max_tokens=self.max_tokens, sample=sample, made=made
            )
            self.unfiled.append(self.graded[index])
        if len(self.unfiled) >= self.part_size:
            self.flush()

    def flush(self) -> None:
        """Hand on the outcomes that are still pending."""
        outcomes, self.unfiled = self.unfiled, []
        if self.on_outcomes and outcomes:
            self.on_outcomes(outcomes)

    def outcomes(self) -> list[Outcome]:
        """Return the outcomes of all cells, in order."""
        return [self.graded[i] for i in range(len(self.cells))]
