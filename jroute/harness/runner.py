"""Run lm-eval under one arm after another and file what it leaves."""

import contextlib
import io
import json
import os
import platform
import shutil
import sysconfig
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

import jax
from lm_eval.config.evaluate_config import EvaluatorConfig

import jroute
from jroute.harness import lm_eval_adapter
from jroute.harness.agreement_with_training import check_against_training
from jroute.harness.answer_store import AnswerStores
from jroute.harness.cache_names import answer_cache_path, folder_name, prompt_cache_name
from jroute.harness.comparison import Metrics, TaskResult, conditions, group_metrics
from jroute.harness.model import JaxLM
from jroute.harness.model_args import check_arguments, constructor_names
from jroute.harness.options import EvaluationOptions
from jroute.harness.policy import ArmPolicy
from jroute.harness.records import Record, totals
from jroute.harness.request_log import check_database
from jroute.harness.subject import Subject
from jroute.harness.suites import Suite
from jroute.utils import together
from jroute.utils.disk import disk_errors, make_folder
from jroute.utils.errors import FOREIGN_ERRORS, UserError
from jroute.utils.keys import stored
from jroute.utils.temporary import temporary_folder

_PACKAGE = Path(jroute.__file__).parent
_LIBRARIES = [Path(sysconfig.get_path(kind)) for kind in ("stdlib", "purelib", "platlib")]


@dataclass(frozen=True)
class Output:
    """Where results go.

    Attributes:
        folder: The folder of all arms.
        prefix: Beginning of the names of lm-eval's files, as its ``--output_path`` with a file
            name ``<prefix>.json`` sets it; ``""`` for lm-eval's own names.
    """

    folder: Path
    prefix: str

    @property
    def tasks(self) -> Path:
        """Where the tasks of a run and local data are laid out for lm-eval."""
        return self.folder / "tasks"

    @property
    def answers(self) -> Path:
        """Where answers are until they are scored."""
        return self.folder / "answers"

    @classmethod
    @contextmanager
    def opened(cls, path: Path) -> Iterator["Output"]:
        """Make the folder that an output path names: itself, or the parent of a JSON file.

        If the block raises, what was made and holds no answers and no results is deleted.

        Raises:
            UserError: The folder cannot be made.
        """
        prefix = path.name if path.suffix == ".json" else ""
        output = cls((path.parent if prefix else path).absolute(), prefix)
        folders = [output.folder, *output.folder.parents]
        missing = [folder for folder in folders if not os.path.lexists(folder)]
        has_tasks = output.tasks.exists()
        make_folder(output.folder)
        try:
            yield output
        except BaseException:
            if not has_tasks:
                shutil.rmtree(output.tasks, ignore_errors=True)
            with contextlib.suppress(OSError):  # a folder that is not empty stays
                for folder in missing:
                    folder.rmdir()
            raise


class Evaluation(NamedTuple):
    """What lm-eval makes of one suite.

    Attributes:
        results: Its results file.
        samples: Its samples by task, one per document and filter.
        records: What the model did for each request, by task.
        date: The date in the names of its files.
    """

    results: dict[str, Any]
    samples: dict[str, list[dict[str, Any]]]
    records: dict[str, list[Record]]
    date: str


class ArmResult(NamedTuple):
    """What one arm reached.

    Attributes:
        tasks: The result of each task.
        groups: Value and standard error by ``metric,filter``, of each group that has any.
    """

    tasks: dict[str, TaskResult]
    groups: dict[str, Metrics]


def evaluate_arm(
    subject: Subject,
    policy: ArmPolicy,
    suites: Sequence[Suite],
    options: EvaluationOptions,
    output: Output,
    stores: AnswerStores,
) -> ArmResult:
    """Evaluate every suite under one arm and write its folder.

    Args:
        subject: What is evaluated.
        policy: The arm.
        suites: Tasks, evaluated one suite after the other.
        options: The command line.
        output: Where results go.
        stores: Where answers go as they come, and from where they are taken if they are there.

    Raises:
        UserError: An item of a run's own split differs from what training recorded; the arm
            refuses prompts of another form than it learned from; a task cannot be scored; results
            cannot be written.
    """
    result = ArmResult({}, {})
    folder = folder_name(policy.name)
    with temporary_folder(output.folder / folder) as scratch:
        for suite in suites:
            model = make_model(subject, policy, suite, options)
            model.keep_answers(stores.open(f"{folder}-{model.namespace}"))
            evaluation = evaluate_suite(suite, model, subject.folder, scratch / output.prefix)
            result.groups.update(group_metrics(evaluation.results))
            for task, rows in evaluation.samples.items():
                records = evaluation.records[task]
                task_result = TaskResult.create(
                    task,
                    rows,
                    evaluation.results,
                    records,
                    conditions(task, rows, evaluation.results, model),
                )
                if suite.run is not None:
                    task_result = check_against_training(
                        task_result, suite.run, task, rows, records
                    )
                result.tasks[task] = task_result
                gates = scratch / f"gates_{task}_{evaluation.date}.jsonl"
                gates.write_text("".join(json.dumps(stored(record)) + "\n" for record in records))
        publish(scratch, output.folder / folder)
    return result


