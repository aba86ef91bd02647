"""Parse the command line of ``scripts/lm_eval_jax.py``: jroute's options, then lm-eval's own."""

import argparse
import contextlib
import io
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from lm_eval.config.evaluate_config import EvaluatorConfig
from pydantic import Field

from jroute.arms.registry import BASELINE, selectable
from jroute.harness import lm_eval_adapter
from jroute.harness.slots import slots_of
from jroute.utils.arguments import Parser, path
from jroute.utils.errors import UserError
from jroute.utils.json_files import Record, check
from jroute.utils.paths import check_path, output_folder
from jroute.utils.yaml_files import read_yaml

DESCRIPTION = """Judges arms with lm-evaluation-harness.

    python scripts/lm_eval_jax.py --run runs/demo --arm baseline,fixed:0.5,rl --tasks test
    python scripts/lm_eval_jax.py --run RUN --arms all --config configs/lm_eval/gsm8k_cot_llama.yaml
    python scripts/lm_eval_jax.py --model-dir DIR --tasks svamp_cot_llama --limit 20

With ``--model-dir``, the arm is the baseline unless others are named, and results go to
``runs/lm_eval/<name of DIR>-<start of its fingerprint>`` unless ``--output_path`` says otherwise.

Tasks named ``test``, ``ood`` or ``validation`` are the run's own splits: same problems, prompts and
decoding as in training, generated again, and every item must match what training recorded. Any
other name is a task of lm-eval, or one that ships here (svamp_cot_llama, tiny_test, tiny_ood).

Every option below that is not in the first group is lm-eval's own and means what it means there.
Samples are always logged. Each arm leaves lm-eval's results, samples, and the gates it chose in
``OUT/<arm>/``; ``OUT/summary_<tasks>.json`` has all arms together, compared by document.
"""

OWN_OPTIONS = (
    *("run", "model_dir", "arm", "routing", "dtype", "mesh", "data", "boxed", "force_template"),
)
"""Options that are not lm-eval's, by their names in the parsed namespace."""


RESULTS_OF_MODELS = Path("runs/lm_eval")
"""Where results of models without a run go, each in a folder of its own."""


@dataclass(frozen=True)
class EvaluationOptions:
    r"""The validated command line, merged with lm-eval's defaults and configuration file.

    Attributes:
        run: Run folder; ``None`` evaluates a model without a run.
        model_dir: Model directory; ``None`` evaluates a run.
        arms: Names of arms, or ``["all"]``.
        routing: Routing of ``model_dir``: a preset or a YAML file.
        dtype: Arithmetic of ``model_dir``; ``""`` takes what is stored.
        mesh: Devices, as ``data,fsdp,tensor``.
        data: Folder with local data.
        boxed: Whether to score the last ``\boxed{}`` as well.
        force_template: Whether arms choose gates for prompts of another form than they learned
            from.
        tasks: Names of tasks, without repetition.
        output_path: Where results go; ``None`` is inside the run folder, or ``RESULTS_OF_MODELS``.
        lm_eval: lm-eval's configuration.
        given: lm-eval's options that were given on the command line itself.
    """

    run: Path | None
    model_dir: Path | None
    arms: list[str]
    routing: str | None
    dtype: str
    mesh: str
    data: Path | None
    boxed: bool
    force_template: bool
    tasks: list[str]
    output_path: Path | None
    lm_eval: EvaluatorConfig
    given: frozenset[str]

    def lm_eval_options(self) -> dict[str, Any]:
        """Return lm-eval's options by name, including those of its configuration file."""
        values = {field.name: getattr(self.lm_eval, field.name) for field in fields(self.lm_eval)}
        return {**values, "config": None}

    @property
    def slots(self) -> int | None:
        """Rows that run at a time as ``--batch_size`` gives them; ``None`` if it does not.

        Raises:
            UserError: ``--batch_size`` is neither a positive number nor ``auto``.
        """
        batch_size = str(self.lm_eval.batch_size)
        by_default = "batch_size" not in self.given and batch_size == "1"  # lm-eval's default
        slots = slots_of(batch_size)
        return None if by_default else slots


class _Options(Record):
    """What jroute and lm-eval do with lm-eval's options, which lm-eval itself does not check."""

    tasks: str | list[Any] | None = None
    num_fewshot: Annotated[int, Field(ge=0)] | None = None
    samples: dict[str, list[Annotated[int, Field(ge=0)]]] | None = None
    gen_kwargs: dict[str, Any] | None = None
    model_args: dict[str, Any] | None = None
    metadata: dict[str, Any] | None = None
    include_path: str | None = None
    output_path: str | None = None
    use_cache: str | None = None
    cache_requests: dict[str, bool] | None = None
    system_instruction: str | None = None
    apply_chat_template: bool | str = False
    fewshot_as_multiturn: bool | None = None
    batch_size: int | str = 1
    wandb_args: dict[str, Any] | None = None
    hf_hub_log_args: dict[str, Any] | None = None


