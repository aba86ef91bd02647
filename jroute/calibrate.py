"""Shows that the laboratory says yes where there is something to learn, and no where there is not.

    python -m jroute.calibrate                                   # the bundled model
    python -m jroute.calibrate --models jroute/assets/tiny-gated runs/tiny-1 runs/tiny-2
    python -m jroute.calibrate --plan                            # what it would take

Positive: models pretrained with the gate, on which RL must reach what an exact gradient reaches.
Null: the first one's table with features dealt to other problems. Dose: simulated tables with
planted gains. ``--plain`` models were trained without gates (``scripts/pretrain_tiny.py --plain``);
they are judged like any other, and nothing is expected of them. A model is a folder in Hugging Face
layout (``scripts/pretrain_tiny.py --seed N --out DIR`` makes others), a model directory, or a run
folder whose outcomes are used. Interrupted, the same command goes on.
"""

import argparse
import difflib
import hashlib
import json
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jroute.utils.cli import command, run_command
from jroute.utils.errors import UserError
from jroute.utils.keys import stored

if TYPE_CHECKING:
    from jroute.controller.features import RawFeatures
    from jroute.experiment.config import Experiment
    from jroute.experiment.run import Run
    from jroute.outcomes.generation import Cell
    from jroute.statistics.calibration import CalibrationConfig, Tables
    from jroute.tasks import Split

PARTS = ("positive", "null", "dose")
CHUNK = 10
"""Permutations that are trained at once and then kept."""


def run_of(
    source: Path, out: Path, config: Path, overrides: Sequence[str], *, keep: bool = True
) -> "Run":
    """The run folder of a model, made where there is none.

    Args:
        source: A run folder, a model directory, or a folder in Hugging Face layout.
        out: Where a converted model and a run folder go.
        config: The experiment of models that have no run folder.
        overrides: Options of that experiment.
        keep: Whether to make the run folder.
    """
    from jroute.convert import convert
    from jroute.experiment.config import Experiment
    from jroute.experiment.run import Run, load_run
    from jroute.utils.config import load

    if not source.is_dir():
        raise UserError(
            f"{source} is no folder; give a run, a model directory or a model to convert"
        )
    if (source / "config.yaml").is_file():
        return load_run(source)
    name, model = _name(source), source
    if not (source / "manifest.json").is_file():
        model = out / f"model-{name}"
        if not model.is_dir():
            convert(str(source), model)
    given = ["--run", str(out / f"run-{name}"), "--model", str(model), *overrides]
    return Run.start(load(Experiment, config, given), keep=keep)


def tables_of(source: Path, run: "Run") -> tuple["Tables", dict[str, Any]]:
    """The tables of a model, filled now where they are not, and what they are of.

    Args:
        source: What the model is told as.
        run: Its run folder.
    """
    from jroute.controller.features import Featurizer
    from jroute.experiment.pipeline import fill_outcomes
    from jroute.statistics.calibration import Tables

    for split in run.experiment.splits:
        fill_outcomes(run, split)
    raw: dict[Split, RawFeatures] = {s: run.raw_features(s) for s in run.experiment.splits}
    featurizer = Featurizer.fit(raw["train"], run.experiment.features)
    cells = {s: (featurizer(one).astype(np.float32), run.matrix(s)) for s, one in raw.items()}
    told = {
        "source": str(source),
        "model": run.lm.fingerprint,
        "outcomes": run.table.fingerprint,
        "problems": {split: len(cells[split][0]) for split in cells},
    }
    judged = {split: cells[split] for split in run.experiment.judged}
    return Tables(cells["train"], cells["validation"], judged, run.gate_values), told


