"""The problems and prompts of an experiment."""

from dataclasses import dataclass, field

from jroute.lm import LanguageModel
from jroute.tasks import Problem, Split, TaskConfig, load_problems
from jroute.tasks.prompts import PromptConfig, render
from jroute.utils.errors import UserError

MIN_SHARED_TOKENS = 64
"""Fewer common tokens of prompts are not worth a separate prefill."""


@dataclass(frozen=True, eq=False)
class TaskData:
    """Problems of each split, and the prompts that a model reads; loaded on first use.

    Attributes:
        task: Source of the problems.
        prompt: Template of the prompts.
        lm: The model, for its tokenizer.
    """

    task: TaskConfig
    prompt: PromptConfig
    lm: LanguageModel
    _problems: dict[Split, list[Problem]] = field(default_factory=dict, init=False, repr=False)
    _prompts: dict[Split, list[str]] = field(default_factory=dict, init=False, repr=False)

    def problems(self, split: Split) -> list[Problem]:
        """Return the problems of a split.

        Raises:
            UserError: The split is empty, or its data cannot be read.
        """
        if split not in self._problems:
            problems = load_problems(self.task, split)
            if not problems:
                raise UserError(
                    f"task {self.task.name} has no problems in split {split!r}; raise its size"
                )
            self._problems[split] = problems
        return self._problems[split]

    def prompts(self, split: Split) -> list[str]:
        """Return the prompts of a split, exactly as the model reads them."""
        if split not in self._prompts:
            self._prompts[split] = [self.render(p.question) for p in self.problems(split)]
        return self._prompts[split]

    def render(self, question: str) -> str:
        """Return the prompt of a question."""
        return render(question, self.prompt, self.lm.tokenizer)

    def tokens(self, split: Split, count: int | None = None) -> list[list[int]]:
        """Return the token ids of the first ``count`` prompts of a split; of all by default."""
        return [
            self.lm.encode(self.render(problem.question))
            for problem in self.problems(split)[:count]
        ]

    def shared_tokens(self) -> int:
        """Return the number of leading tokens that all prompts have in common.

        It follows from the template alone, so no cell depends on which others are generated. It is
        0 where reading so few tokens again costs less than a separate program.
        """
        rows = [self.lm.encode(self.render(question)) for question in ("A", "1", "\n", "(")]
        shared = 0
        for column in zip(*rows, strict=False):
            if len(set(column)) > 1:
                break
            shared += 1
        return shared if shared >= MIN_SHARED_TOKENS else 0
