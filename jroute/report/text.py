"""The results of a run as text, for the screen."""

from collections.abc import Mapping
from typing import Any

from jroute.arms.registry import SUBJECT
from jroute.statistics.contrasts import Contrast
from jroute.statistics.verdict import points

SAMPLED = {"cross_fitted": "cross-fitted", "placebo_adjusted": "placebo-adjusted"}
"""Headroom estimates that need several samples per cell."""


def print_results(results: Mapping[str, Any]) -> None:
    """Print the results of every judged split."""
    print(f"\n{results_text(results, results['split'])}")
    for split, split_results in results["other_splits"].items():
        print(f"\n{results_text(split_results, split)}")
    print()


def results_text(results: Mapping[str, Any], title: str) -> str:
    """Return the arms, contrasts, headroom and verdict of one split as text.

    Args:
        results: The part of ``results.json`` that belongs to the split.
        title: How the first line names it.
    """
    lines = [f"{title}: n = {results['n']} problems", f"{'arm':<20}{'accuracy':>9}  95 % interval"]
    for name, arm in results["arms"].items():
        low, high = arm["ci95"]
        lines.append(
            f"{name:<20}{100 * arm['accuracy']:>8.1f}%  [{100 * low:.1f}, {100 * high:.1f}]"
        )
    lines += _contrasts(results)
    lines += _shares(results)
    lines += _gaps(results)
    if "gate_sensitive" in results:  # unknown with live rollouts
        sensitive = results["gate_sensitive"]
        low, high = (100 * end for end in sensitive["ci95"])
        lines.append(
            f"gates decide {sensitive['share']:.1%} [{low:.1f}, {high:.1f}] of the problems "
            f"(n = {sensitive['n']})"
        )
    if "headroom" in results:
        lines += _headroom(results["headroom"])
        verdict = results["verdict"]
        lines.append(f"verdict: {verdict['name']}: {verdict['sentence']}")
        lines += [f"  {sentence}" for sentence in verdict["beside"]]
    return "\n".join(lines)


def _contrasts(results: Mapping[str, Any]) -> list[str]:
    """Return RL's contrasts, the head first."""
    contrasts = results["contrasts"]
    count = sum("p_holm" in contrast for contrast in contrasts)
    declared = {2: "two", 4: "four"}.get(count, count)
    title = f"{SUBJECT} minus"
    lines = [f"{title:<20}{'points':>9}  95 % interval    p (Holm over the {declared} declared)"]
    for contrast in contrasts:
        if contrast["a"] != SUBJECT:
            continue
        low, high = contrast["ci95"]
        holm = f" ({contrast['p_holm']:.2g})" if "p_holm" in contrast else ""
        lines.append(
            f"{contrast['b']:<20}{100 * contrast['difference']:>+9.1f}  "
            f"[{100 * low:+.1f}, {100 * high:+.1f}]  {contrast['p']:.2g}{holm}"
        )
    return lines


def _shares(results: Mapping[str, Any]) -> list[str]:
    """Return what part of the exact-gradient policy's gain each arm reaches."""
    lines = []
    for name, share in results.get("shares", {}).items():
        if None in share["ci95"]:  # no gain to take a share of
            continue
        low, high = share["ci95"]
        lines.append(
            f"{name} reaches {share['share']:.0%} [{low:.0%}, {high:.0%}] of the exact-gradient "
            f"policy's gain over the best fixed gate (n = {share['n']})"
        )
    return lines


def _gaps(results: Mapping[str, Any]) -> list[str]:
    """Return the smallest gap to the best fixed gate that the problems resolve."""
    lines = []
    for gap in results.get("gaps", [])[-1:]:
        reach = [gap["just_significant"], gap["power_80"]]
        just, power = ("none" if g is None else f"{100 * g:.1f} points" for g in reach)
        lines.append(
            f"smallest gap at {100 * gap['discordance']:.1f} % discordance, n = {gap['n']}: "
            f"{just} just significant, {power} with 80 % power (exact McNemar)"
        )
    return lines


def _headroom(headroom: Mapping[str, Any]) -> list[str]:
    """Return learnable and hindsight headroom, and what noise alone would show."""
    learnable, hindsight = headroom["learnable"], headroom["hindsight"]
    lines = [
        f"headroom over the best fixed gate: learnable {_gain(learnable)}, at most "
        f"{100 * learnable['upper95']:+.1f} (one-sided 95 %, {headroom['folds']} folds); "
        f"hindsight {_gain(hindsight)}, an upper bound that noise inflates",
        *(
            f"{label} headroom {_gain(headroom[name])}"
            for name, label in SAMPLED.items()
            if name in headroom
        ),
    ]
    if floor := headroom.get("noise_floor"):
        low, high = (100 * end for end in floor["ci95"])
        lines.append(
            f"flips alone would show {100 * floor['value']:.2f} points "
            f"[{low:.2f}, {high:.2f}] in hindsight ({floor['n']} cells made twice)"
        )
    return lines


def _gain(gain: Mapping[str, Any]) -> str:
    fields = dict(gain)
    difference, ends = fields.pop("value"), tuple(fields.pop("ci95"))
    return points(Contrast(difference=difference, ci95=ends, **fields))
