"""The cells of an ablation: one small file for each routing and gate, and the table of them.

A cell's file is named by a hash of everything that determines the cell, and is written atomically.
So a killed command resumes where it stopped, equal routings share a cell, and so do all routings at
gate 0, where the routing does not matter.
"""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
import pydantic

from jroute.ablate.grid import Ablation, Variant, variants
from jroute.experiment.estimate import Estimate
from jroute.experiment.plan import devices_of, measure_rate, memory_use
from jroute.experiment.run import Run
from jroute.generate.finite import rows_named
from jroute.outcomes.cells import Cell
from jroute.outcomes.outcome import grade
from jroute.probe import effects
from jroute.statistics.intervals import accuracy
from jroute.tasks.answers import ANSWER_PARSER_VERSION
from jroute.utils.digested import read_digested, write_digested
from jroute.utils.disk import make_folder
from jroute.utils.errors import UserError
from jroute.utils.fingerprint import semantic_fingerprint
from jroute.utils.json_files import Record

Divergence = Annotated[float, pydantic.Field(allow_inf_nan=True)]
"""In nats; not finite where a gate destroys the model."""


class StoredCell(Record):
    """A cell's file: whether each problem was solved, and what the gate did to the prompts."""

    gate: float
    correct: list[Literal[0, 1]]
    truncated: int
    kl: Divergence
    kl_largest: Divergence
    agreement: float


