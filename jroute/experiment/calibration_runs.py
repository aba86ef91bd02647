"""The runs of the models that a calibration needs: opened or made, filled, and estimated."""

import dataclasses
import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np

from jroute.checkpoint.conversion import convert
from jroute.controller.features import Featurizer, RawFeatures
from jroute.experiment import calibration
from jroute.experiment.calibration import CalibrationConfig, ModelTables, Tables
from jroute.experiment.config import Experiment
from jroute.experiment.estimate import format_duration
from jroute.experiment.pipeline import fill_outcomes
from jroute.experiment.plan import plan_outcomes
from jroute.experiment.run import Run, load_run
from jroute.tasks import Split
from jroute.utils.config import load
from jroute.utils.disk import make_folder
from jroute.utils.errors import UserError
from jroute.utils.files import write_json
from jroute.utils.keys import stored
from jroute.utils.machine import describe_machine
from jroute.utils.secrets import redacted


@dataclass(frozen=True)
class ModelRuns:
    """Where the runs of models are, and the experiment of those that have none yet.

    Attributes:
        out: Where converted models and run folders go.
        config: The experiment's file.
        overrides: Options of that experiment.
    """

    out: Path
    config: Path
    overrides: tuple[str, ...] = ()

    def calibration(
        self, own_options: Sequence[str], *, permutations: int, tables: int
    ) -> CalibrationConfig:
        """Return the calibration's configuration; a wrong option is refused immediately.

        Args:
            own_options: Options of the command itself, to suggest for a misspelled one.
            permutations: Permutations of the null.
            tables: Simulated tables for each planted gain.

        Raises:
            UserError: An option does not belong to the experiment, or a count is not positive.
        """
        if permutations < 1 or tables < 1:
            raise UserError("--permutations and --tables must be at least 1")
        placeholders = ["--run", "a-models", "--model", "a-models"]
        try:
            experiment = load(Experiment, self.config, [*placeholders, *self.overrides])
        except UserError as error:
            names = [word.partition("=")[0] for word in self.overrides]
            near = [n for name in names for n in get_close_matches(name, own_options, 1, 0.8)]
            hint = f"; of this command itself: {near[0]}" if near else ""
            raise UserError(f"{error}{hint}") from None
        return CalibrationConfig(
            seed=experiment.seed,
            ppo=experiment.ppo,
            supervised=experiment.supervised,
            judge=experiment.judge,
            permutations=permutations,
            tables=tables,
        )

    def open(self, source: Path, *, keep: bool = True) -> Run:
        """Return the run of a model, creating it if necessary.

        Args:
            source: A run folder, a model directory, or a folder in Hugging Face layout.
            keep: Whether to make the run folder.

        Raises:
            UserError: The source is not a folder.
        """
        require_folders([source])
        if (source / "config.yaml").is_file():
            return load_run(source)
        name, model = _name(source), source
        if not (source / "manifest.json").is_file():
            model = self.out / f"model-{name}"
            if not model.is_dir():
                convert(str(source), model)
        options = ["--run", str(self.out / f"run-{name}"), "--model", str(model), *self.overrides]
        return Run.start(load(Experiment, self.config, options), keep=keep)

    def tables(self, source: Path) -> ModelTables:
        """Return the tables of a model, filling them first if necessary."""
        run = self.open(source)
        splits = run.experiment.splits
        fill_outcomes(run)
        raw: dict[Split, RawFeatures] = {split: run.features.raw(split) for split in splits}
        featurizer = Featurizer.fit(raw["train"], run.experiment.features)
        cells = {
            split: (featurizer(features).astype(np.float32), run.outcomes.matrix(split))
            for split, features in raw.items()
        }
        description = {
            "source": str(source),
            "model": run.lm.fingerprint,
            "outcomes": run.outcomes.table.fingerprint,
            "problems": {split: len(cells[split][0]) for split in cells},
        }
        if changed := run.outcomes.changed_grades(*splits):
            description["grades"] = changed
        judged = {split: cells[split] for split in run.experiment.judged}
        tables = Tables(cells["train"], cells["validation"], judged, run.grid.values)
        return ModelTables(tables, description)

    def estimate(
        self,
        sources: Sequence[Path],
        models: int,
        config: CalibrationConfig,
        parts: Sequence[str],
    ) -> str:
        """Return the cost of a calibration as text; nothing is stored.

        Args:
            sources: Models whose tables are needed.
            models: Number of models that every arm is trained for.
            config: The size of every part.
            parts: Some of ``positive``, ``null`` and ``dose``.
        """
        lines, problems = [], config.problems[0]
        with tempfile.TemporaryDirectory() as scratch:
            for source in sources:
                exists = any(self.out.glob(f"run-{_name(source)}"))
                runs = self if exists else dataclasses.replace(self, out=Path(scratch))
                run = runs.open(source, keep=False)
                cells = {split: run.outcomes.cells(split) for split in run.experiment.splits}
                lines += [f"{source}:", str(plan_outcomes(run, cells)), ""]
                problems = len(run.data.problems("train"))
        lines += _estimate_trainings(models, problems, config, parts)
        return "\n".join([*lines, "supervised networks and resampling come on top"])


def require_folders(sources: Sequence[Path]) -> None:
    """Raise a ``UserError`` if a source of tables is not a folder."""
    for source in sources:
        if not source.is_dir():
            raise UserError(
                f"{source} is not a folder; give a run, a model directory or a model to convert"
            )


def sources_of(models: Sequence[Path], parts: Sequence[str]) -> Sequence[Path]:
    """Return the models whose tables the parts need: all for ``positive``, one for ``null``."""
    if "positive" in parts:
        return models
    return models[:1] if "null" in parts else ()


def write_results(
    file: Path,
    results: Mapping[str, Any],
    config: CalibrationConfig,
    *,
    command: str,
    seconds: float,
) -> None:
    """Write the results as JSON, with what made them.

    Args:
        file: The file; its folder is made if missing.
        results: As ``jroute.experiment.calibration.calibrate`` gives them.
        config: The configuration of the calibration.
        command: The command line.
        seconds: How long it took.
    """
    make_folder(file.parent)
    content = {
        "command": redacted(command),
        "machine": describe_machine(),
        "seconds_of_this_command": seconds,
        "config": stored(config),
    }
    write_json(file, {**content, **results})


def _estimate_trainings(
    models: int, problems: int, config: CalibrationConfig, parts: Sequence[str]
) -> list[str]:
    """Return a line for each kind of training; RL has a control that is trained as often."""
    doses = 2 * config.tables * len(config.gains)
    trainings = {
        "models": (config.ppo, 2 * models, problems),
        "null": (config.small_ppo, config.permutations if "null" in parts else 0, problems),
        "dose": (config.small_ppo, doses if "dose" in parts else 0, config.problems[0]),
    }
    return [
        f"{name:<12} {count} trainings of {ppo.seeds} seeds x {ppo.updates} updates, about "
        f"{format_duration(count * calibration.training_seconds(ppo, rows))} by a trial"
        for name, (ppo, count, rows) in trainings.items()
        if count
    ]


def _name(source: Path) -> str:
    """Return the digest that names a model's folders."""
    return hashlib.sha256(str(source.absolute()).encode()).hexdigest()[:8]
