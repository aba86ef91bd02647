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
from typing import Any

import datasets
from lm_eval.api.samplers import FirstNSampler
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from jroute.tasks.benchmarks import LOCAL_DATA, find_tasks, load_tasks
from jroute.utils.errors import UserError

SEED = 1234
"""Of the examples that a task draws; lm-eval's own default."""

_PLACE = "\u27e6question\u27e7"

Chat = Callable[..., str]
"""Renders messages; takes ``add_generation_prompt`` as well."""


class BenchmarkPrompt:
    """How a task of lm-eval asks a question.

    Examples are the same for all questions, or drawn: for the task's own test documents exactly as
    lm-eval draws them, one document after the other; for any other question by its text.

    Args:
        name: The task.
        num_fewshot: Examples before the question; ``None`` takes the task's own number.

    Raises:
        UserError: There is no such task, or its data cannot be had.
    """

    def __init__(self, name: str, num_fewshot: int | None = None):
        self.name = name
        self.task = _load(name)
        own = self.task.config.num_fewshot or 0
        self.num_fewshot = own if num_fewshot is None or own == 0 else num_fewshot
        self._fixed: dict[tuple[str, bool, bool], tuple[Any, bool]] = {}

    def __call__(self, question: str, *, system: str, chat: Chat | None, multiturn: bool) -> str:
        """The whole prompt of a question.

        Args:
            question: The question.
            system: The system message, or ``""``.
            chat: Renders messages; ``None`` puts them one after the other as plain text.
            multiturn: Whether, in a chat, every example is a turn of its own.

        Raises:
            UserError: The task needs more than a question.
        """
        if self._draws:
            return self._ask(question, system, chat, multiturn)
        key = (system, chat is not None, multiturn)
        if key not in self._fixed:
            self._fixed[key] = self._record(*key)
        asked, added = self._fixed[key]
        if chat is None or isinstance(asked, str):
            return str(asked).replace(_PLACE, question)
        turns = [{**turn, "content": turn["content"].replace(_PLACE, question)} for turn in asked]
        return chat(turns, add_generation_prompt=added)

    def _record(self, system: str, chat: bool, multiturn: bool) -> tuple[Any, bool]:
        """What is asked where the examples are always the same, with a place for the question."""
        heard: list[tuple[Any, bool]] = []

        def listen(messages: Any, add_generation_prompt: bool = True) -> str:
            heard.append((messages, add_generation_prompt))
            return ""

        text = self._ask(_PLACE, system, listen if chat else None, multiturn)
        found = heard[0] if chat else (text, True)
        if _PLACE not in str(found[0]):
            raise UserError(
                f"task {self.name} does not ask the question as it stands; prompt.benchmark must "
                "name a task whose prompt holds the field 'question' of its documents"
            )
        return found

    def _ask(self, question: str, system: str, chat: Chat | None, multiturn: bool) -> str:
        task = self.task
        if self.num_fewshot:
            task.sampler = _Given(self._examples(question))
        doc = {"question": question, "answer": ""}
        try:
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
        except Exception as error:  # templates and functions of tasks may raise anything
            raise UserError(
                f"task {self.name} cannot ask a question alone ({type(error).__name__}: {error}); "
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
        """What lm-eval would draw for the task's test documents."""
        task, found = self.task, {}
        excluding = task.fewshot_cfg.split == task.config.test_split
        for doc in task.eval_docs:
            drawn = self._sampler.sample(n=self.num_fewshot, eval_doc=doc if excluding else None)
            found.setdefault(doc["question"], drawn)
        return found


class _Given:
    """Stands in for a task's sampler, with examples that were drawn already."""

    def __init__(self, examples: Sequence[dict[str, Any]]):
        self._examples = examples

    def sample(self, n: int, **_: Any) -> Sequence[dict[str, Any]]:
        assert n == len(self._examples)
        return self._examples


@lru_cache(maxsize=8)
def benchmark_prompt(name: str, num_fewshot: int | None) -> BenchmarkPrompt:
    """The one ``BenchmarkPrompt`` of a task."""
    return BenchmarkPrompt(name, num_fewshot)


def _load(name: str) -> Any:
    """The task, with local data if there is some."""
    (spec,), manager = find_tasks([name])
    source: Any = spec
    if Path(spec).suffix == ".yaml":
        config = load_yaml(spec)
        folder = {hub: local for local, hub in LOCAL_DATA.items()}.get(
            str(config.get("dataset_path"))
        )
        root = Path(os.environ.get("JROUTE_DATA") or ".") / (folder or "")
        files = {split: root / f"{split}.jsonl" for split in ("train", "test")}
        if folder and all(file.is_file() for file in files.values()):
            source = {
                **{key: value for key, value in config.items() if key not in ("tag", "group")},
                "dataset_path": "json",
                "dataset_name": None,
                "dataset_kwargs": {"data_files": {s: str(f) for s, f in files.items()}},
            }
            manager = TaskManager(include_defaults=False)
    datasets.disable_progress_bars()
    try:
        found = load_tasks(manager, [source])
    except Exception as error:  # the hub, the network and the files all have their own kinds
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(
            f"prompt.benchmark: task {name} cannot be loaded ({reason[:200]}); connect to the hub, "
            "or set $JROUTE_DATA to a folder with its data"
        ) from error
    if len(found) != 1 or not hasattr(found[0], "fewshot_context"):
        raise UserError(f"prompt.benchmark: {name} is a group; name one of its tasks")
    return found[0]
