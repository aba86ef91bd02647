"""Calibration: positive where there is something to learn, negative where there is not.

* ``positive``: a table with headroom by construction. RL must reach nearly all that an exact
  gradient on the whole table reaches, beat the four declared arms, and have strong rivals.
* ``null``: that table with features permuted across problems. Every outcome is as before, and so is
  the hindsight oracle, but nothing can be learned: "RL beats the best fixed gate" must be as rare
  as promised.
* ``dose``: simulated tables with a planted gain, against which estimates and verdicts are checked.
* a plain model's table goes through ``train_and_judge`` like any other, without expectations.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Int, Key

from jroute.arms import registry
from jroute.arms.columns import arm_values
from jroute.arms.controls import fit_controls
from jroute.arms.resolve import table_columns
from jroute.arms.rl import best_seed, columns_of_seeds, train_rl
from jroute.arms.supervised import LENGTH, Cells, SupervisedConfig, fit_supervised
from jroute.experiment.result_cache import ResultCache
from jroute.observe.progress import progress_bar
from jroute.ppo.config import PPOConfig
from jroute.statistics.calibration import (
    GRID,
    against_truth,
    expectations,
    permutations,
    permuted_headroom,
    permuted_rl,
    planted,
    summarize_dose,
    summarize_null,
)
from jroute.statistics.config import JudgeConfig
from jroute.statistics.contrasts import paired_contrast
from jroute.statistics.headroom import CrossValidator, headroom
from jroute.statistics.results import arm_results
from jroute.utils.keys import Keys, keys, stored

CHUNK = 10
"""Permutations that are trained together and then kept."""

TRIAL = 10
"""Updates of PPO that a trial measures."""


class Tables(NamedTuple):
    """The cells that a calibration needs of one model.

    Attributes:
        train: Features and correctness of every gate.
        validation: The same of the problems that choose hyperparameters.
        judged: The same of every judged split, the primary one first.
        gates: The grid.
    """

    train: Cells
    validation: Cells
    judged: dict[str, Cells]
    gates: tuple[float, ...]


class ModelTables(NamedTuple):
    """The tables of a model and a description of their origin.

    Attributes:
        tables: The cells.
        description: ``source``, and what determines the cells: ``model``, ``outcomes``,
            ``problems``.
    """

    tables: Tables
    description: dict[str, Any]

    @property
    def identity(self) -> dict[str, Any]:
        """What determines the tables; the name of the model's source does not."""
        return {name: value for name, value in self.description.items() if name != "source"}


