"""A run: one experiment in its folder, composed of the parts that each know one thing.

``folder`` knows the paths, ``base`` and ``lm`` are the model, ``data`` has problems and prompts,
``grid`` the gates, ``outcomes`` the tables, ``features`` what controllers see, and ``controllers``
what was trained. A part is made when it is first needed, and functions take the parts they need.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jroute.arms.registry import SUBJECT, parse_arm
from jroute.arms.resolve import ArmInputs, resolve
from jroute.controller import networks
from jroute.distributed.mesh import MeshConfig
from jroute.experiment.config import Experiment
from jroute.experiment.controllers import Controllers, describe_training
from jroute.experiment.feature_store import FeatureStore
from jroute.experiment.learned_mixing import LearnedMixing
from jroute.experiment.results_file import read_results
from jroute.experiment.run_folder import RunFolder
from jroute.experiment.run_outcomes import RunOutcomes, describe_cells
from jroute.experiment.task_data import TaskData
from jroute.generate.decoding import Completion
from jroute.generate.shapes import check_context
from jroute.lm import LanguageModel, load
from jroute.outcomes.generation import CellGenerator
from jroute.outcomes.grid import GateGrid, check_gate_per
from jroute.utils.config import dump
from jroute.utils.config import load as load_config
from jroute.utils.disk import make_folder
from jroute.utils.errors import UserError
from jroute.utils.files import write_text
from jroute.utils.inputs import check_kind, check_text, texts
from jroute.utils.locks import owned
from jroute.utils.paths import check_path, folder_path, output_folder
from jroute.utils.together import settled

CHANGEABLE = ("allow_inert", "engine")
"""Fields that decide whether and how a run is made, not what it is."""


@dataclass(frozen=True, eq=False)
class Run:
    """One experiment and its folder.

    Attributes:
        directory: The run folder.
        experiment: The experiment.
        loaded: The model, if it is loaded already.
    """

    directory: Path
    experiment: Experiment
    loaded: LanguageModel | None = None

    @classmethod
    def start(cls, experiment: Experiment, *, keep: bool = True) -> "Run":
        """Open the run folder of an experiment, creating it if it does not exist.

        A folder that holds no results yet takes any experiment. Everything is checked first, so
        what is refused leaves nothing behind.

        Args:
            experiment: The experiment.
            keep: Whether to create the folder; otherwise nothing is written.

        Raises:
            UserError: The folder belongs to another experiment; see also ``check``.
        """
        run = cls((output_folder if keep else folder_path)(experiment.run, "run"), experiment)
        if experiment.outcomes:
            outcomes = check_path(experiment.outcomes, "outcomes")
            folder_path(run.folder.locate(str(outcomes)), "outcomes")
        run._check_stored()
        run.check()
        if keep:
            run.keep()
        return run

    def check(self) -> None:
        """Refuse what generating, training or judging would refuse later; nothing is written.

        Raises:
            UserError: The model or the data are missing; engine, gates, problems or mixing weights
                do not go together.
        """
        e = self.experiment
        self.base.check_slots(e.engine.slots)
        check_gate_per(e.gate_per, self.base.routing)
        _ = self.grid
        for split in e.judged:
            if (count := len(self.data.problems(split))) < 2:
                raise UserError(
                    f"split {split!r} of task {e.task.name} has {count} problem, and an interval "
                    f"needs at least 2; raise task.{split}, or leave it out of judged"
                )
        self.check_prompts()
        self.mixing.check()

    def keep(self) -> None:
        """Write the experiment into its folder, made if missing, unless it stands there.

        Raises:
            UserError: The folder cannot be written.
        """
        self.folder.clean()
        kept = without_devices(self.experiment)
        if self.stored_experiment() != kept:
            make_folder(self.directory)
            write_text(self.folder.config, dump(kept))

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Let no other process train or judge in the folder, made if missing, during the block.

        What killed processes left in it is removed first.

        Raises:
            UserError: Another process has it, and is named; it cannot be written, or has become
                that of another experiment.
        """
        make_folder(self.directory)
        with owned(self.folder.lock, f"the run folder {self.directory}"):
            self.folder.clean(alone=True)
            self._check_stored()
            yield

    def _check_stored(self) -> None:
        """Raise a ``UserError`` if the folder holds results of another experiment."""
        stored = self.stored_experiment()
        if stored is not None and self.folder.is_bound():
            check_same_experiment(stored, without_devices(self.experiment), self.folder)

    def stored_experiment(self) -> Experiment | None:
        """Return the experiment that the folder was made by, if it was made."""
        file = self.folder.config
        return load_config(Experiment, file) if file.is_file() else None

    def check_prompts(self) -> None:
        """Raise a ``UserError`` if a prompt and its completion do not fit into the context."""
        limit = self.experiment.decoding.max_new_tokens
        for split in self.experiment.splits:
            for problem, prompt in zip(
                self.data.problems(split), self.data.prompts(split), strict=True
            ):
                try:
                    check_context(len(self.base.encode(prompt)), limit, self.base.context)
                except UserError as error:
                    raise UserError(f"problem {problem.id}: {error}") from error

    # The parts --------------------------------------------------------------------------------

    @cached_property
    def folder(self) -> RunFolder:
        """The paths of the run."""
        return RunFolder(self.directory, Path(self.experiment.run))

    @cached_property
    def base(self) -> LanguageModel:
        """The frozen model with the routing's own mixing weights."""
        if self.loaded is not None:
            return self.loaded
        e, located = self.experiment, self.folder.locate(self.experiment.model)
        directory = located if located.is_dir() else e.model
        return load(directory, e.routing or None, dtype=e.dtype, mesh=e.mesh)

    @cached_property
    def data(self) -> TaskData:
        """The problems and prompts."""
        return TaskData(self.experiment.task, self.experiment.prompt, self.base)

    @cached_property
    def mixing(self) -> LearnedMixing:
        """The mixing weights that the experiment learns, if it does."""
        e = self.experiment
        return LearnedMixing(
            e.mixing, e.decoding, e.engine, e.reward, e.seed, self.folder, self.base, self.data
        )

    @cached_property
    def lm(self) -> LanguageModel:
        """The frozen model with the experiment's routing.

        Raises:
            UserError: The experiment learns its mixing weights, and has not yet.
        """
        return self.mixing.model()

    @cached_property
    def grid(self) -> GateGrid:
        """The grid of gates."""
        return GateGrid.create(self.experiment.gates, self.experiment.gate_per, self.base.routing)

    @cached_property
    def generator(self) -> CellGenerator:
        """What generates the cells of this run."""
        e = self.experiment
        return CellGenerator(
            lm=self.lm,
            render=self.data.render,
            grid=self.grid,
            decoding=e.decoding,
            engine=e.engine,
            seed=e.seed,
            # Gates of several dimensions hardly ever agree, so no two prompts share a prefix.
            shared_tokens=self.data.shared_tokens() if self.grid.num_gate_dims == 1 else 0,
        )

    @cached_property
    def outcomes(self) -> RunOutcomes:
        """The outcome tables."""
        e = self.experiment
        return RunOutcomes(
            folder=self.folder,
            tables=self.folder.locate(e.outcomes) if e.outcomes else self.folder.outcomes,
            data=self.data,
            generator=self.generator,
            reward=e.reward,
            gate_per=e.gate_per,
            description=describe_cells(self.lm, self.mixing, e.task, e.prompt, e.decoding, e.seed),
        )

    @cached_property
    def features(self) -> FeatureStore:
        """The features of prompts."""
        e = self.experiment
        return FeatureStore(
            config=e.features,
            folder=self.folder,
            lm=self.lm,
            data=self.data,
            cells=self.outcomes.description,
            slots=e.engine.batch,
        )

    @cached_property
    def controllers(self) -> Controllers:
        """What training and judging left."""
        outcomes = self.outcomes
        parts = describe_training(
            self.experiment,
            self.data,
            outcomes.memo.fingerprint,
            outcomes.changed_grades("train", "validation"),
        )
        return Controllers(self.folder, self.features, parts)

    # Questions --------------------------------------------------------------------------------

    def arm_inputs(self) -> ArmInputs:
        """Return what arms choose gates from."""
        controllers = self.controllers
        return ArmInputs(
            grid=self.grid.values,
            seed=self.experiment.seed,
            has_table=self.experiment.rollouts == "table",
            observe=controllers.observe,
            controller=lambda: controllers.trained,
            controls=lambda: controllers.controls,
        )

    def gates(self, arm: str, prompts: Sequence[str]) -> Float[np.ndarray, "prompts *dims"]:
        """Return the gate an arm gives to each prompt, from the prompt alone.

        Args:
            arm: ``baseline``, ``fixed:G``, ``best_fixed``, ``random``, ``rl`` or another arm of
                ``jroute.arms.registry`` with one gate per prompt.
            prompts: Texts as the model reads them.

        Returns:
            ``[prompts]``; gates per band are ``[prompts, bands]``, per layer ``[prompts, layers]``.

        Raises:
            UserError: No such arm, or not yet.
        """
        prompts = texts(prompts, "prompts")
        return self.grid.array(resolve(parse_arm(arm), prompts, self.arm_inputs()))

    def generate(
        self, prompts: Sequence[str] | str, arm: str = SUBJECT, **decoding: Any
    ) -> list[Completion]:
        """Complete prompts with the gates an arm gives them.

        Args:
            prompts: Texts as the model reads them (see ``data.render``).
            arm: As in ``gates``.
            **decoding: Fields of the experiment's decoding to change.
        """
        rows = [prompts] if isinstance(prompts, str) else texts(prompts, "prompts")
        return self.lm.generate(
            rows,
            self.gates(arm, rows),
            decoding=self.experiment.decoding,
            engine=self.experiment.engine,
            **decoding,
        )

    def explain(self, prompt: str) -> dict[str, Any]:
        """Return why the RL controller chooses a gate.

        Returns:
            ``features`` (name -> value as the controller sees it), ``probabilities``
            (gate -> probability), ``value`` (expected reward) and ``gate``; for decisions of
            several dimensions ``probabilities`` and ``gate`` are lists, one entry for each.
        """
        if not isinstance(prompt, str):
            raise UserError("explain takes one prompt, a text; call it once for each of several")
        check_text(prompt, "the prompt")
        featurizer, grid = self.controllers.featurizer, self.grid
        observations = featurizer(self.features.read([prompt]))
        logits, value = jax.device_get(
            networks.apply(self.controllers.trained[SUBJECT], jnp.asarray(observations))
        )
        weights = np.exp(logits[0] - logits[0].max(axis=-1, keepdims=True))
        shares = weights / weights.sum(axis=-1, keepdims=True)
        probabilities = [dict(zip(grid.values, row.tolist(), strict=True)) for row in shares]
        gates = [grid.values[i] for i in shares.argmax(axis=-1)]
        single = grid.num_gate_dims == 1
        return {
            "features": dict(zip(featurizer.names, observations[0].tolist(), strict=True)),
            "probabilities": probabilities[0] if single else probabilities,
            "value": float(value[0]),
            "gate": gates[0] if single else gates,
        }

    @property
    def results(self) -> dict[str, Any]:
        """The content of ``results.json``.

        Raises:
            UserError: The run was not judged yet, or the file is damaged.
        """
        file = self.folder.results
        if not file.is_file():
            raise UserError(
                f"{file} does not exist yet; run python -m jroute.train with its config first"
            )
        with settled(self.directory):
            return read_results(file)


