"""The results of a run as text, for the screen."""

from collections.abc import Mapping
from typing import Any

from jroute.statistics.results import table


def print_results(results: Mapping[str, Any]) -> None:
    """Print the table of every judged split."""
    print(f"\n{table(results, results['split'])}")
    for split, split_results in results["other_splits"].items():
        print(f"\n{table(split_results, split)}")
    print()
