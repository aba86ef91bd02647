"""From what every arm chose to the numbers of ``results.json`` and the table on the screen.

No number is without its count of items, nor without an interval where it has one.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from jroute.arms.supervised import shuffled_values
from jroute.statistics import contrasts as statistics
from jroute.statistics.contrasts import Contrast
from jroute.statistics.headroom import Headroom, flip_chance, noise_gain
from jroute.statistics.verdict import DECLARED, RIVALS, Evidence, points, verdict
from jroute.utils.errors import UserError

SAME_SEEDS = ("rl_modal", "shuffled_prompt")
"""Arms made of RL's own seeds: they are compared with RL seed by seed."""

SAMPLED = {"cross_fitted": "cross-fitted", "placebo_adjusted": "placebo-adjusted"}
"""What several samples of every cell say of headroom."""

DETERMINISTIC = ("baseline", "supervised", "supervised_features", "exact_gradient", "best_fixed")
"""One gate per prompt and no seeds: what McNemar's test is defined against."""


@dataclass(frozen=True)
class JudgeConfig:
    """How arms are judged.

    Attributes:
        replicates: Bootstrap resamples.
        seed: Of the resampling and of the folds.
        delta: Difference of accuracies that matters; declared before outcomes are seen.
        folds: Folds of the learnable headroom's cross-validation.
    """

    replicates: int = 10_000
    seed: int = 0
    delta: float = 0.01
    folds: int = 5

    def __post_init__(self) -> None:
        """Refuses settings that judge nothing."""
        if self.replicates < 100:
            raise UserError(
                f"judge.replicates is {self.replicates}; an interval needs at least 100"
            )
        if not 0 < self.delta < 1:
            raise UserError(
                f"judge.delta is {self.delta:g}; give a difference of accuracies, 0.01 for a point"
            )
        if self.folds < 2:
            raise UserError(f"judge.folds is {self.folds}; cross-validation needs at least 2")


def fixed_name(gate: float) -> str:
    """Name of a fixed arm: ``fixed:0.5``."""
    return f"fixed:{gate:g}"


def arm_columns(
    problems: int,
    gates: Sequence[float],
    *,
    best_fixed: int,
    supervised: Int[np.ndarray, " problems"],
    rl: Int[np.ndarray, "seeds problems"],
    selected: int,
    rl_modal: Int[np.ndarray, " seeds"] | None = None,
    random_reward: Int[np.ndarray, "other_seeds problems"] | None = None,
    **choices: Int[np.ndarray, " problems"],
) -> dict[str, Int[np.ndarray, "..."]]:
    """Which gate every arm that decides for one gives to every problem.

    Args:
        problems: How many there are.
        gates: The gate of each column.
        best_fixed: Column that was best on train.
        supervised: Column the supervised arm chose for each problem.
        rl: Column each seed's controller chose.
        selected: The seed that was best on validation.
        rl_modal: Column that each seed's controller chose most often on train.
        random_reward: Column each controller chose that was trained on random rewards.
        **choices: Columns that further deterministic arms chose, by name.

    Returns:
        Columns, ``[problems]`` per arm, ``[seeds, problems]`` for those of several seeds.
    """
    arms = {
        "baseline": np.full(problems, list(gates).index(0.0)),
        **{fixed_name(gate): np.full(problems, i) for i, gate in enumerate(gates)},
        "best_fixed": np.full(problems, best_fixed),
        "supervised": supervised,
        **choices,
        "rl": rl,
        "rl_selected": rl[selected],
    }
    if rl_modal is not None:
        arms["rl_modal"] = np.repeat(rl_modal[:, None], problems, axis=1)
    if random_reward is not None:
        arms["random_reward"] = random_reward
    return arms


def arm_values(
    correct: Float[np.ndarray, "problems gates"], columns: Mapping[str, Int[np.ndarray, "..."]]
) -> dict[str, Float[np.ndarray, "..."]]:
    """What every arm scored on every problem.

    Args:
        correct: 1 where a gate solves a problem.
        columns: As ``arm_columns`` gives them.

    Returns:
        ``[problems]`` per arm, ``[seeds, problems]`` for those of several seeds. ``random`` and
        ``shuffled_prompt`` are their expectations.
    """
    rows = np.arange(len(correct))
    return {
        **{name: correct[rows, chosen] for name, chosen in columns.items()},
        "random": correct.mean(axis=1),
        "shuffled_prompt": shuffled_values(correct, columns["rl"]),
        "oracle": correct.max(axis=1),
    }


def gate_counts(
    columns: Mapping[str, Int[np.ndarray, "..."]], gates: int
) -> dict[str, list[list[int]]]:
    """How many problems each seed of an arm gave each gate to: arm -> ``[seeds, gates]``."""
    return {
        name: [np.bincount(row, minlength=gates).tolist() for row in np.atleast_2d(chosen)]
        for name, chosen in columns.items()
    }


