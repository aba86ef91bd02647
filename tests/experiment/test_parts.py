"""Which functions take a whole run, and that its parts do not know it."""

import ast
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import get_type_hints

import pytest

import jroute
from jroute.experiment.config import Experiment
from jroute.experiment.controllers import Controllers
from jroute.experiment.feature_store import FeatureStore
from jroute.experiment.learned_mixing import LearnedMixing
from jroute.experiment.run import Run
from jroute.experiment.run_folder import RunFolder
from jroute.experiment.run_outcomes import RunOutcomes
from jroute.experiment.task_data import TaskData
from jroute.outcomes.generation import CellGenerator
from jroute.outcomes.grid import GateGrid

PARTS = (
    CellGenerator,
    Controllers,
    FeatureStore,
    GateGrid,
    LearnedMixing,
    RunFolder,
    RunOutcomes,
    TaskData,
)

STEPS = {
    "experiment/pipeline.py": {"train", "fill_outcomes"},
    "experiment/training.py": {"train_controllers", "train_ppo_of"},
    "experiment/judging.py": {"judge", "_describe_table_run", "_describe_live_run"},
    "experiment/regeneration.py": {"regenerate", "regenerate_splits"},
    "experiment/plan.py": {
        "plan_training",
        "plan_outcomes",
        "plan_judging",
        "plan_regeneration",
        "_plan_live_training",
        "without_mixing",
    },
    "experiment/environments.py": {"environment_data"},
    "harness/policy.py": {"run_policy", "available_arms"},
    "harness/suites.py": {"own_suite"},
    "harness/agreement_with_training.py": {"check_against_training"},
}
"""The steps of a run, their plans and lm-eval's: what needs most of the parts takes the run."""


def _takes_run(function: ast.FunctionDef) -> bool:
    """Return whether an argument's annotation names ``Run``."""
    arguments = function.args
    annotations = [a.annotation for a in (*arguments.args, *arguments.kwonlyargs) if a.annotation]
    names = {
        node.id for each in annotations for node in ast.walk(each) if isinstance(node, ast.Name)
    }
    return "Run" in names


def _functions(root: Path) -> Iterator[tuple[str, ast.FunctionDef]]:
    for file in sorted(root.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef):
                yield file.relative_to(root).as_posix(), node


def test_only_steps_take_a_whole_run() -> None:
    takers: dict[str, set[str]] = {}
    for file, function in _functions(Path(jroute.__file__).parent):
        if _takes_run(function):
            takers.setdefault(file, set()).add(function.name)
    assert takers == STEPS


@pytest.mark.parametrize("part", PARTS)
def test_a_part_knows_neither_the_run_nor_the_experiment(part: type) -> None:
    assert dataclasses.is_dataclass(part)
    hints = get_type_hints(part)
    types = {hints[field.name] for field in dataclasses.fields(part)}
    assert types.isdisjoint({Run, Experiment})