@dataclass(frozen=True)
class CalibrationConfig:
    """The size of every part of a calibration.

    Attributes:
        seed: Seed of all draws.
        ppo: The learner of the positive part; its seeds are those of the claim.
        small_ppo: The learner of the null and the dose, which train hundreds of times.
        supervised: Networks that know all train cells.
        small_supervised: The same in the dose.
        judge: Resampling, margin, folds.
        permutations: Permutations of the null.
        tables: Simulated tables for each planted gain.
        gains: Planted gains.
        problems: Train, validation and judged problems of a simulated table.
        features: Features of a simulated table, only one of which is informative.
    """

    stored_keys: ClassVar[Keys] = keys(
        "seed",
        "ppo",
        "supervised",
        "small_supervised",
        "judge",
        "permutations",
        "tables",
        "gains",
        "problems",
        "features",
        small_ppo="small",
    )

    seed: int = 0
    ppo: PPOConfig = field(default_factory=PPOConfig)
    small_ppo: PPOConfig = field(
        default_factory=lambda: PPOConfig(seeds=5, updates=50, batch_size=256, hidden=(32, 32))
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

    def deciding(self, *names: str) -> dict[str, Any]:
        """Return the fields that determine a part: those named, ``seed`` and ``judge``."""
        fields = stored(self)
        return {name: fields[name] for name in ("seed", "judge", *names)}

    @property
    def small_description(self) -> dict[str, Any]:
        """The fields that determine the null and the dose."""
        return self.deciding("small", "small_supervised", "problems", "features")


def calibrate(
    models: Sequence[ModelTables],
    plain: Sequence[ModelTables],
    config: CalibrationConfig,
    parts: Sequence[str],
    cache: ResultCache,
) -> dict[str, Any]:
    """Run the parts of a calibration.

    Args:
        models: Models of the positive part; the null is of the first.
        plain: Models trained without gates: judged without expectations.
        config: The size of every part.
        parts: Some of ``positive``, ``null`` and ``dose``.
        cache: Results that earlier commands finished.

    Returns:
        Results by part, as ``calibration.json`` has them.
    """
    results: dict[str, Any] = {}
    if "positive" in parts:
        bar = progress_bar(models, desc="positive", unit="model")
        results["positive"] = [_positive(model, config, cache) for model in bar]
    if plain:
        results["plain"] = [
            {**model.description, "splits": _contest_of(model, config, cache)} for model in plain
        ]
    if "null" in parts:
        results["null"] = _null(models[0], config, cache)
    if "dose" in parts:
        results["dose"] = _doses(config, cache)
    return results


# Positive ---------------------------------------------------------------------------------------


def train_and_judge(
    tables: Tables,
    ppo: PPOConfig,
    supervised: SupervisedConfig,
    judge: JudgeConfig,
    key: Key[Array, ""],
) -> dict[str, dict[str, Any]]:
    """Train every arm on a table and judge all of them.

    Args:
        tables: Tables of one model.
        ppo: The learner.
        supervised: Networks that know all train cells.
        judge: Resampling, margin, folds.
        key: Key of all training.

    Returns:
        Split -> its part of ``results.json``.
    """
    train, validation = tables.train, tables.validation
    key_rl, key_supervised, key_controls = jax.random.split(key, 3)
    rl = train_rl(train, ppo, key_rl)
    selected = best_seed(validation[1], columns_of_seeds(rl, validation[0]))
    short = [(x[:, LENGTH], y) for x, y in (train, validation)]
    controller = {
        "seeds": rl,
        registry.SUPERVISED: fit_supervised(short[0], short[1], supervised, key_supervised),
        "selected": selected,
        registry.BEST_FIXED: _best_fixed(tables),
    }
    controls = fit_controls(train, validation, rl, ppo=ppo, supervised=supervised, key=key_controls)
    features, values = (np.concatenate(pair) for pair in zip(train, validation, strict=True))
    results = {}
    for split, (observations, correct) in tables.judged.items():
        split_headroom = headroom(
            (observations, correct),
            (features, values),
            _best_fixed(tables),
            folds=judge.folds,
            replicates=judge.replicates,
            seed=judge.seed,
        )
        columns = table_columns(observations, tables.gates, controller, controls)
        scores = arm_values(correct, columns)
        results[split] = arm_results(scores, judge, registry.roles(), split_headroom)
    return results


def training_seconds(config: PPOConfig, problems: int) -> float:
    """Return the wall time of a training without compilation, by a trial of ``TRIAL`` updates.

    Args:
        config: Configuration of the learner.
        problems: Number of train problems.
    """
    cells = planted(0.0, problems, np.random.default_rng(0))
    short = dataclasses.replace(config, updates=TRIAL)
    train_rl(cells, short, jax.random.key(0))  # compiles
    started = time.perf_counter()
    train_rl(cells, short, jax.random.key(0))
    return (time.perf_counter() - started) / TRIAL * config.updates


def _best_fixed(tables: Tables) -> int:
    """Return the column that is best on train."""
    return int(tables.train[1].mean(axis=0).argmax())


def _contest_of(model: ModelTables, config: CalibrationConfig, cache: ResultCache) -> Any:
    """Train and judge every arm on a model's tables, or return the cached results."""
    full = (config.ppo, config.supervised, config.judge, jax.random.key(config.seed))
    description = {"config": config.deciding("ppo", "supervised"), "part": "contest"}
    return cache.get(
        {**description, **model.identity}, lambda: train_and_judge(model.tables, *full)
    )


def _positive(model: ModelTables, config: CalibrationConfig, cache: ResultCache) -> dict[str, Any]:
    splits = _contest_of(model, config, cache)
    passes = {split: expectations(results, registry.roles()) for split, results in splits.items()}
    return {**model.description, "passes": passes, "splits": splits}


# Null -------------------------------------------------------------------------------------------


def null_rl(
    tables: Tables, config: CalibrationConfig, indices: Int[np.ndarray, " chunk"]
) -> list[dict[str, Any]]:
    """Return what RL seems to gain over the best fixed gate in some permutations of the null.

    Features are permuted across problems within every split; outcomes stay where they are.

    Args:
        tables: Tables of a model with headroom; its primary split is judged.
        config: Only ``small_ppo`` and ``judge`` are used.
        indices: Numbers of the permutations, each of which seeds its draws.
    """
    split, (features, correct) = next(iter(tables.judged.items()))
    x, y = tables.train
    best_fixed = _best_fixed(tables)
    rows, permutations = np.arange(len(correct)), []
    for index in indices.tolist():
        train, _, judged = _permutations(tables, config, index)
        key = jax.random.fold_in(jax.random.key(config.seed), index)
        rl = train_rl((x[train], y), config.small_ppo, key)
        gain = paired_contrast(
            correct[rows[None], columns_of_seeds(rl, features[judged])],
            correct[:, best_fixed],
            replicates=config.judge.replicates,
            seed=config.judge.seed,
        )
        numbers = permuted_rl(gain, correct, best_fixed)
        permutations.append({"permutation": index, "split": split, **numbers})
    return permutations


def null_rule(
    tables: Tables, validator: CrossValidator, config: CalibrationConfig, index: int
) -> dict[str, Any]:
    """Return the learnable headroom that cross-validation sees in one permutation of the null.

    Args:
        tables: As for ``null_rl``.
        validator: Prepared on the primary split's features, with train's and validation's.
        config: Only ``judge`` is used.
        index: Number of the permutation.
    """
    _, correct = next(iter(tables.judged.values()))
    outcomes = (tables.train[1], tables.validation[1], correct)
    return permuted_headroom(
        outcomes, _permutations(tables, config, index), validator, config.judge
    )


def _permutations(
    tables: Tables, config: CalibrationConfig, index: int
) -> list[Int[np.ndarray, " problems"]]:
    judged = next(iter(tables.judged.values()))[0]
    sizes = [len(x) for x in (tables.train[0], tables.validation[0], judged)]
    return permutations(sizes, config.seed, index)


def _null(model: ModelTables, config: CalibrationConfig, cache: ResultCache) -> dict[str, Any]:
    tables, description = model.tables, {"config": config.small_description}
    permutations: list[dict[str, Any]] = []
    with progress_bar(total=config.permutations, desc="null", unit="permutation") as bar:
        for start in range(0, config.permutations, CHUNK):
            chunk = np.arange(start, min(start + CHUNK, config.permutations))
            permutations += cache.get(
                {**description, "null": chunk.tolist(), **model.identity},
                lambda chunk=chunk: null_rl(tables, config, chunk),
            )
            bar.update(len(chunk))
    count = len(permutations)
    validator = CrossValidator(
        next(iter(tables.judged.values()))[0],
        np.concatenate([tables.train[0], tables.validation[0]]),
        folds=config.judge.folds,
        seed=config.judge.seed,
    )
    rules = cache.get(
        {**description, "rule": count, **model.identity},
        lambda: [null_rule(tables, validator, config, i) for i in range(count)],
    )
    rows = [{**rl, **rule} for rl, rule in zip(permutations, rules, strict=True)]
    columns = {name: [row[name] for row in rows] for name in ("difference", "p", "learnable")}
    return {**model.description, **summarize_null(rows), "each": columns}


# Dose -------------------------------------------------------------------------------------------


def dose(
    config: CalibrationConfig, gain: float, progress: Callable[[], object] = lambda: None
) -> dict[str, Any]:
    """Return verdicts and estimates on simulated tables of one planted gain.

    Args:
        config: Only ``small_ppo``, ``small_supervised``, ``judge``, ``tables``, ``problems`` and
            ``features`` are used.
        gain: The truth.
        progress: Called after every table.
    """
    number, tables = round(gain * 10_000), []
    for i in range(config.tables):
        rng = np.random.default_rng([config.seed, number, i])
        train, validation, judged = (
            planted(gain, n, rng, features=config.features) for n in config.problems
        )
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), number), i)
        results = train_and_judge(
            Tables(train, validation, {"test": judged}, GRID),
            config.small_ppo,
            config.small_supervised,
            config.judge,
            key,
        )
        tables.append(against_truth(results["test"], gain, registry.roles()))
        progress()
    return summarize_dose(tables, gain)


def _doses(config: CalibrationConfig, cache: ResultCache) -> list[dict[str, Any]]:
    description = {"config": config.small_description, "tables": config.tables}
    total = len(config.gains) * config.tables
    with progress_bar(total=total, desc="dose", unit="table") as bar:
        return [
            cache.get(
                {**description, "dose": gain},
                lambda gain=gain: dose(config, gain, bar.update),
            )
            for gain in config.gains
        ]
