"""Tasks of lm-evaluation-harness run under one arm, by lm-eval's own command."""

import argparse
import contextlib
import hashlib
import io
import logging
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast
from unittest import mock

import datasets
import jax
import lm_eval
import lm_eval.api.task
import lm_eval.caching.cache
import lm_eval.utils
from lm_eval._cli.run import Run as LmEvalRun
from lm_eval.config.evaluate_config import EvaluatorConfig
from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager
from tqdm import tqdm

from jroute.harness.cache_names import answer_cache_path, prompt_cache_name
from jroute.harness.model import JaxLM
from jroute.harness.records import Record, totals
from jroute.utils.errors import UserError


@dataclass(frozen=True)
class Suite:
    """Tasks that lm-eval runs in one call.

    Attributes:
        tasks: Loaded tasks and groups.
        manager: What loaded them.
        options: lm-eval's own options by name, those of its configuration file put in.
        slots: Rows that run at a time.
        own: Whether they are splits of a run.
    """

    tasks: list[Any]
    manager: TaskManager
    options: Mapping[str, Any]
    slots: int
    own: bool


class Executed(NamedTuple):
    """Results and samples as lm-eval files them, and its tracker."""

    results: dict[str, Any]
    samples: dict[str, list[dict[str, Any]]]
    tracker: Any


def execute(suite: Suite, model: JaxLM, source: Path, scratch: Path) -> Executed:
    """Has lm-eval's own command run a suite: its options, its files, its loggers.

    Only two things are put in: the model and the tasks, which are there already.

    Args:
        suite: The tasks and their options.
        model: The model, under an arm.
        source: Folder of the run or the model, for lm-eval's files.
        scratch: Where lm-eval puts its files, as its ``--output_path``.
    """
    found: dict[str, Any] = {}
    options = argparse.Namespace(**suite.options)

    def evaluate(**asked: Any) -> Any:
        asked |= {"model": model, "tasks": suite.tasks, "task_manager": suite.manager}
        asked |= {"device": jax.default_backend(), "batch_size": suite.slots}
        content = cast(dict[str, Any], simple_evaluate(**asked))
        records = [record for task in names(suite) for record in records_of(model, suite, task)]
        content["config"] |= totals(records)  # with those that a cache answered
        content["pretty_env_info"] = environment()
        tracker = asked["evaluation_tracker"]
        tracker.general_config_tracker.model_source = "jroute"
        # Copies: lm-eval rewrites the rows that it saves.
        samples = {task: [*map(dict, rows)] for task, rows in content["samples"].items()}
        found.update(results=content, samples=samples, tracker=tracker)
        return content

    options.model, options.log_samples, options.output_path = "jroute", True, str(scratch)
    options.model_args = {"pretrained": str(source), "arm": model.arm}
    if suite.options.get("use_cache"):
        options.use_cache = answer_cache_path(options.use_cache, model.arm, model.namespace)
    cache, printed = Path(lm_eval.caching.cache.PATH), io.StringIO()
    if suite.options.get("cache_requests"):
        name = prompt_cache_name(leaves(suite.tasks), suite.options, model.tokenizer_name)
        cache = cache / f"jroute-{name}"
    with (
        mock.patch.object(lm_eval, "simple_evaluate", evaluate, create=True),
        mock.patch.object(EvaluatorConfig, "process_tasks", lambda *_: suite.manager),
        mock.patch.object(lm_eval.caching.cache, "PATH", str(cache)),
        contextlib.redirect_stdout(printed),
    ):
        LmEvalRun._execute(options)
    if suite.options.get("show_config") or suite.options.get("write_out"):
        print(printed.getvalue())
    return Executed(**found)


def leaves(tasks: Sequence[Any]) -> list[Any]:
    """Tasks, and those of groups."""
    found: list[Any] = []
    for task in tasks:
        found += [task] if hasattr(task, "eval_docs") else leaves(task.children)
    return found


def names(suite: Suite) -> list[str]:
    """Names of a suite's tasks."""
    return [task.config.task for task in leaves(suite.tasks)]


def records_of(model: JaxLM, suite: Suite, task: str) -> list[Record]:
    """What was done for each request of a task."""
    instances = [i for one in leaves(suite.tasks) if one.config.task == task for i in one.instances]
    return model.records_of(instances)


def asked_of(
    task: str, rows: Sequence[Mapping[str, Any]], results: Mapping[str, Any], model: JaxLM
) -> dict[str, Any]:
    """Everything that must be the same for all arms."""
    prompts = "".join(row["prompt_hash"] for row in rows)
    return {
        "task_hash": results["task_hashes"][task],
        "version": results["versions"][task],
        "lm_eval_version": results["lm_eval_version"],
        "num_fewshot": results["n-shot"].get(task),
        "generation_kwargs": results["configs"][task].get("generation_kwargs"),
        "prompts": hashlib.sha256(prompts.encode()).hexdigest(),
        "chat_template_sha": results["chat_template_sha"],
        "system_instruction_sha": results["system_instruction_sha"],
        "fewshot_as_multiturn": results["fewshot_as_multiturn"],
        "max_length": model.max_length,
        "model": model.lm.fingerprint,
        "dtype": results["config"]["model_dtype"],
    }


def publish(scratch: Path, target: Path) -> None:
    """Move complete files to where they stay.

    Raises:
        UserError: lm-eval could not write its results (it only logs that).
    """
    files = [file for file in scratch.rglob("*") if file.is_file()]
    if sum(file.suffix == ".json" for file in files) == 0:
        raise UserError(f"lm-eval could not write its results to {scratch}; is the disk full?")
    target.mkdir(exist_ok=True)
    for file in files:
        os.replace(file, target / file.name)


@contextlib.contextmanager
def quiet(*, loud: bool = False) -> Iterator[None]:
    """Leaves the screen to our own progress bars and to errors, and torch unimported.

    Where torch is installed lm-eval imports it to seed and to describe it; nothing here runs on it.

    Args:
        loud: Let lm-eval log.
    """
    for name in () if loud else ("lm_eval", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    with (
        mock.patch.object(lm_eval.api.task, "tqdm", partial(tqdm, disable=True)),
        mock.patch.object(lm_eval.utils, "is_torch_available", lambda: False),
    ):
        yield


def environment() -> str:
    """What this runs on, in place of lm-eval's description of torch."""
    devices = sorted({device.device_kind for device in jax.devices()})
    return (
        f"Python {platform.python_version()}, {platform.platform()}, jax {jax.__version__}, "
        f"{jax.device_count()} x {', '.join(devices)}"
    )