class AblationRun:
    """Make the cells of a grid and keep them in its folder.

    Attributes:
        grid: The grid.
        run: The run that provides model, problems and prompts.
        variants: The routings of the grid.
        impossible: One sentence for each impossible routing, giving the reason.
    """

    def __init__(self, grid: Ablation):
        self.grid = grid
        self.run = Run(Path(grid.run), grid.experiment())
        base = self.run.base
        self.variants, self.impossible = variants(grid, base.config.num_hidden_layers)
        if not self.variants:
            raise UserError(f"the grid holds no routing: {self.impossible[0]}")
        self._problems = self.run.data.problems(grid.split)[: grid.problems or None]
        self._prompts = self.run.data.tokens(grid.split, len(self._problems))
        self._shared = {
            "model": base.fingerprint,
            "dtype": str(jax.tree.leaves(base.params)[0].dtype),
            "prompts": self._prompts,
            "answers": [problem.answer for problem in self._problems],
            "probed": grid.probed,
            "decoding": grid.decoding,
            "seed": grid.seed,
            "answer_parser": ANSWER_PARSER_VERSION,  # a cell holds no text to grade anew
        }

    @property
    def folder(self) -> Path:
        """Return the folder of the ablation."""
        return self.run.directory

    def file(self, variant: Variant, gate: float) -> Path:
        """Return the file of a cell."""
        description = {**self._shared, "gate": gate, "routing": variant.routing if gate else None}
        return self.folder / "cells" / f"{semantic_fingerprint(description)[:16]}.json"

    def missing(self) -> dict[Path, tuple[Variant, float]]:
        """Return routing and gate of the cells that are not generated yet, by file."""
        return {file: cell for file, cell in self._cells().items() if not file.is_file()}

    def _cells(self) -> dict[Path, tuple[Variant, float]]:
        pairs = itertools.product(self.variants, self.grid.gates)
        return {self.file(variant, gate): (variant, gate) for variant, gate in pairs}

    def fill(self, progress: Callable[[int, int], None]) -> int:
        """Generate the missing cells and return their number.

        Args:
            progress: Called with the number of cells that exist and of all cells.
        """
        total, missing = len(self._cells()), self.missing()
        self.run.folder.clean()
        make_folder(self.folder / "cells")
        for done, (file, (variant, gate)) in enumerate(missing.items()):
            progress(total - len(missing) + done, total)
            write_digested(file, self._measure(variant, gate), indent=None)
        progress(total, total)
        return len(missing)

    def _measure(self, variant: Variant, gate: float) -> dict[str, Any]:
        grid, lm = self.grid, self.run.base.routed(variant.routing)
        with rows_named(lambda row: f"problem {self._problems[row].id}"):
            completions = lm.generate(
                self._prompts, gate, decoding=grid.decoding, engine=grid.engine, seed=grid.seed
            )
        outcomes = [
            grade(problem, gate, completion, max_tokens=grid.decoding.max_new_tokens)
            for problem, completion in zip(self._problems, completions, strict=True)
        ]
        with lm.devices(), rows_named(lambda row: f"problem {self._problems[row].id}"):
            probed = self._prompts[: grid.probed]
            (divergence,) = effects.divergence(lm.params, lm.config, lm.routing, probed, [gate])
        return {
            "gate": gate,
            "correct": [int(outcome.correct) for outcome in outcomes],
            "truncated": sum(c.stop_reason == "length" for c in completions),
            "kl": divergence.kl,
            "kl_largest": divergence.kl_largest,
            "agreement": divergence.agreement,
        }

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows of the table: all cells, in the grid's order.

        Raises:
            UserError: A cell's file is damaged.
        """
        pairs = itertools.product(self.variants, self.grid.gates)
        return [self._row(variant, gate) for variant, gate in pairs]

    def _row(self, variant: Variant, gate: float) -> dict[str, Any]:
        file = self.file(variant, gate)
        cell = read_digested(file, StoredCell, "remove it to regenerate only that cell")
        if len(cell.correct) != len(self._problems):
            raise UserError(
                f"{file} has {len(cell.correct)} problems and not {len(self._problems)}; "
                "remove it to regenerate only that cell"
            )
        interval = accuracy(np.array(cell.correct))
        return {
            "preset": variant.preset,
            "streams": variant.streams,
            "sites": variant.sites,
            "guards": variant.guards,
            "gate": gate,
            "n": interval.n,
            "accuracy": round(interval.accuracy, 6),
            "ci95": [round(end, 4) for end in interval.ci95],
            "truncated": round(cell.truncated / interval.n, 6),
            "kl": float(f"{cell.kl:.4g}"),
            "kl_largest": float(f"{cell.kl_largest:.4g}"),
            "agreement": round(cell.agreement, 4),
            "verdict": effects.verdict(cell.kl),
        }

    def plan(self) -> Estimate:
        """Estimate the cost of the missing cells: each of them solves all problems."""
        grid, problems = self.grid, self._problems
        total, missing = len(self._cells()), len(self.missing())
        lengths = [len(tokens) for tokens in self._prompts]
        generator = self.run.generator
        rate = None
        if missing:
            rate = measure_rate(generator, [Cell(p, grid.gates[-1]) for p in problems])
        return Estimate(
            cells={grid.split: (total * len(problems), (total - missing) * len(problems))},
            prompt_tokens=missing * sum(lengths),
            limit=grid.decoding.max_new_tokens,
            memory=memory_use(generator, lengths),
            rate=rate,
            **devices_of(self.run.base.mesh),
        )


def format_table(rows: Sequence[dict[str, Any]]) -> str:
    """Return cells as text: a line for every routing, accuracy and KL for every gate."""
    gates = list(dict.fromkeys(row["gate"] for row in rows))
    names = ("preset", "streams", "sites", "guards")
    routings: dict[tuple[Any, ...], dict[float, dict[str, Any]]] = {}
    for row in rows:
        routings.setdefault(tuple(row[name] for name in names), {})[row["gate"]] = row
    widths = [
        max(len(name), *(len(str(key[i])) for key in routings)) for i, name in enumerate(names)
    ]
    titles = [f"{'gate ' + format(gate, 'g') + ': accuracy [95 %], KL':<40}" for gate in gates]

    def line(entries: Sequence[Any], texts: Sequence[str]) -> str:
        start = "  ".join(f"{e!s:<{width}}" for e, width in zip(entries, widths, strict=True))
        return f"{start}  {'  '.join(texts)}".rstrip()

    lines = [f"n = {rows[0]['n']} problems", line(names, titles)]
    for key, by_gate in routings.items():
        texts = []
        for gate in gates:
            row = by_gate[gate]
            low, high = (100 * end for end in row["ci95"])
            text = f"{row['accuracy']:>6.1%} [{low:.1f}, {high:.1f}] {row['kl']:.2g}"
            texts.append(f"{text} {row['verdict']:<11}".ljust(40))
        lines.append(line(key, texts))
    return "\n".join(lines)
