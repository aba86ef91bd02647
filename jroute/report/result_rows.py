"""Rows of numbers with intervals: arms, contrasts, headroom; in per cent and points."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jroute.arms.registry import ARMS, BEST_FIXED, FIXED, ORACLE, PAGE_ORDER, SUBJECT


@dataclass(frozen=True)
class ResultRow:
    """One number with its 95 % interval.

    Attributes:
        name: Label of the row.
        value: The number, in per cent or points.
        ci95: Its interval, if it has one.
        description: The label explained in a few words.
        p: Two-sided p-value.
        p_holm: The p-value adjusted over the declared contrasts by Holm's method.
        bold: Whether the row is one that the page is about.
    """

    name: str
    value: float
    ci95: tuple[float, float] | None = None
    description: str = ""
    p: float | None = None
    p_holm: float | None = None
    bold: bool = False

    @property
    def text(self) -> str:
        """The row in words."""
        interval = f" ({self.ci95[0]:.1f} to {self.ci95[1]:.1f})" if self.ci95 else ""
        return f"{self.name} {self.value:.1f}{interval}"


def arm_label(name: str) -> str:
    """Return the label of an arm; a name that is not registered is only made legible."""
    return ARMS[name].label if name in ARMS else name.replace("_", " ").replace(FIXED, "fixed ")


def contrast_label(a: str, b: str) -> str:
    """Return the label of arm ``a`` minus arm ``b``."""
    return f"{arm_label(a)} − {arm_label(b)}"


def _page_order(name: str) -> tuple[float, str]:
    """Sort by ``PAGE_ORDER``: fixed gates before ``best_fixed``, unknown arms before the last."""
    if name.startswith(FIXED):
        return PAGE_ORDER.index(BEST_FIXED) - 0.5, ""
    place = PAGE_ORDER.index(name) if name in PAGE_ORDER else len(PAGE_ORDER) - 1.5
    return place, name


def arm_rows(results: Mapping[str, Any]) -> list[ResultRow]:
    """Return the accuracies of all arms in per cent, RL first."""
    arms = results.get("arms", {})
    return [
        ResultRow(
            arm_label(name),
            100 * arms[name]["accuracy"],
            _percent(arms[name].get("ci95")),
            ARMS[name].description if name in PAGE_ORDER else "",
            bold=name == SUBJECT,
        )
        for name in sorted(arms, key=_page_order)
    ]


def contrast_rows(results: Mapping[str, Any], *, declared: bool | None = None) -> list[ResultRow]:
    """Return differences in points; those declared beforehand have a p adjusted by Holm.

    Args:
        results: One split's part of ``results.json``.
        declared: Only the declared ones, only the others, or all.
    """
    return [
        ResultRow(
            contrast_label(c["a"], c["b"]),
            100 * c["difference"],
            _percent(c.get("ci95")),
            p=c.get("p"),
            p_holm=c.get("p_holm"),
            bold="p_holm" in c,
        )
        for c in results.get("contrasts", ())
        if declared is None or ("p_holm" in c) == declared
    ]


HEADROOM = {
    "learnable": "a rule fitted by cross-validation: what features can tell",
    "cross_fitted": "gates picked by half of the samples, scored by the other half",
    "placebo_adjusted": "hindsight less what picking among samples of one gate gains",
    "hindsight": "best gate of each problem in hindsight: an upper bound",
    "noise_floor": "what chance flips alone would show in hindsight",
}
"""Every estimate of headroom with its description, in the order of the page."""


def headroom_rows(results: Mapping[str, Any]) -> list[ResultRow]:
    """Return gains over the best fixed gate in points: RL's, what can be learned, what exists."""
    arms, stored = results.get("arms", {}), results.get("headroom", {})
    if not {BEST_FIXED, ORACLE} <= arms.keys():
        return []
    best_fixed = arms[BEST_FIXED]["accuracy"]
    rows = []
    if SUBJECT in arms:
        gain = 100 * (arms[SUBJECT]["accuracy"] - best_fixed)
        ends = next(
            (
                _percent(c.get("ci95"))
                for c in results.get("contrasts", ())
                if (c["a"], c["b"]) == (SUBJECT, BEST_FIXED)
            ),
            None,
        )
        rows.append(
            ResultRow(arm_label(SUBJECT), gain, ends, "what the controllers gained", bold=True)
        )
    for key, description in HEADROOM.items():
        estimate = stored.get(key)
        if isinstance(estimate, Mapping):
            if key == "learnable" and estimate.get("upper95") is not None:
                upper = 100 * estimate["upper95"]
                description = f"{description}; at most {upper:+.1f} (one-sided 95 %)"
            value, ends = 100 * estimate["value"], _percent(estimate.get("ci95"))
            rows.append(ResultRow(key.replace("_", " "), value, ends, description))
        elif key == "hindsight":
            gain = 100 * (arms[ORACLE]["accuracy"] - best_fixed)
            rows.append(ResultRow(key, gain, None, description))
    return rows


def _percent(ends: Any) -> tuple[float, float] | None:
    """Return an interval in per cent; ``None`` if it is absent or open."""
    if not ends or None in ends:
        return None
    return 100 * float(ends[0]), 100 * float(ends[1])
