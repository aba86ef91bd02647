"""The verdict table: what may be said of an experiment is the first row that applies.

The table is fixed before any outcome is seen, with its margin δ, a difference of accuracies that
would matter. *Significant* always means better, with p at most 0.05, adjusted by Holm within the
four declared contrasts; *bounded* means that a one-sided 95 % bound lies below δ. Not significant
is not absent: without a bound the verdict is ``underpowered``, never "no effect". A bound limits
what can be learned from this many problems: more of them may teach what these do not.

``gain`` comes first and requires the four declared contrasts alone, so that more data can only make
it likelier. That a supervised model of the same features does as well is then stated beside it: the
gain is real, and where every cell of train can be generated RL is not needed to get it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from jroute.statistics.contrasts import Contrast
from jroute.statistics.headroom import Headroom
from jroute.statistics.holm import holm
from jroute.statistics.roles import ArmRoles
from jroute.utils.keys import Keys, keys

DELTA = 0.01
"""Difference of accuracies that matters: one point."""

LEVEL = 0.05


@dataclass(frozen=True)
class Evidence:
    """What a verdict rests on, all of it on the same items.

    Attributes:
        rl: RL minus each of the declared arms and of the rivals that were trained, by name.
        roles: The parts that arms play; the p-values of the declared ones are adjusted together
            (Holm).
        rivals: Each arm that chooses by the prompt without RL, minus the best fixed gate.
        constant: The best fixed gate minus the baseline.
        headroom: Hindsight and learnable headroom.
        delta: The margin.
    """

    rl: Mapping[str, Contrast]
    roles: ArmRoles
    rivals: Mapping[str, Contrast]
    constant: Contrast
    headroom: Headroom
    delta: float = DELTA

    @property
    def adjusted(self) -> dict[str, float]:
        """Holm's p-values of the declared contrasts."""
        p_values = holm([self.rl[name].p for name in self.roles.declared])
        return dict(zip(self.roles.declared, p_values, strict=True))

    @property
    def over_best_fixed(self) -> Contrast:
        """RL minus the best fixed gate."""
        return self.rl[self.roles.best_fixed]

    @property
    def matching(self) -> list[str]:
        """Rivals that RL does not beat by δ: the bound of RL minus the rival lies below it."""
        return [
            name for name in self.rivals if name in self.rl and self.rl[name].upper95 < self.delta
        ]


def _better(contrast: Contrast) -> bool:
    return contrast.difference > 0 and contrast.p <= LEVEL


def _gain(e: Evidence) -> bool:
    better = all(e.rl[b].difference > 0 and p <= LEVEL for b, p in e.adjusted.items())
    return better and e.over_best_fixed.difference >= e.delta


def _features_suffice(e: Evidence) -> bool:
    return any(
        _better(e.rivals[name]) and e.rivals[name].difference >= e.delta for name in e.matching
    )


def _constant_suffices(e: Evidence) -> bool:
    return _better(e.constant) and e.over_best_fixed.upper95 < e.delta


def _bounded(e: Evidence) -> bool:
    return e.headroom.learnable.upper95 < e.delta and e.over_best_fixed.upper95 < e.delta


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        name: Name of the verdict.
        when: The condition in words.
        holds: The condition.
        means: What the verdict says.
    """

    name: str
    when: str
    holds: Callable[[Evidence], bool]
    means: str


TABLE = (
    Row(
        "gain",
        "RL is significantly better than each of the four declared arms, and than the best fixed "
        "gate by at least δ",
        _gain,
        "choosing the gate by the prompt with RL makes the model better",
    ),
    Row(
        "features suffice, RL not needed",
        "not the above; a supervised arm is significantly better than the best fixed gate, by at "
        "least δ, and RL minus that arm is bounded below δ",
        _features_suffice,
        "choosing the gate by the prompt makes the model better, and it does not take RL",
    ),
    Row(
        "a constant gate suffices",
        "not the above; the best fixed gate is significantly better than the baseline, and RL "
        "minus the best fixed gate is bounded below δ",
        _constant_suffices,
        "one gate for all prompts makes the model better; RL's choosing adds less than δ",
    ),
    Row(
        "bounded below δ",
        "not the above; learnable headroom and RL minus the best fixed gate are bounded below δ",
        _bounded,
        "from so many problems rules of this kind learn less than δ",
    ),
    Row(
        "underpowered",
        "none of the above",
        lambda _: True,
        "these items cannot tell a gain of δ from none",
    ),
)
"""The verdict table; the first row that holds is the verdict."""


@dataclass(frozen=True)
class Verdict:
    """The verdict, what it means, and what must be stated beside it.

    Attributes:
        name: Name of the row.
        sentence: What the row says, with the margin.
        beside: Further sentences that belong to it.
        n: Number of items.
        delta: The margin.
    """

    stored_keys: ClassVar[Keys] = keys("name", "sentence", "beside", "n", "delta")

    name: str
    sentence: str
    beside: tuple[str, ...]
    n: int
    delta: float


def verdict(evidence: Evidence) -> Verdict:
    """Return the first row of ``TABLE`` that holds."""
    row = next(row for row in TABLE if row.holds(evidence))
    beside = []
    if row.name == "gain":
        beside = [
            f"{name} is not beaten by δ: RL minus it is {points(evidence.rl[name])}, so RL is not "
            "needed where all cells of train can be generated"
            for name in evidence.matching
        ]
    declared = {name: evidence.rl[name] for name in evidence.roles.declared}
    worse = [name for name, rl in declared.items() if rl.difference < 0 and rl.p <= LEVEL]
    beside += [f"RL is worse than {name}: {points(declared[name])}" for name in worse]
    n, delta = evidence.constant.n, evidence.delta
    sentence = f"{row.means} (δ = {100 * delta:g} point{'' if delta == 0.01 else 's'})"
    return Verdict(row.name, sentence, tuple(beside), n, delta)


def points(contrast: Contrast) -> str:
    """Return a contrast in words: ``+1.2 points [+0.3, +2.1] (n = 1000)``."""
    low, high = contrast.ci95
    return (
        f"{100 * contrast.difference:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}] "
        f"(n = {contrast.n})"
    )