def plan(
    sources: Sequence[Path],
    models: int,
    config: "CalibrationConfig",
    parts: Sequence[str],
    given: tuple[Path, Path, Sequence[str]],
) -> str:
    """What a calibration takes; nothing is kept.

    Args:
        sources: Models whose tables are wanted.
        models: How many models every arm is trained for.
        config: How much of everything.
        parts: Of ``PARTS``.
        given: ``out``, ``config`` and ``overrides`` as for ``run_of``.
    """
    from jroute.experiment.cost import duration
    from jroute.experiment.estimate import plan_outcomes
    from jroute.outcomes import generation
    from jroute.statistics.calibration import seconds_of

    out, path, overrides = given
    lines, problems = [], config.problems[0]
    with tempfile.TemporaryDirectory() as scratch:
        for source in sources:
            there = next(out.glob(f"run-{_name(source)}"), None)
            where = out if there else Path(scratch)
            run = run_of(source, where, path, overrides, keep=False)
            splits = run.experiment.splits
            wanted: dict[Split, list[Cell]] = {s: generation.wanted(run, s) for s in splits}
            lines += [f"{source}:", str(plan_outcomes(run, wanted)), ""]
            problems = len(run.problems("train"))
    trainings = {
        # RL and its control on random rewards.
        "models": (config.ppo, 2 * models, problems),
        "null": (config.small, config.permutations if "null" in parts else 0, problems),
        "dose": (
            config.small,
            2 * config.tables * len(config.gains) if "dose" in parts else 0,
            config.problems[0],
        ),
    }
    for name, (ppo, count, rows) in trainings.items():
        if count:
            lines.append(
                f"{name:<12} {count} trainings of {ppo.seeds} seeds x {ppo.updates} updates, about "
                f"{duration(count * seconds_of(ppo, rows))} by a trial"
            )
    return "\n".join([*lines, "supervised networks and resampling come on top"])


def _experiment(config: Path, overrides: Sequence[str], own: Sequence[str]) -> "Experiment":
    """The experiment of the models, refused before anything is done if an option is none of it.

    Args:
        config: The experiment's file.
        overrides: What this command's own parser did not know.
        own: This command's options, one of which may have been meant.
    """
    from jroute.experiment.config import Experiment
    from jroute.utils.config import load

    try:
        return load(Experiment, config, ["--run", "a-models", "--model", "a-models", *overrides])
    except UserError as error:
        names = [word.partition("=")[0] for word in overrides]
        near = [n for name in names for n in difflib.get_close_matches(name, own, 1, 0.8)]
        told = f"{error}; of this command itself: {near[0]}" if near else str(error)
        raise UserError(told) from None


def _name(source: Path) -> str:
    return hashlib.sha256(str(source.absolute()).encode()).hexdigest()[:8]


class Kept:
    """Parts of a calibration that were reached before, by what decides them."""

    def __init__(self, file: Path):
        self.file = file
        self.parts: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}

    def get(self, about: Any, make: Callable[[], Any]) -> Any:
        """What was kept under ``about``, or what ``make`` gives, kept from now on."""
        from jroute.utils.files import write_text

        name = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
        if name not in self.parts:
            started = time.perf_counter()
            found = make()
            self.parts[name] = {"found": found, "seconds": time.perf_counter() - started}
            self.file.parent.mkdir(parents=True, exist_ok=True)
            write_text(self.file, json.dumps(self.parts) + "\n")
        return self.parts[name]["found"]


