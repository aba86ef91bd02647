"""From the outcomes of every arm to ``results.json`` and the table on the screen."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from jroute.errors import UserError
from jroute.evaluation import statistics

DECLARED = ("fixed:0.5", "supervised", "baseline", "best_fixed")
"""What RL is compared with, declared beforehand; their p-values are adjusted together (Holm)."""


@dataclass(frozen=True)
class JudgeConfig:
    """How arms are judged.

    Attributes:
        replicates: Bootstrap resamples.
        seed: Of the resampling.
    """

    replicates: int = 10_000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.replicates < 100:
            raise UserError(
                f"judge.replicates is {self.replicates}; an interval needs at least 100"
            )


def fixed_name(gate: float) -> str:
    """Name of a fixed arm: ``fixed:0.5``."""
    return f"fixed:{gate:g}"


def arm_values(
    correct: Float[np.ndarray, "problems gates"],
    gates: Sequence[float],
    *,
    best_fixed: int,
    supervised: Int[np.ndarray, " problems"],
    rl: Int[np.ndarray, "seeds problems"],
    selected: int,
) -> dict[str, Float[np.ndarray, "..."]]:
    """What every arm scored on every problem.

    Args:
        correct: 1 where a gate solves a problem.
        gates: The gate of each column.
        best_fixed: Column that was best on train.
        supervised: Column the supervised arm chose for each problem.
        rl: Column each seed's controller chose.
        selected: The seed that was best on validation.

    Returns:
        ``[problems]`` per arm, ``[seeds, problems]`` for ``rl``. ``random`` is its expectation.
    """
    rows = np.arange(len(correct))
    arms = {
        "baseline": correct[:, list(gates).index(0.0)],
        **{fixed_name(gate): correct[:, i] for i, gate in enumerate(gates)},
        "random": correct.mean(axis=1),
        "supervised": correct[rows, supervised],
        "rl": correct[rows[None], rl],
        "rl_selected": correct[rows, rl[selected]],
        "best_fixed": correct[:, best_fixed],
        "oracle": correct.max(axis=1),
    }
    return arms


def judge(arms: Mapping[str, Float[np.ndarray, "..."]], config: JudgeConfig) -> dict[str, Any]:
    """Accuracies with 95 % intervals, and the contrasts of RL with every other arm.

    Args:
        arms: As ``arm_values`` gives them.
        config: Resampling.

    Returns:
        The part of ``results.json`` that belongs to one split: ``n``, ``arms``, ``contrasts``.
    """
    sampling = {"replicates": config.replicates, "seed": config.seed}
    found = {name: statistics.accuracy(values, **sampling) for name, values in arms.items()}
    n = found["baseline"].n
    contrasts = []
    for name in (*DECLARED, "random", "oracle"):
        c = statistics.paired_contrast(arms["rl"], arms[name], **sampling)
        contrasts.append(
            {"a": "rl", "b": name, "difference": c.difference, "ci95": list(c.ci95), "p": c.p}
        )
    adjusted = statistics.holm([c["p"] for c in contrasts[: len(DECLARED)]])
    for contrast, p in zip(contrasts, adjusted, strict=False):
        contrast["p_holm"] = p
    return {
        "n": n,
        "arms": {name: {"accuracy": a.accuracy, "ci95": list(a.ci95)} for name, a in found.items()},
        "contrasts": contrasts,
    }


def table(results: Mapping[str, Any], title: str) -> str:
    """One split's arms and contrasts as text."""
    lines = [f"{title}: n = {results['n']} problems", f"{'arm':<14}{'accuracy':>9}  95 % interval"]
    for name, arm in results["arms"].items():
        low, high = arm["ci95"]
        lines.append(
            f"{name:<14}{100 * arm['accuracy']:>8.1f}%  [{100 * low:.1f}, {100 * high:.1f}]"
        )
    lines.append(f"{'rl minus':<14}{'points':>9}  95 % interval    p (Holm over the four declared)")
    for c in results["contrasts"]:
        low, high = c["ci95"]
        holm = f" ({c['p_holm']:.2g})" if "p_holm" in c else ""
        interval = f"[{100 * low:+.1f}, {100 * high:+.1f}]"
        lines.append(f"{c['b']:<14}{100 * c['difference']:>+9.1f}  {interval}  {c['p']:.2g}{holm}")
    return "\n".join(lines)