def judge(
    arms: Mapping[str, Float[np.ndarray, "..."]],
    config: JudgeConfig,
    headroom: Headroom | None = None,
    flips: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Accuracies with 95 % intervals, the contrasts of RL with every other arm, the verdict.

    Args:
        arms: As ``arm_values`` gives them.
        config: Resampling and margin.
        headroom: Of these problems; without it there is no verdict.
        flips: Cells that were made twice and came out right only once: ``share``, ``ci95``, ``n``.

    Returns:
        The part of ``results.json`` that belongs to one split: ``n``, ``arms``, ``contrasts``
        (the declared ones first), ``shares``, ``mcnemar``, ``gaps``, ``resolvable_gap``,
        ``gate_sensitive``, ``headroom``, ``verdict``.
    """
    sampling = {"replicates": config.replicates, "seed": config.seed}

    def contrast(a: str, b: str) -> Contrast:
        same = a == "rl" and b in SAME_SEEDS
        return statistics.paired_contrast(arms[a], arms[b], same_seeds=same, **sampling)

    found = {name: statistics.accuracy(values, **sampling) for name, values in arms.items()}
    rest = [a for a in arms if a not in ("rl", "rl_selected", "oracle") and "fixed:" not in a]
    rl = {name: contrast("rl", name) for name in dict.fromkeys((*DECLARED, *rest, "oracle"))}
    adjusted = statistics.holm([rl[name].p for name in DECLARED])
    contrasts = [{"a": "rl", "b": name, **dataclasses.asdict(c)} for name, c in rl.items()]
    for one, p in zip(contrasts, adjusted, strict=False):
        one["p_holm"] = p
    others = _present(arms, *RIVALS, "exact_gradient")
    rivals = {name: contrast(name, "best_fixed") for name in others}
    constant = contrast("best_fixed", "baseline")
    contrasts += [{"a": a, "b": "best_fixed", **dataclasses.asdict(c)} for a, c in rivals.items()]
    contrasts.append({"a": "best_fixed", "b": "baseline", **dataclasses.asdict(constant)})
    results: dict[str, Any] = {
        "n": found["baseline"].n,
        "arms": {name: dataclasses.asdict(a) for name, a in found.items()},
        "contrasts": contrasts,
        "shares": _shares(arms, sampling),
        "mcnemar": _mcnemar(arms),
        "gaps": _gaps(arms),
        "gate_sensitive": _sensitive(arms),
    }
    results["resolvable_gap"] = results["gaps"][-1]["just_significant"]
    if headroom is not None:
        evidence = Evidence(rl, rivals, constant, headroom, config.delta)
        results["headroom"] = _headroom(headroom, arms, flips)
        results["verdict"] = dataclasses.asdict(verdict(evidence))
    return _finite(results)


def _sensitive(arms: Mapping[str, Float[np.ndarray, "..."]]) -> dict[str, Any]:
    """Share of problems that some gates of the grid solve and others do not."""
    fixed = np.stack([values for name, values in arms.items() if name.startswith("fixed:")])
    found = statistics.accuracy(np.ptp(fixed, axis=0) > 0)
    return {"share": found.accuracy, "ci95": found.ci95, "n": found.n}


def gain(contrast: Contrast) -> dict[str, Any]:
    """A contrast as ``headroom`` tells it: ``value`` is its difference."""
    told = dataclasses.asdict(contrast)
    return {"value": told.pop("difference"), **told}


def _headroom(
    headroom: Headroom,
    arms: Mapping[str, Float[np.ndarray, "..."]],
    flips: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Learnable and hindsight headroom, and what flips alone would show in hindsight."""
    told: dict[str, Any] = {
        "learnable": gain(headroom.learnable),
        "hindsight": gain(headroom.hindsight),
        "folds": headroom.folds,
    }
    if flips is not None:
        gates = sum(name.startswith("fixed:") for name in arms)
        solved = float(arms["best_fixed"].mean())
        value, *ends = (
            noise_gain(flip_chance(share), solved, gates)
            for share in (flips["share"], *flips["ci95"])
        )
        told["noise_floor"] = {"value": value, "ci95": ends, "n": flips["n"]}
    return told


def _finite(value: Any) -> Any:
    """As JSON has it: tuples are lists, and what is not finite is null."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _present(arms: Mapping[str, Any], *names: str) -> list[str]:
    return [name for name in names if name in arms]


def _shares(
    arms: Mapping[str, Float[np.ndarray, "..."]], sampling: Mapping[str, int]
) -> dict[str, Any]:
    """RL's and supervised's part of the exact-gradient policy's gain over the best fixed gate."""
    if "exact_gradient" not in arms:
        return {}
    whole, base = arms["exact_gradient"], arms["best_fixed"]
    return {
        name: dataclasses.asdict(
            statistics.share_of_gain(arms[name], whole, base, **sampling)  # type: ignore[arg-type]
        )
        for name in _present(arms, "rl", "supervised_features", "supervised")
    }


def _mcnemar(arms: Mapping[str, Float[np.ndarray, "..."]]) -> list[dict[str, Any]]:
    """Exact tests of the selected seed, acting by argmax, against the deterministic arms."""
    names = [name for name in arms if name in DETERMINISTIC or name.startswith("fixed:")]
    return [
        {
            "a": "rl_selected",
            "b": name,
            **dataclasses.asdict(statistics.mcnemar_exact(arms["rl_selected"], arms[name])),
        }
        for name in names
    ]


def _gaps(arms: Mapping[str, Float[np.ndarray, "..."]]) -> list[dict[str, Any]]:
    """What the set can resolve, at the discordance of the selected seed with the declared arms."""
    selected, found = arms["rl_selected"], []
    for name in DECLARED:
        discordance = float(np.mean(selected != arms[name]))
        gaps = {
            "just_significant": statistics.resolvable_gap(len(selected), discordance),
            "power_80": statistics.detectable_gap(len(selected), discordance),
        }
        found.append({"b": name, "discordance": discordance, "n": len(selected), **gaps})
    return found


def table(results: Mapping[str, Any], title: str) -> str:
    """One split's arms, contrasts, headroom and verdict as text."""
    lines = [f"{title}: n = {results['n']} problems", f"{'arm':<20}{'accuracy':>9}  95 % interval"]
    for name, arm in results["arms"].items():
        low, high = arm["ci95"]
        lines.append(
            f"{name:<20}{100 * arm['accuracy']:>8.1f}%  [{100 * low:.1f}, {100 * high:.1f}]"
        )
    count = sum("p_holm" in c for c in results["contrasts"])
    declared = {2: "two", 4: "four"}.get(count, count)
    head = f"{'rl minus':<20}{'points':>9}  95 % interval    p (Holm over the {declared} declared)"
    lines.append(head)
    for c in results["contrasts"]:
        if c["a"] != "rl":
            continue
        low, high = c["ci95"]
        holm = f" ({c['p_holm']:.2g})" if "p_holm" in c else ""
        interval = f"[{100 * low:+.1f}, {100 * high:+.1f}]"
        lines.append(f"{c['b']:<20}{100 * c['difference']:>+9.1f}  {interval}  {c['p']:.2g}{holm}")
    return "\n".join([*lines, *_closing(results)])


def _closing(results: Mapping[str, Any]) -> list[str]:
    """Shares, reach, headroom and verdict, one line each."""
    lines = []
    for name, share in results.get("shares", {}).items():
        if None in share["ci95"]:  # there is no gain to reach a share of
            continue
        low, high = share["ci95"]
        lines.append(
            f"{name} reaches {share['share']:.0%} [{low:.0%}, {high:.0%}] of the exact-gradient "
            f"policy's gain over the best fixed gate (n = {share['n']})"
        )
    for gap in results.get("gaps", [])[-1:]:
        reach = [gap["just_significant"], gap["power_80"]]
        just, power = ("none" if g is None else f"{100 * g:.1f} points" for g in reach)
        lines.append(
            f"smallest gap at {100 * gap['discordance']:.1f} % discordance, n = {gap['n']}: "
            f"{just} just significant, {power} with 80 % power (exact McNemar)"
        )
    if "gate_sensitive" in results:  # which live rollouts cannot tell
        sensitive = results["gate_sensitive"]
        low, high = (100 * end for end in sensitive["ci95"])
        lines.append(
            f"gates decide {sensitive['share']:.1%} [{low:.1f}, {high:.1f}] of the problems "
            f"(n = {sensitive['n']})"
        )
    if "headroom" in results:
        found, told = results["headroom"], results["verdict"]
        lines += [
            f"headroom over the best fixed gate: learnable {_points(found['learnable'])}, at most "
            f"{100 * found['learnable']['upper95']:+.1f} (one-sided 95 %, {found['folds']} folds); "
            f"hindsight {_points(found['hindsight'])}, an upper bound that noise inflates",
            *(
                f"{name} headroom {_points(found[key])}"
                for key, name in SAMPLED.items()
                if key in found
            ),
        ]
        if "noise_floor" in found:
            low, high = (100 * end for end in found["noise_floor"]["ci95"])
            lines.append(
                f"flips alone would show {100 * found['noise_floor']['value']:.2f} points "
                f"[{low:.2f}, {high:.2f}] in hindsight ({found['noise_floor']['n']} cells made "
                "twice)"
            )
        lines += [
            f"verdict: {told['name']}: {told['sentence']}",
            *(f"  {sentence}" for sentence in told["beside"]),
        ]
    return lines


def _points(told: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in told.items() if key not in ("value", "ci95")}
    return points(Contrast(difference=told["value"], ci95=tuple(told["ci95"]), **rest))