def calibrate(
    models: Sequence[tuple["Tables", dict[str, Any]]],
    plain: Sequence[tuple["Tables", dict[str, Any]]],
    config: "CalibrationConfig",
    parts: Sequence[str],
    kept: Kept,
) -> dict[str, Any]:
    """Run the parts; see ``jroute.statistics.calibration``.

    Args:
        models: Of the positive part; the null is of the first.
        plain: Models trained without gates: judged, with nothing expected.
        config: How much of everything.
        parts: Of ``PARTS``.
        kept: What was reached before.
    """
    import jax

    from jroute.observe.progress import progress_bar
    from jroute.statistics import calibration
    from jroute.statistics.headroom import CrossValidator

    about = {"config": _deciding(config, "ppo", "supervised")}
    small = _deciding(config, "small", "small_supervised", "problems", "features")
    full = (config.ppo, config.supervised, config.judge)
    found: dict[str, Any] = {}

    def judged(tables: "Tables", told: dict[str, Any]) -> dict[str, Any]:
        key = jax.random.key(config.seed)
        return kept.get(
            {**about, "part": "contest", **_of(told)},
            lambda: calibration.contest(tables, *full, key),
        )

    if "positive" in parts:
        found["positive"] = []
        for tables, told in progress_bar(models, desc="positive", unit="model"):
            splits = judged(tables, told)
            passes = {split: calibration.expectations(one) for split, one in splits.items()}
            found["positive"].append({**told, "passes": passes, "splits": splits})
    if plain:
        found["plain"] = [{**told, "splits": judged(tables, told)} for tables, told in plain]
    if "null" in parts:
        tables, told = models[0]
        features = next(iter(tables.judged.values()))[0]
        extra = np.concatenate([tables.train[0], tables.validation[0]])
        validator = CrossValidator(
            features, extra, folds=config.judge.folds, seed=config.judge.seed
        )
        each: list[dict[str, Any]] = []
        with progress_bar(total=config.permutations, desc="null", unit="permutation") as bar:
            for start in range(0, config.permutations, CHUNK):
                chunk = np.arange(start, min(start + CHUNK, config.permutations))
                each += kept.get(
                    {"config": small, "null": chunk.tolist(), **_of(told)},
                    lambda chunk=chunk: calibration.null_rl(tables, config, chunk),
                )
                bar.update(len(chunk))
        rules = kept.get(
            {"config": small, "rule": len(each), **_of(told)},
            lambda: [calibration.null_rule(tables, validator, config, i) for i in range(len(each))],
        )
        each = [{**one, **rule} for one, rule in zip(each, rules, strict=True)]
        columns = {name: [one[name] for one in each] for name in ("difference", "p", "learnable")}
        found["null"] = {**told, **calibration.sum_up_null(each), "each": columns}
    if "dose" in parts:
        found["dose"] = []
        with progress_bar(
            total=len(config.gains) * config.tables, desc="dose", unit="table"
        ) as bar:
            for gain in config.gains:
                found["dose"].append(
                    kept.get(
                        {"config": small, "tables": config.tables, "dose": gain},
                        lambda gain=gain: calibration.dose(config, gain, bar.update),
                    )
                )
    return found


def _of(told: dict[str, Any]) -> dict[str, Any]:
    """What decides a table: not how its model was called."""
    return {name: value for name, value in told.items() if name != "source"}


def _deciding(config: "CalibrationConfig", *names: str) -> dict[str, Any]:
    """The part of a configuration that decides a result."""
    told = stored(config)
    return {name: told[name] for name in ("seed", "judge", *names)}


