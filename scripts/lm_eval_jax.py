"""Judges the arms of a run with lm-evaluation-harness.

    python scripts/lm_eval_jax.py --run runs/demo --arm baseline,fixed:0.5,rl --tasks test

Tasks named ``test``, ``ood`` or ``validation`` are the run's own splits: same problems, prompts and
decoding as in training, generated anew, and every item must come out as training recorded it. Any
other name is a task of lm-eval and goes there unmodified, e.g. ``--tasks gsm8k --data DIR``.

Every arm leaves lm-eval's own results and samples and the gates it chose in
``<run>/lm_eval/<arm>/``; ``<run>/lm_eval/summary_<tasks>.json`` has all arms together.
"""

import argparse
import contextlib
import hashlib
import json
import logging
import os
import platform
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast
from unittest import mock

import datasets
import jax
import lm_eval.api.task
import lm_eval.utils
from lm_eval.evaluator import simple_evaluate
from lm_eval.loggers import EvaluationTracker
from lm_eval.tasks import TaskManager
from tqdm import tqdm

from jroute.door import door, enter
from jroute.errors import UserError
from jroute.evaluation import lm_eval_tasks
from jroute.evaluation.harness import JaxLM
from jroute.evaluation.records import Record, gate_histogram, truncation_rate
from jroute.files import write_text
from jroute.mesh import MeshConfig
from jroute.run import Run, load_run
from jroute.tasks import Split

OWN: tuple[Split, ...] = ("validation", "test", "ood")
"""Splits of a run that are tasks; learners saw the rewards of train."""

LEARNT = ("supervised", "rl")
"""Arms that were trained on the run's own prompts."""


@dataclass(frozen=True)
class Suite:
    """Tasks that lm-eval runs in one call, loaded, and how it is to run them."""

    tasks: list[Any]
    manager: TaskManager
    options: Mapping[str, Any]
    slots: int
    own: bool


@dataclass(frozen=True)
class Verdict:
    """One task under one arm.

    Attributes:
        metrics: Value and standard error (``None`` if lm-eval gives none) by ``metric,filter``.
        n: Documents.
        truncated: Share of generations that reached the token limit, ``None`` without generations.
        cut: Prompts that were too long for the context and lost their beginning.
        mean_gate: Over the requests.
        gates: Requests per gate.
        asked: Everything that must be the same for all arms.
        agreed: Items found equal to what training recorded; ``None`` if not compared.
        note: Why they were not compared.
    """

    metrics: dict[str, tuple[float, float | None]]
    n: int
    truncated: float | None
    cut: int
    mean_gate: float
    gates: dict[str, int]
    asked: dict[str, Any] = field(repr=False)
    agreed: int | None = None
    note: str = ""


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python scripts/lm_eval_jax.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--run", required=True, type=Path, help="run folder")
    parser.add_argument(
        "--arm",
        required=True,
        type=_names,
        help="arms, with commas: baseline, fixed:G, best_fixed, random, supervised, rl",
    )
    parser.add_argument(
        "--tasks", required=True, type=_names, help="test, ood, validation, or tasks of lm-eval"
    )
    parser.add_argument("--limit", type=int, help="only the first so many documents of a task")
    parser.add_argument("--mesh", default="1,1,1", help="devices: data,fsdp,tensor (default: one)")
    parser.add_argument("--output_path", type=Path, help="default: <run>/lm_eval")
    official = parser.add_argument_group("for tasks of lm-eval")
    official.add_argument(
        "--batch_size", type=int, default=8, help="prompts at a time (default: 8)"
    )
    official.add_argument("--num_fewshot", type=int, help="examples in the prompt")
    official.add_argument("--gen_kwargs", help="generation arguments, e.g. max_gen_toks=128")
    official.add_argument("--apply_chat_template", action="store_true", help="ask in a chat")
    official.add_argument(
        "--data",
        type=Path,
        default=None,
        help="folder with gsm8k/train.jsonl and gsm8k/test.jsonl; "
        "default: $JROUTE_DATA if it has them, else the hub",
    )
    args = parser.parse_args(argv)
    if args.limit is not None and args.limit < 1:
        raise UserError(f"--limit is {args.limit}; give a positive number or leave it out")
    if args.batch_size < 1:
        raise UserError(f"--batch_size is {args.batch_size}; give a positive number")
    return args


def _names(text: str) -> list[str]:
    names = dict.fromkeys(name.strip() for name in text.split(",") if name.strip())
    if not names:
        raise argparse.ArgumentTypeError("give at least one name")
    return list(names)


