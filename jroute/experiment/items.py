"""The items of a judged run: which gate every arm gave to every problem, and what it scored."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Union

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from annotated_types import Len
from jaxtyping import Float, Int
from pydantic import Field

from jroute.experiment.run_folder import RunFolder
from jroute.outcomes.grid import GateGrid
from jroute.outcomes.parts import PARSER_KEY
from jroute.tasks import Problem, Split
from jroute.tasks.answers import ANSWER_PARSER_VERSION
from jroute.utils.digested import write_digested
from jroute.utils.errors import UserError
from jroute.utils.files import write_bytes
from jroute.utils.json_files import Number, check, read_bytes
from jroute.utils.keys import Keys, keys, stored, stored_keys
from jroute.utils.together import written_together

Values = Mapping[str, Float[np.ndarray, "..."]]
"""Scores by arm, ``[problems]`` or ``[seeds, problems]``."""

Columns = Mapping[str, Int[np.ndarray, "..."]]
"""Columns of the grid by arm, shaped like ``Values``, or ``[..., dims]`` with several numbers."""


ITEMS_SHA256 = "items_sha256"
"""Key of ``results.json`` with the digest of the ``items.parquet`` beside it."""


@dataclass(frozen=True)
class Items:
    """The columns of ``items.parquet``: one row for every arm, seed and problem.

    Attributes:
        split: The split.
        arm: Name of the arm.
        seed: Index of the seed; 0 for an arm without seeds.
        problem: Id of the problem.
        gate: The gate, or the numbers of one; ``None`` where the arm is an expectation.
        value: What the arm scored.
    """

    stored_keys: ClassVar[Keys] = keys("split", "arm", "seed", "problem", "gate", "value")

    split: list[str]
    arm: list[str]
    seed: list[int]
    problem: list[str]
    gate: list[Any]
    value: list[float]


def item_rows(
    split: Split, problems: Sequence[Problem], grid: GateGrid, values: Values, columns: Columns
) -> pa.Table:
    """Return one row for every arm, seed and problem; no gate where an arm is an expectation.

    Args:
        split: The split.
        problems: Its problems.
        grid: The grid of gates.
        values: What every arm scored.
        columns: Which gate every arm gave.
    """
    ids, gates = [problem.id for problem in problems], np.asarray(grid.values)
    dims = () if grid.num_gate_dims == 1 else (grid.num_gate_dims,)
    rows = Items(split=[], arm=[], seed=[], problem=[], gate=[], value=[])
    for arm, scores in values.items():
        seeds = np.atleast_2d(scores)
        arm_gates = gates[columns[arm]].reshape(-1, *dims).tolist() if arm in columns else None
        rows.split.extend([split] * seeds.size)
        rows.arm.extend([arm] * seeds.size)
        rows.seed.extend(np.repeat(np.arange(len(seeds)), len(ids)).tolist())
        rows.problem.extend(ids * len(seeds))
        rows.gate.extend(arm_gates or [None] * seeds.size)
        rows.value.extend(seeds.ravel().tolist())
    kind = pa.float64() if grid.num_gate_dims == 1 else pa.list_(pa.float64())
    gate = stored_keys(Items)["gate"]
    return pa.table({**stored(rows), gate: pa.array(rows.gate, kind)})


def write_results(
    folder: RunFolder, results: Mapping[str, Any], tables: Sequence[pa.Table]
) -> dict[str, Any]:
    """Write ``results.json`` and the rows of all splits, both at once.

    Returns:
        What ``results.json`` holds: the results and the digest of the rows.

    Raises:
        UserError: A number of the results is not finite, or the system refuses to write.
    """
    rows = pa.BufferOutputStream()
    items = pa.concat_tables(tables).replace_schema_metadata(
        {PARSER_KEY: str(ANSWER_PARSER_VERSION)}
    )
    pq.write_table(items, rows, write_page_checksum=True)
    content = rows.getvalue().to_pybytes()
    written = {**results, ITEMS_SHA256: hashlib.sha256(content).hexdigest()}
    with written_together(folder.path, "results") as partial:
        write_digested(partial / folder.results.name, written)
        write_bytes(partial / folder.items.name, content)
    return written


def read_items(file: Path, split: str, fields: Sequence[str]) -> tuple[list[Any], ...]:
    """Return columns of the rows of a split.

    Args:
        file: The file.
        split: The split.
        fields: Fields of ``Items``, each a column.

    Raises:
        UserError: The file is damaged or cannot be read, or holds something else.
    """
    keys_of_fields = stored_keys(Items)
    remedy = f"judge the run again with python -m jroute.evaluate --run {file.parent}"
    columns = [keys_of_fields[field] for field in fields]
    try:
        with pq.ParquetFile(file, page_checksum_verification=True) as opened:
            rows = opened.read(columns=[keys_of_fields["split"], *columns], use_threads=False)
        _check_types(rows, file, remedy)
        rows = rows.filter(pc.field(keys_of_fields["split"]) == split)
        values = [rows[column].to_pylist() for column in columns]
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise UserError(f"{file} is damaged or cannot be read ({reason:.200}); {remedy}") from error
    for field, key, column in zip(fields, columns, values, strict=True):
        check(column, list[_COLUMNS[field]], f"{file}, column {key}", remedy)
    return tuple(values)


def check_items(file: Path, digest: str) -> None:
    """Compare the file with the digest that ``results.json`` holds; earlier versions wrote none.

    Raises:
        UserError: The file is not what was written with the results, or cannot be read.
    """
    remedy = f"judge the run again with python -m jroute.evaluate --run {file.parent}"
    if digest and hashlib.sha256(read_bytes(file, remedy)).hexdigest() != digest:
        raise UserError(
            f"{file} is damaged (it does not match its digest in results.json); {remedy}"
        )


def _check_types(rows: pa.Table, file: Path, remedy: str) -> None:
    """Refuse columns whose type is not that of their values; ``check`` sees the values."""
    for key, (is_type, kind) in _TYPES.items():
        if key in rows.column_names and not is_type(rows[key].type):
            raise UserError(
                f"{file} is damaged or cannot be read (its column {key} holds {rows[key].type}, "
                f"not {kind}); {remedy}"
            )


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


_TYPES = {
    "split": (_is_text, "texts"),
    "arm": (_is_text, "texts"),
    "problem": (_is_text, "texts"),
    "seed": (pa.types.is_integer, "whole numbers"),
    "value": (pa.types.is_floating, "numbers"),
}
"""What the type of a column must be, by its key, and in words."""

_COLUMNS: dict[str, Any] = {
    "arm": str,
    "problem": str,
    "seed": Annotated[int, Field(ge=0, lt=10_000)],
    "gate": Union[Number, Annotated[list[Number], Len(1)], None],  # noqa: UP007
    "value": Number,
}
"""Type of every column that is read."""


def digest_problems(problems: Sequence[Problem]) -> str:
    """Return a name for problems: runs are compared only where it is the same."""
    rows = [[problem.id, problem.question, str(problem.answer)] for problem in problems]
    return hashlib.sha256(json.dumps(sorted(rows)).encode()).hexdigest()
