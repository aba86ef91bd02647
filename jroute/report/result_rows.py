"""Rows of numbers with intervals: arms, contrasts, headroom; in per cent and points."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

ARMS = {
    "rl": "PPO controller, mean over seeds",
    "rl_selected": "the seed that was best on validation",
    "rl_modal": "the gate PPO chooses most often, for every prompt",
    "exact_gradient": "exact gradient on the table: PPO's ceiling",
    "supervised": "predicts every gate's reward from prompt length",
    "supervised_features": "the same from all that PPO sees",
    "shuffled_prompt": "RL's gates dealt out to other prompts, in expectation",
    "random_reward": "PPO paid at random",
    "random": "a gate drawn evenly, in expectation",
    "baseline": "the plain model, gate 0",
    "best_fixed": "the fixed gate that was best on train",
    "oracle": "best gate of each problem in hindsight: a bound, no rule",
}
"""What every arm is, in the order they are shown; ``fixed:G`` stand before ``best_fixed``."""


@dataclass(frozen=True)
class ResultRow:
    """One number with its 95 % interval.

    Attributes:
        name: What it is of.
        value: In per cent or points.
        ci95: Its interval, if there is one.
        about: A few words on what that is.
        p: Two-sided.
        p_holm: The same, adjusted over the declared contrasts.
        bold: Whether it is what the page is about.
    """

    name: str
    value: float
    ci95: tuple[float, float] | None = None
    about: str = ""
    p: float | None = None
    p_holm: float | None = None
    bold: bool = False

    @property
    def said(self) -> str:
        """The row as words."""
        low_high = f" ({self.ci95[0]:.1f} to {self.ci95[1]:.1f})" if self.ci95 else ""
        return f"{self.name} {self.value:.1f}{low_high}"


def words(name: str) -> str:
    """An arm's name to read: ``best_fixed`` is "best fixed"."""
    return {"rl": "RL", "rl_selected": "RL, one seed", "rl_modal": "RL's modal gate"}.get(
        name, name.replace("_", " ").replace("fixed:", "fixed ")
    )


def arms(results: Mapping[str, Any]) -> list[ResultRow]:
    """Accuracies of all arms in per cent, RL first."""
    known = list(ARMS)
    fixed = known.index("best_fixed")

    def place(name: str) -> tuple[float, str]:
        if name.startswith("fixed:"):
            return fixed - 0.5, ""
        return (float(known.index(name)) if name in known else len(known) - 1.5), name

    found = results.get("arms", {})
    return [
        ResultRow(
            words(name),
            100 * found[name]["accuracy"],
            _percent(found[name].get("ci95")),
            ARMS.get(name, ""),
            bold=name == "rl",
        )
        for name in sorted(found, key=place)
    ]


def contrasts(results: Mapping[str, Any], *, declared: bool | None = None) -> list[ResultRow]:
    """Differences in points; those declared beforehand have a p adjusted by Holm.

    Args:
        results: One split's part of ``results.json``.
        declared: Only the declared ones, only the others, or all.
    """
    return [
        ResultRow(
            f"{words(c['a'])} − {words(c['b'])}",
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
"""What is known of headroom, in the order it is shown."""


def headroom(results: Mapping[str, Any]) -> list[ResultRow]:
    """Gains over the best fixed gate in points: what RL took, what can be learnt, what there is."""
    found = results.get("arms", {})
    if not {"best_fixed", "oracle"} <= found.keys():
        return []
    base = found["best_fixed"]["accuracy"]
    against = next(
        (c for c in results.get("contrasts", ()) if (c["a"], c["b"]) == ("rl", "best_fixed")), None
    )
    rows = []
    if "rl" in found:
        gain = 100 * (found["rl"]["accuracy"] - base)
        ends = _percent(against.get("ci95")) if against else None
        rows.append(ResultRow("RL", gain, ends, "what the controllers gained", bold=True))
    stored = results.get("headroom", {})
    for key, about in HEADROOM.items():
        if isinstance(stored.get(key), Mapping):
            one = stored[key]
            if key == "learnable" and one.get("upper95") is not None:
                about += f"; at most {100 * one['upper95']:+.1f} (one-sided 95 %)"
            rows.append(ResultRow(words(key), 100 * one["value"], _percent(one.get("ci95")), about))
        elif key == "hindsight":
            rows.append(ResultRow(key, 100 * (found["oracle"]["accuracy"] - base), None, about))
    return rows


def _percent(ends: Any) -> tuple[float, float] | None:
    if not ends or None in ends:
        return None
    return 100 * float(ends[0]), 100 * float(ends[1])