@door
def main(argv: Sequence[str] | None = None) -> None:
    """Parses, evaluates arm by arm, prints."""
    args = parse_args(argv)
    run = load_run(args.run, mesh=MeshConfig.parse(args.mesh))
    own = [name for name in args.tasks if name in OWN]
    official = [name for name in args.tasks if name not in OWN]
    if not official and (
        args.gen_kwargs or args.apply_chat_template or args.num_fewshot is not None
    ):
        raise UserError(
            "--num_fewshot, --gen_kwargs and --apply_chat_template are for tasks of lm-eval only; "
            "the run's own splits are prompted and decoded as in training"
        )
    for arm in args.arm:  # complain now of an arm that does not exist
        run.gates(arm, run.prompts(run.experiment.judged[0])[:1])
    out = (args.output_path or run.directory / "lm_eval").absolute()
    out.mkdir(parents=True, exist_ok=True)
    with quiet():
        suites = [own_suite(run, [cast(Split, name) for name in own], out / "tasks")] if own else []
        if official:
            suites.append(official_suite(official, args, out / "tasks"))
            if learnt := [arm for arm in args.arm if arm in LEARNT]:
                print(
                    f"note: {', '.join(learnt)} learnt from this run's prompts, "
                    f"not from those of {', '.join(official)}",
                    file=sys.stderr,
                )
        verdicts: dict[str, dict[str, Verdict]] = {}
        for arm in args.arm:
            verdicts[arm] = evaluate_arm(run, arm, suites, out, args.limit)
            check_same(args.arm[0], verdicts[args.arm[0]], arm, verdicts[arm])
    limited = f"_limit{args.limit}" if args.limit else ""
    path = out / f"summary_{'_'.join(args.tasks)}{limited}.json"
    write_text(path, json.dumps(summary(run, args, verdicts), indent=2) + "\n")
    print(report(verdicts))
    print(f"\nwritten: {path}")
    for arm in args.arm:
        print(f"written: {out / folder_name(arm)}/")


def own_suite(run: Run, splits: Sequence[Split], folder: Path) -> Suite:
    """Splits of the run as tasks, asked and decoded as in training."""
    e = run.experiment
    files = [
        str(lm_eval_tasks.write_split(split, run.problems(split), e.prompt, e.decoding, folder))
        for split in splits
    ]
    manager = TaskManager(include_defaults=False)
    options = {
        "apply_chat_template": e.prompt.chat,
        "system_instruction": e.prompt.system or None,
    }
    tasks = lm_eval_tasks.load_tasks(manager, files)
    return Suite(tasks, manager, options, e.engine.batch, own=True)


def official_suite(names: Sequence[str], args: argparse.Namespace, folder: Path) -> Suite:
    """Tasks of lm-eval as they are, with local data where there is some.

    Raises:
        UserError: There is no such task, or its data cannot be had.
    """
    specs, manager = lm_eval_tasks.find_tasks(names)
    data = args.data.absolute() if args.data else None
    with lm_eval_tasks.local_data(data, folder):
        try:
            tasks = lm_eval_tasks.load_tasks(manager, specs)
        except Exception as error:  # the hub, the network and the files all have their own kinds
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise UserError(
                f"the data of {', '.join(names)} cannot be loaded ({reason[:200]}); connect to the "
                "hub, or give local files with --data"
            ) from error
    options = {
        "apply_chat_template": args.apply_chat_template,
        "num_fewshot": args.num_fewshot,
        "gen_kwargs": args.gen_kwargs,
    }
    return Suite(tasks, manager, options, args.batch_size, own=False)


# One arm ------------------------------------------------------------------------------------------


