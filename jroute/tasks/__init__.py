"""Tasks: problems with numeric answers, their prompts, and the reward of an answer.

``load_problems`` returns the problems of a split, always in the same order. From there
``jroute.tasks.prompts`` makes a prompt of a question, ``jroute.tasks.answers`` reads the answer of
a completion, and ``jroute.tasks.rewards`` turns it into a reward. Nothing here depends on a model.
"""

from contextlib import suppress
from dataclasses import dataclass
from typing import ClassVar, Literal

from jroute.tasks.problem import Problem, Split
from jroute.utils.errors import UserError
from jroute.utils.keys import Keys, keys

__all__ = ["Problem", "Split", "TaskConfig", "gold_answers", "load_problems"]

_SPLITS: dict[str, tuple[Split, ...]] = {
    "synthetic": ("train", "validation", "test", "ood"),
    "gsm8k": ("train", "validation", "test"),
    "svamp": ("test",),
    "jsonl": ("train", "validation", "test", "ood"),
}


@dataclass(frozen=True)
class TaskConfig:
    """One task and where its problems come from.

    Attributes:
        name: ``synthetic`` (generated), ``gsm8k``, ``svamp``, or ``jsonl`` (the user's own).
        path: File or folder of the data, absolute, relative to the working directory, or relative
            to ``$JROUTE_DATA``. If it is empty, ``gsm8k`` and ``svamp`` come from the folder of
            that name under ``$JROUTE_DATA`` if it exists, otherwise from the hub. ``synthetic``
            ignores it.
        question_field: Field of a ``jsonl`` line with the question.
        answer_field: Field of a ``jsonl`` line with the answer.
        train: Number of training problems of ``synthetic``; a file decides its own number.
        validation: Number of validation problems: generated for ``synthetic``, held out of the
            training file for ``gsm8k`` and ``jsonl`` (see ``jroute.tasks.sources.held_out``).
        test: Number of test problems of ``synthetic``.
        ood: Number of out-of-distribution problems of ``synthetic``.
        limit: If not 0, use only that many problems, the first of each split.
        seed: Seed of the ``synthetic`` problems.
    """

    stored_keys: ClassVar[Keys] = keys(
        "name",
        "path",
        "question_field",
        "answer_field",
        "train",
        "validation",
        "test",
        "ood",
        "limit",
        "seed",
    )

    name: Literal["synthetic", "gsm8k", "svamp", "jsonl"] = "synthetic"
    path: str = ""
    question_field: str = "question"
    answer_field: str = "answer"
    train: int = 1500
    validation: int = 500
    test: int = 1000
    ood: int = 1000
    limit: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse unknown tasks and negative sizes."""
        if self.name not in _SPLITS:
            known = ", ".join(_SPLITS)
            raise UserError(f"task.name {self.name!r} is unknown; choose one of {known}.")
        for size in ("train", "validation", "test", "ood", "limit"):
            if getattr(self, size) < 0:
                raise UserError(f"task.{size} is {getattr(self, size)}; give zero or more.")


def load_problems(config: TaskConfig, split: Split) -> list[Problem]:
    """Load or generate the problems of one split.

    Args:
        config: The task.
        split: The split.

    Returns:
        The problems, in an order that depends only on the data and the config.

    Raises:
        UserError: The task has no such split, or its data is missing or damaged.
    """
    if split not in _SPLITS[config.name]:
        known = ", ".join(_SPLITS[config.name])
        raise UserError(
            f"task {config.name} has no {split!r} split, only {known}; an experiment needs train "
            "and validation, and `judged` names the splits it is judged on"
        )
    problems = _load(config, split)
    return problems[: config.limit] if config.limit else problems


def gold_answers(config: TaskConfig) -> dict[str, str]:
    """Return the gold answers of all problems of a task, by problem id.

    A split whose data cannot be read has none; ``limit`` does not count.
    """
    answers: dict[str, str] = {}
    for split in _SPLITS[config.name]:
        with suppress(UserError):
            answers |= {problem.id: problem.answer for problem in _load(config, split)}
    return answers


def _load(config: TaskConfig, split: Split) -> list[Problem]:
    # Imported here so that only the tasks that need `datasets` import it.
    if config.name == "synthetic":
        from jroute.tasks import synthetic

        return synthetic.problems(split, getattr(config, split), config.seed)
    if config.name == "jsonl":
        from jroute.tasks import jsonl

        return jsonl.load(
            config.path, split, config.validation, config.question_field, config.answer_field
        )
    if config.name == "svamp":
        from jroute.tasks import svamp

        return svamp.load(config.path)
    from jroute.tasks import gsm8k

    assert split != "ood"  # by _SPLITS
    return gsm8k.load(config.path, split, config.validation)
