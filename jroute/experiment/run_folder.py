"""The layout of a run folder.

============================  ==========================================================
``config.yaml``               the resolved experiment
``mixing/<fingerprint>.json`` learned mixing weights, if the experiment learns them
``outcomes/<fingerprint>/``   the outcome table (Parquet)
``memo/<fingerprint>/``       outcomes of gates per band or layer (Parquet)
``features/``                 raw features per split
``learner/<training>/``       checkpoints of the PPO learner (Orbax)
``controller/<training>/``    the trained controllers (Orbax)
``controls/<training>/``      arms that only judging needs (Orbax)
``tensorboard/``              training curves
``results.json``              accuracy of every arm, contrasts, verdict
``items.parquet``             the gate every arm gave to every problem, and its score
``lm_eval/``                  lm-evaluation-harness's own results
============================  ==========================================================
"""

from dataclasses import dataclass
from pathlib import Path

from jroute.utils.together import clean, clean_tree

CONTENTS = {
    "config.yaml": "the resolved config",
    "mixing": "learned mixing weights",
    "controller": "controllers (Orbax)",
    "tensorboard": "TensorBoard scalars",
    "outcomes": "outcome table (Parquet)",
    "memo": "outcomes of gates per band or layer (Parquet)",
    "results.json": "arms, contrasts, verdict",
    "items.parquet": "what every arm did with every problem (Parquet)",
    "lm_eval": "lm-eval's own results",
}
"""Files and folders to list for users, and what they hold."""

WRITTEN = (
    "mixing",
    "outcomes",
    "memo",
    "features",
    "learner",
    "controller",
    "controls",
    "tensorboard",
    "probe",
    "figures",
    "traces",
    "cells",
    "lm_eval",
)
"""Folders in which commands write."""

BINDING = (
    "mixing",
    "outcomes",
    "memo",
    "features",
    "learner",
    "controller",
    "results.json",
    "lm_eval",
)
"""Files and folders that tie a run folder to its experiment once they exist."""


@dataclass(frozen=True)
class RunFolder:
    """The paths of a run.

    Attributes:
        path: The folder.
        configured: The folder as the experiment names it, relative to where the run was started.
    """

    path: Path
    configured: Path

    def clean(self, *, alone: bool = False) -> None:
        """Finish or undo what killed processes left; call it before anything is written.

        Args:
            alone: Whether this process holds the lock of the folder.

        Raises:
            UserError: Results have to be moved to their names, and the folder cannot be written.
        """
        clean(self.path, alone=alone)
        for name in WRITTEN:
            clean_tree(self.path / name, alone=alone)

    @property
    def config(self) -> Path:
        """Return the file of the resolved experiment."""
        return self.path / "config.yaml"

    @property
    def lock(self) -> Path:
        """Return the lock of training and judging (see ``jroute.utils.locks``)."""
        return self.path / ".lock"

    @property
    def results(self) -> Path:
        """Return the file of results."""
        return self.path / "results.json"

    @property
    def items(self) -> Path:
        """Return the file with the gate and the score of every arm on every problem."""
        return self.path / "items.parquet"

    @property
    def curves(self) -> Path:
        """Return the folder of training curves."""
        return self.path / "tensorboard"

    def mixing(self, fingerprint: str) -> Path:
        """Return the file of learned mixing weights."""
        return self.path / "mixing" / f"{fingerprint[:16]}.json"

    @property
    def outcomes(self) -> Path:
        """Return the folder of outcome tables, unless the experiment shares tables elsewhere."""
        return self.path / "outcomes"

    @property
    def memo(self) -> Path:
        """Return the folder of tables of gates per band or layer."""
        return self.path / "memo"

    @property
    def features_folder(self) -> Path:
        """Return the folder of raw features."""
        return self.path / "features"

    @property
    def probe(self) -> Path:
        """Return the folder of what ``jroute.probe`` measured."""
        return self.path / "probe"

    def features(self, split: str, fingerprint: str) -> Path:
        """Return the file of a split's raw features."""
        return self.features_folder / f"{split}-{fingerprint[:16]}.npz"

    def learner(self, training: str) -> Path:
        """Return the folder of the learner's checkpoints."""
        return self.path / "learner" / training

    def controllers(self, training: str) -> Path:
        """Return the folder of trained controllers; the adjacent ``.json`` records the inputs."""
        return self.path / "controller" / training

    def controls(self, training: str) -> Path:
        """Return the folder of arms that only judging needs."""
        return self.path / "controls" / training

    def locate(self, path: str) -> Path:
        """Return a path of the experiment, which is relative to where the run was started."""
        given, here = Path(path), self.path.absolute()
        depth = len(self.configured.parts)
        if given.is_dir() or given.is_absolute() or here.parts[-depth:] != self.configured.parts:
            return given
        return Path(*here.parts[:-depth]) / given

    def is_bound(self) -> bool:
        """Return whether the folder holds anything that belongs to one experiment."""
        return any((self.path / name).exists() for name in BINDING)

    def describe(self) -> list[str]:
        """Return what the folder holds, one line each."""
        return [
            f"{self.path / name}: {content}"
            for name, content in CONTENTS.items()
            if (self.path / name).exists()
        ]
