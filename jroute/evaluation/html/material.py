"""What a report shows, read from the files of a run folder; no model is loaded for it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from jroute.config import load as load_config
from jroute.controller.features import SCALARS, RawFeatures
from jroute.envs.outcomes import OutcomeTable
from jroute.errors import UserError
from jroute.experiment import Experiment
from jroute.observe.scalars import read_curves
from jroute.tasks import Problem, Split, load_problems

Gate = tuple[float, ...]
"""A gate as its parts: one number, or one for every band or layer."""


@dataclass(frozen=True)
class Cell:
    """What one problem gave under one gate; fields as in ``Outcome``."""

    gate: Gate
    completion: str
    tokens: int
    parsed: str
    status: str
    correct: bool
    reward: float
    stop_reason: str


@dataclass(frozen=True)
class Row:
    """One problem and every answer to it that is known.

    Attributes:
        problem: The problem.
        prompt: The text the model read; empty if its tokenizer is not at hand.
        features: What a controller saw, by name, before standardisation.
        cells: What was generated, one for each gate.
        base: Which cell is the plain model's.
        rl: Which cell the deployed controller chose.
    """

    problem: Problem
    prompt: str
    features: Mapping[str, float]
    cells: tuple[Cell, ...]
    base: int
    rl: int


@dataclass(frozen=True)
class Judged:
    """One judged split.

    Attributes:
        name: Of the split.
        results: Its part of ``results.json``.
        rows: Its problems, in order.
        gates: What every seed's controller chose.
        absent: Why there are no rows, in one sentence; empty if there are.
    """

    name: str
    results: Mapping[str, Any]
    rows: tuple[Row, ...] = ()
    gates: Float[np.ndarray, "seeds problems parts"] = field(
        default_factory=lambda: np.zeros((0, 0, 1))
    )
    absent: str = ""

    @property
    def right(self) -> Bool[np.ndarray, "seeds problems"]:
        """Whether each seed's choice solved each problem; a choice without a cell did not."""
        solved = [{cell.gate: cell.correct for cell in row.cells} for row in self.rows]
        return np.array(
            [
                [known.get(tuple(gate), False) for gate, known in zip(seed, solved, strict=True)]
                for seed in self.gates.tolist()
            ],
            bool,
        ).reshape(len(self.gates), len(self.rows))


@dataclass(frozen=True)
class Material:
    """Everything a report shows.

    Attributes:
        name: Of the run.
        results: ``results.json``.
        splits: The judged splits, the primary one first.
        curves: Training curves by name, ``[seeds, updates]``.
        banded: Whether the curves are known seed by seed, not as their mean alone.
        batch: Episodes in one update.
        probe: What ``python -m jroute.probe`` wrote, if it was run.
        settings: The experiment's settings, for the end of the page.
        decoding: How completions were generated.
    """

    name: str
    results: Mapping[str, Any]
    splits: tuple[Judged, ...]
    curves: Mapping[str, Float[np.ndarray, "seeds updates"]] = field(default_factory=dict)
    banded: bool = False
    batch: int = 1
    probe: Mapping[str, Any] | None = None
    settings: str = ""
    decoding: Mapping[str, Any] = field(default_factory=dict)


def steps(problem: Problem) -> int:
    """Lines of the reference solution, its final ``####`` line aside; 0 if there is none."""
    lines = (line.strip() for line in problem.solution.splitlines())
    return sum(bool(line) and not line.startswith("####") for line in lines)


