"""The trained arms of a run: the controllers, and the controls that only judging needs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
from jaxtyping import Float

from jroute.arms.registry import SUBJECT, from_controls
from jroute.checkpoint import latest_step, load_state, save_state
from jroute.controller.features import Featurizer
from jroute.experiment.config import Experiment
from jroute.experiment.feature_store import FeatureStore
from jroute.experiment.run_folder import RunFolder
from jroute.experiment.task_data import TaskData
from jroute.tasks import Split
from jroute.utils.errors import UserError
from jroute.utils.files import write_json
from jroute.utils.fingerprint import semantic_fingerprint
from jroute.utils.json_files import read_json


def describe_training(
    experiment: Experiment, data: TaskData, outcomes: str, grades: str = ""
) -> dict[str, str]:
    """Return a fingerprint of each input that determines how controllers are trained.

    Args:
        experiment: The experiment.
        data: Problems and prompts.
        outcomes: Fingerprint of the outcomes that are learned from.
        grades: Digest of those that were graded anew and differ from what is stored, if any.
    """
    e = experiment
    splits: tuple[Split, ...] = ("train", "validation")
    content = {
        "outcomes": outcomes,
        "gates": e.gates,
        "rollouts": e.rollouts,
        "reward": e.reward,
        "prompts": [data.prompts(split) for split in splits],
        "answers": [[p.answer for p in data.problems(split)] for split in splits],
        "features": e.features,
        "ppo": e.ppo,
        "supervised": e.supervised,
        "seed": e.seed,
    }
    if grades:
        content["grades"] = grades
    return {name: semantic_fingerprint({name: part})[:16] for name, part in content.items()}


class _Parts(pydantic.RootModel[dict[str, str]]):
    """The content of a file of a training's inputs: name -> fingerprint."""


@dataclass(frozen=True, eq=False)
class Controllers:
    """The artifacts of training and judging in the run folder, named by the training's inputs.

    Attributes:
        folder: The run folder.
        features: Features of the prompts.
        training_parts: Fingerprints of the training's inputs; see ``describe_training``.
    """

    folder: RunFolder
    features: FeatureStore
    training_parts: Mapping[str, str]

    @cached_property
    def training(self) -> str:
        """The name of a training, which differs for another model, task or learner."""
        return semantic_fingerprint(dict(self.training_parts))[:16]

    @property
    def are_trained(self) -> bool:
        """Return whether training has finished."""
        return latest_step(self.folder.controllers(self.training)) is not None

    @property
    def have_controls(self) -> bool:
        """Return whether judging has trained its controls."""
        return latest_step(self.folder.controls(self.training)) is not None

    @cached_property
    def trained(self) -> dict[str, Any]:
        """The result of training: featurizer, best fixed gate, supervised and RL networks.

        Raises:
            UserError: Training has not finished.
        """
        folder = self.folder.controllers(self.training)
        if not self.are_trained:
            raise UserError(
                f"{self.folder.path} has no controller trained on this model and these problems "
                f"({'; '.join([self.training, *self._other_trainings()])}); "
                "run python -m jroute.train with its config first"
            )
        remedy = f"delete {folder} and give python -m jroute.train its config again"
        tree = load_state(folder, remedy=remedy)[1]
        if missing := {"featurizer", "seeds", "selected", SUBJECT} - tree.keys():
            raise UserError(f"{folder} has no {min(missing)}; {remedy}")
        return tree

    def _other_trainings(self) -> list[str]:
        """Describe how each other training in the folder differs from this one."""
        sentences = []
        for file in sorted(self.folder.controllers(self.training).parent.glob("*.json")):
            if latest_step(file.with_suffix("")) is None:  # killed before it was saved
                continue
            if (other := self._read_parts(file)) is None:
                sentences.append(f"{file} is damaged")
                continue
            differing = [
                name for name, value in self.training_parts.items() if other.get(name) != value
            ]
            sentences.append(f"{file.stem}, which it has, differs in {', '.join(differing)}")
        return sentences

    @staticmethod
    def _read_parts(file: Path) -> dict[str, str] | None:
        """Return the fingerprints of a training's inputs, ``None`` if they do not give its name."""
        try:
            parts = read_json(file, _Parts, "").root
        except UserError:
            return None
        return parts if semantic_fingerprint(parts)[:16] == file.stem else None

    @cached_property
    def controls(self) -> dict[str, Any]:
        """The arms that judging trained; see ``jroute.arms.controls.fit_controls``.

        Raises:
            UserError: The run was not judged yet.
        """
        if not self.have_controls:
            raise UserError(
                f"{self.folder.path} has no {' and no '.join(from_controls())} yet; "
                f"run python -m jroute.evaluate --run {self.folder.path} first"
            )
        folder = self.folder.controls(self.training)
        remedy = f"delete {folder} and run python -m jroute.evaluate --run {self.folder.path}"
        return load_state(folder, remedy=remedy)[1]

    @cached_property
    def featurizer(self) -> Featurizer:
        """The fitted part of the features."""
        return Featurizer.of(self.trained["featurizer"])

    def observe(self, prompts: Sequence[str]) -> Float[np.ndarray, "prompts features"]:
        """Return what controllers see of any prompts."""
        return self.featurizer(self.features.read(prompts)).astype(np.float32)

    def observations(self, split: Split) -> Float[np.ndarray, "problems features"]:
        """Return what controllers see of a split's problems."""
        return self.featurizer(self.features.raw(split)).astype(np.float32)

    def describe(self) -> None:
        """Store the fingerprints of the training's inputs, unless they are there."""
        file = self.folder.controllers(self.training).with_suffix(".json")
        if self._read_parts(file) is None:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(file, dict(self.training_parts), indent=None)

    def save(self, tree: Mapping[str, Any], updates: int) -> None:
        """Store the result of training, after the fingerprints of its inputs.

        In this order no controller is without them, whenever the process is killed.
        """
        self.describe()
        save_state(self.folder.controllers(self.training), updates, dict(tree))

    def save_controls(self, tree: Mapping[str, Any]) -> None:
        """Store the controls that judging trained."""
        save_state(self.folder.controls(self.training), 0, dict(tree))
