"""The outcome table: every cell generated so far under one fingerprint, as a Parquet dataset."""

import functools
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float

from jroute.outcomes.card import CARD, check_card, read_card, write_card
from jroute.outcomes.outcome import MEANING, Outcome
from jroute.outcomes.parts import defect_of, part_columns, part_name, read_part
from jroute.outcomes.regrading import Graded, graded
from jroute.routing.gate import Gate, gate_text
from jroute.tasks.answers import ANSWER_PARSER_VERSION
from jroute.utils.disk import disk_errors, make_folder
from jroute.utils.errors import UserError
from jroute.utils.files import write_bytes
from jroute.utils.fingerprint import canonical
from jroute.utils.locks import serialised
from jroute.utils.temporary import remove_leftovers

logger = logging.getLogger(__name__)

REPLICATES, LOCK = "_replicates", ".lock"
"""Names that Parquet readers skip, like that of the card: the folder is a readable dataset."""


class MissingOutcome(UserError):
    """A requested cell was not generated; a table never invents one."""


class ConflictingOutcome(UserError):
    """A cell has two different outcomes, so one fingerprint hides two experiments."""


_Cell = tuple[str, Gate, int]


class OutcomeTable:
    """All cells generated so far under one fingerprint, kept as a Parquet dataset.

    The folder ``<root>/<fingerprint>/`` holds ``part-*.parquet``, and names that Parquet readers
    skip: ``_table.json`` (fingerprint and description) and ``_replicates/`` (cells generated again,
    see ``add_replicates``). The first cell creates it. A part is written under a temporary name and
    then renamed, so a killed run loses at most the part that it was writing, and resumes with the
    cells that are ``missing``. A part is named by the content of its cells and carries the
    fingerprint, and under a lock a process files only cells that no other has filed, so several
    processes and machines may add to one folder. An instance sees the cells that existed when it
    was opened or last refreshed, and those that it appended itself.

    A part also carries the version of the answer parser that graded its cells. Those of another
    version are graded anew when they are read; no reader changes a file.

    Attributes:
        folder: Folder of the table.
        fingerprint: Name of the experiment whose cells these are.
        description: What was fingerprinted, for people; as first written.
        num_gate_dims: Numbers in one gate.
    """

    def __init__(
        self,
        root: str | Path,
        fingerprint: str,
        description: Mapping[str, Any],
        *,
        num_gate_dims: int = 1,
        answers: Callable[[], Mapping[str, str]] = dict,
    ):
        """Open the table of a fingerprint, which need not exist yet.

        Args:
            root: Folder that holds tables, one folder each.
            fingerprint: See ``semantic_fingerprint``.
            description: Written to ``_table.json`` when the table is new.
            num_gate_dims: Numbers that a gate has.
            answers: Returns gold answers by problem id; called if cells are to be graded anew.

        Raises:
            UserError: If the folder belongs to another fingerprint or a file cannot be read.
            ConflictingOutcome: If two parts disagree on a cell.
        """
        self.folder = Path(root) / fingerprint
        self.fingerprint = fingerprint
        self.description: dict[str, Any] = canonical(description)
        self.num_gate_dims = num_gate_dims
        self._answers = functools.cache(answers)  # once for all parts
        self._cells: dict[_Cell, Outcome] = {}
        self._changed: dict[_Cell, Outcome] = {}
        self._unknown: set[_Cell] = set()
        self._read: set[str] = set()
        for place in (self.folder.parent, self.folder):
            if os.path.lexists(place) and not place.is_dir():
                raise UserError(f"{place} is not a folder: move it away, outcome tables go there")
        if self.folder.is_dir():
            self._remove_leftovers()
            if os.path.lexists(self.folder / CARD):
                self.description = check_card(self.folder, fingerprint, num_gate_dims).description
        self.refresh()

    @classmethod
    def open(
        cls, folder: str | Path, answers: Callable[[], Mapping[str, str]] = dict
    ) -> "OutcomeTable":
        """Open an existing table by its folder, ``<root>/<fingerprint>``.

        Args:
            folder: The folder.
            answers: As for ``OutcomeTable``.

        Raises:
            UserError: If there is no table in the folder.
        """
        folder = Path(folder)
        if not os.path.lexists(folder / CARD):
            raise UserError(f"{folder} is not an outcome table, it has no {CARD}: check the path")
        card = read_card(folder)
        return cls(
            folder.parent,
            folder.name,
            card.description,
            num_gate_dims=card.parts,
            answers=answers,
        )

    def __len__(self) -> int:
        """Return the number of cells."""
        return len(self._cells)

    def __contains__(self, cell: tuple[str, Gate, int]) -> bool:
        """Return whether the table holds a (problem id, gate, sample)."""
        return cell in self._cells

    def cells(self) -> list[Outcome]:
        """Every cell, ordered by problem, gate and sample."""
        order = sorted(self._cells, key=lambda cell: (cell[0], np.ravel(cell[1]).tolist(), cell[2]))
        return [self._cells[cell] for cell in order]

    def refresh(self) -> None:
        """Load parts that other processes have written.

        Raises:
            UserError: If a part cannot be read or is of another table.
            ConflictingOutcome: If it disagrees with a cell of this table.
        """
        again, changed, unknown = 0, 0, len(self._unknown)
        for file in _parts(self.folder):
            if file.name not in self._read:
                cells = self._graded(file)
                self._merge(cells, str(file))
                self._read.add(file.name)
                again, changed = again + cells.anew, changed + len(cells.changed)
        if again:
            unknown = len(self._unknown) - unknown
            logger.info(
                "%s: %d stored cells graded anew by version %d of the answer parser, %d of them "
                "changed%s",
                self.folder,
                again,
                ANSWER_PARSER_VERSION,
                changed,
                f", {unknown} left out since their gold answers are not known" * bool(unknown),
            )

    def changed_grades(self, problem_ids: Iterable[str] | None = None) -> list[list[Any]]:
        """Return the cells whose files hold another status or correctness than is right now.

        Args:
            problem_ids: The problems to look at; by default all.

        Returns:
            Problem id, gate, sample, status and correctness of each, in order.
        """
        ids = None if problem_ids is None else set(problem_ids)
        return sorted(
            [name, list(np.ravel(gate)), sample, outcome.status, outcome.correct]
            for (name, gate, sample), outcome in self._changed.items()
            if ids is None or name in ids
        )

    def missing(
        self, problem_ids: Sequence[str], gates: Sequence[Gate], *, sample: int = 0
    ) -> list[tuple[str, Gate]]:
        """Return the (problem id, gate) pairs not generated yet, problem by problem."""
        return [
            (problem_id, gate)
            for problem_id in problem_ids
            for gate in gates
            if (problem_id, gate, sample) not in self._cells
        ]

    def append(self, outcomes: Iterable[Outcome]) -> None:
        """Append outcomes as one new part; cells that the table already holds are left out.

        Raises:
            ConflictingOutcome: If a cell already has another outcome; nothing is written.
            ValueError: If a number is not finite or a gate has the wrong number of dimensions.
        """
        fresh = self._fresh(outcomes)
        if not fresh:
            return
        with self._locked():
            self.refresh()  # another process may have filed some of them
            fresh = self._fresh(fresh.values())
            if fresh:
                self._read.add(self._write_part(self.folder, list(fresh.values())))
                self._cells |= fresh

    def restore_card(self) -> None:
        """Write the card of an existing table if someone deleted it."""
        if self._cells and not os.path.lexists(self.folder / CARD):
            write_card(self.folder, self.fingerprint, self.num_gate_dims, self.description)

    def add_replicates(self, outcomes: Iterable[Outcome]) -> None:
        """Append regenerated cells as replicates; they may differ from the originals.

        A cell has one replicate: where another process was faster, its replicate stays.

        Raises:
            MissingOutcome: If a cell is not in the table.
        """
        outcomes = list(outcomes)
        for outcome in outcomes:
            self._check(outcome)
            self.outcome(outcome.problem_id, outcome.gate, sample=outcome.sample)
        if not outcomes:
            return
        with self._locked():
            existing = self._replicates()
            fresh = {_cell_of(o): o for o in outcomes if _cell_of(o) not in existing}
            if fresh:
                self._write_part(self.folder / REPLICATES, list(fresh.values()))

    def replicates(self) -> list[tuple[Outcome, Outcome]]:
        """Return each replicated cell as an (original, replicate) pair.

        Raises:
            UserError: If a part cannot be read.
            MissingOutcome: If a replicated cell is not in the table.
        """
        again = self._replicates()
        self.refresh()  # another process may have filed cells and their replicates
        return [
            (self.outcome(o.problem_id, o.gate, sample=o.sample), o)
            for cell, o in again.items()
            if cell not in self._unknown
        ]

    def outcome(self, problem_id: str, gate: Gate, *, sample: int = 0) -> Outcome:
        """Look one cell up.

        Raises:
            MissingOutcome: If it has not been generated.
        """
        try:
            return self._cells[problem_id, gate, sample]
        except KeyError:
            if (problem_id, gate, sample) in self._unknown:
                raise MissingOutcome(
                    f"problem {problem_id!r} at gate {gate_text(gate)} in {self.folder} was graded "
                    "by other rules of reading answers, and its gold answer is not known here: "
                    "give the table's task"
                ) from None
            raise MissingOutcome(
                f"no outcome of problem {problem_id!r} at gate {gate_text(gate)} (sample {sample}) "
                f"in {self.folder}: generate the missing cells first"
            ) from None

    def matrix(
        self,
        problem_ids: Sequence[str],
        gates: Sequence[Gate],
        column: Literal["correct", "reward", "tokens"] = "correct",
        *,
        sample: int = 0,
    ) -> Float[np.ndarray, "problems gates"]:
        """One column of the table as float64, problems down and gates across.

        Raises:
            MissingOutcome: Naming the first cell that has not been generated.
        """
        values = [
            [
                float(getattr(self.outcome(problem_id, gate, sample=sample), column))
                for gate in gates
            ]
            for problem_id in problem_ids
        ]
        return np.array(values, dtype=np.float64).reshape(len(problem_ids), len(gates))

    def _replicates(self) -> dict[_Cell, Outcome]:
        """Return the replicates, the first one of every cell."""
        again: dict[_Cell, Outcome] = {}
        for file in _parts(self.folder / REPLICATES):
            for outcome in self._graded(file).outcomes:
                again.setdefault(_cell_of(outcome), outcome)
        return again

    def _check(self, outcome: Outcome) -> None:
        if defect := defect_of(outcome, self.num_gate_dims):
            raise ValueError(f"an outcome of this table has {defect}: {outcome}")

    def _fresh(self, outcomes: Iterable[Outcome]) -> dict[_Cell, Outcome]:
        """Return those outcomes that the table does not hold yet."""
        fresh: dict[_Cell, Outcome] = {}
        for outcome in outcomes:
            self._check(outcome)
            cell = _cell_of(outcome)
            existing = self._cells.get(cell, fresh.get(cell))
            if existing is None:
                fresh[cell] = outcome
            elif existing != outcome:
                raise _conflict(cell, existing, outcome, f"outcomes given to {self.folder}")
        return fresh

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Make the folder and be the only process that adds to it during the block."""
        with disk_errors(self.folder):
            make_folder(self.folder)
            with serialised(self.folder / LOCK):
                yield

    def _remove_leftovers(self) -> None:
        """Remove what killed processes left."""
        remove_leftovers(self.folder)
        remove_leftovers(self.folder / REPLICATES)
        if (self.folder / LOCK).exists():
            with serialised(self.folder / LOCK):
                pass

    def _graded(self, file: Path) -> Graded:
        return graded(read_part(file, self.fingerprint, self.num_gate_dims), self._answers)

    def _write_part(self, folder: Path, outcomes: Sequence[Outcome]) -> str:
        make_folder(folder)
        if not os.path.lexists(self.folder / CARD):
            write_card(self.folder, self.fingerprint, self.num_gate_dims, self.description)
        columns = part_columns(outcomes, self.fingerprint, self.num_gate_dims)
        name = part_name(outcomes)
        content = pa.BufferOutputStream()
        pq.write_table(columns, content, write_page_checksum=True)
        write_bytes(folder / name, content.getvalue().to_pybytes())
        return name

    def _merge(self, part: Graded, source: str) -> None:
        for outcome in part.outcomes:
            cell = _cell_of(outcome)
            existing = self._cells.setdefault(cell, outcome)
            if existing != outcome:
                raise _conflict(cell, existing, outcome, source)
        self._changed |= {_cell_of(outcome): outcome for outcome in part.changed}
        self._unknown |= {_cell_of(outcome) for outcome in part.unknown}


def _parts(folder: Path) -> list[Path]:
    """Return the parts in a folder, in order; none if there is no folder.

    Raises:
        UserError: It is no folder, or cannot be read.
    """
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(
            f"the outcome parts in {folder} cannot be listed ({error.strerror}): see that it is a "
            "folder and may be read"
        ) from None
    return [
        folder / name for name in names if name.startswith("part-") and name.endswith(".parquet")
    ]


def _cell_of(outcome: Outcome) -> _Cell:
    return outcome.problem_id, outcome.gate, outcome.sample


def _conflict(cell: _Cell, existing: Outcome, other: Outcome, source: str) -> ConflictingOutcome:
    differing = [name for name in MEANING if getattr(existing, name) != getattr(other, name)]
    problem_id, gate, sample = cell
    return ConflictingOutcome(
        f"problem {problem_id!r} at gate {gate_text(gate)} (sample {sample}) has two outcomes that "
        f"differ in {', '.join(differing)} (second one: {source}): something that matters is not "
        "in the fingerprint or a part is foreign, so remove the part that does not belong"
    )
