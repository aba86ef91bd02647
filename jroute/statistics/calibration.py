"""What a calibration counts: planted gains, permutations, and what each part must show.

Arrays in, numbers out; ``jroute.experiment.calibration`` trains the arms.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

from jroute.statistics.config import JudgeConfig
from jroute.statistics.contrasts import Contrast
from jroute.statistics.headroom import CrossValidator
from jroute.statistics.roles import ArmRoles

GRID = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Gates of the simulated tables."""

SHARE, SHARE_LOWER_END = 0.9, 0.8
"""Share of the exact-gradient policy's gain that RL must reach, and the lower end of its interval.
"""


# Positive ---------------------------------------------------------------------------------------


def expectations(results: Mapping[str, Any], roles: ArmRoles) -> dict[str, bool]:
    """Return whether a positive control meets each expectation, by name.

    Args:
        results: One split's part of ``results.json``.
        roles: The parts that arms play; the strongest rival must come close to the ceiling.
    """
    share = results["shares"][roles.subject]
    accuracy = {name: arm["accuracy"] for name, arm in results["arms"].items()}
    declared = [c for c in results["contrasts"] if "p_holm" in c]
    return {
        "share_at_least_90_percent": share["share"] is not None and share["share"] >= SHARE,
        "its_lower_end_at_least_80_percent": (share["ci95"][0] or 0.0) >= SHARE_LOWER_END,
        "four_contrasts_significant": len(declared) == len(roles.declared)
        and all(c["difference"] > 0 and c["p_holm"] <= 0.05 for c in declared),
        "supervised_on_features_within_a_point_of_exact_gradient": accuracy[roles.rivals[-1]]
        >= accuracy[roles.ceiling] - 0.01,
    }


# Null -------------------------------------------------------------------------------------------


def permutations(sizes: Sequence[int], seed: int, index: int) -> list[Int[np.ndarray, " problems"]]:
    """Permute features across problems within train, validation and the judged problems.

    Args:
        sizes: Number of problems of each.
        seed: Seed of the calibration.
        index: Number of the permutation, which seeds its draws.

    Returns:
        Which problem's features each problem gets.
    """
    rng = np.random.default_rng([seed, index])
    return [rng.permutation(size) for size in sizes]


def permuted_rl(
    gain: Contrast, values: Float[np.ndarray, "problems gates"], best_fixed: int
) -> dict[str, Any]:
    """Return what RL seems to gain over the best fixed gate in one permutation.

    Args:
        gain: RL, trained on permuted features, minus the best fixed gate.
        values: Values of every gate of the judged problems.
        best_fixed: Column that was best on train.
    """
    return {
        "n": gain.n,
        "difference": gain.difference,
        "ci95": list(gain.ci95),
        "p": gain.p,
        "declared": bool(gain.difference > 0 and gain.p <= 0.05),
        "hindsight": float((values.max(axis=1) - values[:, best_fixed]).mean()),
    }


def permuted_headroom(
    outcomes: Sequence[Float[np.ndarray, "_ gates"]],
    permuted: Sequence[Int[np.ndarray, " _"]],
    validator: CrossValidator,
    config: JudgeConfig,
) -> dict[str, Any]:
    """Return the learnable headroom that cross-validation sees in one permutation.

    The rule's features stay, and outcomes get the inverse permutation, which gives the same pairs.

    Args:
        outcomes: Values of every gate on train, validation and the judged problems.
        permuted: Which problem's features each of these problems gets, see ``permutations``.
        validator: Prepared on the judged problems' features, with train's and validation's.
        config: Resampling.
    """
    moved = [values[np.argsort(order)] for values, order in zip(outcomes, permuted, strict=True)]
    train, validation, judged = moved
    headroom = validator.contrast(
        judged,
        validator.columns(judged, np.concatenate([train, validation])),
        int(outcomes[0].mean(axis=0).argmax()),
        replicates=config.replicates,
        seed=config.seed,
    )
    return {
        "learnable": headroom.difference,
        "learnable_ci95": list(headroom.ci95),
        "learnable_upper95": headroom.upper95,
    }


def allowed_false_alarms(permutations: int, level: float = 0.05) -> int:
    """Return the most false alarms that a test has in 19 of 20 series: 15 in 200 at 5 %."""
    return int(stats.binom.ppf(0.95, permutations, level))


