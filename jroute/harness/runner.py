"""Run lm-eval under one arm after another and file what it leaves."""

import contextlib
import io
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
from lm_eval.config.evaluate_config import EvaluatorConfig

from jroute.harness import lm_eval_adapter
from jroute.harness.agreement_with_training import check_against_training
from jroute.harness.cache_names import answer_cache_path, folder_name, prompt_cache_name
from jroute.harness.comparison import TaskResult, conditions
from jroute.harness.model import JaxLM
from jroute.harness.options import EvaluationOptions
from jroute.harness.policy import ArmPolicy
from jroute.harness.records import Record, totals
from jroute.harness.subject import Subject
from jroute.harness.suites import Suite
from jroute.utils import together
from jroute.utils.disk import disk_errors
from jroute.utils.errors import UserError
from jroute.utils.keys import stored
from jroute.utils.temporary import temporary_folder


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

    @classmethod
    def create(cls, path: Path) -> "Output":
        """Make the folder that an output path names: itself, or the parent of a JSON file."""
        prefix = path.name if path.suffix == ".json" else ""
        folder = (path.parent if prefix else path).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        return cls(folder, prefix)


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


def evaluate_arm(
    subject: Subject,
    policy: ArmPolicy,
    suites: Sequence[Suite],
    options: EvaluationOptions,
    output: Output,
) -> dict[str, TaskResult]:
    """Evaluate every suite under one arm and write its folder.

    Args:
        subject: What is evaluated.
        policy: The arm.
        suites: Tasks, evaluated one suite after the other.
        options: The command line.
        output: Where results go.

    Returns:
        The result of each task.

    Raises:
        UserError: An item of a run's own split differs from what training recorded; the arm
            refuses prompts of another form than it learned from; results cannot be written.
    """
    results: dict[str, TaskResult] = {}
    folder = folder_name(policy.name)
    with temporary_folder(output.folder / folder) as scratch:
        for suite in suites:
            model = make_model(subject, policy, suite, options)
            evaluation = evaluate_suite(suite, model, subject.folder, scratch / output.prefix)
            for task, rows in evaluation.samples.items():
                records = evaluation.records[task]
                result = TaskResult.create(
                    task,
                    rows,
                    evaluation.results,
                    records,
                    conditions(task, rows, evaluation.results, model),
                )
                if suite.run is not None:
                    result = check_against_training(result, suite.run, task, rows, records)
                results[task] = result
                gates = scratch / f"gates_{task}_{evaluation.date}.jsonl"
                gates.write_text("".join(json.dumps(stored(record)) + "\n" for record in records))
        publish(scratch, output.folder / folder)
    return results


def make_model(
    subject: Subject, policy: ArmPolicy, suite: Suite, options: EvaluationOptions
) -> JaxLM:
    """Return the model under an arm; ``--model_args`` are further arguments of ``JaxLM``.

    Raises:
        UserError: ``--model_args`` name an argument that ``JaxLM`` does not take.
    """
    arguments = dict(options.lm_eval.model_args or {})
    if subject.run is not None:
        thinking = subject.run.experiment.prompt.enable_thinking
        arguments.setdefault("enable_thinking", thinking)
    try:
        return JaxLM(
            subject.lm,
            policy,
            slots=suite.slots,
            force_template=options.force_template,
            **arguments,
        )
    except TypeError as error:
        raise UserError(f"--model_args: {error}".replace("JaxLM.__init__() ", "")) from error


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
        name = prompt_cache_name(suite.leaves(), suite.options, model.tokenizer_name)
        cache = f"jroute-{name}"
    printed = io.StringIO()
    with (
        contextlib.redirect_stdout(printed),
        lm_eval_adapter.prompt_cache(cache),
        lm_eval_adapter.loggers(config) as loggers,
    ):
        tracker = lm_eval_adapter.tracker(config)
        execution = {"device": jax.default_backend(), "batch_size": suite.slots}
        results = lm_eval_adapter.evaluate(
            config, model, suite.tasks, suite.manager, tracker, **execution
        )
        records = {
            leaf.config.task: model.records_of(suite.instances(leaf.config.task))
            for leaf in suite.leaves()
        }
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
        options["use_cache"] = answer_cache_path(
            suite.options["use_cache"], model.arm, model.namespace
        )
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
