"""Judges arms with lm-evaluation-harness.

    python scripts/lm_eval_jax.py --run runs/demo --arm baseline,fixed:0.5,rl --tasks test
    python scripts/lm_eval_jax.py --run RUN --arms all --config configs/lm_eval/gsm8k_cot_llama.yaml
    python scripts/lm_eval_jax.py --model-dir DIR --arms all --tasks svamp_cot_llama --output_path O

Tasks named ``test``, ``ood`` or ``validation`` are the run's own splits: same problems, prompts and
decoding as in training, generated anew, and every item must come out as training recorded it. Any
other name is a task of lm-eval, or one that ships here (svamp_cot_llama, tiny_test, tiny_ood).

Every option below that is not in the first group is lm-eval's own and means what it means there.
Samples are always logged. Each arm leaves lm-eval's results, samples, and the gates it chose in
``OUT/<arm>/``; ``OUT/summary_<tasks>.json`` has all arms together, compared by document.
"""

import argparse
import contextlib
import io
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from math import nan
from pathlib import Path
from typing import Any, NoReturn, cast
from unittest import mock

from lm_eval._cli.run import Run as LmEvalRun
from lm_eval.config.evaluate_config import EvaluatorConfig
from lm_eval.filters import build_filter_ensemble
from lm_eval.tasks import TaskManager

import jroute
from jroute.arms import registry
from jroute.distributed.mesh import MeshConfig
from jroute.experiment.run import Run, load_run
from jroute.harness import comparison
from jroute.harness import policy as gating
from jroute.harness.cache_names import PROMPT_OPTIONS, folder_name
from jroute.harness.comparison import Judged
from jroute.harness.model import DEFAULT_SLOTS, JaxLM
from jroute.harness.records import Record, gate_name
from jroute.harness.runner import (
    Suite,
    asked_of,
    execute,
    publish,
    quiet,
    records_of,
)
from jroute.lm import LanguageModel
from jroute.tasks import Split, benchmarks
from jroute.tasks.benchmarks.splits import write_split
from jroute.tasks.prompts import user_message
from jroute.utils.cli import command
from jroute.utils.errors import UserError
from jroute.utils.files import write_text
from jroute.utils.keys import stored

OWN: tuple[Split, ...] = ("validation", "test", "ood")
"""Splits of a run that are tasks; learners saw the rewards of train."""

OURS = ("run", "model_dir", "arm", "routing", "dtype", "mesh", "data", "boxed", "force_template")
"""Options that are not lm-eval's."""

BOXED = "boxed (not lm-eval's)"
"""Name of the filter that ``--boxed`` adds."""


@dataclass(frozen=True)
class Subject:
    """What is evaluated: a run, or a model without one.

    Attributes:
        folder: Of the run or the model.
        lm: The model.
        run: The run, if there is one.
    """

    folder: Path
    lm: LanguageModel
    run: Run | None

    def policy(self, arm: str) -> gating.ArmPolicy:
        """An arm; raises a ``UserError`` if there is none of that name."""
        return gating.run_policy(self.run, arm) if self.run else gating.model_policy(arm)

    def all_arms(self) -> list[str]:
        """Every arm there is."""
        return gating.available_arms(self.run) if self.run else list(gating.MODEL_ARMS)


# The command line ---------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """Lets a mistake be told as every command here tells it."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")


