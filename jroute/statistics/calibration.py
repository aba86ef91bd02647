"""Does the laboratory say yes where there is something to learn, and no where there is not?

Four parts, all of them arrays in and numbers out:

* ``positive``: a table with headroom by construction. RL must reach nearly all that an exact
  gradient on the whole table reaches, beat the four declared arms, and have strong rivals.
* ``null``: that table with features dealt to other problems. Every outcome is as before, and so is
  hindsight's oracle, but nothing can be learnt: "RL beats the best fixed gate" must be as rare as
  promised.
* ``dose``: simulated tables with a planted gain, against which estimate and verdict are held.
* a plain model's table goes through ``contest`` as any other, without expectations.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Int, Key
from scipy import stats

from jroute.arms import registry
from jroute.arms.columns import arm_values
from jroute.arms.controls import fit_controls
from jroute.arms.resolve import table_columns
from jroute.arms.rl import best_seed, choices_of_seeds, train_rl
from jroute.arms.supervised import LENGTH, Cells, SupervisedConfig, fit_supervised
from jroute.ppo import learner
from jroute.statistics.config import JudgeConfig
from jroute.statistics.contrasts import paired_contrast
from jroute.statistics.headroom import CrossValidator, headroom
from jroute.statistics.results import arm_results
from jroute.utils.keys import Keys, keys

TRIAL = 10
"""Updates of PPO that a trial measures."""

GRID = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Gates of the simulated tables."""


class Tables(NamedTuple):
    """Everything a calibration needs of one model.

    Attributes:
        train: Features and correctness of every gate.
        validation: The same of the problems that choose settings.
        judged: The same of every judged split, the primary one first.
        gates: The grid.
    """

    train: Cells
    validation: Cells
    judged: dict[str, Cells]
    gates: tuple[float, ...]


@dataclass(frozen=True)
class CalibrationConfig:
    """How much of everything.

    Attributes:
        seed: Of all draws.
        ppo: The learner of the positive part; its seeds are those of the claim.
        small: The learner of the null and the dose, which train hundreds of times.
        supervised: Networks that know all train cells.
        small_supervised: The same in the dose.
        judge: Resampling, margin, folds.
        permutations: Of the null.
        tables: Simulated tables for each planted gain.
        gains: Planted gains.
        problems: Train, validation and judged problems of a simulated table.
        features: Features of a simulated table, of which one tells.
    """

    stored_keys: ClassVar[Keys] = keys(
        "seed",
        "ppo",
        "small",
        "supervised",
        "small_supervised",
        "judge",
        "permutations",
        "tables",
        "gains",
        "problems",
        "features",
    )

    seed: int = 0
    ppo: learner.PPOConfig = field(default_factory=learner.PPOConfig)
    small: learner.PPOConfig = field(
        default_factory=lambda: learner.PPOConfig(
            seeds=5, updates=50, batch_size=256, hidden=(32, 32)
        )
    )
    supervised: SupervisedConfig = field(default_factory=SupervisedConfig)
    small_supervised: SupervisedConfig = field(
        default_factory=lambda: SupervisedConfig(
            hidden=(32,), networks=1, steps=300, learning_rates=(3e-3, 1e-2)
        )
    )
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    permutations: int = 200
    tables: int = 8
    gains: tuple[float, ...] = (0.0, 0.01, 0.02, 0.05, 0.1)
    problems: tuple[int, int, int] = (1200, 300, 1319)
    features: int = 8


def contest(
    tables: Tables,
    ppo: learner.PPOConfig,
    supervised: SupervisedConfig,
    judge: JudgeConfig,
    key: Key[Array, ""],
) -> dict[str, dict[str, Any]]:
    """Trains every arm on a table and judges all of them; split -> its part of ``results.json``.

    Args:
        tables: Of one model.
        ppo: The learner.
        supervised: Networks that know all train cells.
        judge: Resampling, margin, folds.
        key: Of all training.
    """
    train, validation = tables.train, tables.validation
    keys = jax.random.split(key, 3)
    rl = train_rl(train, ppo, keys[0])
    short = [(x[:, LENGTH], y) for x, y in (train, validation)]
    length_only = fit_supervised(short[0], short[1], supervised, keys[1])
    fitted = fit_controls(train, validation, rl, ppo=ppo, supervised=supervised, key=keys[2])
    selected = best_seed(validation[1], choices_of_seeds(rl, validation[0]))
    best_fixed = int(train[1].mean(axis=0).argmax())
    controller = {
        "seeds": rl,
        "supervised": length_only,
        "selected": selected,
        "best_fixed": best_fixed,
    }
    learnt = tuple(np.concatenate(pair) for pair in zip(train, validation, strict=True))
    found = {}
    for split, (features, correct) in tables.judged.items():
        columns = table_columns(features, tables.gates, controller, fitted)
        room = headroom(
            (features, correct),
            learnt,  # type: ignore[arg-type]
            best_fixed,
            folds=judge.folds,
            replicates=judge.replicates,
            seed=judge.seed,
        )
        found[split] = arm_results(arm_values(correct, columns), judge, registry.roles(), room)
    return found


