"""Suites of tasks: the splits of a run as tasks, and the tasks of lm-eval with local data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from jroute.tasks.prompts import user_message
from jroute.utils.errors import UserError

OWN_SPLITS: tuple[Split, ...] = ("validation", "test", "ood")
"""Splits of a run that are tasks; learners saw the rewards of train."""

BOXED = "boxed (not lm-eval's)"
"""Name of the filter that ``--boxed`` adds."""


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

    def leaves(self) -> list[Any]:
        """Return the tasks, and the tasks of groups."""
        return _leaves(self.tasks)

    def instances(self, task: str) -> list[Any]:
        """Return the requests of a task."""
        leaves = [leaf for leaf in self.leaves() if leaf.config.task == task]
        return [instance for leaf in leaves for instance in leaf.instances]


def _leaves(tasks: Sequence[Any]) -> list[Any]:
    leaves: list[Any] = []
    for task in tasks:
        leaves += [task] if hasattr(task, "eval_docs") else _leaves(task.children)
    return leaves


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
        suites.append(official_suite(official, options, options.slots or engine_slots, folder))
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
    prompt = run.experiment.prompt
    files = []
    for split in splits:
        problems = run.data.problems(split)
        messages = [user_message(problem.question, prompt) for problem in problems]
        if prompt.benchmark:  # examples are separate turns: lm-eval gets the whole prompt
            messages = run.data.prompts(split)
        gen_kwargs = gen_kwargs_of(run.experiment.decoding)
        files.append(str(write_split(split, problems, messages, gen_kwargs, folder)))
    options = {name: value for name, value in options.items() if name not in PROMPT_OPTIONS}
    if prompt.chat and not prompt.benchmark:
        options |= {"apply_chat_template": True, "system_instruction": prompt.system or None}
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


def official_suite(
    names: Sequence[str], options: EvaluationOptions, slots: int, folder: Path
) -> Suite:
    """Return tasks of lm-eval unchanged, with local data where available.

    Args:
        names: Names of tasks and groups, or paths of YAML files.
        options: The command line.
        slots: Rows that run at a time.
        folder: Where local data are laid out for lm-eval.

    Raises:
        UserError: There is no such task, or its data cannot be loaded.
    """
    config = options.lm_eval
    specs, manager = benchmarks.find_tasks(names, config.include_path, config.metadata)
    with benchmarks.local_data(options.data, folder):
        try:
            tasks = benchmarks.load_tasks(manager, specs)
        except UserError:
            raise
        except Exception as error:  # the hub, the network and files raise exceptions of their own
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise UserError(
                f"the data of {', '.join(names)} cannot be loaded ({reason[:200]}); connect to the "
                "hub, or give local files with --data"
            ) from error
    if options.boxed:
        for task in tasks:
            if hasattr(task, "_filters"):
                steps: Any = [["jroute_boxed", None], ["take_first", None]]
                task._filters.append(build_filter_ensemble(BOXED, steps))
    return Suite(tasks, manager, options.lm_eval_options(), slots)
