"""The stage that learns mixing weights: examples, the file they are kept in, and the steps."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jroute.experiment.run_folder import RunFolder
from jroute.experiment.task_data import TaskData
from jroute.generate.config import EngineConfig
from jroute.generate.decoding import Decoding
from jroute.generate.finite import rows_named
from jroute.generate.sampling import hash_text
from jroute.lm import LanguageModel
from jroute.observe.progress import progress_bar
from jroute.outcomes.generation import cell_seed
from jroute.outcomes.outcome import grade
from jroute.probe import mixing
from jroute.tasks.rewards import RewardConfig
from jroute.tasks.special_tokens import encode
from jroute.utils.errors import UserError
from jroute.utils.fingerprint import semantic_fingerprint
from jroute.utils.keys import stored


@dataclass(frozen=True, eq=False)
class LearnedMixing:
    """The mixing weights that an experiment learns, the base frozen.

    Attributes:
        config: How they are learned.
        decoding: Decoding of the completions that a search counts.
        engine: Execution shape of those.
        reward: How those are graded.
        seed: Seed of the experiment.
        folder: The run folder.
        base: The frozen model with the routing's own weights.
        data: Problems and prompts.
    """

    config: mixing.MixingConfig
    decoding: Decoding
    engine: EngineConfig
    reward: RewardConfig
    seed: int
    folder: RunFolder
    base: LanguageModel
    data: TaskData

    @property
    def enabled(self) -> bool:
        """Return whether the experiment learns mixing weights."""
        return self.config.method != "none"

    @cached_property
    def examples(self) -> list[tuple[list[int], list[int]]]:
        """Prompt and answer ids of the train problems to learn from.

        An answer is the reference solution, ``#### `` and the number, and the end token.
        """
        pairs = []
        for problem in self.data.problems("train")[: self.config.problems]:
            final = f"#### {problem.answer}"
            text = problem.solution
            if not text.endswith(final):
                text = f"{text}\n{final}" if text else final
            answer = [*encode(text, self.base.tokenizer), self.base.end_token_ids[0]]
            pairs.append((self.base.encode(self.data.render(problem.question)), answer))
        return pairs

    @cached_property
    def description(self) -> dict[str, Any]:
        """Everything that determines the learned weights."""
        base = self.base
        description = {
            "model": base.fingerprint,
            "dtype": str(jax.tree.leaves(base.params)[0].dtype),
            "routing": stored(base.routing.config),
            "mixing": stored(self.config),
            "seed": self.seed,
            "examples": semantic_fingerprint({"pairs": self.examples}),
        }
        if self.config.method == "search":
            description["decoding"] = stored(self.decoding)
        return description

    @property
    def file(self) -> Path:
        """Return the file of the learned weights."""
        return self.folder.mixing(semantic_fingerprint(self.description))

    def progress(self) -> tuple[mixing.MixingProgress, bool]:
        """Return the weights learned so far, and whether they are finished.

        Raises:
            UserError: No weights were learned yet.
        """
        base = self.base
        shape = base.routing.config.initial_raw(base.config.num_hidden_layers).shape
        return mixing.load_progress(self.file, self.description, shape)

    def model(self) -> LanguageModel:
        """Return the frozen model with the experiment's routing.

        Raises:
            UserError: The weights are not learned yet.
        """
        if not self.enabled:
            return self.base
        progress, finished = self.progress()
        if not finished:
            raise UserError(
                f"the mixing weights {self.file} are only partly learned; give "
                "python -m jroute.train its config again to continue"
            )
        return self.base.routed(self.base.routing.config, progress.raw)

    def check(self) -> None:
        """Refuse what ``learn`` would refuse, before anything is written.

        Raises:
            UserError: The routing has no weights to learn, or too many for a search; an example
                does not fit into the context.
        """
        if not self.enabled:
            return
        layers, routing = self.base.config.num_hidden_layers, self.base.routing.config
        initial = routing.initial_raw(layers)
        if not initial.size:
            raise UserError(
                f"mixing.method is {self.config.method}, but this routing has no weights to learn; "
                "choose side streams and another operator than fixed"
            )
        if self.config.method == "search":
            mixing.searched_numbers(initial, routing.site_indices(layers))
        else:
            mixing.pad_examples(self.examples, self.base.context)

    def learn(self) -> None:
        """Learn the weights if the experiment says so; resume where an earlier run stopped.

        Raises:
            UserError: ``check`` refuses the experiment.
        """
        config, base = self.config, self.base
        if not self.enabled:
            return
        initial = base.routing.config.initial_raw(base.config.num_hidden_layers)
        progress = mixing.MixingProgress(0, initial, [], [])
        if self.file.is_file():
            progress, finished = self.progress()
            if finished:
                return
        self.check()
        with progress_bar(
            total=config.steps,
            initial=progress.step,
            desc=f"mixing by {config.method}",
            unit="step",
        ) as bar:

            def save(state: mixing.MixingProgress) -> None:
                mixing.save_progress(self.file, self.description, state, config.steps)
                bar.set_postfix({"value": f"{state.values[-1]:.4f}"}, refresh=False)
                bar.update(state.step - bar.n)

            self._run_steps(progress, save)

    def _run_steps(
        self, progress: mixing.MixingProgress, save: Callable[[mixing.MixingProgress], None]
    ) -> None:
        """Run the remaining steps of the experiment's method.

        Raises:
            NotFiniteError: The model's numbers for a problem are not finite.
        """
        config, base = self.config, self.base
        seed = hash_text(f"mixing/{self.seed}")
        if config.method == "gradient":
            examples = mixing.pad_examples(self.examples, base.context)
            with base.devices(), rows_named(self._problem):
                mixing.learn_by_gradient(
                    base.params,
                    base.config,
                    base.routing,
                    examples,
                    config,
                    seed=seed,
                    progress=progress,
                    save=save,
                )
        else:
            sites = base.routing.config.site_indices(base.config.num_hidden_layers)
            mixing.learn_by_search(
                self._solved_share, sites, config, seed=seed, progress=progress, save=save
            )

    def _problem(self, row: int) -> str:
        """Return what messages call an example."""
        return f"problem {self.data.problems('train')[row].id}"

    def _solved_share(self, raw: np.ndarray) -> float:
        """Return the share of the problems to learn from that these mixing weights solve."""
        gate, base = self.config.gate, self.base
        problems = self.data.problems("train")[: self.config.problems]
        with rows_named(self._problem):
            completions = base.routed(base.routing.config, raw).generate(
                [prompt for prompt, _ in self.examples],
                gate,
                decoding=self.decoding,
                engine=self.engine,
                seed=[cell_seed(problem.id, self.seed) for problem in problems],
            )
        limit = self.decoding.max_new_tokens
        outcomes = [
            grade(problem, gate, completion, max_tokens=limit, rewards=self.reward)
            for problem, completion in zip(problems, completions, strict=True)
        ]
        return float(np.mean([outcome.correct for outcome in outcomes]))
