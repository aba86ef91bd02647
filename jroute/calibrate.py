"""Check that the laboratory detects learnable headroom where it exists and reports none elsewhere.

    python -m jroute.calibrate                                   # the bundled model
    python -m jroute.calibrate --models jroute/assets/tiny-gated runs/tiny-1 runs/tiny-2
    python -m jroute.calibrate --plan                            # what it would take

Positive: models pretrained with the gate, on which RL must reach what an exact gradient reaches.
Null: the first one's table with features permuted across problems. Dose: simulated tables with
planted gains. ``--plain`` models were trained without gates (``scripts/pretrain_tiny.py --plain``);
they are judged like any other, without expectations. A model is a folder in Hugging Face
layout (``scripts/pretrain_tiny.py --seed N --out DIR`` makes others), a model directory, or a run
folder whose outcomes are used. Repeat the same command to resume an interrupted
calibration.
"""

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from jroute.utils.arguments import Parser, path, whole_number
from jroute.utils.cli import command, run_command
from jroute.utils.paths import output_file, output_folder

PARTS = ("positive", "null", "dose")


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, calibrate, print and write the results."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    args, overrides = parser.parse_known_args(words)
    from jroute.experiment.calibration import calibrate
    from jroute.experiment.calibration_runs import (
        ModelRuns,
        require_folders,
        sources_of,
        write_results,
    )
    from jroute.experiment.result_cache import ResultCache
    from jroute.report.calibration_text import calibration_text
    from jroute.utils.disk import make_folder
    from jroute.utils.locks import owned

    started = time.perf_counter()
    runs = ModelRuns(args.out, args.config, tuple(overrides))
    options = list(parser._option_string_actions)
    config = runs.calibration(options, permutations=args.permutations, tables=args.tables)
    sources = sources_of(args.models, args.parts)
    if args.plan:
        trained = [*args.plain, *(sources if "positive" in args.parts else ())]
        print(runs.estimate([*sources, *args.plain], len(trained), config, args.parts))
        return
    require_folders([*sources, *args.plain])
    output_folder(args.out, "--out")
    if args.report:
        output_file(args.report, "--report")
    make_folder(args.out)
    with owned(args.out / ".lock", f"the calibration in {args.out}"):
        models, plain = (list(map(runs.tables, folders)) for folders in (sources, args.plain))
        results = calibrate(models, plain, config, args.parts, ResultCache(args.out / "kept.json"))
    seconds = time.perf_counter() - started
    print(calibration_text(results))
    path = args.report or args.out / "calibration.json"
    line = shlex.join(["python", "-m", "jroute.calibrate", *words])
    write_results(path, results, config, command=line, seconds=seconds)
    print(f"\n{path}: all results, after {seconds:.0f} s")


def _parser() -> Parser:
    parser = Parser(
        prog="python -m jroute.calibrate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    bundled = Path(str(resources.files("jroute") / "assets" / "tiny-gated"))
    add("--models", nargs="+", type=path, default=[bundled], metavar="DIR")
    plain = "trained without gates"
    add("--plain", nargs="+", type=path, default=[], metavar="DIR", help=plain)
    add("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    add("--permutations", type=whole_number(1, 10**6), default=200)
    add("--tables", type=whole_number(1, 10**4), default=8, help="simulated tables for each gain")
    experiment = "experiment of the models"
    add("--config", type=path, default=Path("configs/tiny.yaml"), help=experiment)
    add("--out", type=path, default=Path("runs/calibration"))
    add("--report", type=path, help="JSON; by default calibration.json in --out")
    add("--plan", action="store_true", help="print what it would take, and stop")
    return parser


if __name__ == "__main__":
    run_command(main, "give the same command again to continue from here")
