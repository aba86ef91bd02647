"""The figures as a table, and against the goals."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from scripts.bench.peers.sides import OURS, SIDES

Figures = Mapping[str, Any]


def best(figures: Figures, allowed: Callable[[str], bool]) -> str | None:
    """Return the fastest allowed side whose tokens are not wrong."""
    rates = {
        label: side["tokens_per_second"]["median"]
        for label, side in figures["sides"].items()
        if allowed(label) and (side["tokens"] is None or side["tokens"]["right"])
    }
    return max(rates, key=lambda label: rates[label]) if rates else None


def _on_jax(label: str) -> bool:
    return label in SIDES and label != OURS and SIDES[label].on_jax


def _peer(label: str) -> bool:
    return label.split(" (")[0] in SIDES and not label.startswith(OURS)


def _torch(label: str) -> bool:
    return label == "transformers"


def _static(label: str) -> bool:
    return label == f"{OURS} (static)"


GOALS: tuple[tuple[str, Callable[[str], bool], str, float], ...] = (
    ("equal 1", _peer, "the best peer", 1.0),
    ("equal 16", _on_jax, "the best peer on JAX", 1.5),
    ("equal 16", _torch, "transformers", 2.5),
    ("equal 64", _peer, "the best peer", 2.0),
    ("ragged", _static, "our own static batches", 2.0),
    ("ragged", _peer, "the best peer", 3.0),
    ("first", _on_jax, "the best peer on JAX", 1.0),
)
"""What the 42 M shape is to reach on a CPU: part, rival, and how many times as fast as it."""


def goals(parts: Figures) -> list[dict[str, Any]]:
    """Compare with each goal that the measured parts can decide.

    A goal of 1 is "not behind": it is met when the interval reaches 1.
    """
    figures = {f"equal {batch}": each for batch, each in _batches(parts.get("equal", {}))}
    figures |= {name: parts[name] for name in ("ragged", "first") if name in parts}
    lines = []
    for part, allowed, against, goal in GOALS:
        if part not in figures:
            continue
        each = figures[part]
        if part == "first":
            ratios = each["ours_is_faster_by"]
            rivals = [label for label in ratios if allowed(label)]
            rival = min(rivals, key=lambda label: ratios[label]["ratio"]) if rivals else None
        else:
            ratios, rival = each["ours_is_faster_by"], best(each, allowed)
        if rival is None or rival not in ratios:
            continue
        ratio = ratios[rival]
        reached = ratio["ratio"]
        if goal == 1 and ratio["interval"]:
            reached = ratio["interval"][1]
        lines.append(
            {
                "part": part,
                "against": f"{against} ({rival})" if rival not in against else against,
                "goal": goal,
                "ratio": ratio["ratio"],
                "interval": ratio["interval"],
                "met": reached >= goal,
            }
        )
    return lines


def _batches(equal: Figures) -> Iterator[tuple[str, Figures]]:
    return ((name, each) for name, each in equal.items() if isinstance(each, dict))


def table(result: Figures) -> str:
    """Return the main figures as text."""
    lines, parts = [], result["parts"]
    model = result["settings"].get("model", {})
    if model.get("gguf_quantisation"):
        shape = result["settings"]["shape"]
        lines.append(f"{shape}, its weights dequantised from {model['gguf_quantisation']}")
    for name in ("equal", "ragged", "theta", "ablations"):
        each = parts.get(name, {})
        inner = each.get("batches", each) if name == "ablations" else each
        tables = _batches(inner) if name in ("equal", "ablations") else [("", each)]
        for batch, figures in tables:
            if "sides" in figures:
                lines += _sides(f"{name} {batch}".strip(), figures)
    if "first" in parts:
        lines.append("first: seconds from a process's start to its first completions")
        for label, each in parts["first"]["seconds"].items():
            lines.append(
                f"  {label:24} {each['until_first_result']['median']:8.1f}  "
                f"(loading {each['loading']['median']:.1f}, "
                f"first call {each['first_call']['median']:.1f}, "
                f"second call {each['second_call']['median']:.1f})"
                + _ratio(parts["first"]["ours_is_faster_by"].get(label))
            )
    for batch, each in parts.get("floor", {}).get("batches", {}).items():
        lines.append(
            f"floor {batch}: {1e3 * each['step_seconds']['median']:.3f} ms a step, "
            f"{each['share_of_floor']['median']:.0%} of the floor"
        )
    for name, why in result["not_measured"].items():
        lines.append(f"{name}: {why.strip().splitlines()[-1]}")
    for goal in result.get("goals", []):
        interval = "" if goal["interval"] is None else " [{:.2f}, {:.2f}]".format(*goal["interval"])
        lines.append(
            f"goal {goal['part']}: {goal['ratio']:.2f}{interval} times {goal['against']}, "
            f"wanted {goal['goal']:g}: {'met' if goal['met'] else 'missed'}"
        )
    return "\n".join(lines)


def _sides(title: str, figures: Figures) -> list[str]:
    lines = [f"{title}: tokens/s, and how many times faster ours is"]
    for label, side in figures["sides"].items():
        rate, tokens = side["tokens_per_second"], side["tokens"]
        words = "tokens not checked"
        if tokens is not None:
            words = "tokens right" if tokens["right"] else f"{tokens['wrong_rows']} ROWS WRONG"
            words += f", {tokens['near_ties']} near-ties" if tokens["near_ties"] else ""
        lines.append(
            f"  {label:24} {rate['median']:8.1f} [{rate['min']:.1f}, {rate['max']:.1f}]"
            f"  {words}" + _ratio(figures["ours_is_faster_by"].get(label))
        )
    for label, why in figures["failed"].items():
        lines.append(f"  {label:24} failed: {why.strip().splitlines()[-1]}")
    return lines


def _ratio(ratio: Figures | None) -> str:
    if ratio is None:
        return ""
    interval = ratio["interval"]
    return f"  {ratio['ratio']:.2f}" + (
        "" if interval is None else f" [{interval[0]:.2f}, {interval[1]:.2f}]"
    )
