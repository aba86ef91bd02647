"""Measure how often greedy completions change with the execution shape alone: the noise floor.

    python scripts/bench/bench_flips.py --model runs/demo/model --out runs/flips.json
    python scripts/bench/bench_flips.py --model … --prompts prompts.jsonl --dtypes bfloat16

Every prompt is completed greedily by the same weights in several shapes: numbers of slots, and
slots spread over all devices where the machine has several. A row flips if its tokens differ from
those in the first shape. In float32 only near-ties may flip (two best logits closer than 1e-5 in
one of the shapes); flips that no near-tie explains are counted apart and should be none. In
bfloat16 logits are coarse and ties are common: their rate, with its 95 % interval (Wilson), is what
any comparison of gates has to exceed. Without ``--prompts`` it completes the first problems of the
synthetic task; a file of prompts holds a JSON object with a field ``prompt`` on each line.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from statsmodels.stats.proportion import proportion_confint

import jroute
from jroute.distributed.mesh import MeshConfig
from jroute.generate.decoding import NEAR_TIE, Completion
from jroute.lm import LanguageModel
from jroute.tasks.prompts import PromptConfig, render
from jroute.tasks.synthetic import problems
from jroute.utils.cli import command, run_command
from jroute.utils.errors import UserError
from jroute.utils.files import write_json
from jroute.utils.machine import describe_machine


def read_prompts(path: Path) -> list[str]:
    """Return the field ``prompt`` of every line.

    Raises:
        UserError: A line is not an object with that field.
    """
    prompts = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            prompts.append(json.loads(line)["prompt"])
        except (json.JSONDecodeError, KeyError, TypeError):
            raise UserError(
                f"{path} line {number} is no JSON object with a field 'prompt'; give one per line"
            ) from None
    return prompts


def share(count: int, total: int) -> dict[str, Any]:
    """Return a count as a rate with its Wilson interval."""
    ends = np.asarray(proportion_confint(count, total, method="wilson"), float)
    return {"count": count, "of": total, "rate": count / total, "ci95": ends.tolist()}


def first_difference(row: Sequence[int], other: Sequence[int]) -> int:
    """Return the first position at which two rows differ."""
    pairs = zip(row, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(row), len(other)))


def compare(base: Sequence[Completion], other: Sequence[Completion]) -> dict[str, Any]:
    """Compare the completions of two shapes, row by row."""
    differ = [(a, b) for a, b in zip(base, other, strict=True) if a.tokens != b.tokens]
    near = [pair for pair in differ if min(c.margin or 0.0 for c in pair) < NEAR_TIE]
    return {
        "flipped_rows": share(len(differ), len(base)),
        "explained_by_a_near_tie": len(near),
        "unexplained": len(differ) - len(near),
        "other_texts": sum(a.text != b.text for a, b in differ),
        "first_differences": sorted(first_difference(a.tokens, b.tokens) for a, b in differ),
        "smallest_margins_of_flipped_rows": sorted(
            min(c.margin or 0.0 for c in pair) for pair in differ
        )[:20],
    }


def complete(
    lm: LanguageModel, prompts: Sequence[str], gate: float | None, new: int, shape: dict[str, Any]
) -> list[Completion]:
    """Complete the prompts greedily in one shape, with margins."""
    return lm.generate(list(prompts), gate, max_new_tokens=new, margins=True, **shape)


def measure(
    model: Path, dtype: str, prompts: Sequence[str], args: argparse.Namespace
) -> dict[str, Any]:
    """Compare all shapes under one dtype."""
    lm = jroute.load(model, dtype=dtype)
    shapes = [(f"{slots} slots", lm, {"slots": slots}) for slots in args.shapes]
    shapes.append(
        (f"{args.shapes[0]} slots, scanned", lm, {"slots": args.shapes[0], "unroll": False})
    )
    devices = len(jax.devices())
    if devices > 1:
        spread = jroute.load(model, dtype=dtype, mesh=MeshConfig(data=devices))
        slots = -(-args.shapes[0] // devices) * devices
        shapes.append((f"{slots} slots on {devices} devices", spread, {"slots": slots}))
    (first, *others), base = shapes, complete(lm, prompts, args.gate, args.new, shapes[0][2])
    margins = [completion.margin or 0.0 for completion in base]
    tokens = sum(len(completion.tokens) for completion in base)
    comparisons = {}
    for name, model_there, shape in others:
        comparisons[name] = compare(
            base, complete(model_there, prompts, args.gate, args.new, shape)
        )
        flipped = comparisons[name]["flipped_rows"]
        print(
            f"{dtype:9} {first[0]} / {name}: {flipped['count']} of {flipped['of']} rows flip "
            f"({flipped['rate']:.2%} [{flipped['ci95'][0]:.2%}, {flipped['ci95'][1]:.2%}]), "
            f"{comparisons[name]['unexplained']} without a near-tie"
        )
    return {
        "first_shape": first[0],
        "tokens": tokens,
        "rows_with_a_near_tie": share(sum(m < NEAR_TIE for m in margins), len(margins)),
        "smallest_margin": min(margins),
        "shapes": comparisons,
    }


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Parse, measure, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="model directory")
    parser.add_argument("--prompts", type=Path, help="JSON lines with a field prompt")
    parser.add_argument("--count", type=int, default=256, help="prompts to complete at most")
    parser.add_argument("--new", type=int, default=40, help="new tokens at most")
    parser.add_argument("--gate", type=float, help="default: the plain model")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--shapes", default="8,1,32,64", help="slots; the first is compared with")
    parser.add_argument("--out", type=Path, help="JSON to write")
    args = parser.parse_args(argv)
    try:
        args.shapes = [int(part) for part in args.shapes.split(",")]
    except ValueError:
        raise UserError(f"--shapes is {args.shapes!r}; give numbers with commas") from None
    if min(args.shapes) < 1 or args.count < 1 or args.new < 1:
        raise UserError("--shapes, --count and --new take positive numbers")
    stored = jroute.load(args.model)
    if args.prompts:
        prompts = read_prompts(args.prompts)[: args.count]
    else:
        prompts = [
            render(problem.question, PromptConfig(), stored.tokenizer)
            for problem in problems("test", args.count)
        ]
    if not prompts:
        raise UserError(f"{args.prompts} holds no prompts")
    result = {
        "command": "bench_flips",
        "machine": describe_machine(),
        "devices": [len(jax.devices()), jax.devices()[0].device_kind],
        "model": stored.fingerprint,
        "prompts": len(prompts),
        "new_tokens": args.new,
        "gate": args.gate,
        "near_tie": NEAR_TIE,
        "dtypes": {d: measure(args.model, d, prompts, args) for d in args.dtypes.split(",")},
    }
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(args.out, result)
        print(f"wrote {args.out}", file=sys.stderr)


if __name__ == "__main__":
    run_command(main, "nothing was written")