def parser() -> argparse.ArgumentParser:
    """lm-eval's own parser of ``lm-eval run``, with a group of ours in front."""
    found = cast(
        argparse.ArgumentParser,
        LmEvalRun.create(_Parser().add_subparsers())._parser,  # type: ignore[attr-defined]
    )
    found.prog, found.usage = "python scripts/lm_eval_jax.py", None
    found.description, found.epilog, found.allow_abbrev = __doc__, None, False
    group = found.add_argument_group("what is evaluated (all other options are lm-eval's own)")
    group.add_argument("--run", type=Path, help="run folder")
    group.add_argument("--model-dir", type=Path, help="converted model, without a run")
    group.add_argument(
        "--arm",
        "--arms",
        type=_names,
        help=f"with commas: {', '.join(registry.selectable())}; or all",
    )
    group.add_argument("--routing", help="with --model-dir: preset or YAML file")
    group.add_argument("--dtype", default="", help="with --model-dir: float32 or bfloat16")
    group.add_argument("--mesh", default="1,1,1", help="devices: data,fsdp,tensor (default: one)")
    group.add_argument(
        "--data",
        type=Path,
        help="folder with gsm8k/{train,test}.jsonl, svamp/SVAMP.json; default: $JROUTE_DATA if it "
        "has them, else the hub",
    )
    group.add_argument(
        "--boxed",
        action="store_true",
        help="also score the last \\boxed{}, by a filter of its own beside lm-eval's",
    )
    group.add_argument(
        "--force_template",
        action="store_true",
        help="let arms choose for prompts made otherwise than those they learnt from",
    )
    found._action_groups.insert(0, found._action_groups.pop())
    return found


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line, with lm-eval's defaults and its ``--config`` put in.

    Raises:
        UserError: Options that are wrong or do not belong together.
    """
    args = parser().parse_args(argv)
    if (args.run is None) == (args.model_dir is None):
        raise UserError("give either --run or --model-dir: what is to be evaluated")
    if args.arm is None:
        raise UserError("--arm is missing; give arms with commas, or --arms all")
    if args.model not in (None, "jroute"):
        raise UserError(
            f"--model is {args.model}; this command evaluates jroute's models, for others there is "
            "lm-eval itself"
        )
    if args.run is not None and (args.routing or args.dtype):
        raise UserError("--routing and --dtype go with --model-dir; a run has its own")
    given = lm_eval_options(args)
    if args.config is None:  # then lm-eval wants one beside --log_samples, and there is a default
        given.output_path = given.output_path or "."
    try:
        with contextlib.redirect_stdout(io.StringIO()), quiet():  # it prints what it has read
            config = EvaluatorConfig.from_cli(given)
    except (ValueError, TypeError, OSError) as error:
        raise UserError(" ".join(str(error).split())) from error
    names = config.tasks if isinstance(config.tasks, list) else str(config.tasks).split(",")
    args.tasks = list(dict.fromkeys(str(name).strip() for name in names if str(name).strip()))
    if not args.tasks:
        raise UserError("--tasks is missing; name tasks, or a --config that does")
    if config.limit is not None and config.limit <= 0:
        raise UserError(f"--limit is {config.limit:g}; give a positive number or leave it out")
    if args.config is not None:
        args.output_path = config.output_path
    if args.model_dir is not None and args.output_path is None:
        raise UserError("--output_path is missing; with --model-dir it says where results go")
    args.settings = config
    return args


def lm_eval_options(args: argparse.Namespace) -> argparse.Namespace:
    """The options that are lm-eval's."""
    return argparse.Namespace(
        **{key: value for key, value in vars(args).items() if key not in (*OURS, "settings")}
    )


def settled(args: argparse.Namespace) -> dict[str, Any]:
    """lm-eval's options with its defaults and its configuration file put in."""
    values = {field.name: getattr(args.settings, field.name) for field in fields(args.settings)}
    return {**values, "config": None}


