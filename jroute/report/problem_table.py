"""The table of problems, packed for the page: columns of numbers, and every text once."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from jroute.report.report_data import SplitReport, steps
from jroute.report.result_rows import words
from jroute.routing.gate import Gate


def pack(splits: Sequence[SplitReport], grid: Sequence[Gate]) -> dict[str, Any]:
    """Every problem of every split with all that is known of it.

    Texts stand in ``texts`` once and are numbers elsewhere: under greedy decoding many gates give
    the same completion.

    Args:
        splits: The judged splits.
        grid: Gates in order of their colours.
    """
    texts: dict[str, int] = {}

    def number(text: str) -> int:
        return texts.setdefault(text, len(texts))

    packed = [_split(judged, grid, number) for judged in splits if judged.rows]
    return {
        "grid": [gate[0] for gate in grid],
        "splits": packed,
        "texts": list(texts),
        "statuses": {"ok": "", "no_answer": "no answer found", "truncated": "cut off"},
    }


def _split(judged: SplitReport, grid: Sequence[Gate], number: Any) -> dict[str, Any]:
    right = judged.right.mean(axis=0) if judged.gates.size else np.full(len(judged.rows), np.nan)
    names = list(judged.rows[0].features)
    arms = [name for name in judged.rows[0].arms if not name.startswith("fixed:")]
    return {
        "name": judged.name,
        "features": names,
        "arms": [words(name) for name in arms],
        "rows": [
            {
                "id": row.problem.id,
                "question": number(row.problem.question),
                "prompt": number(row.prompt) if row.prompt else None,
                "gold": number(row.problem.answer),
                "solution": number(row.problem.solution) if row.problem.solution else None,
                "features": [_short(row.features[name]) for name in names],
                "steps": steps(row.problem) or None,
                "base": row.base,
                "rl": row.rl,
                "seeds": None if np.isnan(share) else round(float(share), 3),
                "cells": [
                    [
                        _label(cell.gate),
                        [grid.index((part,)) if (part,) in grid else None for part in cell.gate],
                        [i for i, name in enumerate(arms) if row.arms[name] == cell.gate],
                        number(cell.completion),
                        cell.tokens,
                        number(cell.parsed),
                        cell.status,
                        int(cell.correct),
                        _short(cell.reward),
                    ]
                    for cell in row.cells
                ],
            }
            for row, share in zip(judged.rows, right, strict=True)
        ],
    }


def _short(value: float) -> float | None:
    return float(f"{value:.4g}") if np.isfinite(value) else None


def _label(gate: Gate) -> str:
    return " ".join(f"{part:g}" for part in gate)


def for_script(content: Any) -> str:
    """JSON that may stand inside a ``<script>`` element, whatever its texts say.

    No ``<`` is left that could open or end a tag or a comment, and none of the line ends that
    JavaScript knows and JSON does not.
    """
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    # A lone surrogate has no UTF-8.
    return text.encode("utf-8", "backslashreplace").decode()
