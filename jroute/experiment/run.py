"""A run folder: one experiment's data, controllers and results, and what can be asked of them.

============================  =====================================================
``config.yaml``               the resolved experiment
``mixing/<fingerprint>.json`` learned mixing weights, if the experiment learns them
``outcomes/<fingerprint>/``   the outcome table (Parquet)
``memo/<fingerprint>/``       outcomes of gates per band or layer (Parquet)
``features/``                 raw features per split
``learner/<training>/``       checkpoints of the PPO learner (Orbax)
``controller/<training>/``    the trained controllers (Orbax)
``tensorboard/``              training curves
``results.json``              accuracy of every arm, and the contrasts
``lm_eval/``                  lm-evaluation-harness's own results
============================  =====================================================
"""

import dataclasses
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from jroute.arms import registry
from jroute.arms.controls import random_choices
from jroute.arms.rl import choices_of_policy
from jroute.arms.supervised import choices_of_regressor
from jroute.checkpoint import latest_step, load_state
from jroute.controller import networks
from jroute.controller.features import Featurizer, RawFeatures
from jroute.distributed.mesh import MeshConfig
from jroute.experiment.config import Experiment
from jroute.experiment.setting import Setting
from jroute.generate.decoding import Completion
from jroute.generate.options import GenerationOptions
from jroute.generate.shapes import check_context
from jroute.utils.config import dump
from jroute.utils.config import load as load_config
from jroute.utils.errors import UserError
from jroute.utils.files import write_text
from jroute.utils.fingerprint import semantic_fingerprint

MADE = (
    "mixing",
    "outcomes",
    "memo",
    "features",
    "learner",
    "controller",
    "results.json",
    "lm_eval",
)
"""What ties a run folder to its experiment, once it is there."""