def _names(text: str) -> list[str]:
    names = dict.fromkeys(name.strip() for name in text.split(",") if name.strip())
    if not names:
        raise argparse.ArgumentTypeError("give at least one name")
    return list(names)


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Parse, evaluates arm by arm, prints."""
    args = parse_args(argv)
    data = {} if args.data is None else {"JROUTE_DATA": str(args.data.absolute())}
    with mock.patch.dict(os.environ, data), quiet(loud=args.verbosity is not None):
        judge(args)


def judge(args: argparse.Namespace) -> None:
    """Evaluate arm by arm and print."""
    subject = open_subject(args)
    own: list[Split] = [split for split in OWN if split in args.tasks and subject.run]
    official = [name for name in args.tasks if name not in own]
    if not official and any(getattr(args, name, None) is not None for name in PROMPT_OPTIONS):
        raise UserError(
            f"--{', --'.join(PROMPT_OPTIONS)} are for tasks of lm-eval only; the run's own "
            "splits are prompted and decoded as in training"
        )
    arms = subject.all_arms() if args.arm == ["all"] else args.arm
    policies = {arm: subject.policy(arm) for arm in arms}  # complain now of one that is not there
    out = Path(args.output_path) if args.output_path else subject.folder / "lm_eval"
    name = out.name if out.suffix == ".json" else ""  # lm-eval: a prefix of the file's name
    out = (out.parent if name else out).absolute()
    out.mkdir(parents=True, exist_ok=True)
    suites = []
    if own and subject.run:
        suites.append(own_suite(subject.run, own, args, out / "tasks"))
    if official:
        suites.append(official_suite(official, args, subject, out / "tasks"))
    judged: dict[str, dict[str, Judged]] = {}
    for arm in arms:
        judged[arm] = evaluate_arm(subject, policies[arm], suites, args, out, name)
        comparison.check_same(arms[0], judged[arms[0]], arm, judged[arm])
    limited = f"_limit{args.settings.limit:g}" if args.settings.limit else ""
    path = out / f"summary_{'_'.join(Path(task).stem for task in args.tasks)}{limited}.json"
    told = {"model": subject.lm.fingerprint, "limit": args.settings.limit}
    if subject.run:
        told["outcomes"] = subject.run.table.fingerprint
    write_text(path, json.dumps({**told, **comparison.summary(judged)}, indent=2) + "\n")
    print(comparison.table(judged))
    print(f"\nwritten: {path}")
    for arm in arms:
        print(f"written: {out / folder_name(arm)}/")


def open_subject(args: argparse.Namespace) -> Subject:
    """Open the run or the model."""
    mesh = MeshConfig.parse(args.mesh)
    if args.run is not None:
        run = load_run(args.run, mesh=mesh)
        return Subject(run.directory, run.lm, run)
    lm = jroute.load(args.model_dir, args.routing, dtype=args.dtype, mesh=mesh)
    return Subject(args.model_dir, lm, None)


def own_suite(run: Run, splits: Sequence[Split], args: argparse.Namespace, folder: Path) -> Suite:
    """Split of the run as tasks, asked and decoded as in training."""
    prompt, decoding = run.experiment.prompt, run.experiment.decoding
    generation_kwargs = {
        "until": list(decoding.stop),
        "max_gen_toks": decoding.max_new_tokens,
        "do_sample": decoding.temperature > 0,
        "temperature": decoding.temperature,
        "top_k": decoding.top_k,
        "top_p": decoding.top_p,
        "min_p": decoding.min_p,
    }
    files = []
    for split in splits:
        problems = run.problems(split)
        messages = [user_message(problem.question, prompt) for problem in problems]
        if prompt.benchmark:  # examples in turns of their own: lm-eval gets the prompt as a whole
            messages = run.prompts(split)
        files.append(str(write_split(split, problems, messages, generation_kwargs, folder)))
    options = {key: value for key, value in settled(args).items() if key not in PROMPT_OPTIONS}
    if prompt.chat and not prompt.benchmark:
        options |= {"apply_chat_template": True, "system_instruction": prompt.system or None}
    manager = TaskManager(include_defaults=False)
    tasks = benchmarks.load_tasks(manager, files)
    return Suite(tasks, manager, options, run.experiment.engine.batch, own=True)


def official_suite(
    names: Sequence[str], args: argparse.Namespace, subject: Subject, folder: Path
) -> Suite:
    """Tasks of lm-eval as they are, with local data where there is some.

    Raises:
        UserError: There is no such task, or its data cannot be had.
    """
    settings = args.settings
    specs, manager = benchmarks.find_tasks(names, settings.include_path, settings.metadata)
    with benchmarks.local_data(args.data and args.data.absolute(), folder):
        try:
            tasks = benchmarks.load_tasks(manager, specs)
        except UserError:
            raise
        except Exception as error:  # the hub, the network and the files all have their own kinds
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise UserError(
                f"the data of {', '.join(names)} cannot be loaded ({reason[:200]}); connect to the "
                "hub, or give local files with --data"
            ) from error
    if args.boxed:
        for task in tasks:
            if hasattr(task, "_filters"):
                steps: Any = [["jroute_boxed", None], ["take_first", None]]
                task._filters.append(build_filter_ensemble(BOXED, steps))
    slots = subject.run.experiment.engine.batch if subject.run else DEFAULT_SLOTS
    asked = str(settings.batch_size)
    if asked.isdigit() and ("batch_size" in args or asked != "1"):  # 1 is lm-eval's default
        slots = int(asked)
        if slots < 1:
            raise UserError(f"--batch_size is {asked}; give a positive number or auto")
    return Suite(tasks, manager, settled(args), slots, own=False)


# One arm ------------------------------------------------------------------------------------------


def evaluate_arm(
    subject: Subject,
    policy: gating.ArmPolicy,
    suites: Sequence[Suite],
    args: argparse.Namespace,
    out: Path,
    name: str,
) -> dict[str, Judged]:
    """Run every suite under one arm and file what lm-eval and the adapter have to say."""
    judged: dict[str, Judged] = {}
    folder = folder_name(policy.name)
    with tempfile.TemporaryDirectory(dir=out, prefix=f".{folder}-") as scratch:
        for suite in suites:
            model = make_model(subject, policy, suite, args)
            done = execute(suite, model, subject.folder, Path(scratch) / name)
            for task, rows in done.samples.items():
                records = records_of(model, suite, task)
                agreed, note = None, ""
                if suite.own and subject.run:
                    agreed, note = compare(subject.run, cast(Split, task), rows, records)
                asked = asked_of(task, rows, done.results, model)
                judged[task] = Judged.of(
                    task, rows, done.results, records, asked=asked, agreed=agreed, note=note
                )
                gates = Path(scratch) / f"gates_{task}_{done.tracker.date_id}.jsonl"
                lines = [json.dumps(stored(record)) + "\n" for record in records]
                gates.write_text("".join(lines))
        publish(Path(scratch), out / folder)
    return judged


def make_model(
    subject: Subject, policy: gating.ArmPolicy, suite: Suite, args: argparse.Namespace
) -> JaxLM:
    """The model under an arm; ``--model_args`` are further arguments of its constructor."""
    given = dict(args.settings.model_args or {})
    if subject.run:
        given.setdefault("enable_thinking", subject.run.experiment.prompt.enable_thinking)
    try:
        return JaxLM(
            subject.lm, policy, slots=suite.slots, force_template=args.force_template, **given
        )
    except TypeError as error:
        raise UserError(f"--model_args: {error}".replace("JaxLM.__init__() ", "")) from error


def compare(
    run: Run, split: Split, rows: Sequence[Mapping[str, Any]], records: Sequence[Record]
) -> tuple[int | None, str]:
    """Hold every item against what training recorded for its problem and gate.

    Returns:
        The number of items, all found equal; or ``None`` and why they cannot be compared.

    Raises:
        UserError: Naming the first item whose prompt, text or correctness differs.
    """
    prompts = dict(zip((p.id for p in run.problems(split)), run.prompts(split), strict=True))
    chosen = {record.doc_id: record for record in records}
    judged = [row for row in rows if row["filter"] == "jroute"]
    for row in judged:
        expected = prompts[row["doc"]["id"]]
        if row["arguments"][0][0] != expected:
            raise UserError(
                f"{row['doc']['id']}: lm-eval's prompt {row['arguments'][0][0]!r} is not "
                f"training's, {expected!r}; does the chat template tell the time?"
            )
    if split not in run.experiment.splits:
        return None, f"training generated no outcomes of {split}"
    if run.experiment.decoding.temperature > 0:
        return None, "decoding is sampled"
    grid = run.gate_values
    for row in judged:
        record = chosen[row["doc_id"]]
        asked = nan if isinstance(record.gate, tuple) else record.gate or 0.0
        gate = next((gate for gate in grid if abs(gate - asked) <= 1e-6), None)
        if gate is None:
            return None, f"gate {gate_name(record.gate)} is not one that training generated"
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
