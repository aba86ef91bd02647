"""Rehearse an experiment with random weights of the model's shape: only the weights are missing.

    python scripts/rehearse.py --config configs/qwen3_0.6b_gsm8k.yaml --like DIR --out runs/try

DIR holds the release's ``config.json`` and tokenizer (``--tokenizer`` names another folder). On a
CPU, end with ``-- --dtype float32 --engine.slots 8 --decoding.max_new_tokens 8``.

It runs every command of an experiment in turn, each in its own process, as a user would:
random weights in the published layout, conversion and its verification, a sanity check of the
baseline on 50 problems, outcomes, training and judging on a handful, and lm-eval on the run's own
problems and on its official gsm8k. Options after ``--`` override fields of the config. The
report records what every step took; it says nothing about the answers of a random model.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jroute.checkpoint import has_tokenizer
from jroute.experiment.config import Experiment
from jroute.utils.cli import command, run_command
from jroute.utils.config import load
from jroute.utils.errors import UserError
from jroute.utils.files import write_text
from jroute.utils.machine import describe_machine


def steps(args: argparse.Namespace, overrides: Sequence[str]) -> dict[str, list[str]]:
    """Return the commands, without the leading ``python``, by what they do."""
    out: Path = args.out
    source, model = str(out / "hf"), str(out / "model")
    few = str(args.problems)
    tokenizer = ["--tokenizer", str(args.tokenizer or args.like)]
    chatml = ["--plain-chatml"] if args.plain_chatml else []
    experiment = ["--config", str(args.config), "--model", model, *overrides]
    small = ["--task.limit", few, "--ppo.updates", "20", "--ppo.seeds", "3", *overrides]
    run = ["--config", str(args.config), "--model", model, "--run", str(out / "run"), *small]
    lm_eval = ["scripts/lm_eval_jax.py", "--run", str(out / "run"), "--limit", few]
    return {
        "random weights": [
            *("scripts/random_model.py", "--like", str(args.like), "--out", source),
            *("--shard-bytes", str(5 * 10**8)),
            *(*tokenizer, *chatml),
        ],
        "conversion": ["-m", "jroute.convert", "--source", source, "--out", model, "--verify"],
        "sanity of the baseline": [
            *("-m", "jroute.outcomes", *experiment, "--run", str(out / "sanity")),
            *("--split", "[test]", "--only_gates", "[0]", "--problems", "50"),
        ],
        "outcomes": ["-m", "jroute.outcomes", *run],
        "training and judgement": ["-m", "jroute.train", *run],
        "lm-eval, own problems": [*lm_eval, "--arm", "baseline,fixed:0.5,rl", "--tasks", "test"],
        "lm-eval, official gsm8k": [
            *(*lm_eval, "--arm", "baseline,rl", "--tasks", "gsm8k", "--batch_size", few),
            "--force_template",  # the controller was trained on the config's prompts, not on these
            *(
                "--num_fewshot",
                "0",
                "--gen_kwargs",
                "max_gen_toks=8",
                *(["--data", str(args.data)] if args.data else []),
            ),
        ],
    }


def take(command: Sequence[str], environment: Mapping[str, str]) -> dict[str, Any]:
    """Run a step, show what it prints, and return its report.

    Raises:
        UserError: The step failed.
    """
    print(f"\n$ python {' '.join(command)}", flush=True)
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, text=True, env=environment
    )
    lines: list[str] = []
    assert process.stdout is not None
    for line in process.stdout:
        print(line, end="", flush=True)
        lines.append(line.rstrip())
    _, status, used = os.wait4(process.pid, 0)
    code = process.returncode = os.waitstatus_to_exitcode(status)
    if code:
        raise UserError(f"the rehearsal ended at `python {' '.join(command)}`, with status {code}")
    return {
        "command": " ".join(["python", *command]),
        "seconds": round(time.perf_counter() - started, 1),
        "peak_resident_bytes": used.ru_maxrss * 1024,
        "printed": lines[-40:],
    }


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Parse, run and report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, required=True, help="the experiment")
    parser.add_argument("--like", type=Path, required=True, help="folder with a config.json")
    parser.add_argument("--tokenizer", type=Path, help="folder with a tokenizer, if not there")
    parser.add_argument("--plain-chatml", action="store_true", help="as random_model.py has it")
    parser.add_argument("--data", type=Path, help="folder with gsm8k/ (default: from the hub)")
    parser.add_argument("--problems", type=int, default=4, help="problems of a split (default: 4)")
    parser.add_argument(
        "--out", type=Path, required=True, help="an empty or new folder for all files"
    )
    parser.add_argument("--report", type=Path, help="JSON to write")
    parser.add_argument("--keep", action="store_true", help="keep weights and runs")
    parser.add_argument("overrides", nargs="*", help="after --: fields of the config")
    args = parser.parse_args(argv)
    if args.out.exists() and any(args.out.iterdir()):
        raise UserError(f"{args.out} is not empty; name a new folder for the rehearsal")
    environment = {**os.environ, **({"JROUTE_DATA": str(args.data.resolve())} if args.data else {})}
    load(Experiment, args.config)  # shows a mistake in it before anything is written
    tokenizer = args.tokenizer or args.like
    if not has_tokenizer(tokenizer):
        raise UserError(f"{tokenizer} holds no tokenizer; name a folder that does: --tokenizer")
    report: dict[str, Any] = {
        "machine": describe_machine(),
        "config": str(args.config),
        "overrides": args.overrides,
        "steps": {},
    }
    try:
        for name, command in steps(args, args.overrides).items():
            report["steps"][name] = take(command, environment)
    finally:
        if not args.keep:
            shutil.rmtree(args.out, ignore_errors=True)
    print(f"\n{'step':26} {'seconds':>8} {'peak memory':>12}")
    for name, step in report["steps"].items():
        print(f"{name:26} {step['seconds']:>8.1f} {step['peak_resident_bytes'] / 2**30:>9.2f} GiB")
    if args.report:
        args.report.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(report, indent=2)
        folders = {
            "OUT": args.out,
            "LIKE": args.like,
            "TOKENIZER": args.tokenizer,
            "DATA": args.data,
        }
        for name, folder in folders.items():
            text = text.replace(str(folder), name) if folder else text
        write_text(args.report, text + "\n")


if __name__ == "__main__":
    run_command(main, "what it had written was removed, unless --keep was given")
