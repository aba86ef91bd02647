"""Suites of tasks: the splits of a run as tasks, and the tasks of lm-eval with local data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from datasets.exceptions import DatasetNotFoundError
from lm_eval.api.group import Group
from lm_eval.filters import build_filter_ensemble
from lm_eval.tasks import TaskManager

from jroute.experiment.run import Run
from jroute.generate.decoding import Decoding
from jroute.harness.cache_names import PROMPT_OPTIONS
from jroute.harness.model import DEFAULT_SLOTS
from jroute.harness.options import EvaluationOptions
from jroute.harness.subject import Subject
from jroute.tasks import Split, benchmarks
from jroute.tasks.benchmarks.splits import write_split
from jroute.tasks.prompts import given_text, user_message
from jroute.utils.errors import FOREIGN_ERRORS, UserError

OWN_SPLITS: tuple[Split, ...] = ("validation", "test", "ood")
"""Splits of a run that are tasks; learners saw the rewards of train."""

BOXED = "boxed (not lm-eval's)"
"""Name of the filter that ``--boxed`` adds."""

_LONGEST_NAME = 150
"""Characters of a task's name; the longest name of a file has 255, some of them for the date."""


@dataclass(frozen=True)
class Suite:
    """Tasks that lm-eval evaluates in one call.

    Attributes:
        tasks: Loaded tasks and groups.
        manager: The manager that loaded them.
        options: lm-eval's options by name, including those of its configuration file.
        slots: Rows that run at a time.
        run: The run whose splits the tasks are; ``None`` for tasks of lm-eval.
    """

    tasks: list[Any]
    manager: TaskManager
    options: Mapping[str, Any]
    slots: int
    run: Run | None = None

    @cached_property
    def leaves(self) -> dict[str, Any]:
        """The tasks that lm-eval evaluates by name: those given, and those inside of groups."""
        return dict(self.manager.load(self.tasks)["tasks"])

    def instances(self, task: str) -> list[Any]:
        """Return the requests of a task."""
        return list(self.leaves[task].instances)


def make_suites(subject: Subject, options: EvaluationOptions, folder: Path) -> list[Suite]:
    """Load the tasks that the command line names.

    Args:
        subject: What is evaluated; splits are tasks only of a run.
        options: The command line.
        folder: Where splits and local data are laid out for lm-eval.

    Raises:
        UserError: A task does not exist, its data cannot be loaded, or options do not apply.
    """
    splits: list[Split] = [s for s in OWN_SPLITS if s in options.tasks and subject.run]
    official = [name for name in options.tasks if name not in splits]
    suites = []
    if splits and subject.run:
        suites.append(own_suite(subject.run, splits, options.lm_eval_options(), folder))
    if official:
        engine_slots = subject.run.experiment.engine.batch if subject.run else DEFAULT_SLOTS
        suites += official_suites(official, options, options.slots or engine_slots, folder)
    return suites


def check_prompt_options(options: EvaluationOptions, *, has_run: bool) -> None:
    """Refuse options that change prompts where only splits of a run are evaluated.

    Raises:
        UserError: There is such an option.
    """
    only_own = has_run and set(options.tasks) <= set(OWN_SPLITS)
    if only_own and not options.given.isdisjoint(PROMPT_OPTIONS):
        raise UserError(
            f"--{', --'.join(PROMPT_OPTIONS)} are for tasks of lm-eval only; the run's own "
            "splits are prompted and decoded as in training"
        )


def own_suite(run: Run, splits: Sequence[Split], options: Mapping[str, Any], folder: Path) -> Suite:
    """Return the splits of a run as tasks, prompted and decoded as in training.

    Args:
        run: The run.
        splits: Splits of it.
        options: lm-eval's options, of which those that change prompts are ignored.
        folder: Where the splits are written as tasks of lm-eval.
    """
    prompt, tokenizer = run.experiment.prompt, run.lm.tokenizer
    files = []
    for split in splits:
        problems = run.data.problems(split)
        messages = [
            user_message(given_text(problem.question, prompt, tokenizer), prompt)
            for problem in problems
        ]
        if prompt.benchmark:  # examples are separate turns: lm-eval gets the whole prompt
            messages = run.data.prompts(split)
        gen_kwargs = gen_kwargs_of(run.experiment.decoding)
        files.append(str(write_split(split, problems, messages, gen_kwargs, folder)))
    options = {name: value for name, value in options.items() if name not in PROMPT_OPTIONS}
    if prompt.chat and not prompt.benchmark:
        system = given_text(prompt.system, prompt, tokenizer)
        options |= {"apply_chat_template": True, "system_instruction": system or None}
    manager = TaskManager(include_defaults=False)
    tasks = benchmarks.load_tasks(manager, files)
    return Suite(tasks, manager, options, run.experiment.engine.batch, run)


