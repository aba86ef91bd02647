"""Which functions take a whole run, and that its parts do not know it."""

import ast
import dataclasses
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
    "experiment/pipeline.py": {"train", "_check_effect", "fill_outcomes"},
    "experiment/training.py": {"train_controllers", "train_ppo_of"},
    "experiment/judging.py": {"judge", "_judge", "_describe_table_run", "_describe_live_run"},
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


HOLDERS = {
    "harness/subject.py": {"Subject"},
    "harness/suites.py": {"Suite"},
}
"""What keeps a run: it is what they are about."""


def _names_run(annotation: ast.expr | None) -> bool:
    """Return whether an annotation names ``Run``, also as a string."""
    nodes = list(ast.walk(annotation)) if annotation else []
    names = [node.id for node in nodes if isinstance(node, ast.Name)]
    return "Run" in [*names, *(node.value for node in nodes if isinstance(node, ast.Constant))]


def _takes_run(node: ast.AST) -> bool:
    """Return whether a function has an argument, or a class a field, that is a run."""
    if isinstance(node, ast.FunctionDef):
        args = node.args
        every = (*args.posonlyargs, *args.args, *args.kwonlyargs)
        return any(_names_run(argument.annotation) for argument in every)
    if isinstance(node, ast.ClassDef):
        fields = [each for each in node.body if isinstance(each, ast.AnnAssign)]
        return any(_names_run(field.annotation) for field in fields)
    return False


def _takers(kind: type) -> dict[str, set[str]]:
    """Return the functions or classes that take a run, by file."""
    root = Path(jroute.__file__).parent
    takers: dict[str, set[str]] = {}
    for file in sorted(root.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, kind) and _takes_run(node):
                takers.setdefault(file.relative_to(root).as_posix(), set()).add(node.name)
    return takers


def test_only_steps_take_a_whole_run() -> None:
    assert _takers(ast.FunctionDef) == STEPS
    assert _takers(ast.ClassDef) == HOLDERS


@pytest.mark.parametrize("part", PARTS)
def test_a_part_knows_neither_the_run_nor_the_experiment(part: type) -> None:
    assert dataclasses.is_dataclass(part)
    hints = get_type_hints(part)
    types = {hints[field.name] for field in dataclasses.fields(part)}
    assert types.isdisjoint({Run, Experiment})
