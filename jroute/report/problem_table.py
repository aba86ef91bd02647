"""The table of problems, packed for the page's script: columns of numbers, every text once.

``problem_table.js`` unpacks it and draws the rows in sight.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from jroute.arms.registry import FIXED
from jroute.outcomes.outcome import Outcome
from jroute.report.report_data import SplitReport, count_steps
from jroute.report.result_rows import arm_label
from jroute.routing.gate import Gate, gate_numbers


def pack(splits: Sequence[SplitReport], grid: Sequence[float]) -> dict[str, Any]:
    """Return every problem of every split with all its cells.

    Each text is stored once in ``texts`` and referenced by index elsewhere: under greedy decoding
    many gates give the same completion.

    Args:
        splits: The judged splits.
        grid: Numbers of gates in the order of their colours.
    """
    texts: dict[str, int] = {}

    def index(text: str) -> int:
        return texts.setdefault(text, len(texts))

    packed = [_pack_split(split, grid, index) for split in splits if split.rows]
    return {
        "grid": list(grid),
        "splits": packed,
        "texts": list(texts),
        "statuses": {"ok": "", "no_answer": "no answer found", "truncated": "cut off"},
    }


def _pack_split(
    split: SplitReport, grid: Sequence[float], index: Callable[[str], int]
) -> dict[str, Any]:
    """Return one split; ``index`` stores a text and returns its place."""
    shares = split.solved.mean(axis=0) if split.gates.size else np.full(len(split.rows), np.nan)
    features = list(split.rows[0].features)
    arms = [name for name in split.rows[0].arms if not name.startswith(FIXED)]

    def pack_cell(cell: Outcome, chosen: Sequence[Gate]) -> list[Any]:
        numbers = gate_numbers(cell.gate)
        return [
            " ".join(f"{number:g}" for number in numbers),
            [grid.index(number) if number in grid else None for number in numbers],
            [i for i, gate in enumerate(chosen) if gate == cell.gate],
            index(cell.completion),
            cell.tokens,
            index(cell.parsed),
            cell.status,
            int(cell.correct),
            _rounded(cell.reward),
        ]

    return {
        "name": split.name,
        "features": features,
        "arms": [arm_label(name) for name in arms],
        "rows": [
            {
                "id": row.problem.id,
                "question": index(row.problem.question),
                "prompt": index(row.prompt) if row.prompt else None,
                "gold": index(row.problem.answer),
                "solution": index(row.problem.solution) if row.problem.solution else None,
                "features": [_rounded(row.features[name]) for name in features],
                "steps": count_steps(row.problem) or None,
                "base": row.base,
                "rl": row.rl,
                "seeds": None if np.isnan(share) else round(float(share), 3),
                "cells": [pack_cell(cell, [row.arms[name] for name in arms]) for cell in row.cells],
            }
            for row, share in zip(split.rows, shares, strict=True)
        ],
    }


def _rounded(value: float) -> float | None:
    """Return four significant digits; ``None`` for what JSON cannot hold."""
    return float(f"{value:.4g}") if np.isfinite(value) else None


def script_json(content: Any) -> Markup:
    r"""Return JSON that is safe inside a ``<script>`` element, whatever its texts contain.

    Characters that could open or end a tag or a comment become escapes such as ``\u003c``, and so
    do the line ends that JavaScript has and JSON has not.
    """
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    # Lone surrogates have no UTF-8.
    return Markup(text.encode("utf-8", "backslashreplace").decode())
