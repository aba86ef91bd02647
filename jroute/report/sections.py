"""The content of the page's sections, for the templates."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jroute.report.interval_table import IntervalTable, interval_tables
from jroute.report.report_data import ReportData
from jroute.report.result_rows import arm_rows, contrast_rows, headroom_rows


@dataclass(frozen=True)
class SplitTables:
    """The tables of one split; ``None`` where the run stores nothing to show.

    Attributes:
        name: Name of the split.
        results: Its part of ``results.json``.
        arms: Accuracies of all arms.
        contrasts: Differences between arms, the declared ones first.
        headroom: Gains over the best fixed gate.
    """

    name: str
    results: Mapping[str, Any]
    arms: IntervalTable | None
    contrasts: IntervalTable | None
    headroom: IntervalTable | None

    @property
    def significant_gap(self) -> float | None:
        """The smallest difference that is just significant, in points."""
        gap = self.results.get("resolvable_gap")
        return 100 * gap if isinstance(gap, int | float) else None

    @property
    def detectable_gap(self) -> float | None:
        """The smallest difference that is found with 80 % power, in points."""
        gaps = self.results.get("gaps", ())
        gap = gaps[-1].get("power_80") if gaps else None
        return None if gap is None else 100 * gap

    @property
    def shares_of_gain(self) -> dict[str, Mapping[str, Any]]:
        """What arms reach of the exact-gradient policy's gain, where it gains anything."""
        shares = self.results.get("shares", {})
        return {arm: share for arm, share in shares.items() if None not in share["ci95"]}


def split_tables(data: ReportData) -> list[SplitTables]:
    """Return the tables of every split; those of a kind share an axis."""
    results = [split.results for split in data.splits]
    contrasts = [
        [*contrast_rows(part, declared=True), *contrast_rows(part, declared=False)]
        for part in results
    ]
    tables = zip(
        data.splits,
        interval_tables([arm_rows(part) for part in results], "Accuracy", zero=False),
        interval_tables(contrasts, "Points", zero=True, p_values=True),
        interval_tables([headroom_rows(part) for part in results], "Points", zero=True),
        strict=True,
    )
    return [SplitTables(split.name, split.results, *of_split) for split, *of_split in tables]


def run_facts(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return what identifies a run and what it cost, by label."""
    facts = {
        "model": results.get("model"),
        "outcome table": results.get("outcomes"),
        "training": results.get("training"),
        "best fixed gate on train": results.get("best_fixed_gate"),
        "cells of train": results.get("train_cells"),
        "rewards sampled by each RL seed": results.get("rewards_sampled_by_each_rl_seed"),
        "cells generated": results.get("cells_generated"),
    } | {
        f"generated on {machine}": f"{cost['cells']:,.0f} cells, {cost['tokens']:,.0f} tokens in "
        f"{cost['seconds']:,.0f} s"
        for machine, cost in results.get("generation", {}).items()
    }
    return {label: value for label, value in facts.items() if value is not None}