def evaluate_arm(
    run: Run, arm: str, suites: Sequence[Suite], out: Path, limit: int | None
) -> dict[str, Verdict]:
    """Runs every suite under one arm and files what lm-eval and the adapter have to say."""
    verdicts: dict[str, Verdict] = {}
    with tempfile.TemporaryDirectory(dir=out, prefix=f".{folder_name(arm)}-") as scratch:
        for suite in suites:
            model = JaxLM(
                run.lm,
                partial(run.gates, arm),
                arm=arm,
                slots=suite.slots,
                enable_thinking=run.experiment.prompt.enable_thinking,
            )
            tracker = EvaluationTracker(output_path=scratch)
            results = simple_evaluate(
                model=model,
                model_args={"pretrained": str(run.directory), "arm": arm},
                tasks=suite.tasks,
                task_manager=suite.manager,
                limit=limit,
                evaluation_tracker=tracker,
                **suite.options,
            )
            assert results is not None  # it is, on ranks other than 0
            content = cast(dict[str, Any], results)
            content["pretty_env_info"] = environment()
            samples: dict[str, list[dict[str, Any]]] = content.pop("samples")
            new = {
                task: verdict(run, task, rows, content, model.records, own=suite.own)
                for task, rows in samples.items()
            }
            verdicts |= new
            tracker.save_results_aggregated(results=content, samples=samples)
            for task, rows in samples.items():
                new[task].asked["task_hash"] = content["task_hashes"][task]
                tracker.save_results_samples(task, cast(dict[str, Any], rows))
                gates = Path(scratch) / f"gates_{task}_{tracker.date_id}.jsonl"
                records = (asdict(r) for r in model.records if r.task == task)
                gates.write_text("".join(json.dumps(record) + "\n" for record in records))
        publish(Path(scratch), out / folder_name(arm))
    return verdicts


def publish(scratch: Path, target: Path) -> None:
    """Moves complete files to where they stay.

    Raises:
        UserError: lm-eval could not write its results (it only logs that).
    """
    files = [file for file in scratch.rglob("*") if file.is_file()]
    if not any(file.name.startswith("results_") for file in files):
        raise UserError(f"lm-eval could not write its results to {scratch}; is the disk full?")
    target.mkdir(exist_ok=True)
    for file in files:
        os.replace(file, target / file.name)


def verdict(
    run: Run,
    task: str,
    rows: Sequence[Mapping[str, Any]],
    results: Mapping[str, Any],
    records: Iterable[Record],
    *,
    own: bool,
) -> Verdict:
    """What one task came to; the run's own items are held against training's."""
    mine = [record for record in records if record.task == task]
    found = results["results"][task]
    metrics = {}
    for name, value in found.items():
        if "," in name and "_stderr," not in name:
            metric, filter_name = name.split(",", 1)
            error = found.get(f"{metric}_stderr,{filter_name}")
            metrics[name] = (value, error if isinstance(error, float) else None)
    prompts = [row["prompt_hash"] for row in rows]
    agreed, note = compare(run, cast(Split, task), rows, mine) if own else (None, "")
    return Verdict(
        metrics=metrics,
        n=len({row["doc_id"] for row in rows}),
        truncated=truncation_rate(mine),
        cut=sum(record.prompt_cut for record in mine),
        mean_gate=sum(record.gate or 0.0 for record in mine) / len(mine),
        gates=gate_histogram(mine),
        asked={
            "version": results["versions"][task],
            "num_fewshot": results["n-shot"].get(task),
            "generation_kwargs": results["configs"][task].get("generation_kwargs"),
            "prompts": hashlib.sha256("".join(prompts).encode()).hexdigest(),
        },
        agreed=agreed,
        note=note,
    )


def compare(
    run: Run, split: Split, rows: Sequence[Mapping[str, Any]], records: Sequence[Record]
) -> tuple[int | None, str]:
    """Holds every item against what training recorded for its problem and gate.

    Returns:
        The number of items, all found equal; or ``None`` and why they cannot be compared.

    Raises:
        UserError: Naming the first item whose prompt, text or correctness differs.
    """
    prompts = run.prompts(split)
    chosen = {record.doc_id: record for record in records}
    judged = [row for row in rows if row["filter"] == "jroute"]
    for row in judged:
        if row["arguments"][0][0] != prompts[row["doc_id"]]:
            raise UserError(
                f"{row['doc']['id']}: lm-eval's prompt {row['arguments'][0][0]!r} is not "
                f"training's, {prompts[row['doc_id']]!r}; does the chat template tell the time?"
            )
    if split not in run.experiment.splits:
        return None, f"training generated no outcomes of {split}"
    if run.experiment.decoding.temperature > 0:
        return None, "decoding is sampled"
    grid = run.gate_values
    for row in judged:
        record = chosen[row["doc_id"]]
        gate = min(grid, key=lambda g: abs(g - (record.gate or 0.0)))
        if abs(gate - (record.gate or 0.0)) > 1e-6:
            return None, f"gate {record.gate:g} is not one that training generated"
        recorded = run.outcome(split, row["doc"]["id"], gate)
        here = (str(row["resps"][0][0]), bool(row["exact_match"]), record.truncated)
        there = (recorded.completion, recorded.correct, recorded.stop_reason == "length")
        if here != there:
            raise UserError(
                f"{recorded.problem_id} at gate {gate:g}: (text, correct, truncated) is {here} now "
                f"and was {there} in training; if the outcomes come from another machine or other "
                "library versions, train in a new run folder"
            )
    return len(judged), ""