def without_devices(experiment: Experiment) -> Experiment:
    """Return what a run folder stores: devices decide how cells are made, not what they mean."""
    return dataclasses.replace(experiment, mesh=MeshConfig(), track="")


def check_same_experiment(stored: Experiment, given: Experiment, folder: RunFolder) -> None:
    """Raise a ``UserError`` if a folder's experiment differs in what decides its results."""
    names = [field.name for field in dataclasses.fields(given) if field.name not in CHANGEABLE]
    changed = [name for name in names if getattr(stored, name) != getattr(given, name)]
    if changed:
        raise UserError(
            f"{folder.config} is of another experiment (different: {', '.join(changed)}); "
            "choose another folder with --run, or remove that one"
        )


def load_run(directory: str | Path, *, mesh: MeshConfig | None = None) -> Run:
    """Open a run.

    Args:
        directory: The run folder.
        mesh: Devices to run its model on; one device by default.

    Raises:
        UserError: There is no run in the folder.
    """
    directory = check_path(directory, "the run folder")
    if mesh is not None:
        check_kind(mesh, MeshConfig, "mesh")
    file = directory / "config.yaml"
    if not file.is_file():
        raise UserError(
            f"{directory} is not a run folder, it has no config.yaml; "
            "run python -m jroute.train first"
        )
    stored = load_config(Experiment, file)
    return Run(directory, dataclasses.replace(stored, mesh=mesh or MeshConfig()))
