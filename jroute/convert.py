"""Hugging Face weights in, a jroute model directory out, and back: ``python -m jroute.convert``."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import jax

from jroute.checkpoint.conversion import Conversion, Dtype, convert, summary
from jroute.checkpoint.conversion_plan import describe, plan_conversion
from jroute.observe.progress import ByteBar
from jroute.utils.cli import command, run_command
from jroute.utils.errors import UserError


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Convert a checkpoint, plan or verify that, or export a model directory."""
    options = vars(_parser().parse_args(argv))
    out, model = Path(options["out"]), options.pop("to_hf")
    if model is not None:
        _export(Path(model), out, options)
        return
    file, verify = options.pop("prompts"), options.pop("verify")
    if file is not None and not verify:
        raise UserError("--prompts is for --verify; add it")
    prompts = None if file is None else _read_prompts(Path(file))
    if options.pop("dry_run"):
        plan = plan_conversion(**options)
        print(describe(plan))
        if plan.refusal:
            raise UserError(plan.refusal)
        return
    if prompts is not None:
        from jroute.checkpoint.verification import check_prompts

        check_prompts(options["source"], options["revision"], prompts)
    with ByteBar("convert") as progress:
        conversion = convert(**options, progress=progress)
    print(summary(conversion, out))
    if verify:
        _verify(conversion, out, prompts)


def _read_prompts(file: Path) -> list[str]:
    from jroute.checkpoint.verification import read_prompts

    return read_prompts(file)


def _verify(conversion: Conversion, out: Path, prompts: Sequence[str] | None) -> None:
    from jroute.checkpoint.verification import PROMPTS, refuse_large_error, report, verify

    prompts = PROMPTS if prompts is None else prompts
    with ByteBar("verify") as progress:
        verification = verify(conversion.folder, out, prompts, progress)
    print(report(verification, conversion, out, len(prompts)))
    refuse_large_error(verification, out)


def _export(model: Path, out: Path, options: dict[str, Any]) -> None:
    from jroute.checkpoint.export import export

    given = [name for name, value in options.items() if value and name != "out"]
    if given:
        raise UserError(f"--{given[0].replace('_', '-')} has no meaning with --to-hf; leave it out")
    with ByteBar("export") as progress:
        files = export(model, out, progress)
    print(f"wrote {out}")
    for file in files:
        print(f"  {file.name}  {file.stat().st_size:,} bytes")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m jroute.convert", description=__doc__)
    add = parser.add_argument
    direction = parser.add_mutually_exclusive_group(required=True)
    direction.add_argument("--source", help="folder in Hugging Face layout, or a hub id to convert")
    direction.add_argument(
        "--to-hf", metavar="MODEL_DIR", help="a model directory to export to Hugging Face layout"
    )
    add("--out", required=True, help="the directory to write")
    add("--revision", help="branch, tag or commit on the hub")
    add("--dtype", choices=get_args(Dtype), help="type to store (default: as in the source)")
    add("--overwrite", action="store_true", help="replace another model at --out")
    dry_run = "print what would be done and write nothing (a model of the hub is still downloaded)"
    add("--dry-run", action="store_true", help=dry_run)
    verify = (
        "then compare what is stored with the source bit for bit, and, where torch is installed, "
        "logits with transformers'"
    )
    add("--verify", action="store_true", help=verify)
    add("--prompts", metavar="FILE", help="for --verify: one prompt per line")
    return parser


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")  # an accelerator has no part in a conversion
    run_command(main, "no partial output remains")