def seconds_of(config: learner.PPOConfig, problems: int) -> float:
    """Wall time of a training, compilation left out, by a trial of ``TRIAL`` updates.

    Args:
        config: Of the learner.
        problems: Number of train problems.
    """
    cells = planted(0.0, problems, np.random.default_rng(0))
    short = dataclasses.replace(config, updates=TRIAL)
    train_rl(cells, short, jax.random.key(0))  # compiles
    started = time.perf_counter()
    train_rl(cells, short, jax.random.key(0))
    return (time.perf_counter() - started) / TRIAL * config.updates


# Positive ---------------------------------------------------------------------------------------

REACHED, REACHED_SURELY = 0.9, 0.8
"""Part of the exact-gradient policy's gain that RL must reach, and its interval's lower end."""


def expectations(results: Mapping[str, Any]) -> dict[str, bool]:
    """What a positive control must show, each by name."""
    share = results["shares"]["rl"]
    accuracy = {name: arm["accuracy"] for name, arm in results["arms"].items()}
    declared = [c for c in results["contrasts"] if "p_holm" in c]
    return {
        "share_at_least_90_percent": share["share"] is not None and share["share"] >= REACHED,
        "its_lower_end_at_least_80_percent": (share["ci95"][0] or 0.0) >= REACHED_SURELY,
        "four_contrasts_significant": len(declared) == len(registry.DECLARED)
        and all(c["difference"] > 0 and c["p_holm"] <= 0.05 for c in declared),
        "supervised_on_features_within_a_point_of_exact_gradient": accuracy["supervised_features"]
        >= accuracy["exact_gradient"] - 0.01,
    }


# Null -------------------------------------------------------------------------------------------


def _deals(
    tables: Tables, config: CalibrationConfig, index: int
) -> list[Int[np.ndarray, " problems"]]:
    """Which problem's features each problem gets in a permutation: train, validation, judged."""
    rng = np.random.default_rng([config.seed, index])
    judged = next(iter(tables.judged.values()))[0]
    return [rng.permutation(len(x)) for x in (tables.train[0], tables.validation[0], judged)]


def null_rl(
    tables: Tables, config: CalibrationConfig, indices: Int[np.ndarray, " chunk"]
) -> list[dict[str, Any]]:
    """Some permutations of the null: what RL seems to gain over the best fixed gate in each.

    Features are dealt to other problems within every split; outcomes stay where they are.

    Args:
        tables: Of a model with headroom; its primary split is judged.
        config: ``small`` and ``judge`` are used.
        indices: Numbers of the permutations; each has draws of its own.
    """
    split, (features, correct) = next(iter(tables.judged.items()))
    x, y = tables.train
    fixed = correct[:, int(y.mean(axis=0).argmax())]
    rows, found = np.arange(len(correct)), []
    for index in indices.tolist():
        deal = _deals(tables, config, index)
        key = jax.random.fold_in(jax.random.key(config.seed), index)
        rl = train_rl((x[deal[0]], y), config.small, key)
        gain = paired_contrast(
            correct[rows[None], choices_of_seeds(rl, features[deal[2]])],
            fixed,
            replicates=config.judge.replicates,
            seed=config.judge.seed,
        )
        found.append(
            {
                "permutation": index,
                "split": split,
                "n": gain.n,
                "difference": gain.difference,
                "ci95": list(gain.ci95),
                "p": gain.p,
                "declared": bool(gain.difference > 0 and gain.p <= 0.05),
                "hindsight": float((correct.max(axis=1) - fixed).mean()),
            }
        )
    return found


def null_rule(
    tables: Tables, validator: CrossValidator, config: CalibrationConfig, index: int
) -> dict[str, Any]:
    """One permutation of the null: the learnable headroom that cross-validation sees in it.

    Args:
        tables: As for ``null_rl``.
        validator: Prepared on the primary split's features, with train's and validation's.
        config: ``judge`` is used.
        index: Number of the permutation.
    """
    _, correct = next(iter(tables.judged.values()))
    # The rule's features stay and outcomes are dealt the other way: the same pairs.
    train, validation, judged = (np.argsort(deal) for deal in _deals(tables, config, index))
    moved = correct[judged]
    extra = np.concatenate([tables.train[1][train], tables.validation[1][validation]])
    room = validator.contrast(
        moved,
        validator.choices(moved, extra),
        int(tables.train[1].mean(axis=0).argmax()),
        replicates=config.judge.replicates,
        seed=config.judge.seed,
    )
    return {
        "learnable": room.difference,
        "learnable_ci95": list(room.ci95),
        "learnable_upper95": room.upper95,
    }


