"""The outcome table: every cell generated so far under one fingerprint, as a Parquet dataset."""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float

from jroute.outcomes.outcome import MEANING, Outcome, Provenance
from jroute.routing.gate import Gate, gate_text
from jroute.utils.errors import UserError
from jroute.utils.files import atomic_write, write_text
from jroute.utils.fingerprint import canonical
from jroute.utils.keys import restored, stored
from jroute.utils.temporary import remove_abandoned

CARD, REPLICATES = "_table.json", "_replicates"
"""Names that Parquet readers skip, so that the folder itself is a readable dataset."""


class MissingOutcome(UserError):
    """A requested cell was not generated; a table never invents one."""


class ConflictingOutcome(UserError):
    """A cell has two different outcomes, so one fingerprint hides two experiments."""


_FINGERPRINT_KEY = b"jroute_fingerprint"
_Cell = tuple[str, Gate, int]


def _schema(num_gate_dims: int) -> pa.Schema:
    def needed(name: str, kind: pa.DataType) -> pa.Field:
        return pa.field(name, kind, nullable=False)

    gate = (
        pa.float64()
        if num_gate_dims == 1
        else pa.list_(needed("part", pa.float64()), num_gate_dims)
    )
    return pa.schema(
        [
            needed("problem_id", pa.string()),
            needed("gate", gate),
            needed("sample", pa.int64()),
            needed("completion", pa.string()),
            needed("tokens", pa.int64()),
            needed("parsed", pa.string()),
            needed("status", pa.string()),
            needed("correct", pa.bool_()),
            needed("reward", pa.float64()),
            needed("stop_reason", pa.string()),
            pa.field("logprob", pa.float64()),
            pa.field("execution", pa.string()),
            pa.field("versions", pa.string()),
            pa.field("machine", pa.string()),
            pa.field("seconds", pa.float64()),
        ]
    )


