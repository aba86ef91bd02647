"""Greedy completions in jroute and in transformers, token by token.

    python scripts/compare_greedy.py --model runs/models/smollm2-135m-instruct \
        --hf runs/models/smollm2-135m-instruct-hf --task gsm8k --count 50

Where the two first differ, transformers' logits of both tokens tell why: if they are equal but for
rounding, the place is a near-tie and is named; everything else is an error, and the status is 2.
Needs torch.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import transformers

import jroute
from jroute.generate.decoding import Decoding
from jroute.lm import LanguageModel
from jroute.tasks import TaskConfig, load_problems
from jroute.tasks.prompts import PromptConfig, render
from jroute.utils.cli import command, run_command
from jroute.utils.errors import UserError
from jroute.utils.files import write_json
from jroute.utils.machine import describe_machine

NEAR_TIE = 1e-3
"""The most by which logits of float32 differ by rounding, over a hundred tokens of a real model."""


class Difference(NamedTuple):
    """Where two completions of a prompt part.

    Attributes:
        prompt: Number of the prompt.
        position: Number of the token, from the completion's start.
        ours: jroute's token, as text.
        theirs: Transformers' token, as text.
        margin: How much larger transformers' logit of its own token is.
    """

    prompt: int
    position: int
    ours: str
    theirs: str
    margin: float


def transformers_tokens(
    model: Any, prompts: Sequence[Sequence[int]], new: int, ends: Sequence[int]
) -> list[list[int]]:
    """Complete prompts one by one with transformers' own greedy ``generate``."""
    config = transformers.GenerationConfig(
        do_sample=False, max_new_tokens=new, eos_token_id=list(ends), pad_token_id=ends[0]
    )
    rows = []
    for ids in prompts:
        row = model.generate(torch.tensor([ids]), generation_config=config)[0, len(ids) :]
        rows.append(row.tolist())
    return rows


def first_difference(
    lm: LanguageModel,
    model: Any,
    number: int,
    ids: Sequence[int],
    ours: Sequence[int],
    theirs: Sequence[int],
) -> Difference | None:
    """Return where two completions of a prompt part, or ``None`` if they are equal."""
    if list(ours) == list(theirs):
        return None
    pairs = zip(ours, theirs, strict=False)
    at = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(ours), len(theirs)))
    if at == min(len(ours), len(theirs)):  # one goes on where the other has ended
        return Difference(number, at, "", "", float("inf"))
    with torch.no_grad():
        logits = model(torch.tensor([[*ids, *theirs[:at]]])).logits[0, -1]
    margin = float(logits[theirs[at]] - logits[ours[at]])
    our_text, their_text = (lm.tokenizer.decode([row[at]]) for row in (ours, theirs))
    return Difference(number, at, our_text, their_text, margin)


def compare(
    lm: LanguageModel, model: Any, prompts: Sequence[str], new: int, slots: int
) -> dict[str, Any]:
    """Complete prompts on both sides and count what is equal."""
    ids = [lm.encode(prompt) for prompt in prompts]
    completions = lm.generate(ids, decoding=Decoding(max_new_tokens=new), slots=slots)
    ours = [list(completion.tokens) for completion in completions]
    theirs = transformers_tokens(model, ids, new, lm.end_token_ids)
    rows = enumerate(zip(ids, ours, theirs, strict=True))
    found = [first_difference(lm, model, i, *row) for i, row in rows]
    differing = [difference for difference in found if difference]
    near = [d for d in differing if abs(d.margin) <= NEAR_TIE]
    return {
        "prompts": len(prompts),
        "tokens": sum(map(len, theirs)),
        "equal": len(prompts) - len(differing),
        "near_ties": [d._asdict() for d in near],
        "different": [d._asdict() for d in differing if d not in near],
    }


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Complete, compare, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", type=Path, required=True, help="model directory")
    add("--hf", type=Path, required=True, help="the folder that it was converted from")
    add("--task", choices=("synthetic", "gsm8k", "svamp"), default="gsm8k")
    add("--count", type=int, default=50, help="prompts (default: 50)")
    add("--new", type=int, default=128, help="new tokens at most (default: 128)")
    add("--slots", type=int, default=16, help="prompts that jroute completes at a time")
    add("--out", type=Path, help="JSON to write")
    args = parser.parse_args(argv)
    if min(args.count, args.new, args.slots) < 1:
        raise UserError("--count, --new and --slots take positive numbers")
    problems = load_problems(TaskConfig(name=args.task), "test")[: args.count]
    lm = jroute.load(args.model, dtype="float32")
    prompts = [render(problem.question, PromptConfig(), lm.tokenizer) for problem in problems]
    model = cast(Any, transformers.AutoModelForCausalLM).from_pretrained(
        str(args.hf), dtype=torch.float32, local_files_only=True
    )
    figures = compare(lm, model.eval(), prompts, args.new, args.slots)
    equal, near, different = (figures[key] for key in ("equal", "near_ties", "different"))
    print(f"{equal} of {len(prompts)} completions equal, {len(near)} part at a near-tie")
    for kind, found in (("near-tie", near), ("different", different)):
        for d in found:
            print(
                f"  {kind}: prompt {d['prompt']}, token {d['position']}: {d['ours']!r} and "
                f"{d['theirs']!r}, logits {d['margin']:.2g} apart"
            )
    if args.out:
        result = {
            "command": f"python scripts/compare_greedy.py --task {args.task} --count {args.count}",
            "machine": describe_machine(),
            "model": lm.fingerprint,
            "new_tokens": args.new,
            **figures,
        }
        args.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(args.out, result)
    if different:
        raise UserError(f"{len(different)} completions differ and no near-tie explains it")


if __name__ == "__main__":
    run_command(main, "nothing was written")
