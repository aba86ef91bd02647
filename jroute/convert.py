"""Hugging Face weights in, a jroute model directory out, and back: ``python -m jroute.convert``."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import jax

from jroute.checkpoint.conversion import Dtype, convert, summary
from jroute.checkpoint.conversion_plan import describe, plan_conversion
from jroute.checkpoint.export import export, listing
from jroute.observe.progress import ByteBar
from jroute.utils.arguments import Parser, path, text
from jroute.utils.cli import command, run_command
from jroute.utils.errors import UserError


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Convert a checkpoint, plan or verify that, or export a model directory."""
    options = _parse(argv)
    out, model = options["out"], options.pop("to_hf")
    if model is not None:
        with ByteBar("export") as progress:
            result = export(model, out, progress)
        print(listing(out, result))
        return
    prompts, verify = options.pop("prompts"), options.pop("verify")
    if options.pop("dry_run"):
        plan = plan_conversion(**options)
        print(describe(plan))
        if plan.refusal:
            raise UserError(plan.refusal)
        return
    if prompts is not None:
        from jroute.checkpoint.verification import check_prompts

        check_prompts(options["source"], options["revision"], prompts)
    convert_and_verify(**options, verify=verify, prompts=prompts)


def convert_and_verify(
    source: str,
    out: Path,
    *,
    verify: bool = True,
    prompts: Sequence[str] | None = None,
    **options: Any,
) -> None:
    """Convert a checkpoint, verify it, and print what came of it.

    Args:
        source: A local folder or a Hugging Face hub id.
        out: The model directory to write.
        verify: Whether to verify it.
        prompts: Texts whose logits are compared, instead of the usual ones.
        **options: Further arguments of ``jroute.checkpoint.conversion.convert``.

    Raises:
        UserError: It cannot be converted, or differs from its source.
    """
    with ByteBar("convert") as progress:
        conversion = convert(source, out, **options, progress=progress)
    print(summary(conversion, out))
    if verify:
        from jroute.checkpoint import verification

        with ByteBar("verify") as progress:
            result = verification.verify(conversion.folder, out, prompts, progress)
        print(verification.report(result, conversion, out))
        verification.refuse_large_error(result, out)


def _parse(argv: Sequence[str] | None) -> dict[str, Any]:
    """Return the options, with the prompts of ``--prompts`` in place of its file."""
    options = vars(_parser().parse_args(argv))
    given = [name for name, value in options.items() if value and name not in ("out", "to_hf")]
    if options["to_hf"] is not None and given:
        raise UserError(f"--{given[0].replace('_', '-')} does not apply with --to-hf; leave it out")
    if options["prompts"] is not None:
        if not options["verify"]:
            raise UserError("--prompts is for --verify; add it")
        from jroute.checkpoint.verification import read_prompts

        options["prompts"] = read_prompts(options["prompts"])
    return options


def _parser() -> Parser:
    parser = Parser(prog="python -m jroute.convert", description=__doc__)
    add = parser.add_argument
    direction = parser.add_mutually_exclusive_group(required=True)
    source = "folder in Hugging Face layout, or a hub id to convert"
    direction.add_argument("--source", type=text, help=source)
    model = "a model directory to export to Hugging Face layout"
    direction.add_argument("--to-hf", type=path, metavar="MODEL_DIR", help=model)
    add("--out", type=path, required=True, help="the directory to write")
    add("--revision", type=text, help="branch, tag or commit on the hub")
    add("--dtype", choices=get_args(Dtype), help="type to store (default: as in the source)")
    add("--overwrite", action="store_true", help="replace another model at --out")
    dry_run = "print what would be done and write nothing (a model of the hub is still downloaded)"
    add("--dry-run", action="store_true", help=dry_run)
    verify = (
        "then compare what is stored with the source bit for bit, and, where torch is installed, "
        "logits with transformers'"
    )
    add("--verify", action="store_true", help=verify)
    add("--prompts", type=path, metavar="FILE", help="for --verify: one prompt per line")
    return parser


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")  # a conversion needs no accelerator
    run_command(main, "no partial output remains")