class OutcomeTable:
    """All cells generated so far under one fingerprint, kept as a Parquet dataset.

    The folder ``<root>/<fingerprint>/`` holds ``part-*.parquet``, and names that Parquet readers
    skip: ``_table.json`` (fingerprint and description) and ``_replicates/`` (cells generated again,
    see ``add_replicates``). The first cell creates it. A part is written under a temporary name and
    then renamed, so a killed run loses at most the part that it was writing, and resumes with the
    cells that are ``missing``. A part is named by the content of its cells and carries the
    fingerprint, so several processes and machines may add to one folder. An instance sees the cells
    that existed when it was opened or last refreshed, and those that it appended itself.

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
    ):
        """Open the table of a fingerprint, which need not exist yet.

        Args:
            root: Folder that holds tables, one folder each.
            fingerprint: See ``semantic_fingerprint``.
            description: Written to ``_table.json`` when the table is new.
            num_gate_dims: Numbers that a gate has.

        Raises:
            UserError: If the folder belongs to another fingerprint or a file cannot be read.
            ConflictingOutcome: If two parts disagree on a cell.
        """
        self.folder = Path(root) / fingerprint
        self.fingerprint = fingerprint
        self.description: dict[str, Any] = canonical(description)
        self.num_gate_dims = num_gate_dims
        self._schema = _schema(num_gate_dims)
        self._cells: dict[_Cell, Outcome] = {}
        self._read: set[str] = set()
        if self.folder.is_dir():
            remove_abandoned(self.folder)
            remove_abandoned(self.folder / REPLICATES)
            if (self.folder / CARD).exists():
                self._check_card()
        self.refresh()

    @classmethod
    def open(cls, folder: str | Path) -> "OutcomeTable":
        """Open an existing table by its folder, ``<root>/<fingerprint>``.

        Raises:
            UserError: If there is no table in the folder.
        """
        folder = Path(folder)
        card = folder / CARD
        if not card.is_file():
            raise UserError(f"{folder} is not an outcome table, it has no {CARD}: check the path")
        _, description, num_gate_dims = _read_card(card)
        return cls(folder.parent, folder.name, description, num_gate_dims=num_gate_dims)

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
        for part in sorted(self.folder.glob("part-*.parquet")):
            if part.name not in self._read:
                self._merge(_read_part(part, self.fingerprint, self._schema), str(part))
                self._read.add(part.name)

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
        fresh: dict[_Cell, Outcome] = {}
        for outcome in outcomes:
            self._check(outcome)
            cell = (outcome.problem_id, outcome.gate, outcome.sample)
            existing = self._cells.get(cell, fresh.get(cell))
            if existing is None:
                fresh[cell] = outcome
            elif existing != outcome:
                raise _conflict(cell, existing, outcome, f"outcomes given to {self.folder}")
        if not fresh:
            return
        self._read.add(self._write_part(self.folder, list(fresh.values())))
        self._cells |= fresh

    def add_replicates(self, outcomes: Iterable[Outcome]) -> None:
        """Append regenerated cells as replicates; they may differ from the originals.

        Raises:
            MissingOutcome: If a cell is not in the table.
        """
        outcomes = list(outcomes)
        for outcome in outcomes:
            self._check(outcome)
            self.outcome(outcome.problem_id, outcome.gate, sample=outcome.sample)
        if outcomes:
            self._write_part(self.folder / REPLICATES, outcomes)

    def replicates(self) -> list[tuple[Outcome, Outcome]]:
        """Return each replicated cell as an (original, replicate) pair.

        Raises:
            UserError: If a part cannot be read.
            MissingOutcome: If a replicated cell is not in the table.
        """
        again = [
            outcome
            for part in sorted((self.folder / REPLICATES).glob("part-*.parquet"))
            for outcome in _read_part(part, self.fingerprint, self._schema)
        ]
        return [(self.outcome(o.problem_id, o.gate, sample=o.sample), o) for o in again]

    def outcome(self, problem_id: str, gate: Gate, *, sample: int = 0) -> Outcome:
        """Look one cell up.

        Raises:
            MissingOutcome: If it has not been generated.
        """
        try:
            return self._cells[problem_id, gate, sample]
        except KeyError:
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

    def _check(self, outcome: Outcome) -> None:
        numbers = (*np.ravel(outcome.gate), outcome.reward)
        if not all(map(math.isfinite, numbers)) or len(numbers) != self.num_gate_dims + 1:
            raise ValueError(
                f"an outcome of this table needs a finite reward and a gate of "
                f"{self.num_gate_dims} finite numbers: {outcome}"
            )

    def _check_card(self) -> None:
        card = self.folder / CARD
        stored, self.description, num_gate_dims = _read_card(card)
        if stored != self.fingerprint:
            raise UserError(
                f"{card} is the outcome table of fingerprint {stored}, not of {self.fingerprint}: "
                "move that folder back to its own name, outcomes of two experiments never mix"
            )
        if num_gate_dims != self.num_gate_dims:
            raise UserError(
                f"{card} is of gates with {num_gate_dims} dimensions, not {self.num_gate_dims}: "
                "check the path"
            )

    def _write_part(self, folder: Path, outcomes: Sequence[Outcome]) -> str:
        folder.mkdir(parents=True, exist_ok=True)
        card = self.folder / CARD
        if not card.exists():
            content = {
                "fingerprint": self.fingerprint,
                "parts": self.num_gate_dims,
                "description": self.description,
            }
            write_text(card, json.dumps(content, indent=2))
        schema = self._schema.with_metadata({_FINGERPRINT_KEY: self.fingerprint.encode()})
        columns = pa.Table.from_pylist([_row(outcome) for outcome in outcomes], schema=schema)
        # Named by the cells' content: processes that generated them together write one file.
        meaning = [[getattr(outcome, name) for name in MEANING] for outcome in outcomes]
        digest = hashlib.sha256(json.dumps(meaning).encode()).hexdigest()[:16]
        name = f"part-{digest}.parquet"
        with atomic_write(folder / name) as temporary, temporary.open("wb") as file:
            pq.write_table(columns, file, write_page_checksum=True)
        return name

    def _merge(self, outcomes: Iterable[Outcome], source: str) -> None:
        for outcome in outcomes:
            cell = (outcome.problem_id, outcome.gate, outcome.sample)
            existing = self._cells.setdefault(cell, outcome)
            if existing != outcome:
                raise _conflict(cell, existing, outcome, source)


def _row(outcome: Outcome) -> dict[str, Any]:
    row = stored(outcome)
    made = row.pop("made")
    return row if made is None else row | made


def _outcome(row: dict[str, Any]) -> Outcome:
    made = restored(Provenance, row) if row["execution"] is not None else None
    values = restored(Outcome, row)
    if isinstance(values["gate"], list):
        values["gate"] = tuple(values["gate"])
    return Outcome(**values, made=None if made is None else Provenance(**made))


def _conflict(cell: _Cell, existing: Outcome, other: Outcome, source: str) -> ConflictingOutcome:
    differing = [name for name in MEANING if getattr(existing, name) != getattr(other, name)]
    problem_id, gate, sample = cell
    return ConflictingOutcome(
        f"problem {problem_id!r} at gate {gate_text(gate)} (sample {sample}) has two outcomes that "
        f"differ in {', '.join(differing)} (second one: {source}): something that matters is not "
        "in the fingerprint or a part is foreign, so remove the part that does not belong"
    )


def _read_card(card: Path) -> tuple[str, dict[str, Any], int]:
    try:
        content = json.loads(card.read_text(encoding="utf-8"))
        return content["fingerprint"], content["description"], int(content["parts"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{card} does not name its table's fingerprint ({error!r}): delete it, the next "
            "generating run writes it again"
        ) from error


def _read_part(part: Path, fingerprint: str, schema: pa.Schema) -> list[Outcome]:
    advice = "delete that file and generate again, only its cells are generated again"
    try:
        with pq.ParquetFile(part, page_checksum_verification=True) as file:
            columns = file.read(use_threads=False)
        rows = columns.to_pylist()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise UserError(
            f"outcome part {part} is damaged or incomplete ({reason}): {advice}"
        ) from error
    if not columns.schema.equals(schema):
        raise UserError(f"outcome part {part} has other columns than an outcome table: {advice}")
    owner = (columns.schema.metadata or {}).get(_FINGERPRINT_KEY, b"").decode()
    if owner != fingerprint:
        raise UserError(
            f"outcome part {part} was made under fingerprint {owner or 'unknown'}, not "
            f"{fingerprint}: move it out, outcomes of two experiments never mix"
        )
    return [_outcome(row) for row in rows]
