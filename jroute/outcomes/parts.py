"""Parts of an outcome table: Parquet files of cells, which are checked whole when they are read."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jroute.outcomes.outcome import MEANING, Outcome, Provenance
from jroute.tasks.answers import ANSWER_PARSER_VERSION
from jroute.utils.errors import UserError
from jroute.utils.keys import restored, stored

_FINGERPRINT_KEY = b"jroute_fingerprint"
PARSER_KEY = b"jroute_answer_parser"
_DIGEST_KEY = b"jroute_digest"
"""Keys of a file's metadata: its table, the version of the answer parser that graded its cells, and
a digest of that and of all rows, which covers what the checksums of Parquet's pages do not."""

_STATUSES = ("ok", "no_answer", "truncated")
_REMEDY = "delete that file and generate again, only its cells are generated again"


class Part(NamedTuple):
    """The cells of a part, graded by the rules of ``parser``, a version of the answer parser."""

    outcomes: list[Outcome]
    parser: int


def part_schema(num_gate_dims: int) -> pa.Schema:
    """Return the columns of a table whose gates have ``num_gate_dims`` numbers."""

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


def part_columns(outcomes: Sequence[Outcome], fingerprint: str, num_gate_dims: int) -> pa.Table:
    """Return the content of a part, graded by the present rules.

    Args:
        outcomes: The cells.
        fingerprint: The fingerprint of their table.
        num_gate_dims: Numbers in one gate.
    """
    rows = [_row(outcome) for outcome in outcomes]
    schema = part_schema(num_gate_dims)
    columns = pa.Table.from_pylist(rows, schema=schema)
    metadata = {
        _FINGERPRINT_KEY: fingerprint.encode(),
        PARSER_KEY: str(ANSWER_PARSER_VERSION).encode(),
        _DIGEST_KEY: _digest(ANSWER_PARSER_VERSION, columns.to_pylist()),
    }
    return columns.replace_schema_metadata(metadata)


def part_name(outcomes: Sequence[Outcome]) -> str:
    """Name a part by its content: processes that generated it together write one file."""
    meaning = [[getattr(outcome, name) for name in MEANING] for outcome in outcomes]
    digest = hashlib.sha256(json.dumps(meaning).encode()).hexdigest()[:16]
    return f"part-{digest}.parquet"


def parser_version(schema: pa.Schema) -> int:
    """Return the version of the answer parser that a file's metadata names; 1 if it names none.

    Raises:
        ValueError: It is not a number.
    """
    return int((schema.metadata or {}).get(PARSER_KEY, b"1"))


def read_part(file: Path, fingerprint: str, num_gate_dims: int) -> Part:
    """Read a part, checking every page's checksum, its columns, its table and its cells.

    Args:
        file: The file.
        fingerprint: The fingerprint of the table it must belong to.
        num_gate_dims: Numbers in one gate.

    Raises:
        UserError: The part is damaged, cannot be read, or is of another table.
    """
    try:
        with pq.ParquetFile(file, page_checksum_verification=True) as opened:
            columns = opened.read(use_threads=False)
        rows = columns.to_pylist()
        metadata = columns.schema.metadata or {}
        owner = metadata.get(_FINGERPRINT_KEY, b"").decode()
        parser = parser_version(columns.schema)
    except (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise UserError(
            f"outcome part {file} is damaged or incomplete ({reason:.200}): {_REMEDY}"
        ) from error
    if not columns.schema.equals(part_schema(num_gate_dims)):
        raise UserError(f"outcome part {file} has other columns than an outcome table: {_REMEDY}")
    if owner != fingerprint:
        raise UserError(
            f"outcome part {file} was made under fingerprint {owner or 'unknown':.80}, not "
            f"{fingerprint}: move it out, outcomes of two experiments never mix"
        )
    if metadata.get(_DIGEST_KEY, digest := _digest(parser, rows)) != digest:
        raise UserError(
            f"outcome part {file} is damaged (its content has another digest): {_REMEDY}"
        )
    outcomes = [_outcome(row) for row in rows]
    for outcome in outcomes:
        if defect := defect_of(outcome, num_gate_dims):
            raise UserError(f"outcome part {file} holds a cell with {defect}: {_REMEDY}")
    return Part(outcomes, parser)


def defect_of(outcome: Outcome, num_gate_dims: int) -> str:
    """Return what makes an outcome impossible in a table; empty if nothing does."""
    gate = np.ravel(outcome.gate).tolist()
    if len(gate) != num_gate_dims or not all(map(math.isfinite, gate)):
        return f"gate {outcome.gate} instead of {num_gate_dims} finite numbers"
    if not math.isfinite(outcome.reward):
        return f"reward {outcome.reward} instead of a finite number"
    if outcome.sample < 0 or outcome.tokens < 0:
        return f"sample {outcome.sample} and {outcome.tokens} tokens"
    return "" if outcome.status in _STATUSES else f"status {outcome.status!r}"


def _digest(parser: int, rows: Sequence[Mapping[str, Any]]) -> bytes:
    return hashlib.sha256(json.dumps([parser, rows]).encode()).hexdigest().encode()


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
