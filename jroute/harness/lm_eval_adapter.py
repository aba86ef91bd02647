"""lm-evaluation-harness as this package calls it, written for one version.

``evaluate``, ``save`` and ``log_to`` do what ``lm-eval run`` does between its command line and its
printed table, through lm-eval's public functions. lm-eval has no public hook for its parser, its
progress bar over prompts, its use of torch, and the folder of its prompt cache; the functions that
reach for them are here and nowhere else. ``jroute.tasks.benchmarks`` uses one more private
function, ``lm_eval.tasks._yaml_loader.load_yaml``, to read the YAML file of a task.
"""

import argparse
import contextlib
import glob
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import datasets
import lm_eval
import lm_eval.api.task
import lm_eval.caching.cache
import lm_eval.utils
from lm_eval.config.evaluate_config import EvaluatorConfig
from lm_eval.evaluator import simple_evaluate
from lm_eval.loggers import EvaluationTracker, TrackioLogger, WandbLogger
from lm_eval.tasks import TaskManager
from tqdm import tqdm

from jroute.harness.lm_eval_version import check_version
from jroute.utils.disk import MAKE_ROOM, free_room
from jroute.utils.errors import UserError

logger = logging.getLogger(__name__)


# The command line ---------------------------------------------------------------------------------


def run_parser(parent: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Return the parser of ``lm-eval run``, as a subcommand of a parser.

    Raises:
        UserError: Another version of lm-eval is installed.
    """
    check_version(lm_eval.__version__)
    from lm_eval._cli.run import Run  # private, so it is looked up after the version is known

    return cast(argparse.ArgumentParser, Run.create(parent.add_subparsers())._parser)  # type: ignore[attr-defined]


def configuration(options: Mapping[str, Any]) -> EvaluatorConfig:
    """Return lm-eval's configuration: its defaults, its ``--config`` file, then the options.

    Raises:
        ValueError: Options that lm-eval refuses; likewise ``TypeError`` and ``OSError``.
    """
    return EvaluatorConfig.from_cli(argparse.Namespace(**options))


# One evaluation -----------------------------------------------------------------------------------


def tracker(config: EvaluatorConfig) -> EvaluationTracker:
    """Return the object that writes lm-eval's files and pushes them to the hub if asked to."""
    arguments = {**config.hf_hub_log_args, "output_path": config.output_path}
    if token := os.environ.get("HF_TOKEN"):
        arguments["token"] = token
    return EvaluationTracker(**arguments)


def evaluate(
    config: EvaluatorConfig,
    model: Any,
    tasks: Sequence[Any],
    manager: TaskManager,
    evaluation_tracker: EvaluationTracker,
    **execution: Any,
) -> dict[str, Any]:
    """Evaluate a model on tasks under a configuration.

    Args:
        config: lm-eval's configuration.
        model: The model, an instance.
        tasks: Loaded tasks and groups.
        manager: The manager that loaded them.
        evaluation_tracker: Receives a description of the evaluation.
        **execution: ``device`` and ``batch_size``, for the results file.

    Returns:
        lm-eval's results, with ``samples``.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # as lm-eval run does
    python_seed, numpy_seed, torch_seed, fewshot_seed = cast(list, config.seed or [None] * 4)
    results = cast(Any, simple_evaluate)(
        model=model,
        model_args=config.model_args,
        tasks=list(tasks),
        num_fewshot=config.num_fewshot,
        max_batch_size=config.max_batch_size,
        use_cache=config.use_cache,
        cache_requests=config.cache_requests.get("cache_requests", False),
        rewrite_requests_cache=config.cache_requests.get("rewrite_requests_cache", False),
        delete_requests_cache=config.cache_requests.get("delete_requests_cache", False),
        limit=config.limit,
        samples=config.samples,
        check_integrity=config.check_integrity,
        write_out=config.write_out,
        log_samples=config.log_samples,
        evaluation_tracker=evaluation_tracker,
        system_instruction=config.system_instruction,
        apply_chat_template=config.apply_chat_template,
        fewshot_as_multiturn=config.fewshot_as_multiturn,
        gen_kwargs=config.gen_kwargs,
        task_manager=manager,
        verbosity=config.verbosity,
        predict_only=config.predict_only,
        random_seed=python_seed,
        numpy_random_seed=numpy_seed,
        torch_random_seed=torch_seed,
        fewshot_random_seed=fewshot_seed,
        confirm_run_unsafe_code=config.confirm_run_unsafe_code,
        metadata=config.metadata,
        **execution,
    )
    return cast(dict[str, Any], results)


def save(
    evaluation_tracker: EvaluationTracker,
    results: dict[str, Any],
    samples: dict[str, Any],
) -> None:
    """Write lm-eval's results and samples; pushes them to the hub where the tracker is set to.

    Raises:
        UserError: A file could not be written, which lm-eval only logs.
    """
    path = Path(evaluation_tracker.output_path or ".")
    folder = path.parent if path.suffix == ".json" else path
    evaluation_tracker.save_results_aggregated(results=results, samples=samples)
    _check_file(folder, f"*_{evaluation_tracker.date_id}.json", results)
    for task in results["configs"]:
        evaluation_tracker.save_results_samples(task_name=task, samples=samples[task])
        name = f"samples_{glob.escape(task)}_{evaluation_tracker.date_id}.jsonl"
        _check_file(folder, name, *samples[task])
    if evaluation_tracker.push_results_to_hub or evaluation_tracker.push_samples_to_hub:
        evaluation_tracker.recreate_metadata_card()


def _check_file(folder: Path, pattern: str, *content: Any) -> None:
    """Refuse a file of lm-eval's that does not hold all its JSON documents."""
    text = "".join(file.read_text("utf-8", errors="replace") for file in folder.rglob(pattern))
    with contextlib.suppress(ValueError):
        lines = filter(None, text.split("\n"))
        documents = [text] if len(content) == 1 else [*lines]
        if len([json.loads(document) for document in documents]) == len(content):
            return
    size = sum(len(json.dumps(each, default=str)) for each in content)
    raise UserError(
        f"lm-eval could not write {pattern} to {folder} ({free_room(folder, size)}); {MAKE_ROOM}"
    )


@contextlib.contextmanager
def loggers(config: EvaluatorConfig) -> Iterator[list[Any]]:
    """Open the loggers that the configuration asks for, Weights & Biases and Trackio."""
    opened: list[Any] = []
    if config.wandb_args:
        opened.append(WandbLogger(config.wandb_args, config.wandb_config_args))
    if config.trackio_args:
        opened.append(TrackioLogger(config.trackio_args))
    yield opened
    for each in opened:
        (each.run if isinstance(each, WandbLogger) else each).finish()


def log_to(opened: Sequence[Any], results: dict[str, Any], samples: dict[str, Any]) -> None:
    """Log results and samples; a logger that fails does not stop the evaluation."""
    for each in opened:
        try:
            each.post_init(results)
            each.log_eval_result()
            each.log_eval_samples(samples)
        except Exception as error:
            logger.warning("logging with %s failed: %s", type(each).__name__, error)


def description(config: EvaluatorConfig, results: Mapping[str, Any]) -> str:
    """Return what ``lm-eval run`` prints when it ends."""
    batch_sizes = ",".join(map(str, results["config"]["batch_sizes"]))
    arguments = {k: v for k, v in config.model_args.items() if k != "trust_remote_code"}
    lines = [
        f"{config.model} ({arguments}), gen_kwargs: ({config.gen_kwargs}), "
        f"limit: {config.limit}, num_fewshot: {config.num_fewshot}, "
        f"batch_size: {config.batch_size}{f' ({batch_sizes})' if batch_sizes else ''}",
        lm_eval.utils.make_table(results),
    ]
    if config.show_config:
        write = lm_eval.utils.handle_non_serializable
        lines.insert(0, json.dumps(results, indent=2, default=write, ensure_ascii=False))
    if "groups" in results:
        lines.append(lm_eval.utils.make_table(results, "groups"))
    return "\n".join(lines)


# Without a public hook ----------------------------------------------------------------------------


@contextlib.contextmanager
def quiet(*, loud: bool = False) -> Iterator[None]:
    """Leave the screen to jroute's own progress bars and to errors, and torch unimported.

    Where torch is installed, lm-eval imports it to seed and to describe it. Nothing here runs on
    it.

    Args:
        loud: Let lm-eval log.
    """
    for name in () if loud else ("lm_eval", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    with (
        _replaced(lm_eval.api.task, "tqdm", partial(tqdm, disable=True)),
        _replaced(lm_eval.utils, "is_torch_available", lambda: False),
    ):
        yield


@contextlib.contextmanager
def prompt_cache(name: str) -> Iterator[None]:
    """Keep lm-eval's cache of prompts in a separate folder inside the usual one.

    Args:
        name: Name of the folder; ``""`` is the usual one.
    """
    cache = lm_eval.caching.cache
    with _replaced(cache, "PATH", str(Path(cache.PATH) / name)):
        yield


@contextlib.contextmanager
def _replaced(module: ModuleType, name: str, value: Any) -> Iterator[None]:
    """Replace a global of a module of lm-eval while the context lasts.

    Raises:
        UserError: Another version of lm-eval is installed.
    """
    check_version(lm_eval.__version__)
    original = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, original)