def gen_kwargs_of(decoding: Decoding) -> dict[str, Any]:
    """Return a decoding as lm-eval's generation arguments."""
    return {
        "until": list(decoding.stop),
        "max_gen_toks": decoding.max_new_tokens,
        "do_sample": decoding.temperature > 0,
        "temperature": decoding.temperature,
        "top_k": decoding.top_k,
        "top_p": decoding.top_p,
        "min_p": decoding.min_p,
    }


def official_suites(
    names: Sequence[str], options: EvaluationOptions, slots: int, folder: Path
) -> list[Suite]:
    """Return tasks of lm-eval unchanged, with local data where available.

    lm-eval refuses a task that is in two of the groups which it evaluates together, so such groups
    are in separate suites.

    Args:
        names: Names of tasks, groups and tags, or paths of YAML files.
        options: The command line.
        slots: Rows that run at a time.
        folder: Where local data are laid out for lm-eval.

    Raises:
        UserError: There is no such task, or it or its data cannot be loaded.
    """
    config = options.lm_eval
    specs, manager = benchmarks.find_tasks(names, config.include_path, config.metadata)
    with benchmarks.local_data(options.data, folder):
        loaded = [task for spec in specs for task in _load(manager, spec)]
    parts: list[dict[str, Any]] = []  # the tasks and groups of each suite, by name
    for task in loaded:
        own = manager.load([task])["tasks"].keys()
        free = (part for part in parts if own.isdisjoint(manager.load([*part.values()])["tasks"]))
        part = next(free, None)
        if part is None:
            parts.append(part := {})
        part[task.name if isinstance(task, Group) else task.task_name] = task
    values = options.lm_eval_options()
    suites = [Suite(list(part.values()), manager, values, slots) for part in parts]
    for suite in suites:
        _check_tasks(suite)
        if options.boxed:
            _add_boxed_filter(suite)
    return suites


def _load(manager: TaskManager, spec: str) -> list[Any]:
    """Load the tasks of a name or a file."""
    try:
        return benchmarks.load_tasks(manager, [spec])
    except UserError:
        raise
    except FOREIGN_ERRORS as error:  # the hub, files, and the code of tasks raise anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        entry = manager.task_index.get(spec)
        file = getattr(entry, "yaml_path", None) or spec
        if _of_the_hub(error):
            raise UserError(
                f"the data of {spec} cannot be loaded ({reason}); connect to the hub, or give "
                "local files with --data"
            ) from error
        raise UserError(
            f"{file}: this task cannot be loaded ({reason}); mend its definition or the data that "
            "it names"
        ) from error


def _of_the_hub(error: BaseException) -> bool:
    """Return whether an error comes from the hub or the network."""
    hub = ("huggingface_hub", "requests", "httpx", "urllib3")
    known = (ConnectionError, DatasetNotFoundError)
    return isinstance(error, known) or type(error).__module__.partition(".")[0] in hub


def _check_tasks(suite: Suite) -> None:
    """Refuse tasks that lm-eval would answer and then could not file.

    Raises:
        UserError: A task or group has no documents, no task, or a name that no file can have.
    """
    for task in suite.tasks:
        if isinstance(task, Group) and not task.get_all_tasks():
            raise UserError(f"group {task.name} has no tasks; list them in its field task")
    for name, leaf in suite.leaves.items():
        if "/" in name or "\0" in name or len(name) > _LONGEST_NAME:
            raise UserError(
                f"task {name[:60]!r} cannot be evaluated: its name is part of the names of files; "
                f"rename it, without slashes and with at most {_LONGEST_NAME} characters"
            )
        try:
            count = len(leaf.eval_docs)
        except FOREIGN_ERRORS as error:  # process_docs is anybody's code
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise UserError(
                f"the documents of task {name} cannot be read ({reason}); mend its test_split, "
                "validation_split or process_docs"
            ) from error
        if not count:
            raise UserError(f"task {name} has no documents; check its data and its splits")


def _add_boxed_filter(suite: Suite) -> None:
    for task in suite.leaves.values():
        if hasattr(task, "_filters"):
            steps: Any = [["jroute_boxed", None], ["take_first", None]]
            task._filters.append(build_filter_ensemble(BOXED, steps))