def check_same(
    first: str, theirs: Mapping[str, Verdict], arm: str, ours: Mapping[str, Verdict]
) -> None:
    """Makes sure that two arms were asked the same.

    Raises:
        UserError: Prompts, targets, generation arguments or versions differ.
    """
    for task, found in ours.items():
        if found.asked != theirs[task].asked:
            keys = [key for key, value in found.asked.items() if value != theirs[task].asked[key]]
            raise UserError(
                f"arms {first} and {arm} were not asked the same in {task} ({', '.join(keys)}); "
                "did its data change meanwhile? Run all arms again"
            )


# Output -------------------------------------------------------------------------------------------


def folder_name(arm: str) -> str:
    """An arm's name as a folder's."""
    return arm.replace(":", "_")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Leaves the screen to our own progress bars and to errors, and torch unimported.

    Where torch is installed lm-eval imports it to seed and to describe it; nothing here runs on it.
    """
    for name in ("lm_eval", "huggingface_hub"):
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


def summary(
    run: Run, args: argparse.Namespace, verdicts: Mapping[str, Mapping[str, Verdict]]
) -> dict[str, Any]:
    """What all arms came to, for one file."""
    first = next(iter(verdicts.values()))
    return {
        "model": run.lm.fingerprint,
        "outcomes": run.table.fingerprint,
        "limit": args.limit,
        "tasks": {task: {"n": found.n, **found.asked} for task, found in first.items()},
        "arms": {
            arm: {
                task: {
                    "metrics": {
                        name: {"value": value, "stderr": error}
                        for name, (value, error) in found.metrics.items()
                    },
                    "n": found.n,
                    "truncated": found.truncated,
                    "prompts_cut": found.cut,
                    "mean_gate": found.mean_gate,
                    "gates": found.gates,
                    "equal_to_training": found.agreed,
                }
                for task, found in tasks.items()
            }
            for arm, tasks in verdicts.items()
        },
    }


def report(verdicts: Mapping[str, Mapping[str, Verdict]]) -> str:
    """A table per task, arms down."""
    lines: list[str] = []
    for task, found in next(iter(verdicts.values())).items():
        rows = {arm: tasks[task] for arm, tasks in verdicts.items()}
        names = list(found.metrics)
        widths = [max(len(name), 15) for name in names]
        head = "  ".join(f"{name:>{w}}" for name, w in zip(names, widths, strict=True))
        lines += ["", f"{task}: n = {found.n} (value ± standard error)"]
        lines.append(f"{'arm':<14}{head}  truncated  mean gate")
        for arm, row in rows.items():
            cells = "  ".join(
                f"{_value(*row.metrics[name]):>{w}}" for name, w in zip(names, widths, strict=True)
            )
            cut = "-" if row.truncated is None else f"{100 * row.truncated:.1f}%"
            lines.append(f"{arm:<14}{cells}  {cut:>9}  {row.mean_gate:>9.3f}")
        if found.cut:
            lines.append(
                f"{found.cut} prompts were longer than the context: their beginning was cut"
            )
        if len(rows) > 1:
            lines.append(
                "every arm was asked the same: prompts, targets and generation arguments are "
                f"equal, lm-eval's task hash is {found.asked['task_hash'][:16]}"
            )
        equal = [row.agreed for row in rows.values() if row.agreed is not None]
        if equal:
            lines.append(
                f"{sum(equal)} of {found.n * len(equal)} items agree with training's own outcomes "
                "in text and correctness"
            )
        lines += [
            f"{arm} is not compared with training: {r.note}" for arm, r in rows.items() if r.note
        ]
    lines += ["random is one draw per prompt"] if "random" in verdicts else []
    lines += ["rl is the seed that was best on validation"] if "rl" in verdicts else []
    return "\n".join(lines)


def _value(value: Any, error: float | None) -> str:
    text = f"{value:.4f}" if isinstance(value, float) else str(value)
    return f"{text} ± {error:.4f}" if error is not None else text


if __name__ == "__main__":
    enter(main, "the arm at work left nothing")
