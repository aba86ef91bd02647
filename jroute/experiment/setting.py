"""What an experiment rests on: model, mixing weights, problems, outcome table, features."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

from jroute.controller.features import Featurizer, RawFeatures, raw_features, trunk_change
from jroute.distributed.processes import is_first_process
from jroute.envs.data import EnvData
from jroute.experiment.config import Experiment
from jroute.lm import LanguageModel, load
from jroute.observe.progress import progress_bar
from jroute.outcomes.backends import LiveBackend, OutcomeBackend, Shaping, TableBackend
from jroute.outcomes.outcome import Outcome
from jroute.outcomes.replicates import NoiseFloor
from jroute.outcomes.table import OutcomeTable
from jroute.probe import mixing
from jroute.routing.gate import Gate
from jroute.tasks import Problem, Split, load_problems
from jroute.tasks.prompts import meaning, render
from jroute.utils.errors import UserError
from jroute.utils.files import atomic_write
from jroute.utils.fingerprint import semantic_fingerprint
from jroute.utils.keys import stored

SHARED_AT_LEAST = 64
"""Fewer common tokens of prompts are not worth a prefill of their own."""


class Setting:
    """An experiment and its folder; everything is read or made when it is first asked for.

    Attributes:
        directory: The run folder.
        experiment: What it was decided by.
    """

    def __init__(self, directory: Path, experiment: Experiment):
        self.directory = directory
        self.experiment = experiment
        self._problems: dict[Split, list[Problem]] = {}
        self._prompts: dict[Split, list[str]] = {}
        self._changes: dict[tuple[str, Gate], float] = {}

    # The model and its problems ---------------------------------------------------------------

    @cached_property
    def base(self) -> LanguageModel:
        """The frozen model with the routing's own mixing weights."""
        e = self.experiment
        found = self._located(e.model)
        return load(
            found if found.is_dir() else e.model, e.routing or None, dtype=e.dtype, mesh=e.mesh
        )

    def _located(self, path: str) -> Path:
        """A path of the experiment: relative to where it was started, which the folder tells."""
        found, run = Path(path), Path(self.experiment.run)
        here = self.directory.absolute()
        if found.is_dir() or found.is_absolute() or here.parts[-len(run.parts) :] != run.parts:
            return found
        return Path(*here.parts[: -len(run.parts)]) / found

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
            "routing": stored(base.routing.config),
            "mixing": stored(e.mixing),
            "seed": e.seed,
            "examples": semantic_fingerprint({"pairs": self.mixing_pairs}),
            **({"decoding": stored(e.decoding)} if e.mixing.method == "search" else {}),
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

    def render(self, question: str) -> str:
        """The prompt of a question, as the experiment's prompts are made."""
        return render(question, self.experiment.prompt, self.base.tokenizer)

    @cached_property
    def shared_tokens(self) -> int:
        """Leading tokens that all prompts have in common, as by few-shot examples.

        They follow from the template alone, so that no cell depends on which others are made. 0 if
        they are so few that reading them again costs less than a program of its own, and for gates
        of several parts: they are read once for each gate, and hardly two prompts have the same.
        """
        if self.num_gate_dims > 1:
            return 0
        rows = [self.base.encode(self.render(question)) for question in ("A", "1", "\n", "(")]
        same = 0
        for column in zip(*rows, strict=False):
            if len(set(column)) > 1:
                break
            same += 1
        return same if same >= SHARED_AT_LEAST else 0

    def first_prompts(self, split: Split, count: int) -> list[list[int]]:
        """Token ids of the first prompts of a split."""
        first = self.problems(split)[:count]
        return [self.base.encode(self.render(problem.question)) for problem in first]

    # Outcomes and features --------------------------------------------------------------------

    @cached_property
    def num_gate_dims(self) -> int:
        """Numbers that a decision has: 1, or one for each band or mixing site.

        Raises:
            UserError: The routing has no bands.
        """
        if self.experiment.gate_per == "prompt":
            return 1
        routing = self.base.routing
        if self.experiment.gate_per == "layer":
            return int(np.asarray(routing.sites).sum())
        if not routing.config.bands:
            raise UserError(
                "gate_per is band, but this routing has no bands; set bands in its file, or give "
                "gate_per: layer"
            )
        return routing.config.bands

    def spread(self, gates: Sequence[Gate]) -> Float[np.ndarray, "prompts *gate_dims"]:
        """Gates of prompts as the model takes them: a gate per site becomes one per layer."""
        values = np.asarray(gates, np.float64)
        if values.ndim == 1 or self.experiment.gate_per != "layer":
            return values
        sites = np.asarray(self.base.routing.sites)
        layers = np.zeros((len(values), len(sites)))
        layers[:, sites] = values
        return layers

    def gates_of(self, decisions: Int[np.ndarray, "prompts gate_dims"]) -> list[Gate]:
        """The gates that indices into the grid stand for."""
        grid = self.experiment.gates
        if self.num_gate_dims == 1:
            return [grid[row[0]] for row in decisions]
        return [tuple(grid[i] for i in row) for row in decisions]

    def env_data(self, split: Split, featurizer: Featurizer, *, live: bool) -> EnvData:
        """A split as environments take it."""
        return EnvData(
            problems=self.problems(split),
            prompts=self.prompts(split),
            observations=featurizer(self.raw_features(split)).astype(np.float32),
            feature_names=featurizer.names,
            gates=self.experiment.gates,
            backend=self.backend(live=live),
            num_gate_dims=self.num_gate_dims,
        )

    @cached_property
    def described(self) -> dict[str, Any]:
        """Everything that decides what a cell means."""
        e, lm = self.experiment, self.lm
        tokenizer = lm.tokenizer.backend_tokenizer.to_str()
        found = {
            "model": lm.fingerprint,
            "tokenizer": semantic_fingerprint({"tokenizer": tokenizer}),
            "chat_template": lm.tokenizer.chat_template if e.prompt.chat else "",
            "end_tokens": lm.end_token_ids,
            "routing": lm.routing.config,
            "dtype": str(jax.tree.leaves(lm.params)[0].dtype),
            "task": {"name": e.task.name, "seed": e.task.seed},  # ids name the problems of a task
            "prompt": meaning(e.prompt, lm.tokenizer),
            "decoding": e.decoding,
        }
        if e.decoding.temperature > 0:
            found["seed"] = e.seed
        if e.mixing.method != "none":
            found["mixing"] = self.mixing_progress()[0].raw.tolist()
        return found

    @cached_property
    def table(self) -> OutcomeTable:
        """The outcome table, of one gate per prompt; rewards in it are exact match."""
        shared = self.experiment.outcomes
        root = self._located(shared) if shared else self.directory / "outcomes"
        return OutcomeTable(root, semantic_fingerprint(self.described), self.described)

    @cached_property
    def memo(self) -> OutcomeTable:
        """What was generated live: the table itself, or that of gates per band or layer."""
        if self.num_gate_dims == 1:
            return self.table
        about = {**self.described, "gate_per": self.experiment.gate_per}
        root = self.directory / "memo"
        return OutcomeTable(
            root, semantic_fingerprint(about), about, num_gate_dims=self.num_gate_dims
        )

    def backend(self, *, live: bool = False) -> OutcomeBackend:
        """Who says what gates give, paid as the experiment pays: the table, or the model."""
        from jroute.outcomes import generation  # which are made in a setting

        limit = self.experiment.decoding.max_new_tokens
        shaping = Shaping(self.experiment.reward, limit, self.changes)
        if not live:
            return TableBackend(self.memo, shaping)

        def generate(problems: Sequence[Problem], gates: Sequence[Gate]) -> list[Outcome]:
            asked = [generation.Cell(*pair) for pair in zip(problems, gates, strict=True)]
            # Filed as they come, so that an interruption loses no more than a batch.
            return generation.generate(self, asked, finished=self.memo.append)

        return LiveBackend(generate, shaping, self.memo)

    @property
    def noise_floor(self) -> dict[str, Any] | None:
        """How often cells came out otherwise when they were made once more, for reports."""
        floor = NoiseFloor.of(self.table.replicates())
        return None if floor is None else floor.as_dict()

    @property
    def generation(self) -> dict[str, dict[str, float]]:
        """What making the memo's cells took, by machine: ``cells``, ``tokens`` and ``seconds``.

        Seconds are wall time, compilation included; of several processes they add up.
        """
        found: dict[str, dict[str, float]] = {}
        for cell in self.memo.cells():
            if cell.made is None:
                continue
            told = found.setdefault(cell.made.machine, {"cells": 0, "tokens": 0, "seconds": 0.0})
            for name, amount in (("cells", 1), ("tokens", cell.tokens)):
                told[name] += amount
            told["seconds"] += cell.made.seconds
        return found

    def changes(
        self, problems: Sequence[Problem], gates: Sequence[Gate]
    ) -> Float[np.ndarray, " cells"]:
        """How far gates move the trunk of prompts, relative to its norm, over all mixing sites."""
        lm, known = self.lm, self._changes
        asked = list(zip([problem.id for problem in problems], gates, strict=True))
        new = {pair: i for i, pair in enumerate(asked) if pair not in known}
        if new:
            tokens = [lm.encode(self.render(problems[i].question)) for i in new.values()]
            spread = lm.routing.layer_gates(self.spread([gate for _, gate in new]), len(new))
            slots = self.experiment.engine.batch
            with lm.devices():
                found = trunk_change(lm.params, lm.config, tokens, lm.routing, spread, slots=slots)
            known.update(zip(new, found.tolist(), strict=True))
        return np.array([known[pair] for pair in asked])

    def outcome(self, split: Split, problem_id: str, gate: float) -> Outcome:
        """What training recorded for one cell."""
        if problem_id not in {p.id for p in self.problems(split)}:
            raise UserError(f"no problem {problem_id!r} in split {split!r} of {self.directory}")
        return self.table.outcome(problem_id, gate)

    def matrix(self, split: Split, column: str = "correct") -> Float[np.ndarray, "problems gates"]:
        """A column of the table: problems down, gates across; a missing cell raises.

        ``reward`` is what the experiment pays, shaping included.
        """
        problems, gates = self.problems(split), self.gate_values
        if column != "reward":
            return self.table.matrix([p.id for p in problems], gates, column)  # type: ignore[arg-type]
        cells_of = [(problem, gate) for problem in problems for gate in gates]
        paid = self.backend().outcomes([p for p, _ in cells_of], [gate for _, gate in cells_of])
        rewards = np.array([outcome.reward for outcome in paid], np.float64)
        return rewards.reshape(len(problems), len(gates))

    def samples(
        self, split: Split, column: str = "correct"
    ) -> Float[np.ndarray, "problems gates samples"]:
        """A column of all samples that every cell of the split has.

        Raises:
            MissingOutcome: A cell has none.
        """
        ids, found = [p.id for p in self.problems(split)], []
        while not found or not any(self.table.missing(ids, self.gate_values, sample=len(found))):
            found.append(
                self.table.matrix(ids, self.gate_values, column, sample=len(found))  # type: ignore[arg-type]
            )
        return np.stack(found, axis=-1)

    def raw_features(self, split: Split) -> RawFeatures:
        """Raw features of a split, kept in the run folder under all that decides them."""
        key = semantic_fingerprint(
            {
                "cells": self.described,
                "features": self.experiment.features,
                "prompts": self.prompts(split),
            }
        )

        def read() -> Mapping[str, np.ndarray]:
            prompts = self.prompts(split)
            told = {
                "desc": f"features {split}",
                "unit": "prompt",
                "disable": not is_first_process(),
            }
            with progress_bar(total=len(prompts), **told) as bar:
                return stored(self.read_features(prompts, progress=bar.update))

        found = self._kept(f"{split}-{key[:16]}", read)
        names = tuple(map(str, found["names"]))
        return RawFeatures(found["scalars"], found["hidden"], names)

    def _kept(self, name: str, make: Callable[[], Mapping[str, Any]]) -> dict[str, np.ndarray]:
        """Arrays of the folder ``features``, made if they are not there."""
        path = self.directory / "features" / f"{name}.npz"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as partial, partial.open("wb") as file:
                np.savez(file, **make())
        with np.load(path) as stored:
            return dict(stored)

    def read_features(
        self, prompts: Sequence[str], *, progress: Callable[[int], object] = lambda rows: None
    ) -> RawFeatures:
        """Raw features of any prompts, by one prefill of the plain model.

        Args:
            prompts: Texts as the model reads them.
            progress: Called after every batch with the number of its prompts.
        """
        e, lm = self.experiment, self.lm
        tokens = [lm.encode(prompt) for prompt in prompts]
        with lm.devices():
            return raw_features(
                lm.params,
                lm.config,
                tokens,
                e.features,
                slots=e.engine.batch,
                routing=lm.routing,
                texts=prompts,
                progress=progress,
            )
