"""Made-up reports: hostile, larger than a screen, and with a known answer everywhere."""

import numpy as np

from jroute.outcomes.outcome import Outcome
from jroute.report.report_data import ProblemRow, ReportData, SplitReport
from jroute.tasks import Problem

GRID = (0.0, 0.25, 0.5, 0.75, 1.0)
SCRIPT = "<script>window.planted=1</script>"
BREAKOUT = "</script><!--<script><img src=x onerror='window.planted=2'>&lt;\u2028"
HOSTILE = 7
"""The problem whose every text is hostile."""


def results(n: int = 8) -> dict:
    arms = {
        "baseline": 0.5,
        "fixed:0.5": 0.4,
        "rl": 0.75,
        "best_fixed": 0.5,
        "supervised": 0.55,
        "oracle": 0.9,
    }
    contrasts = [
        {"a": "rl", "b": b, "difference": d, "ci95": [d - 0.1, d + 0.1], "p": p, "p_holm": 2 * p}
        for b, d, p in (
            ("fixed:0.5", 0.35, 0.0001),
            ("supervised", 0.2, 0.01),
            ("baseline", 0.25, 0.001),
            ("best_fixed", 0.25, 0.04),
        )
    ]
    last = {"a": "rl", "b": "oracle", "difference": -0.15, "ci95": [-0.2, -0.1], "p": 0.002}
    return {
        "split": "test",
        "n": n,
        "gates": list(GRID),
        "seeds": 3,
        "train_cells": 500,
        "best_fixed_gate": 0.0,
        "outcomes": "f" * 8,
        "model": "m" * 8,
        "arms": {k: {"accuracy": v, "ci95": [v - 0.1, v + 0.1]} for k, v in arms.items()},
        "contrasts": [*contrasts, last],
        "other_splits": {},
    }


def rows(n: int, *, hostile: bool = False) -> tuple[ProblemRow, ...]:
    """Problem i has i % 5 steps; its best gate is i % 5 in the grid, and RL finds it if i % 3."""
    made = []
    for i in range(n):
        best = i % 5
        bad = SCRIPT + BREAKOUT if hostile and i == HOSTILE else ""
        problem = Problem(
            f"toy/test/{i}{bad}",
            f"What is {i} plus 1?{bad}",
            f"{i + 1}{bad}",
            "\n".join([*(f"step {k}" for k in range(i % 5)), f"#### {i + 1}{bad}"]),
        )
        cells = tuple(
            Outcome(
                problem.id,
                gate,
                0,
                f"It is {i + 1 if k == best else -i}.{bad}",
                5 + i % 40,
                f"{i + 1 if k == best else -i}{bad}",
                "ok",
                k == best,
                float(k == best),
                "end_token",
            )
            for k, gate in enumerate(GRID)
        )
        features = {"prompt_length": 10.0 + i % 17, "first_token_entropy": i / 1000}
        rl = best if i % 3 else (best + 1) % 5
        arms = {"baseline": GRID[0], "fixed:0.5": 0.5, "rl_selected": GRID[rl]}
        made.append(ProblemRow(problem, f"<|user|>{i}{bad}", features, cells, 0, rl, arms))
    return tuple(made)


def report_data(n: int = 40, *, hostile: bool = False, **changes) -> ReportData:
    problem_rows = rows(n, hostile=hostile)
    chosen = np.array([[GRID[row.rl] for row in problem_rows], [GRID[0]] * n, [GRID[4]] * n])
    updates = np.linspace(0, 1, 30)
    curves = {"charts/episodic_return": np.stack([updates, updates**2, updates**0.5])}
    for k, gate in enumerate(GRID):
        share = np.full((3, 30), 0.2) + (0.1 if k == 4 else -0.025) * updates
        curves[f"charts/gate_frac_{gate:g}"] = share
    kept = {
        "name": f"run{SCRIPT}" if hostile else "run",
        "results": results(n),
        "splits": (SplitReport("test", results(n), problem_rows, chosen[..., None]),),
        "curves": curves,
        "curves_by_seed": True,
        "batch": 64,
        "config": f"run: {SCRIPT}" if hostile else "run: x",
    }
    return ReportData(**{**kept, **changes})


def probe() -> dict:
    def effect(gate: float) -> dict:
        share = [1 - 0.3 * gate, 0.3 * gate]
        return {"gate": gate, "dominance": [[share]] * 3, "diversity": [[0.2 + 0.1 * gate]] * 3}

    return {
        "effects": [effect(gate) for gate in (0.0, 1.0)],
        "sites": [0, 2],
        "streams": ["trunk", "delay(1)"],
        "prompts": 8,
        "split": "train",
        "verdict": "gentle",
    }
