"""Greedy completions in jroute and in transformers, token by token.

    python scripts/compare_greedy.py --model runs/models/smollm2-135m-instruct \
        --hf runs/models/smollm2-135m-instruct-hf --task gsm8k --count 50

Where the two first differ, transformers' logits of both tokens tell why: if they are equal but for
rounding, the place is a near-tie and is named; everything else is an error, and the status is 2.
Needs torch.
"""

import argparse
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import jroute
from converters.hf_config import read_config
from jroute.checkpoint.manifest import read_manifest
from jroute.checkpoint.origin import gguf_quantisation
from jroute.generate.decoding import Decoding
from jroute.lm import LanguageModel
from jroute.model.config import DecoderConfig
from jroute.model.families import Family
from jroute.tasks import TaskConfig, load_problems
from jroute.tasks.prompts import PromptConfig, render
from jroute.utils.cli import command, run_command
from jroute.utils.errors import UserError
from jroute.utils.files import write_json
from jroute.utils.machine import describe_machine, version

CLOSE = 1e-3
"""Logits that differ by no more are a near-tie: some times as much as rounding in float32 moves
those of a real model, which are tens (``--verify`` finds 1.4e-4 for SmolLM2)."""


class Difference(NamedTuple):
    """Where two completions of a prompt part.

    Attributes:
        prompt: Number of the prompt, from 0.
        position: Number of the token in the completion, from 0.
        ours: jroute's token, as text.
        theirs: Transformers' token, as text.
        margin: How much larger transformers' logit of its own token is; ``None`` if one completion
            is the beginning of the other, though neither has reached its limit or an end token.
    """

    prompt: int
    position: int
    ours: str
    theirs: str
    margin: float | None

    @property
    def is_near_tie(self) -> bool:
        """Whether rounding explains it."""
        return self.margin is not None and abs(self.margin) <= CLOSE

    def __str__(self) -> str:
        logits = "one ends" if self.margin is None else f"logits {self.margin:.2g} apart"
        kind = "near-tie" if self.is_near_tie else "different"
        where = f"prompt {self.prompt}, token {self.position}"
        return f"{kind}: {where}: {self.ours!r} and {self.theirs!r}, {logits}"


def transformers_model(folder: Path, family: Family) -> Any:
    """Load a folder in Hugging Face layout with transformers, in float32."""
    import torch
    import transformers

    cls = getattr(transformers, family.transformers_class)
    return cls.from_pretrained(str(folder), dtype=torch.float32, local_files_only=True).eval()


def transformers_tokens(
    model: Any, prompts: Sequence[Sequence[int]], new: int, ends: Sequence[int]
) -> list[list[int]]:
    """Complete prompts one by one with transformers' own greedy ``generate``."""
    import torch
    import transformers

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
    if at == min(len(ours), len(theirs)):
        return Difference(number, at, "", "", None)
    import torch

    with torch.no_grad():
        logits = model(torch.tensor([[*ids, *theirs[:at]]])).logits[0, -1]
    margin = float(logits[theirs[at]] - logits[ours[at]])
    our_text, their_text = (str(lm.tokenizer.decode([row[at]])) for row in (ours, theirs))
    return Difference(number, at, our_text, their_text, margin)


def compare(
    lm: LanguageModel, model: Any, prompts: Sequence[str], new: int, slots: int
) -> tuple[list[Difference], int]:
    """Complete prompts on both sides, and return where they part and how many tokens there are."""
    ids = [lm.encode(prompt) for prompt in prompts]
    completions = lm.generate(ids, decoding=Decoding(max_new_tokens=new), slots=slots)
    ours = [list(completion.tokens) for completion in completions]
    theirs = transformers_tokens(model, ids, new, lm.end_token_ids)
    rows = enumerate(zip(ids, ours, theirs, strict=True))
    differences = [first_difference(lm, model, i, *row) for i, row in rows]
    return [each for each in differences if each], sum(map(len, theirs))


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Complete, compare, print and write."""
    parser = argparse.ArgumentParser(
        prog="python scripts/compare_greedy.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", type=Path, required=True, help="model directory")
    add("--hf", type=Path, required=True, help="the folder that it was converted from")
    add(
        "--task",
        choices=("synthetic", "gsm8k", "svamp"),
        default="gsm8k",
        help="whose test problems are asked (default: gsm8k)",
    )
    add("--count", type=int, default=50, help="prompts (default: 50)")
    add("--new", type=int, default=128, help="new tokens at most (default: 128)")
    add(
        "--slots",
        type=int,
        default=16,
        help="prompts at a time in jroute (default: 16)",
    )
    add("--out", type=Path, help="JSON to write")
    args = parser.parse_args(argv)
    if min(args.count, args.new, args.slots) < 1:
        raise UserError("--count, --new and --slots take positive numbers")
    if find_spec("torch") is None:
        raise UserError("torch is missing; install it with pip install 'jroute[test]'")
    config = DecoderConfig.restore(read_manifest(args.model)["config"])
    if read_config(args.hf / "config.json") != config:
        raise UserError(f"{args.model} was not converted from {args.hf}: their config.json differ")
    problems = load_problems(TaskConfig(name=args.task), "test")[: args.count]
    lm = jroute.load(args.model, dtype="float32")
    prompts = [render(problem.question, PromptConfig(), lm.tokenizer) for problem in problems]
    model = transformers_model(args.hf, lm.config.architecture)
    differences, tokens = compare(lm, model, prompts, args.new, args.slots)
    near = [d for d in differences if d.is_near_tie]
    different = [d for d in differences if not d.is_near_tie]
    equal = len(prompts) - len(differences)
    print(f"{equal} of {len(prompts)} completions equal, {len(near)} part at a near-tie")
    for difference in differences:
        print(f"  {difference}")
    if args.out:
        result = {
            "command": " ".join(["python scripts/compare_greedy.py", *(argv or sys.argv[1:])]),
            "machine": describe_machine(),
            "reference": {name: version(name) for name in ("torch", "transformers")},
            "model": {
                "name": args.model.name,
                "fingerprint": lm.fingerprint,
                "gguf_quantisation": gguf_quantisation(args.hf),
            },
            "new_tokens": args.new,
            "prompts": len(prompts),
            "tokens": tokens,
            "equal": equal,
            "near_ties": [d._asdict() for d in near],
            "different": [d._asdict() for d in different],
        }
        args.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(args.out, result)
    if different:
        raise UserError(f"{len(different)} completions differ and no near-tie explains it")


if __name__ == "__main__":
    run_command(main, "nothing was written")