def summarize_null(permutations: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return counts and means over all permutations, and whether alarms are as rare as promised.

    Args:
        permutations: Each with the numbers of ``permuted_rl`` and ``permuted_headroom``.
    """
    learnable = np.array([row["learnable"] for row in permutations])
    gain = np.array([row["difference"] for row in permutations])
    alarms = sum(row["declared"] for row in permutations)
    headroom_alarms = sum(row["learnable_ci95"][0] > 0 for row in permutations)
    limit = allowed_false_alarms(len(permutations))
    return {
        "permutations": len(permutations),
        "n": permutations[0]["n"],
        "declared": alarms,
        "declared_allowed": limit,
        "rl_minus_best_fixed_mean": float(gain.mean()),
        "rl_minus_best_fixed_range95": np.quantile(gain, [0.025, 0.975]).tolist(),
        "learnable_mean": float(learnable.mean()),
        "learnable_range95": np.quantile(learnable, [0.025, 0.975]).tolist(),
        "learnable_found": headroom_alarms,
        "hindsight": permutations[0]["hindsight"],
        "passes": {
            "declared_as_rarely_as_promised": alarms <= limit,
            "headroom_found_as_rarely_as_promised": headroom_alarms <= limit,
            "hindsight_unchanged": len({row["hindsight"] for row in permutations}) == 1,
        },
    }


# Dose -------------------------------------------------------------------------------------------


def planted(
    gain: float, problems: int, rng: np.random.Generator, *, features: int = 8, flips: float = 0.01
) -> tuple[Float[np.ndarray, "problems features"], Float[np.ndarray, "problems gates"]]:
    """Simulate a table on which the best rule gains exactly ``gain`` over any fixed gate.

    A share of the problems is sensitive: one half of them is solved by the two lowest gates only,
    the other by the two highest, and the sign of feature 1 indicates which half. All others are
    solved by every gate or by none. Feature 0 (the length) and the remaining ones are
    uninformative. Then every cell flips with a chance of ``flips``; the share makes up for what
    that costs.

    Returns:
        Features, and whether each gate solves each problem.
    """
    x = rng.standard_normal((problems, features)).astype(np.float32)
    sensitive = rng.random(problems) < 2.0 * gain / (1.0 - 2.0 * flips)
    high = x[:, 1] > 0
    gates = np.arange(len(GRID))
    fits = np.where(high[:, None], gates >= 3, gates <= 1)
    solved = np.where(sensitive[:, None], fits, (rng.random(problems) < 0.6)[:, None])
    return x, (solved ^ (rng.random(solved.shape) < flips)).astype(np.float64)


def against_truth(results: Mapping[str, Any], gain: float, roles: ArmRoles) -> dict[str, Any]:
    """Return the verdict and the estimates on one simulated table, beside the planted gain.

    Args:
        results: The table's part of ``results.json``.
        gain: The planted gain.
        roles: The parts that arms play.
    """
    contrast = next(c for c in results["contrasts"] if c["b"] == roles.best_fixed)
    learnable = results["headroom"]["learnable"]
    return {
        "n": results["n"],
        "verdict": results["verdict"]["name"],
        "rl_minus_best_fixed": contrast["difference"],
        "ci95": contrast["ci95"],
        "covers": contrast["ci95"][0] <= gain <= contrast["ci95"][1],
        "learnable": learnable["value"],
        "learnable_ci95": learnable["ci95"],
        "learnable_upper95": learnable["upper95"],
    }


def summarize_dose(tables: Sequence[dict[str, Any]], gain: float) -> dict[str, Any]:
    """Return means, coverage and verdicts over the simulated tables of one planted gain.

    Args:
        tables: Each as ``against_truth`` gives it.
        gain: The planted gain.
    """
    estimates = np.array([table["rl_minus_best_fixed"] for table in tables])
    verdicts = [table["verdict"] for table in tables]
    return {
        "gain": gain,
        "tables": len(tables),
        "n": tables[0]["n"],
        "rl_minus_best_fixed_mean": float(estimates.mean()),
        "rl_minus_best_fixed_range": [float(estimates.min()), float(estimates.max())],
        "learnable_mean": float(np.mean([table["learnable"] for table in tables])),
        "covers": sum(table["covers"] for table in tables),
        "verdicts": {name: verdicts.count(name) for name in sorted(set(verdicts))},
        "each": list(tables),
    }
