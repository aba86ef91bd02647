"""Hugging Face weights in, a jroute model directory out, and back: ``python -m jroute.convert``."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import jax
from tqdm import tqdm

from converters.safetensors import fetch
from jroute.checkpoint import has_tokenizer
from jroute.checkpoint.conversion import (
    NO_TOKENIZER,
    Conversion,
    Dtype,
    Source,
    convert,
    describe,
    open_source,
    plan,
)
from jroute.observe.progress import progress_bar
from jroute.utils.cli import command, run_command
from jroute.utils.errors import UserError

__all__ = ["Conversion", "Dtype", "Source", "convert", "main", "open_source"]

PROMPTS = (
    "The capital of France is",
    "Question: A farmer has 17 sheep and buys 25 more. He sells 9 of them. "
    "How many sheep does he have now?\nAnswer:",
    "def fibonacci(n):\n",
    "一年有十二个月,",
)
"""What ``--verify`` asks a model and its source if it is not told."""


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Parse, converts, prints."""
    arguments = vars(_parser().parse_args(argv))
    model = arguments.pop("to_hf")
    if model is not None:
        _refuse_options(arguments)
        _export(Path(model), Path(arguments["out"]))
        return
    prompts, verify = arguments.pop("prompts"), arguments.pop("verify")
    if prompts is not None and not verify:
        raise UserError("--prompts is for --verify; add it")
    texts = PROMPTS if prompts is None else _read_prompts(Path(prompts))
    if arguments.pop("dry_run"):
        planned = plan(**arguments)
        print(describe(planned))
        if planned.refusal:
            raise UserError(planned.refusal)
        return
    if prompts is not None:
        _check_prompts(arguments["source"], arguments["revision"], texts)
    with _ProgressBar("convert") as progress:
        result = convert(**arguments, progress=progress)
    manifest = result.manifest
    print(f"{'wrote' if result.written else 'already there:'} {arguments['out']}")
    print(f"  tensors      {len(manifest['tensors']):,}")
    print(f"  parameters   {manifest['parameters']:,}")
    print(f"  bytes        {manifest['bytes']:,} ({manifest['dtype']})")
    print(f"  files        {', '.join(manifest['companions'])}")
    print(f"  fingerprint  {manifest['fingerprint']}")
    if not has_tokenizer(Path(arguments["out"])):
        print(f"  warning      {NO_TOKENIZER}")
    if verify:
        _verify(result, Path(arguments["out"]), texts)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m jroute.convert", description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--source", help="folder in Hugging Face layout, or a hub id to convert")
    what.add_argument(
        "--to-hf", metavar="MODEL_DIR", help="the way back: a model directory to export"
    )
    parser.add_argument("--out", required=True, help="the directory to write")
    parser.add_argument("--revision", help="branch, tag or commit on the hub")
    parser.add_argument(
        "--dtype", choices=get_args(Dtype), help="type to store (default: as in the source)"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace another model that stands at --out"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print what would be done and write nothing (a model of the hub is still downloaded)",
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="then compare what is stored with the source bit for bit, and, where torch is "
        "installed, logits with transformers'",
    )
    parser.add_argument("--prompts", metavar="FILE", help="for --verify: one prompt per line")
    return parser


def _refuse_options(options: dict[str, Any]) -> None:
    given = [name for name, value in options.items() if value and name != "out"]
    if given:
        raise UserError(f"--{given[0].replace('_', '-')} has no meaning with --to-hf; leave it out")


def _export(model: Path, out: Path) -> None:
    from jroute.checkpoint.export import export  # not needed on the way in

    with _ProgressBar("export") as progress:
        files = export(model, out, progress)
    print(f"wrote {out}")
    for file in files:
        print(f"  {file.name}  {file.stat().st_size:,} bytes")


def _read_prompts(file: Path) -> list[str]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read prompts from {file} ({error}); give a text file") from None
    prompts = [line for line in lines if line.strip()]
    if not prompts:
        raise UserError(f"{file} holds no prompt; write one per line")
    return prompts


def _check_prompts(source: str, revision: str | None, prompts: Sequence[str]) -> None:
    """Raise a ``UserError`` now that would otherwise come after the conversion."""
    from jroute.checkpoint.verification import encode_prompts

    folder = fetch(source, revision).folder
    if has_tokenizer(folder):
        encode_prompts(folder, prompts, open_source(folder).config.max_position_embeddings)


def _verify(result: Conversion, out: Path, prompts: Sequence[str]) -> None:
    """Compare the model with its source, and print what was found.

    Raises:
        UserError: A tensor differs, or logits are further off than rounding explains.
    """
    from jroute.checkpoint.verification import verify  # brings the model and its tokenizer along

    with _ProgressBar("verify") as progress:
        found = verify(result.folder, out, prompts, progress)
    if found.differing:
        first, *others = found.differing
        which = f"{first} and {len(others)} more differ" if others else f"{first} differs"
        raise UserError(
            f"{out}: of {found.tensors:,} tensors {which} from {result.folder}; "
            "convert again with --overwrite"
        )
    stored = result.manifest["dtype"]
    print("verified")
    print(f"  tensors      {found.tensors:,} equal to the source's in {stored}, bit for bit")
    if found.logits is None:
        print(f"  logits       not compared: {found.why}")
        return
    compared = found.logits
    print(f"  positions    {compared.positions:,} of {len(prompts)} prompts, {compared.dtype}")
    print(
        f"  max error    {compared.max_error:.3g} of a logit, against transformers "
        f"(rounding stays below {compared.bound:.2g})"
    )
    print(f"  top-1        {compared.agreement:.2%} agree")
    if not compared.max_error <= compared.bound:
        raise UserError(
            f"{out}: logits differ from transformers' by {compared.max_error:.3g}, and rounding "
            f"stays below {compared.bound:.2g}; the weights are the source's, so its config.json "
            "or this jroute is wrong for them"
        )


class _ProgressBar:
    """A bar in bytes that shows itself when the first ones are done, so not before an error."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._bar: tqdm | None = None

    def __enter__(self) -> "_ProgressBar":
        return self

    def __call__(self, done: int, total: int) -> None:
        if self._bar is None:
            self._bar = progress_bar(desc=self._what, total=total, unit="B", unit_scale=True)
        self._bar.update(done - self._bar.n)

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")  # an accelerator has no part in a conversion
    run_command(main, "nothing half-written stays behind")
