"""The results of a calibration as text, for the screen."""

from collections.abc import Mapping, Sequence
from typing import Any

from jroute.report.text import results_text


def calibration_text(results: Mapping[str, Any]) -> str:
    """Return the tables of every part of a calibration.

    Args:
        results: As ``jroute.experiment.calibration.calibrate`` gives them.
    """
    lines = []
    for part in ("positive", "plain"):
        for model in results.get(part, ()):
            lines += _model(part, model)
    if null := results.get("null"):
        lines += _null(null)
    if doses := results.get("dose"):
        lines += _doses(doses)
    return "\n".join(lines)


def _model(part: str, model: Mapping[str, Any]) -> list[str]:
    lines = []
    for split, results in model["splits"].items():
        lines.append(f"\n{part}, {model['source']}, {results_text(results, split)}")
        lines += [
            f"  {'yes' if passed else 'NO '}  {name.replace('_', ' ')}"
            for name, passed in model.get("passes", {}).get(split, {}).items()
        ]
    return lines


def _null(null: Mapping[str, Any]) -> list[str]:
    low, high = (100 * end for end in null["rl_minus_best_fixed_range95"])
    room_low, room_high = (100 * end for end in null["learnable_range95"])
    return [
        f"\nnull: {null['permutations']} permutations, n = {null['n']} problems",
        f"  'RL > best fixed on train' declared {null['declared']} times "
        f"({null['declared_allowed']} allowed)",
        f"  RL minus best fixed {100 * null['rl_minus_best_fixed_mean']:+.2f} points, 95 % of "
        f"permutations in [{low:+.1f}, {high:+.1f}]",
        f"  learnable headroom {100 * null['learnable_mean']:+.2f} points, 95 % in "
        f"[{room_low:+.1f}, {room_high:+.1f}], found {null['learnable_found']} times; "
        f"hindsight {100 * null['hindsight']:+.1f} in all of them",
    ]


def _doses(doses: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        f"\ndose: {doses[0]['tables']} tables each, n = {doses[0]['n']} problems",
        f"{'planted':>8}{'estimated':>11}  {'range':<15}{'learnable':>10}{'covered':>9}  verdicts",
    ]
    for dose in doses:
        low, high = (100 * end for end in dose["rl_minus_best_fixed_range"])
        verdicts = ", ".join(f"{name}: {count}" for name, count in dose["verdicts"].items())
        spread = f"[{low:+.1f}, {high:+.1f}]"
        lines.append(
            f"{100 * dose['gain']:>8g}{100 * dose['rl_minus_best_fixed_mean']:>+11.2f}  "
            f"{spread:<15}{100 * dose['learnable_mean']:>+10.2f}"
            f"{dose['covers']:>6}/{dose['tables']}  {verdicts}"
        )
    return lines