def show(found: dict[str, Any]) -> None:
    """Print one table per part."""
    from jroute.report.text import results_text

    for one in found.get("positive", []):
        for split, results in one["splits"].items():
            print(f"\npositive, {one['source']}, {results_text(results, split)}")
            for name, passed in one["passes"][split].items():
                print(f"  {'yes' if passed else 'NO '}  {name.replace('_', ' ')}")
    for one in found.get("plain", []):
        for split, results in one["splits"].items():
            print(f"\nplain, {one['source']}, {results_text(results, split)}")
    if null := found.get("null"):
        low, high = (100 * end for end in null["rl_minus_best_fixed_range95"])
        room_low, room_high = (100 * end for end in null["learnable_range95"])
        print(
            f"\nnull: {null['permutations']} permutations, n = {null['n']} problems\n"
            f"  'RL > best fixed on train' declared {null['declared']} times "
            f"({null['declared_allowed']} allowed)\n"
            f"  RL minus best fixed {100 * null['rl_minus_best_fixed_mean']:+.2f} points, 95 % of "
            f"permutations in [{low:+.1f}, {high:+.1f}]\n"
            f"  learnable headroom {100 * null['learnable_mean']:+.2f} points, 95 % in "
            f"[{room_low:+.1f}, {room_high:+.1f}], found {null['learnable_found']} times; "
            f"hindsight {100 * null['hindsight']:+.1f} in all of them"
        )
    if doses := found.get("dose"):
        print(f"\ndose: {doses[0]['tables']} tables each, n = {doses[0]['n']} problems")
        print(
            f"{'planted':>8}{'estimated':>11}  {'range':<15}{'learnable':>10}{'covered':>9}"
            "  verdicts"
        )
        for one in doses:
            low, high = (100 * end for end in one["rl_minus_best_fixed_range"])
            told = ", ".join(f"{name}: {count}" for name, count in one["verdicts"].items())
            spread = f"[{low:+.1f}, {high:+.1f}]"
            print(
                f"{100 * one['gain']:>8g}{100 * one['rl_minus_best_fixed_mean']:>+11.2f}  "
                f"{spread:<15}{100 * one['learnable_mean']:>+10.2f}"
                f"{one['covers']:>6}/{one['tables']}  {told}"
            )


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Parse, calibrates, prints."""
    parser = argparse.ArgumentParser(
        prog="python -m jroute.calibrate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    bundled = Path(str(resources.files("jroute") / "assets" / "tiny-gated"))
    parser.add_argument("--models", nargs="+", type=Path, default=[bundled], metavar="DIR")
    parser.add_argument(
        "--plain", nargs="+", type=Path, default=[], metavar="DIR", help="trained without gates"
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--permutations", type=int, default=200)
    parser.add_argument("--tables", type=int, default=8, help="simulated ones for each gain")
    parser.add_argument(
        "--config", type=Path, default=Path("configs/tiny.yaml"), help="experiment of the models"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/calibration"))
    parser.add_argument("--report", type=Path, help="JSON; by default calibration.json in --out")
    parser.add_argument("--plan", action="store_true", help="say what it would take, and stop")
    given_words = list(sys.argv[1:] if argv is None else argv)
    args, overrides = parser.parse_known_args(given_words)
    if args.permutations < 1 or args.tables < 1:
        raise UserError("--permutations and --tables must be at least 1")
    own = [name for action in parser._actions for name in action.option_strings]
    experiment = _experiment(args.config, overrides, own)
    from jroute.statistics.calibration import CalibrationConfig
    from jroute.utils.files import write_text
    from jroute.utils.machine import describe_machine

    started = time.perf_counter()
    config = CalibrationConfig(
        seed=experiment.seed,
        ppo=experiment.ppo,
        supervised=experiment.supervised,
        judge=experiment.judge,
        permutations=args.permutations,
        tables=args.tables,
    )
    given = (args.out, args.config, overrides)
    # The null is of the first model alone.
    first = args.models[:1] if "null" in args.parts else []
    needs = args.models if "positive" in args.parts else first
    if args.plan:
        judged = len(args.plain) + (len(needs) if "positive" in args.parts else 0)
        print(plan([*needs, *args.plain], judged, config, args.parts, given))
        return
    models = [tables_of(one, run_of(one, *given)) for one in needs]
    plain = [tables_of(one, run_of(one, *given)) for one in args.plain]
    found = calibrate(models, plain, config, args.parts, Kept(args.out / "kept.json"))
    seconds = time.perf_counter() - started
    show(found)
    told = {
        "command": shlex.join(["python", "-m", "jroute.calibrate", *given_words]),
        "machine": describe_machine(),
        "seconds_of_this_command": seconds,
        "config": stored(config),
        **found,
    }
    path = args.report or args.out / "calibration.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(told, indent=2) + "\n")
    print(f"\n{path}: all of it, after {seconds:.0f} s")


if __name__ == "__main__":
    run_command(main, "give the same command again to go on from here")