def make_model(
    subject: Subject, policy: ArmPolicy, suite: Suite, options: EvaluationOptions
) -> JaxLM:
    """Return the model under an arm; ``--model_args`` are further arguments of ``JaxLM``.

    Raises:
        UserError: ``--model_args`` name an argument that ``JaxLM`` does not take.
    """
    arguments = dict(options.lm_eval.model_args or {})
    arguments.pop("trust_remote_code", None)  # lm-eval's option; no model here has code
    if subject.run is not None:
        prompt = subject.run.experiment.prompt
        arguments.setdefault("enable_thinking", prompt.enable_thinking)
        arguments.setdefault("special_tokens", prompt.special_tokens)
    if suite.run is not None:
        arguments["special_tokens"] = "marked"  # by the run, in its messages
    own = {"slots": suite.slots, "force_template": options.force_template}
    check_arguments(arguments, constructor_names(JaxLM) - own.keys(), "--model_args")
    return JaxLM(subject.lm, policy, **own, **arguments)


def evaluate_suite(suite: Suite, model: JaxLM, source: Path, output_path: Path) -> Evaluation:
    """Evaluate a suite as ``lm-eval run`` does: its options, its files, its loggers.

    Args:
        suite: The tasks and their options.
        model: The model under an arm.
        source: Folder of the run or the model, for lm-eval's files.
        output_path: Where lm-eval puts its files.
    """
    config = suite_config(suite, model, source, output_path)
    cache = ""
    if suite.options.get("cache_requests"):
        name = prompt_cache_name(suite.leaves, suite.options, model.tokenizer_name)
        cache = f"jroute-{name}"
    printed = io.StringIO()
    with (
        contextlib.redirect_stdout(printed),
        lm_eval_adapter.prompt_cache(cache),
        lm_eval_adapter.loggers(config) as loggers,
    ):
        tracker = lm_eval_adapter.tracker(config)
        execution = {"device": jax.default_backend(), "batch_size": suite.slots}
        with task_errors(suite, model):
            results = lm_eval_adapter.evaluate(
                config, model, suite.tasks, suite.manager, tracker, **execution
            )
        records = {task: model.records_of(suite.instances(task)) for task in suite.leaves}
        # lm-eval already has the model's totals, which lack the requests that a cache answered.
        results["config"] |= totals([record for each in records.values() for record in each])
        results["pretty_env_info"] = environment()
        tracker.general_config_tracker.model_source = "jroute"
        samples = results.pop("samples")
        copies = {task: [*map(dict, rows)] for task, rows in samples.items()}
        lm_eval_adapter.log_to(loggers, results, samples)
        lm_eval_adapter.save(tracker, results, samples)  # rewrites the rows
        print(lm_eval_adapter.description(config, results))
    if suite.options.get("show_config") or suite.options.get("write_out"):
        print(printed.getvalue())
    return Evaluation(results, copies, records, str(tracker.date_id))


@contextmanager
def task_errors(suite: Suite, model: JaxLM) -> Iterator[None]:
    """Turn what the code, templates and data of tasks raise into a ``UserError``.

    An exception that jroute itself raised is a defect of it and stays as it is.
    """
    try:
        yield
    except UserError:
        raise
    except FOREIGN_ERRORS as error:
        place = _foreign_place(error)
        if not place:
            raise
        doing = "scored" if model.records else "asked"
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise UserError(
            f"{', '.join(suite.leaves):.200} cannot be {doing}: {reason} ({place}); mend the task, "
            "or leave it out"
        ) from error


def _foreign_place(error: BaseException) -> str:
    """Return the file and line that raised, or "" if jroute itself did.

    Of the frames below jroute's own, the last one outside installed libraries is named: a task's
    code rather than the library that it called.
    """
    frames = list(reversed(traceback.extract_tb(error.__traceback__)))
    foreign = list(takewhile(lambda frame: not _is_under(frame.filename, [_PACKAGE]), frames))
    if not foreign:
        return ""
    own = [frame for frame in foreign if not _is_under(frame.filename, _LIBRARIES)]
    frame = (own or foreign)[0]
    return f"{Path(frame.filename).name}, line {frame.lineno}"


def _is_under(filename: str, folders: Sequence[Path]) -> bool:
    return any(Path(filename).is_relative_to(folder) for folder in folders)


def suite_config(suite: Suite, model: JaxLM, source: Path, output_path: Path) -> EvaluatorConfig:
    """Return lm-eval's configuration for one suite under one arm."""
    options = {
        **suite.options,
        "model": "jroute",
        "model_args": {"pretrained": str(source), "arm": model.arm},
        "log_samples": True,
        "output_path": str(output_path),
    }
    if suite.options.get("use_cache"):
        path = answer_cache_path(suite.options["use_cache"], model.arm, model.namespace)
        check_database(Path(f"{path}_rank0.db"))  # as lm-eval names it
        options["use_cache"] = path
    return lm_eval_adapter.configuration(options)


def publish(scratch: Path, target: Path) -> None:
    """Move complete files to where they stay, durably and all of them at once.

    Raises:
        UserError: The system refuses to write.
    """
    files = [file for file in scratch.rglob("*") if file.is_file()]
    moved = scratch / ".moved"
    with disk_errors(target):
        (moved / target.name).mkdir(parents=True)
        for file in files:
            os.replace(file, moved / target.name / file.name)
    together.publish(moved, target.parent, target.name)


def environment() -> str:
    """Return what this process runs on, in place of lm-eval's description of torch."""
    devices = sorted({device.device_kind for device in jax.devices()})
    return (
        f"Python {platform.python_version()}, {platform.platform()}, jax {jax.__version__}, "
        f"{jax.device_count()} x {', '.join(devices)}"
    )
