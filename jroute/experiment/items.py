"""The items of a judged run: which gate every arm gave to every problem, and what it scored."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, Int

from jroute.experiment.run_folder import RunFolder
from jroute.outcomes.grid import GateGrid
from jroute.tasks import Problem, Split
from jroute.utils.files import atomic_write

Values = Mapping[str, Float[np.ndarray, "..."]]
"""Scores by arm, ``[problems]`` or ``[seeds, problems]``."""

Columns = Mapping[str, Int[np.ndarray, "..."]]
"""Columns of the grid by arm, shaped like ``Values``, or ``[..., dims]`` with several numbers."""


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
    rows: dict[str, list[Any]] = {
        name: [] for name in ("split", "arm", "seed", "problem", "gate", "value")
    }
    for arm, scores in values.items():
        seeds = np.atleast_2d(scores)
        arm_gates = gates[columns[arm]].reshape(-1, *dims).tolist() if arm in columns else None
        rows["arm"] += [arm] * seeds.size
        rows["seed"] += np.repeat(np.arange(len(seeds)), len(ids)).tolist()
        rows["problem"] += ids * len(seeds)
        rows["gate"] += arm_gates or [None] * seeds.size
        rows["value"] += seeds.ravel().tolist()
    rows["split"] = [split] * len(rows["arm"])
    kind = pa.float64() if grid.num_gate_dims == 1 else pa.list_(pa.float64())
    return pa.table({**rows, "gate": pa.array(rows["gate"], kind)})


def write_items(folder: RunFolder, tables: Sequence[pa.Table]) -> None:
    """Write the rows of all splits."""
    with atomic_write(folder.items) as partial:
        pq.write_table(pa.concat_tables(tables), partial)


def digest_problems(problems: Sequence[Problem]) -> str:
    """Return a name for problems: runs are compared only where it is the same."""
    rows = [[problem.id, problem.question, str(problem.answer)] for problem in problems]
    return hashlib.sha256(json.dumps(sorted(rows)).encode()).hexdigest()
