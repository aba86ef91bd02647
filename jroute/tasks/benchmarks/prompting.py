"""A benchmark's own prompt as the prompt of an experiment.

A controller then learns on what it is judged on: wording, examples and turns are those that
lm-evaluation-harness makes.
"""

import hashlib
import os
import random
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import datasets
from lm_eval.api.samplers import FirstNSampler
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from jroute.tasks.benchmarks.local_data import LOCAL_DATA
from jroute.tasks.benchmarks.lookup import find_tasks, load_tasks
from jroute.utils.errors import FOREIGN_ERRORS, UserError

SEED = 1234
"""Seed of the examples that a task draws; lm-eval's own default."""

_PLACEHOLDER = "\u27e6question\u27e7"

Chat = Callable[..., str]
"""Renders messages; takes ``add_generation_prompt`` as well."""


class _Request(NamedTuple):
    """What a task gives to a model for the placeholder in place of a question.

    Attributes:
        content: Messages, or plain text.
        add_generation_prompt: Whether the assistant's turn begins behind them.
    """

    content: Any
    add_generation_prompt: bool


class BenchmarkPrompt:
    """How a task of lm-eval asks a question.

    Examples are the same for all questions, or drawn: for the task's own test documents exactly as
    lm-eval draws them, one document after the other; for any other question by its text.

    Args:
        name: Name of the task.
        num_fewshot: Examples before the question; ``None`` takes the task's own number.

    Raises:
        UserError: There is no such task, or its data cannot be loaded.
    """

    def __init__(self, name: str, num_fewshot: int | None = None):
        self.name = name
        self.task = _load(name)
        own = self.task.config.num_fewshot or 0
        self.num_fewshot = own if num_fewshot is None or own == 0 else num_fewshot
        self._requests: dict[tuple[str, bool, bool], _Request] = {}

    def __call__(self, question: str, *, system: str, chat: Chat | None, multiturn: bool) -> str:
        """Return the whole prompt of a question.

        Args:
            question: The question.
            system: The system message, or ``""``.
            chat: Renders messages; ``None`` puts them one after the other as plain text.
            multiturn: Whether every example of a chat is a separate turn.

        Raises:
            UserError: The task needs more than a question.
        """
        if self._draws:
            return self._prompt(question, system, chat, multiturn)
        key = (system, chat is not None, multiturn)
        if key not in self._requests:
            self._requests[key] = self._with_placeholder(*key)
        content, add_generation_prompt = self._requests[key]
        if chat is None or isinstance(content, str):
            return str(content).replace(_PLACEHOLDER, question)
        turns = [
            {**turn, "content": turn["content"].replace(_PLACEHOLDER, question)} for turn in content
        ]
        return chat(turns, add_generation_prompt=add_generation_prompt)

    def _with_placeholder(self, system: str, chat: bool, multiturn: bool) -> _Request:
        """Return the request for a placeholder, where the examples are always the same."""
        rendered: list[_Request] = []

        def record(messages: Any, add_generation_prompt: bool = True) -> str:
            rendered.append(_Request(messages, add_generation_prompt))
            return ""

        text = self._prompt(_PLACEHOLDER, system, record if chat else None, multiturn)
        request = rendered[0] if chat else _Request(text, True)
        if _PLACEHOLDER not in str(request.content):
            raise UserError(
                f"task {self.name} does not ask the question as it stands; prompt.benchmark must "
                "name a task whose prompt holds the field 'question' of its documents"
            )
        return request

    def _prompt(self, question: str, system: str, chat: Chat | None, multiturn: bool) -> str:
        task = self.task
        doc = {"question": question, "answer": ""}
        try:
            if self.num_fewshot:
                task.sampler = _FixedSampler(self._examples(question))
            return task.fewshot_context(
                doc,
                self.num_fewshot,
                system_instruction=system or None,
                apply_chat_template=chat is not None,
                fewshot_as_multiturn=multiturn,
                chat_template=chat,
                gen_prefix=task.doc_to_prefix(doc),
            )
        except UserError:
            raise
        except FOREIGN_ERRORS as error:  # templates and functions of tasks may raise anything
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise UserError(
                f"task {self.name} cannot ask a question alone ({reason:.300}); "
                "prompt.benchmark must name a task whose documents have a field 'question'"
            ) from error

    @property
    def _draws(self) -> bool:
        """Whether examples differ from question to question."""
        return bool(self.num_fewshot) and not isinstance(self._sampler, FirstNSampler)

    def _examples(self, question: str) -> Sequence[dict[str, Any]]:
        if not self._draws:
            return self._sampler.sample(self.num_fewshot)
        if question in self._drawn:
            return self._drawn[question]
        drawing = random.Random(hashlib.sha256(question.encode()).digest())
        pool = [doc for doc in self._sampler.df if doc.get("question") != question]
        return drawing.sample(pool, self.num_fewshot)

    @cached_property
    def _sampler(self) -> Any:
        self.task.set_fewshot_seed(SEED)
        return self.task.sampler

    @cached_property
    def _drawn(self) -> dict[str, Sequence[dict[str, Any]]]:
        """The examples that lm-eval draws for the task's test documents, by question."""
        task = self.task
        examples: dict[str, Sequence[dict[str, Any]]] = {}
        excluding = task.fewshot_cfg.split == task.config.test_split
        for doc in task.eval_docs:
            drawn = self._sampler.sample(n=self.num_fewshot, eval_doc=doc if excluding else None)
            examples.setdefault(doc["question"], drawn)
        return examples


class _FixedSampler:
    """Stands in for a task's sampler, with examples that are drawn already."""

    def __init__(self, examples: Sequence[dict[str, Any]]):
        self._examples = examples

    def sample(self, n: int, **_: Any) -> Sequence[dict[str, Any]]:
        assert n == len(self._examples)
        return self._examples


@lru_cache(maxsize=8)
def benchmark_prompt(name: str, num_fewshot: int | None) -> BenchmarkPrompt:
    """Return the one ``BenchmarkPrompt`` of a task."""
    return BenchmarkPrompt(name, num_fewshot)


def _load(name: str) -> Any:
    """Load a task, with local data if there is some."""
    (spec,), manager = find_tasks([name])
    definition = _local_definition(spec) if Path(spec).suffix == ".yaml" else None
    if definition is not None:
        manager = TaskManager(include_defaults=False)
    datasets.disable_progress_bars()
    try:
        tasks = load_tasks(manager, [spec if definition is None else definition])
    except FOREIGN_ERRORS as error:  # the hub, the network and files raise exceptions of their own
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(
            f"prompt.benchmark: task {name} cannot be loaded ({reason[:200]}); connect to the hub, "
            "or set $JROUTE_DATA to a folder with its data"
        ) from error
    if len(tasks) != 1 or not hasattr(tasks[0], "fewshot_context"):
        raise UserError(f"prompt.benchmark: {name} is a group; name one of its tasks")
    return tasks[0]


def _local_definition(file: str) -> dict[str, Any] | None:
    """Return a task's definition with local data in place of the hub's, if there are local data."""
    config = load_yaml(file)
    names = {hub_name: name for name, hub_name in LOCAL_DATA.items()}
    name = names.get(str(config.get("dataset_path")))
    if name is None:
        return None
    root = Path(os.environ.get("JROUTE_DATA") or ".") / name
    files = {split: root / f"{split}.jsonl" for split in ("train", "test")}
    if not all(path.is_file() for path in files.values()):
        return None
    return {
        **{key: value for key, value in config.items() if key not in ("tag", "group")},
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {split: str(path) for split, path in files.items()}},
    }