def allowed(permutations: int, level: float = 0.05) -> int:
    """Most false alarms that a test of that level has in 19 of 20 series: 15 in 200."""
    return int(stats.binom.ppf(0.95, permutations, level))


def sum_up_null(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Count and means over all permutations, with what the rule's headroom ought to be: 0."""
    learnable = np.array([one["learnable"] for one in found])
    gain = np.array([one["difference"] for one in found])
    alarms = sum(one["declared"] for one in found)
    rooms = sum(one["learnable_ci95"][0] > 0 for one in found)
    limit = allowed(len(found))
    return {
        "permutations": len(found),
        "n": found[0]["n"],
        "declared": alarms,
        "declared_allowed": limit,
        "rl_minus_best_fixed_mean": float(gain.mean()),
        "rl_minus_best_fixed_range95": np.quantile(gain, [0.025, 0.975]).tolist(),
        "learnable_mean": float(learnable.mean()),
        "learnable_range95": np.quantile(learnable, [0.025, 0.975]).tolist(),
        "learnable_found": rooms,
        "hindsight": found[0]["hindsight"],
        "passes": {
            "declared_as_rarely_as_promised": alarms <= limit,
            "headroom_found_as_rarely_as_promised": rooms <= limit,
            "hindsight_unchanged": len({one["hindsight"] for one in found}) == 1,
        },
    }


# Dose -------------------------------------------------------------------------------------------


def planted(
    gain: float, problems: int, rng: np.random.Generator, *, features: int = 8, flips: float = 0.01
) -> Cells:
    """A simulated table on which the best rule gains exactly ``gain`` over any fixed gate.

    A share of the problems is sensitive: one half of them is solved by the two lowest gates only,
    the other by the two highest, and the sign of feature 1 tells which half. All others are solved
    by every gate or by none. Feature 0 (the length) and the rest tell nothing. Then every cell
    flips with a chance of ``flips``; the share makes up for what that costs.
    """
    x = rng.standard_normal((problems, features)).astype(np.float32)
    sensitive = rng.random(problems) < 2.0 * gain / (1.0 - 2.0 * flips)
    high = x[:, 1] > 0
    gates = np.arange(len(GRID))
    fits = np.where(high[:, None], gates >= 3, gates <= 1)
    solved = np.where(sensitive[:, None], fits, (rng.random(problems) < 0.6)[:, None])
    return x, (solved ^ (rng.random(solved.shape) < flips)).astype(np.float64)


def dose(
    config: CalibrationConfig, gain: float, progress: Callable[[], object] = lambda: None
) -> dict[str, Any]:
    """Verdicts and estimates on simulated tables of one planted gain.

    Args:
        config: ``small``, ``small_supervised``, ``judge``, ``tables`` and ``problems`` are used.
        gain: The truth.
        progress: Called after every table.
    """
    number, found = round(gain * 10_000), []
    for i in range(config.tables):
        rng = np.random.default_rng([config.seed, number, i])
        train, validation, judged = (
            planted(gain, n, rng, features=config.features) for n in config.problems
        )
        tables = Tables(train, validation, {"test": judged}, GRID)
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), number), i)
        results = contest(tables, config.small, config.small_supervised, config.judge, key)["test"]
        contrast = next(c for c in results["contrasts"] if c["b"] == "best_fixed")
        room = results["headroom"]["learnable"]
        found.append(
            {
                "n": results["n"],
                "verdict": results["verdict"]["name"],
                "rl_minus_best_fixed": contrast["difference"],
                "ci95": contrast["ci95"],
                "covers": contrast["ci95"][0] <= gain <= contrast["ci95"][1],
                "learnable": room["value"],
                "learnable_ci95": room["ci95"],
                "learnable_upper95": room["upper95"],
            }
        )
        progress()
    estimates = np.array([one["rl_minus_best_fixed"] for one in found])
    verdicts = [one["verdict"] for one in found]
    return {
        "gain": gain,
        "tables": len(found),
        "n": found[0]["n"],
        "rl_minus_best_fixed_mean": float(estimates.mean()),
        "rl_minus_best_fixed_range": [float(estimates.min()), float(estimates.max())],
        "learnable_mean": float(np.mean([one["learnable"] for one in found])),
        "covers": sum(one["covers"] for one in found),
        "verdicts": {name: verdicts.count(name) for name in sorted(set(verdicts))},
        "each": found,
    }
