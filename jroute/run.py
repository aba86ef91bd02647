"""A run folder: one experiment's data, controllers and results, and what can be asked of them.

============================  =====================================================
``config.yaml``               the resolved experiment
``mixing/<fingerprint>.json`` learned mixing weights, if the experiment learns them
``outcomes/<fingerprint>/``   the outcome table (Parquet)
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
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from jroute.checkpoint import load_state
from jroute.config import dump
from jroute.config import load as load_config
from jroute.controller import arms, networks
from jroute.controller.features import Featurizer, RawFeatures, raw_features
from jroute.envs.gymnasium import EnvData
from jroute.envs.outcomes import Outcome, OutcomeTable, TableBackend, semantic_fingerprint
from jroute.errors import UserError
from jroute.evaluation import mixing
from jroute.experiment import Experiment
from jroute.files import replacing, write_text
from jroute.generate.decoding import Completion
from jroute.generate.planning import check_context
from jroute.lm import LanguageModel, load
from jroute.mesh import MeshConfig
from jroute.tasks import Problem, Split, load_problems
from jroute.tasks.prompts import meaning, render

MADE = ("mixing", "outcomes", "features", "learner", "controller", "results.json", "lm_eval")
"""What ties a run folder to its experiment, once it is there."""

SHARED_AT_LEAST = 64
"""Fewer common tokens of prompts are not worth a prefill of their own."""


class Run:
    """One run folder; everything in it is read when it is first asked for.

    Attributes:
        directory: The run folder.
        experiment: What it was decided by.
    """

    def __init__(self, directory: Path, experiment: Experiment):
        self.directory = directory
        self.experiment = experiment
        self._problems: dict[Split, list[Problem]] = {}
        self._prompts: dict[Split, list[str]] = {}

    @classmethod
    def start(cls, experiment: Experiment) -> "Run":
        """Opens the run folder of an experiment, making it if there is none.

        A folder in which nothing was made yet takes any experiment. Model and problems are read
        first, so that a wrong path leaves nothing behind.

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
                and f.name != "allow_inert"  # it decides whether, not what
            ]
            if changed:
                raise UserError(
                    f"{path} is of another experiment (different: {', '.join(changed)}); "
                    "choose another folder with --run, or remove that one"
                )
        run.base.check_slots(experiment.engine.slots)
        for split in experiment.splits:
            for problem, prompt in zip(run.problems(split), run.prompts(split), strict=True):
                try:
                    tokens, new = run.base.encode(prompt), experiment.decoding.max_new_tokens
                    check_context(len(tokens), new, run.base.context)
                except UserError as error:
                    raise UserError(f"problem {problem.id}: {error}") from error
        if stored != kept:
            directory.mkdir(parents=True, exist_ok=True)
            write_text(path, dump(kept))
        return run

    # The model and its problems ---------------------------------------------------------------

    @cached_property
    def base(self) -> LanguageModel:
        """The frozen model with the routing's own mixing weights."""
        e = self.experiment
        model, run = Path(e.model), Path(e.run)
        if not model.is_dir() and not model.is_absolute():
            # Paths are relative to where training was started, which the run folder tells.
            here = self.directory.absolute()
            if here.parts[-len(run.parts) :] == run.parts:
                model = Path(*here.parts[: -len(run.parts)]) / model
        found = model if model.is_dir() else e.model
        return load(found, e.routing or None, dtype=e.dtype, mesh=e.mesh)

    @cached_property
    def lm(self) -> LanguageModel:
        """The frozen model with the experiment's routing.

        Raises:
            UserError: The experiment learns its mixing weights, and has not yet.
        """
        if self.experiment.mixing.method == "none":
            return self.base
        progress, finished = self.mixing_progress()
        if not finished:
            raise UserError(
                f"the mixing weights {self.mixing_file} are learned halfway; give python -m "
                "jroute.train its config again to go on"
            )
        return self.base.routed(self.base.routing.config, progress.raw)

    # Mixing weights ---------------------------------------------------------------------------

    @cached_property
    def mixing_pairs(self) -> list[tuple[list[int], list[int]]]:
        """Prompt and answer ids of the train problems that mixing weights are learned from.

        An answer is the reference solution, ``#### `` and the number, and the end token.
        """
        base, pairs = self.base, []
        for problem in self.problems("train")[: self.experiment.mixing.problems]:
            final = f"#### {problem.answer}"
            text = problem.solution
            if not text.endswith(final):
                text = f"{text}\n{final}" if text else final
            answer = [*base.encode(text), base.end_token_ids[0]]
            pairs.append((base.encode(self.render(problem.question)), answer))
        return pairs

    @cached_property
    def mixing_about(self) -> dict[str, Any]:
        """Everything that decides the learned mixing weights."""
        e, base = self.experiment, self.base
        return {
            "model": base.fingerprint,
            "dtype": str(jax.tree.leaves(base.params)[0].dtype),
            "routing": dataclasses.asdict(base.routing.config),
            "mixing": dataclasses.asdict(e.mixing),
            "seed": e.seed,
            "examples": semantic_fingerprint({"pairs": self.mixing_pairs}),
            **({"decoding": dataclasses.asdict(e.decoding)} if e.mixing.method == "search" else {}),
        }

    @property
    def mixing_file(self) -> Path:
        """Where the learned mixing weights lie."""
        return self.directory / "mixing" / f"{semantic_fingerprint(self.mixing_about)[:16]}.json"

    def mixing_progress(self) -> tuple[mixing.Progress, bool]:
        """Learned mixing weights, and whether they are finished.

        Raises:
            UserError: There are none.
        """
        base = self.base
        shape = base.routing.config.initial_raw(base.config.num_hidden_layers).shape
        return mixing.load_progress(self.mixing_file, self.mixing_about, shape)

    @property
    def gate_values(self) -> tuple[float, ...]:
        """The grid of gates."""
        return self.experiment.gates

    def problems(self, split: Split) -> list[Problem]:
        """The problems of a split."""
        if split not in self._problems:
            self._problems[split] = load_problems(self.experiment.task, split)
            if not self._problems[split]:
                raise UserError(
                    f"task {self.experiment.task.name} has no problems in split {split!r}; "
                    "raise its size"
                )
        return self._problems[split]

    def prompts(self, split: Split) -> list[str]:
        """The prompts of a split, exactly as the model reads them."""
        if split not in self._prompts:
            e = self.experiment
            self._prompts[split] = [
                render(p.question, e.prompt, self.base.tokenizer) for p in self.problems(split)
            ]
        return self._prompts[split]

    def first_prompts(self, split: Split, count: int) -> list[list[int]]:
        """Token ids of the first prompts of a split."""
        first = self.problems(split)[:count]
        return [self.base.encode(self.render(problem.question)) for problem in first]

    # Outcomes and features --------------------------------------------------------------------

    @cached_property
    def table(self) -> OutcomeTable:
        """The outcome table of everything that decides what a cell means."""
        e, lm = self.experiment, self.lm
        description = {
            "model": lm.fingerprint,
            "tokenizer": lm.tokenizer.backend_tokenizer.to_str(),
            "chat_template": lm.tokenizer.chat_template if e.prompt.chat else "",
            "end_tokens": lm.end_token_ids,
            "routing": lm.routing.config,
            "dtype": str(jax.tree.leaves(lm.params)[0].dtype),
            "task": {"name": e.task.name, "seed": e.task.seed},  # ids name the problems of a task
            "prompt": meaning(e.prompt, lm.tokenizer),
            "decoding": e.decoding,
            "reward": e.reward,
        }
        if e.mixing.method != "none":
            description["mixing"] = self.mixing_progress()[0].raw.tolist()
        fingerprint = semantic_fingerprint(description)
        description["tokenizer"] = semantic_fingerprint({"tokenizer": description["tokenizer"]})
        return OutcomeTable(self.directory / "outcomes", fingerprint, description)

    def outcome(self, split: Split, problem_id: str, gate: float) -> Outcome:
        """What training recorded for one cell."""
        if problem_id not in {p.id for p in self.problems(split)}:
            raise UserError(f"no problem {problem_id!r} in split {split!r} of {self.directory}")
        return self.table.outcome(problem_id, gate)

    def matrix(self, split: Split, column: str = "correct") -> Float[np.ndarray, "problems gates"]:
        """A column of the table: problems down, gates across; a missing cell raises."""
        ids = [p.id for p in self.problems(split)]
        return self.table.matrix(ids, self.gate_values, column)  # type: ignore[arg-type]

    def raw_features(self, split: Split) -> RawFeatures:
        """Raw features of a split, kept in the run folder once computed."""
        path = self.directory / "features" / f"{split}.npz"
        key = semantic_fingerprint(
            {
                "table": self.table.fingerprint,
                "features": self.experiment.features,
                "prompts": self.prompts(split),
            }
        )
        if path.is_file():
            with np.load(path) as stored:
                if str(stored["key"]) == key:
                    return RawFeatures(stored["scalars"], stored["hidden"])
        raw = self.read_features(self.prompts(split))
        path.parent.mkdir(exist_ok=True)
        with replacing(path) as partial, partial.open("wb") as file:
            np.savez(file, key=key, **raw._asdict())
        return raw

    def read_features(self, prompts: Sequence[str]) -> RawFeatures:
        """Raw features of any prompts, by one prefill of the plain model."""
        e, lm = self.experiment, self.lm
        tokens = [lm.encode(prompt) for prompt in prompts]
        with lm.devices():
            return raw_features(lm.params, lm.config, tokens, e.features, slots=e.engine.batch)

    # Controllers ------------------------------------------------------------------------------

    @cached_property
    def training(self) -> str:
        """Names what controllers are trained on and how; another model or task is another name."""
        e = self.experiment
        content = {
            "outcomes": self.table.fingerprint,
            "gates": e.gates,
            "prompts": [self.prompts("train"), self.prompts("validation")],
            "answers": [[p.answer for p in self.problems(s)] for s in ("train", "validation")],
            "features": e.features,
            "ppo": e.ppo,
            "supervised": e.supervised,
            "seed": e.seed,
        }
        return semantic_fingerprint(content)[:16]

    @cached_property
    def controller(self) -> dict[str, Any]:
        """What training left: featurizer, best fixed gate, supervised and RL networks.

        Raises:
            UserError: Training has not finished.
        """
        folder = self.directory / "controller" / self.training
        if not folder.is_dir():
            raise UserError(
                f"{self.directory} has no controller trained on this model and these problems; "
                "run python -m jroute.train with its config first"
            )
        return load_state(folder)[1]

    @cached_property
    def featurizer(self) -> Featurizer:
        """The fitted part of the features."""
        return Featurizer.of(self.controller["featurizer"])

    def choices(
        self, arm: str, prompts: Sequence[str], raw: RawFeatures | None = None
    ) -> Int[np.ndarray, " prompts"]:
        """Index of the gate that ``supervised`` or ``rl`` (the seed best on validation) chooses."""
        observations = self.featurizer(raw or self.read_features(prompts))
        if arm == "supervised":
            return arms.choices_of_regressor(self.controller["supervised"], observations[:, :1])
        return arms.choices_of_policy(self.controller["rl"], observations)

    def gates(self, arm: str, prompts: Sequence[str]) -> Float[np.ndarray, " prompts"]:
        """The gate an arm gives to each prompt, from the prompt alone.

        Args:
            arm: ``baseline``, ``fixed:G``, ``best_fixed``, ``random``, ``supervised`` or ``rl``.
            prompts: Texts as the model reads them.

        Raises:
            UserError: No such arm.
        """
        grid = np.asarray(self.gate_values)
        fixed = arms.fixed_gate(arm)
        if fixed is not None:
            return np.full(len(prompts), fixed)
        if arm == "best_fixed":
            return np.full(len(prompts), grid[int(self.controller["best_fixed"])])
        if arm == "random":
            return grid[arms.random_choices(prompts, len(grid), self.experiment.seed)]
        if arm in ("supervised", "rl"):
            return grid[self.choices(arm, prompts)]
        raise UserError(
            f"no arm is named {arm!r}; "
            "arms are baseline, fixed:G, best_fixed, random, supervised and rl"
        )

    def generate(
        self, prompts: Sequence[str] | str, arm: str = "rl", **decoding: Any
    ) -> list[Completion]:
        """Completes prompts with the gates an arm gives them.

        Args:
            prompts: Texts as the model reads them (see ``render``).
            arm: As in ``gates``.
            **decoding: Fields of the experiment's decoding to change.
        """
        rows = [prompts] if isinstance(prompts, str) else list(prompts)
        options = {
            **vars(self.experiment.decoding),
            **vars(self.experiment.engine),
            **decoding,
        }
        return self.lm.generate(rows, self.gates(arm, rows), **options)

    def render(self, question: str) -> str:
        """The prompt of a question, as the experiment's prompts are made."""
        return render(question, self.experiment.prompt, self.base.tokenizer)

    @cached_property
    def shared_tokens(self) -> int:
        """Leading tokens that all prompts have in common, as by few-shot examples.

        They follow from the template alone, so that no cell depends on which others are made. 0 if
        they are so few that reading them again costs less than a program of its own.
        """
        rows = [self.base.encode(self.render(question)) for question in ("A", "1", "\n", "(")]
        same = 0
        for column in zip(*rows, strict=False):
            if len(set(column)) > 1:
                break
            same += 1
        return same if same >= SHARED_AT_LEAST else 0

    def explain(self, prompt: str) -> dict[str, Any]:
        """Why the RL controller chooses a gate.

        Returns:
            ``features`` (name -> value as the controller sees it), ``probabilities``
            (gate -> probability), ``value`` (expected reward) and ``gate``.
        """
        if not isinstance(prompt, str):
            raise UserError("explain takes one prompt, a text; call it once for each of several")
        observations = self.featurizer(self.read_features([prompt]))
        logits, value = jax.device_get(
            networks.apply(self.controller["rl"], jnp.asarray(observations))
        )
        weights = np.exp(logits[0, 0] - logits[0, 0].max())
        probabilities = weights / weights.sum()
        return {
            "features": dict(zip(self.featurizer.names, observations[0].tolist(), strict=True)),
            "probabilities": dict(zip(self.gate_values, probabilities.tolist(), strict=True)),
            "value": float(value[0]),
            "gate": self.gate_values[int(probabilities.argmax())],
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
    """Opens a finished run.

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


def environment_data(run: str | Path, split: Split) -> EnvData:
    """A split of a run as the Gymnasium environments take it, rewards looked up in its table."""
    opened = load_run(run)
    return EnvData(
        problems=opened.problems(split),
        prompts=opened.prompts(split),
        observations=opened.featurizer(opened.raw_features(split)).astype(np.float32),
        feature_names=opened.featurizer.names,
        gates=opened.gate_values,
        backend=TableBackend(opened.table),
    )
