"""From what every arm scores to the numbers of ``results.json``.

Every number comes with its count of items, and with its interval where it has one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from jroute.statistics.config import JudgeConfig
from jroute.statistics.contrasts import Contrast, paired_contrast, share_of_gain
from jroute.statistics.headroom import Headroom, flip_chance, noise_gain
from jroute.statistics.holm import holm
from jroute.statistics.intervals import accuracy
from jroute.statistics.mcnemar import detectable_gap, mcnemar_exact, resolvable_gap
from jroute.statistics.roles import ArmRoles
from jroute.statistics.verdict import Evidence, verdict
from jroute.utils.keys import stored

ArmValues = Mapping[str, Float[np.ndarray, "..."]]
"""What every arm scores: arm -> ``[problems]`` or ``[seeds, problems]``."""


@dataclass(frozen=True)
class _Comparison:
    """Arms on the same problems, how they are resampled, and the parts they play."""

    values: ArmValues
    roles: ArmRoles
    config: JudgeConfig

    @property
    def sampling(self) -> dict[str, int]:
        return {"replicates": self.config.replicates, "seed": self.config.seed}

    def contrast(self, a: str, b: str) -> Contrast:
        """Return arm ``a`` minus arm ``b``."""
        same = a == self.roles.subject and b in self.roles.same_seeds
        return paired_contrast(self.values[a], self.values[b], same_seeds=same, **self.sampling)

    def present(self, *names: str) -> list[str]:
        """Return the names of the arms that exist."""
        return [name for name in names if name in self.values]

    @property
    def grid(self) -> list[str]:
        """Names of the arms of the grid."""
        return [name for name in self.values if name.startswith(self.roles.grid_prefix)]


def arm_results(
    values: ArmValues,
    config: JudgeConfig,
    roles: ArmRoles,
    headroom: Headroom | None = None,
    flips: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return accuracies with 95 % intervals, RL's contrasts with every other arm, and the verdict.

    Args:
        values: Scores of every arm.
        config: Resampling and margin.
        roles: The parts that arms play.
        headroom: Headroom of these problems; without it there is no verdict.
        flips: Cells that were generated twice and are correct only once: ``share``, ``ci95``,
            ``n``.

    Returns:
        The part of ``results.json`` that belongs to one split: ``n``, ``arms``, ``contrasts``
        (the declared ones first), ``shares``, ``mcnemar``, ``gaps``, ``resolvable_gap``,
        ``gate_sensitive``, ``headroom``, ``verdict``.
    """
    arms = _Comparison(values, roles, config)
    accuracies = {name: accuracy(scores, **arms.sampling) for name, scores in values.items()}
    rl = {name: arms.contrast(roles.subject, name) for name in _opponents(arms)}
    choosing = arms.present(*roles.rivals, roles.ceiling)
    over_fixed = {name: arms.contrast(name, roles.best_fixed) for name in choosing}
    constant = arms.contrast(roles.best_fixed, roles.baseline)
    gaps = _gaps(arms)
    results: dict[str, Any] = {
        "n": accuracies[roles.baseline].n,
        "arms": {name: stored(scores) for name, scores in accuracies.items()},
        "contrasts": [
            *_rl_rows(rl, roles),
            *(_row(name, roles.best_fixed, contrast) for name, contrast in over_fixed.items()),
            _row(roles.best_fixed, roles.baseline, constant),
        ],
        "shares": _shares(arms),
        "mcnemar": _mcnemar(arms),
        "gaps": gaps,
        "gate_sensitive": _gate_sensitive(arms),
        "resolvable_gap": gaps[-1]["just_significant"],
    }
    if headroom is not None:
        rivals = {name: over_fixed[name] for name in arms.present(*roles.rivals)}
        evidence = Evidence(rl, roles, rivals, constant, headroom, config.delta)
        results["headroom"] = _headroom(headroom, arms, flips)
        results["verdict"] = stored(verdict(evidence))
    return _as_json(results)