def gather(directory: str | Path) -> Material:
    """Reads a finished run.

    What is missing beside ``results.json`` leaves its place empty.

    Raises:
        UserError: There is no finished run in the folder.
    """
    directory = Path(directory)
    for name in ("config.yaml", "results.json"):
        if not (directory / name).is_file():
            raise UserError(
                f"{directory} has no {name}, so it is not a finished run; run python -m "
                "jroute.train with its config first"
            )
    experiment = load_config(Experiment, directory / "config.yaml")
    results = json.loads((directory / "results.json").read_text())
    named = {results["split"]: results, **results.get("other_splits", {})}
    curves, banded = read_curves(directory / "tensorboard")
    probe = directory / "probe" / "probe.json"
    return Material(
        name=directory.absolute().name,
        results=results,
        splits=tuple(
            _judged(directory, experiment, results, name, part) for name, part in named.items()
        ),
        curves=curves,
        banded=banded,
        batch=experiment.ppo.batch_size,
        probe=json.loads(probe.read_text()) if probe.is_file() else None,
        settings=(directory / "config.yaml").read_text(),
        decoding=vars(experiment.decoding),
    )


def _judged(
    directory: Path,
    experiment: Experiment,
    results: Mapping[str, Any],
    split: Split,
    part: Mapping[str, Any],
) -> Judged:
    try:
        problems = load_problems(experiment.task, split)
        table = OutcomeTable.open(directory / "outcomes" / str(results.get("outcomes", "")))
        raw = _features(directory, split, len(problems))
        chosen, deployed = _choices(directory, results, raw, experiment.gates)
        rows = [[table.outcome(p.id, gate) for gate in experiment.gates] for p in problems]
    except UserError as error:
        return Judged(split, part, absent=f"The problems cannot be shown: {error}.")
    prompts = _prompts(directory, experiment, problems)
    base = experiment.gates.index(0.0)
    return Judged(
        split,
        part,
        tuple(
            Row(
                problem,
                prompt,
                dict(zip(SCALARS, scalars, strict=True)),
                tuple(
                    Cell(
                        (o.gate,),
                        *(o.completion, o.tokens, o.parsed, o.status),
                        *(o.correct, o.reward, o.stop_reason),
                    )
                    for o in outcomes
                ),
                base,
                choice,
            )
            for problem, prompt, scalars, outcomes, choice in zip(
                problems, prompts, raw.scalars.tolist(), rows, deployed, strict=True
            )
        ),
        chosen,
    )


def _features(directory: Path, split: str, count: int) -> RawFeatures:
    path = directory / "features" / f"{split}.npz"
    if not path.is_file():
        raise UserError(f"{path} is missing, train again to have it made anew")
    with np.load(path) as stored:
        raw = RawFeatures(stored["scalars"], stored["hidden"])
    if len(raw.scalars) != count:
        raise UserError(f"{path} holds {len(raw.scalars)} problems, but the task has {count} now")
    return raw


def _choices(
    directory: Path, results: Mapping[str, Any], raw: RawFeatures, grid: Sequence[float]
) -> tuple[Float[np.ndarray, "seeds problems parts"], list[int]]:
    """Gates of every seed, and which of the grid the deployed controller chose."""
    import jax

    from jroute.checkpoint import load_state
    from jroute.controller import arms
    from jroute.controller.features import Featurizer

    folder = directory / "controller" / str(results.get("training", ""))
    if not results.get("training") or not folder.is_dir():
        raise UserError(f"{folder} is missing, train again to have the controllers")
    tree = load_state(folder)[1]
    observations = Featurizer.of(tree["featurizer"])(raw).astype(np.float32)
    seeds = len(jax.tree.leaves(tree["seeds"])[0])
    each = (jax.tree.map(lambda leaf, i=i: leaf[i], tree["seeds"]) for i in range(seeds))
    choices = np.stack([arms.choices_of_policy(one, observations) for one in each])
    return np.asarray(grid)[choices][..., None], choices[int(tree["selected"])].tolist()


def _prompts(directory: Path, experiment: Experiment, problems: Sequence[Problem]) -> Sequence[str]:
    """Prompts as the model reads them; empty texts where its tokenizer is out of reach."""
    from jroute.tasks.prompts import render
    from jroute.tasks.tokenizer import load_tokenizer

    model = Path(experiment.model)
    for folder in (model, directory / model.name):
        try:
            tokenizer = load_tokenizer(folder)
        except UserError:
            continue
        return [render(problem.question, experiment.prompt, tokenizer) for problem in problems]
    return [""] * len(problems)