def parser() -> argparse.ArgumentParser:
    """Return lm-eval's own parser of ``lm-eval run`` with a group of jroute's options in front."""
    result = lm_eval_adapter.run_parser(Parser())
    result.prog, result.usage = "python scripts/lm_eval_jax.py", None
    result.description, result.epilog, result.allow_abbrev = DESCRIPTION, None, False
    group = result.add_argument_group("what is evaluated (all other options are lm-eval's own)")
    group.add_argument("--run", type=path, help="run folder")
    group.add_argument("--model-dir", type=path, help="converted model, without a run")
    group.add_argument(
        "--arm",
        "--arms",
        type=_names,
        help=f"with commas: {', '.join(selectable())}; or all",
    )
    group.add_argument("--routing", help="with --model-dir: preset or YAML file")
    group.add_argument("--dtype", default="", help="with --model-dir: float32 or bfloat16")
    group.add_argument("--mesh", default="1,1,1", help="devices: data,fsdp,tensor (default: one)")
    group.add_argument(
        "--data",
        type=path,
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
        help="let arms choose for prompts in another format than those they learned from",
    )
    result._action_groups.insert(0, result._action_groups.pop())
    return result


def parse_args(argv: Sequence[str] | None) -> EvaluationOptions:
    """Read the command line, and the configuration file of lm-eval that it names.

    Raises:
        UserError: Options that are wrong or do not belong together.
    """
    args = parser().parse_args(argv)
    _check_own(args)
    config = _lm_eval_config(args)
    tasks = _tasks(config)
    output_path = args.output_path if args.config is None else config.output_path
    _check_output(output_path, args.run or RESULTS_OF_MODELS)
    return EvaluationOptions(
        run=args.run,
        model_dir=args.model_dir,
        arms=args.arm or [BASELINE],
        routing=args.routing,
        dtype=args.dtype,
        mesh=args.mesh,
        data=args.data and args.data.absolute(),
        boxed=args.boxed,
        force_template=args.force_template,
        tasks=tasks,
        output_path=Path(output_path) if output_path else None,
        lm_eval=config,
        given=frozenset(name for name, value in vars(args).items() if value is not None),
    )


def _check_own(args: argparse.Namespace) -> None:
    for name in ("config", "include_path", "output_path"):
        if getattr(args, name) is not None:
            check_path(getattr(args, name), f"--{name}")
    if (args.run is None) == (args.model_dir is None):
        raise UserError("give either --run or --model-dir: what is to be evaluated")
    if args.arm is None and (args.run is not None or args.routing):
        raise UserError("--arm is missing; give arms with commas, or --arms all")
    if args.model not in (None, "jroute"):
        raise UserError(
            f"--model is {args.model}; this command evaluates jroute's models, for others there is "
            "lm-eval itself"
        )
    if args.run is not None and (args.routing or args.dtype):
        raise UserError("--routing and --dtype go with --model-dir; a run has its own")


def _check_output(output_path: str | None, default: Path) -> None:
    """Refuse a place for results that cannot be written, before a model is read."""
    option = "--run" if output_path is None else "--output_path"
    folder = check_path(default if output_path is None else output_path, option)
    output_folder(folder.parent if folder.suffix == ".json" else folder, option)


def _lm_eval_config(args: argparse.Namespace) -> EvaluatorConfig:
    """Return lm-eval's configuration: its defaults, its ``--config`` file, the command line."""
    options = {name: value for name, value in vars(args).items() if name not in OWN_OPTIONS}
    if args.config is None:  # lm-eval wants an output_path beside --log_samples; jroute has its own
        options["output_path"] = args.output_path or "."
    else:
        read_yaml(args.config)  # refuses what lm-eval would read in its own way, or not at all
    try:
        with contextlib.redirect_stdout(io.StringIO()), lm_eval_adapter.quiet():
            config = lm_eval_adapter.configuration(options)  # prints the file it read
    except Exception as error:  # whatever lm-eval raises here, it is the options that are wrong
        raise UserError(" ".join(str(error).split()) or "lm-eval refuses the options") from error
    limit: Any = config.limit  # anything that a YAML file holds
    if limit is not None and not (isinstance(limit, int | float) and 0 < limit < math.inf):
        raise UserError(f"--limit is {limit!r:.60}; give a positive number or leave it out")
    values = {field.name: getattr(config, field.name) for field in fields(config)}
    check(values, _Options, "the options of lm-eval", "correct it; see --help")
    if config.include_path is not None:
        config.include_path = os.path.abspath(config.include_path)
    return config


def _tasks(config: EvaluatorConfig) -> list[str]:
    names = config.tasks if isinstance(config.tasks, list) else str(config.tasks).split(",")
    tasks = list(dict.fromkeys(str(name).strip() for name in names if str(name).strip()))
    if not tasks:
        raise UserError("--tasks is missing; name tasks, or a --config that does")
    return tasks


def _names(text: str) -> list[str]:
    names = dict.fromkeys(name.strip() for name in text.split(",") if name.strip())
    if not names:
        raise argparse.ArgumentTypeError("give at least one name")
    return list(names)