def as_gain(contrast: Contrast) -> dict[str, Any]:
    """Return a contrast as ``results.json`` has headroom: ``value`` is its difference."""
    fields = stored(contrast)
    return {"value": fields.pop("difference"), **fields}


def _opponents(arms: _Comparison) -> list[str]:
    """Return the arms that RL is compared with: the declared ones first, the bound last."""
    roles = arms.roles
    without = (roles.subject, roles.selected, roles.bound, *arms.grid)
    others = [name for name in arms.values if name not in without]
    return list(dict.fromkeys((*roles.declared, *others, roles.bound)))


def _row(a: str, b: str, contrast: Contrast) -> dict[str, Any]:
    return {"a": a, "b": b, **stored(contrast)}


def _rl_rows(rl: Mapping[str, Contrast], roles: ArmRoles) -> list[dict[str, Any]]:
    """Return RL's contrasts; the declared ones carry Holm's p-values."""
    adjusted = holm([rl[name].p for name in roles.declared])
    p_holm = dict(zip(roles.declared, adjusted, strict=True))
    return [
        _row(roles.subject, name, contrast) | ({"p_holm": p_holm[name]} if name in p_holm else {})
        for name, contrast in rl.items()
    ]


def _gate_sensitive(arms: _Comparison) -> dict[str, Any]:
    """Return the share of problems that some gates of the grid solve and others do not."""
    scores = np.stack([arms.values[name] for name in arms.grid])
    share = accuracy(np.ptp(scores, axis=0) > 0)
    return {"share": share.accuracy, "ci95": share.ci95, "n": share.n}


def _headroom(
    headroom: Headroom, arms: _Comparison, flips: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return learnable and hindsight headroom, and what flips alone would show in hindsight."""
    gains: dict[str, Any] = {
        "learnable": as_gain(headroom.learnable),
        "hindsight": as_gain(headroom.hindsight),
        "folds": headroom.folds,
    }
    if flips is not None:
        solved = float(arms.values[arms.roles.best_fixed].mean())
        value, *ends = (
            noise_gain(flip_chance(share), solved, len(arms.grid))
            for share in (flips["share"], *flips["ci95"])
        )
        gains["noise_floor"] = {"value": value, "ci95": ends, "n": flips["n"]}
    return gains


def _shares(arms: _Comparison) -> dict[str, Any]:
    """Return RL's and the rivals' shares of the ceiling's gain over the best fixed gate."""
    values, roles = arms.values, arms.roles
    if roles.ceiling not in values:
        return {}
    whole, base = values[roles.ceiling], values[roles.best_fixed]
    return {
        name: stored(share_of_gain(values[name], whole, base, **arms.sampling))
        for name in arms.present(roles.subject, *reversed(roles.rivals))
    }


def _mcnemar(arms: _Comparison) -> list[dict[str, Any]]:
    """Return exact tests of the selected seed, acting by argmax, against deterministic arms."""
    values, selected = arms.values, arms.roles.selected
    against = {*arms.roles.deterministic, *arms.grid}
    return [
        {"a": selected, "b": name, **stored(mcnemar_exact(values[selected], scores))}
        for name, scores in values.items()
        if name in against
    ]


def _gaps(arms: _Comparison) -> list[dict[str, Any]]:
    """Return the gaps the set resolves, at the selected seed's discordance with declared arms."""
    selected = arms.values[arms.roles.selected]
    n, gaps = len(selected), []
    for name in arms.roles.declared:
        discordance = float(np.mean(selected != arms.values[name]))
        reach = {
            "just_significant": resolvable_gap(n, discordance),
            "power_80": detectable_gap(n, discordance),
        }
        gaps.append({"b": name, "discordance": discordance, "n": n, **reach})
    return gaps


def _as_json(value: Any) -> Any:
    """Convert a tree to JSON values: tuples become lists, and non-finite numbers null."""
    if isinstance(value, Mapping):
        return {key: _as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
