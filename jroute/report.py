"""Prints the arms table of a run and where its files are.

python -m jroute.report --run runs/demo
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jroute.door import door, enter
from jroute.evaluation.report import table


def show(directory: Path, results: Mapping[str, Any]) -> None:
    """Prints every judged split."""
    print(f"\n{table(results, results['split'])}")
    for split, found in results["other_splits"].items():
        print(f"\n{table(found, split)}")
    print()


@door
def main(argv: Sequence[str] | None = None) -> None:
    """Parses, reads, prints."""
    parser = argparse.ArgumentParser(prog="python -m jroute.report", description=__doc__)
    parser.add_argument("--run", required=True, type=Path, help="run folder")
    args = parser.parse_args(argv)
    from jroute.run import load_run
    from jroute.stages import written

    show(args.run, load_run(args.run).results)
    print("\n".join(written(args.run)))


if __name__ == "__main__":
    enter(main, "nothing was changed")