class Run(Setting):
    """One run folder: its setting, the controllers trained in it, and its results."""

    @classmethod
    def start(cls, experiment: Experiment, *, keep: bool = True) -> "Run":
        """Open the run folder of an experiment, making it if there is none.

        A folder in which nothing was made yet takes any experiment. Model and problems are read
        first, so that a wrong path leaves nothing behind.

        Args:
            experiment: What the run is decided by.
            keep: Whether to make the folder; otherwise nothing is written.

        Raises:
            UserError: The folder belongs to another experiment; the model or the data are missing.
        """
        directory = Path(experiment.run)
        path = directory / "config.yaml"
        run = cls(directory, experiment)
        kept = _without_devices(experiment)
        stored = load_config(Experiment, path) if path.is_file() else None
        if stored is not None and any((directory / name).exists() for name in MADE):
            changed = [
                f.name
                for f in dataclasses.fields(kept)
                if getattr(stored, f.name) != getattr(kept, f.name)
                and f.name not in ("allow_inert", "engine")  # they decide whether and how, not what
            ]
            if changed:
                raise UserError(
                    f"{path} is of another experiment (different: {', '.join(changed)}); "
                    "choose another folder with --run, or remove that one"
                )
        run.base.check_slots(experiment.engine.slots)
        run.num_gate_dims  # noqa: B018 (refuses bands that the routing does not have)
        for split in experiment.splits:
            for problem, prompt in zip(run.problems(split), run.prompts(split), strict=True):
                try:
                    tokens, new = run.base.encode(prompt), experiment.decoding.max_new_tokens
                    check_context(len(tokens), new, run.base.context)
                except UserError as error:
                    raise UserError(f"problem {problem.id}: {error}") from error
        if keep and stored != kept:
            directory.mkdir(parents=True, exist_ok=True)
            write_text(path, dump(kept))
        return run

    # Controllers ------------------------------------------------------------------------------

    @cached_property
    def training_parts(self) -> dict[str, str]:
        """The fingerprint of each thing that decides what controllers are trained on and how."""
        e = self.experiment
        content = {
            "outcomes": self.memo.fingerprint,
            "gates": e.gates,
            "rollouts": e.rollouts,
            "reward": e.reward,
            "prompts": [self.prompts("train"), self.prompts("validation")],
            "answers": [[p.answer for p in self.problems(s)] for s in ("train", "validation")],
            "features": e.features,
            "ppo": e.ppo,
            "supervised": e.supervised,
            "seed": e.seed,
        }
        return {name: semantic_fingerprint({name: part})[:16] for name, part in content.items()}

    @cached_property
    def training(self) -> str:
        """Names what controllers are trained on and how; another model or task is another name."""
        return semantic_fingerprint(self.training_parts)[:16]

    @property
    def controller_folder(self) -> Path:
        """Where what training leaves is kept; ``.json`` beside it has the ``training_parts``."""
        return self.directory / "controller" / self.training

    @cached_property
    def controller(self) -> dict[str, Any]:
        """What training left: featurizer, best fixed gate, supervised and RL networks.

        Raises:
            UserError: Training has not finished.
        """
        folder = self.controller_folder
        if not folder.is_dir():
            others = [
                f"{path.stem}, which it has, differs in "
                + ", ".join(n for n, p in self.training_parts.items() if told.get(n) != p)
                for path in sorted(folder.parent.glob("*.json"))
                for told in [json.loads(path.read_text())]
            ]
            raise UserError(
                f"{self.directory} has no controller trained on this model and these problems "
                f"({'; '.join([self.training, *others])}); "
                "run python -m jroute.train with its config first"
            )
        return load_state(folder)[1]

    @property
    def controls_folder(self) -> Path:
        """Where the arms are kept that only judging needs."""
        return self.directory / "controls" / self.training

    @cached_property
    def controls(self) -> dict[str, Any]:
        """What judging trained; see ``jroute.arms.controls.fit_controls``.

        Raises:
            UserError: The run was not judged yet.
        """
        if latest_step(self.controls_folder) is None:
            raise UserError(
                f"{self.directory} has no {' and no '.join(registry.from_controls())} yet; "
                f"run python -m jroute.evaluate --run {self.directory} first"
            )
        return load_state(self.controls_folder)[1]

    @cached_property
    def featurizer(self) -> Featurizer:
        """The fitted part of the features."""
        return Featurizer.of(self.controller["featurizer"])

    def choices(
        self, arm: str, prompts: Sequence[str], raw: RawFeatures | None = None
    ) -> Int[np.ndarray, " prompts"]:
        """Index of the gate that an arm which looks at prompts chooses (see ``registry.reading``).

        Raises:
            UserError: The arm has no table to learn from, its decisions have several parts, or the
                run was not judged yet, which trains ``supervised_features`` and ``exact_gradient``.
        """
        self._check_learnt(arm)
        if self.num_gate_dims > 1:
            raise UserError(
                f"a decision of this run has {self.num_gate_dims} dimensions; ask for its gates"
            )
        observations = self.featurizer(raw or self.read_features(prompts))
        if arm == "supervised":
            return choices_of_regressor(self.controller["supervised"], observations[:, :1])
        if arm in registry.from_controls():
            return choices_of_regressor(self.controls[arm], observations)
        return choices_of_policy(self.controller["rl"], observations)

    def _check_learnt(self, arm: str) -> None:
        missing = arm in ("best_fixed", "supervised") and arm not in self.controller
        if missing or (arm in registry.from_controls() and self.experiment.rollouts == "live"):
            raise UserError(
                f"arm {arm} learns from the rewards of all gates, and a run with live rollouts has "
                "no such table; choose baseline, fixed:G, random or rl"
            )

    def gates(self, arm: str, prompts: Sequence[str]) -> Float[np.ndarray, "prompts *gate_dims"]:
        """The gate an arm gives to each prompt, from the prompt alone.

        Gates per band are ``[prompts, bands]``, and per layer ``[prompts, layers]``.

        Args:
            arm: One of ``jroute.arms.registry.selectable``.
            prompts: Texts as the model reads them.

        Raises:
            UserError: No such arm, or not yet.
        """
        grid = np.asarray(self.gate_values)
        fixed = registry.parse_arm(arm).gate
        if fixed is not None:
            return np.full(len(prompts), fixed)
        self._check_learnt(arm)
        if arm == "best_fixed":
            return np.full(len(prompts), grid[int(self.controller["best_fixed"])])
        if arm == "random":
            return grid[random_choices(prompts, len(grid), self.experiment.seed)]
        if arm == "rl" and self.num_gate_dims > 1:
            observations = jnp.asarray(self.featurizer(self.read_features(prompts)))
            decisions = np.asarray(networks.act(self.controller["rl"], observations))
            return self.spread(self.gates_of(decisions))
        if arm in registry.reading():
            return grid[self.choices(arm, prompts)]
        raise UserError(
            f"no arm is named {arm!r}; "
            f"arms are baseline, fixed:G, best_fixed, random, {', '.join(registry.reading())}"
        )

    def generate(
        self,
        prompts: Sequence[str] | str,
        arm: str = "rl",
        *,
        seed: int | Sequence[int] = 0,
        **options: Unpack[GenerationOptions],
    ) -> list[Completion]:
        """Completes prompts with the gates an arm gives them.

        Args:
            prompts: Texts as the model reads them (see ``render``).
            arm: As in ``gates``.
            seed: Seed of the sampling, as in ``LanguageModel.generate``.
            **options: Fields of the experiment's decoding and engine to replace.
        """
        rows = [prompts] if isinstance(prompts, str) else list(prompts)
        return self.lm.generate(
            rows,
            self.gates(arm, rows),
            decoding=self.experiment.decoding,
            engine=self.experiment.engine,
            seed=seed,
            **options,
        )

    def explain(self, prompt: str) -> dict[str, Any]:
        """Why the RL controller chooses a gate.

        Returns:
            ``features`` (name -> value as the controller sees it), ``probabilities``
            (gate -> probability), ``value`` (expected reward) and ``gate``; of decisions with
            several parts ``probabilities`` and ``gate`` are lists, one for each.
        """
        if not isinstance(prompt, str):
            raise UserError("explain takes one prompt, a text; call it once for each of several")
        observations = self.featurizer(self.read_features([prompt]))
        logits, value = jax.device_get(
            networks.apply(self.controller["rl"], jnp.asarray(observations))
        )
        weights = np.exp(logits[0] - logits[0].max(axis=-1, keepdims=True))
        shares = weights / weights.sum(axis=-1, keepdims=True)
        told = [dict(zip(self.gate_values, part.tolist(), strict=True)) for part in shares]
        chosen = [self.gate_values[i] for i in shares.argmax(axis=-1)]
        return {
            "features": dict(zip(self.featurizer.names, observations[0].tolist(), strict=True)),
            "probabilities": told[0] if self.num_gate_dims == 1 else told,
            "value": float(value[0]),
            "gate": chosen[0] if self.num_gate_dims == 1 else chosen,
        }

    @property
    def results(self) -> dict[str, Any]:
        """The content of ``results.json``."""
        path = self.directory / "results.json"
        if not path.is_file():
            raise UserError(
                f"{path} does not exist yet; run python -m jroute.train with its config first"
            )
        return json.loads(path.read_text())


def _without_devices(experiment: Experiment) -> Experiment:
    """What a run folder keeps: devices decide how cells are made, not what they mean."""
    return dataclasses.replace(experiment, mesh=MeshConfig(), track="")


def load_run(directory: str | Path, *, mesh: MeshConfig | None = None) -> Run:
    """Open a finished run.

    Args:
        directory: The run folder.
        mesh: Devices to run its model on; by default one.

    Raises:
        UserError: There is no run in the folder.
    """
    directory = Path(directory)
    path = directory / "config.yaml"
    if not path.is_file():
        raise UserError(
            f"{directory} is no run folder, it has no config.yaml; run python -m jroute.train first"
        )
    stored = load_config(Experiment, path)
    return Run(directory, dataclasses.replace(stored, mesh=mesh or MeshConfig()))
