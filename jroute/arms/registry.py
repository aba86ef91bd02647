"""The registry of arms: the rules from a prompt to a gate that are compared on the same problems.

``ARMS`` is the one list of them, in the order in which tables and commands name them. Everything
that depends on the kind of an arm (what it needs, who trains it, which tests it enters) is a field
of its entry or a query of this module; no other module spells out a list of arms.

``baseline``, ``fixed:G`` and ``random`` learn nothing. ``best_fixed``, ``supervised``,
``supervised_features`` and ``exact_gradient`` learn from every cell of train, PPO from the cells
that it samples; validation chooses hyperparameters, stopping times and the selected seed. Only
``oracle`` reads the cells that it is judged on.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from jroute.routing.gate import check_gates
from jroute.statistics.roles import ArmRoles
from jroute.utils.errors import UserError

Role = Literal["subject", "rival", "control", "ceiling", "bound"]
"""The part an arm plays in the statistics.

``subject`` is RL itself; a ``rival`` chooses by the prompt without RL; a ``control`` must gain
nothing from the prompt; ``ceiling`` is what PPO estimates, without sampling; ``bound`` is not a
rule but an upper bound. Declared arms have a ``contrast_order``.
"""

Need = Literal["table", "training", "controls", "features"]
"""What an arm needs to choose a gate.

``table``: it learns from the rewards of all gates, so a run with live rollouts has no such arm.
``training``: what ``jroute.train`` saves. ``controls``: what judging trains. ``features``: the
features of the prompt.
"""

Trainer = Literal["nobody", "training", "judging"]
"""Who trains an arm: nobody, ``jroute.train``, or judging (``jroute.evaluate``)."""

Seeds = Literal["none", "own", "rl"]
"""The seeds of an arm: none, seeds of its own, or those of RL, which pair up with RL's."""

FIXED = "fixed:"
"""Prefix of the arms that give one gate to every prompt: ``fixed:0.5``."""

BASELINE, BEST_FIXED, RANDOM, ORACLE = "baseline", "best_fixed", "random", "oracle"
SUPERVISED, SUPERVISED_FEATURES = "supervised", "supervised_features"
EXACT_GRADIENT = "exact_gradient"
SUBJECT, SELECTED, RL_MODAL = "rl", "rl_selected", "rl_modal"
RANDOM_REWARD, SHUFFLED_PROMPT = "random_reward", "shuffled_prompt"
"""Names of the arms that code treats by name; ``SUBJECT`` is RL with all its seeds, ``SELECTED``
the seed of it that was best on validation."""


@dataclass(frozen=True)
class Arm:
    """An arm and what follows from its kind.

    Attributes:
        name: Name in commands, configurations and results.
        label: Name to read, in figures and tables.
        description: What it does, in one line.
        role: The part it plays in the statistics, if any.
        needs: What it needs to choose a gate.
        trained_by: Who trains it.
        gate: The gate it gives to every prompt; ``None`` if the arm decides.
        gate_per_prompt: Whether it gives one gate to a prompt, so that it can be generated live and
            evaluated by lm-eval; ``rl`` then stands for the selected seed.
        seeds: Where its seeds come from.
        expectation: Whether a table judges it by its exact expectation instead of a draw.
        headline: Whether ``jroute.compare`` lists it by default.
        unavailable_live: What it would need a table for; empty for an arm that runs with live
            rollouts have.
        contrast_order: Place among the declared arms, those that RL was declared beforehand to be
            compared with; ``None`` if it is none of them.
        page_order: Place on the report's page; ``None`` for fixed gates, which stand before
            ``best_fixed``.
        cost_order: Place among the arms that a figure shows at the cost of the whole train table;
            ``None`` if it is none of them.
    """

    name: str
    label: str
    description: str
    role: Role | None = None
    needs: frozenset[Need] = frozenset()
    trained_by: Trainer = "nobody"
    gate: float | None = None
    gate_per_prompt: bool = True
    seeds: Seeds = "none"
    expectation: bool = False
    headline: bool = False
    unavailable_live: str = ""
    contrast_order: int | None = None
    page_order: int | None = None
    cost_order: int | None = None

    @property
    def deterministic(self) -> bool:
        """Whether it scores 0 or 1 on a problem: one gate per prompt, no seeds, no expectation."""
        return self.gate_per_prompt and self.seeds == "none" and not self.expectation

    @property
    def reads_prompt(self) -> bool:
        """Whether it looks at the prompt to choose its gate."""
        return "features" in self.needs


def fixed_name(gate: float) -> str:
    """Return the name of the arm that gives a gate to every prompt: ``fixed:0.5``."""
    return f"{FIXED}{gate:g}"


def fixed(gate: float, name: str = "") -> Arm:
    """Return the arm that gives one gate to every prompt.

    Args:
        gate: The gate.
        name: As the user spelled it; by default ``fixed_name(gate)``.
    """
    name = name or fixed_name(gate)
    return Arm(
        name,
        label=name.replace(FIXED, "fixed "),
        description=f"gate {gate:g} for every prompt",
        gate=gate,
    )


_REWARDS = "the rewards of all gates on all train problems"

_ENTRIES = (
    Arm(
        BASELINE,
        label="baseline",
        description="the plain model, gate 0",
        gate=0.0,
        headline=True,
        contrast_order=3,
        page_order=10,
    ),
    dataclasses.replace(fixed(0.5), contrast_order=1),
    Arm(
        BEST_FIXED,
        label="best fixed",
        description="the fixed gate that was best on train",
        needs=frozenset({"table", "training"}),
        trained_by="training",
        headline=True,
        unavailable_live="the best gate on all train problems",
        contrast_order=4,
        page_order=11,
        cost_order=3,
    ),
    Arm(
        RANDOM,
        label="random",
        description="a gate drawn evenly, in expectation",
        role="control",
        expectation=True,
        unavailable_live="the expectation over all gates of every problem",
        page_order=9,
    ),
    Arm(
        SUPERVISED,
        label="supervised",
        description="predicts every gate's reward from prompt length",
        role="rival",
        needs=frozenset({"table", "training", "features"}),
        trained_by="training",
        unavailable_live=_REWARDS,
        contrast_order=2,
        page_order=5,
        cost_order=1,
    ),
    Arm(
        SUPERVISED_FEATURES,
        label="supervised features",
        description="predicts every gate's reward from all that PPO sees",
        role="rival",
        needs=frozenset({"table", "training", "controls", "features"}),
        trained_by="judging",
        headline=True,
        unavailable_live=_REWARDS,
        page_order=6,
    ),
    Arm(
        EXACT_GRADIENT,
        label="exact gradient",
        description="exact gradient on the table: PPO's ceiling",
        role="ceiling",
        needs=frozenset({"table", "training", "controls", "features"}),
        trained_by="judging",
        unavailable_live=_REWARDS,
        page_order=4,
        cost_order=2,
    ),
    Arm(
        SUBJECT,
        label="RL",
        description="PPO controller, mean over seeds",
        role="subject",
        needs=frozenset({"training", "features"}),
        trained_by="training",
        seeds="rl",
        headline=True,
        page_order=1,
    ),
    Arm(
        SELECTED,
        label="RL, one seed",
        description="the seed that was best on validation",
        role="subject",
        needs=frozenset({"training", "features"}),
        trained_by="training",
        gate_per_prompt=False,  # under the name of rl
        seeds="rl",
        page_order=2,
    ),
    Arm(
        RL_MODAL,
        label="RL's modal gate",
        description="the gate PPO chooses most often, for every prompt",
        role="control",
        needs=frozenset({"table", "training", "controls"}),
        trained_by="judging",
        gate_per_prompt=False,
        seeds="rl",
        page_order=3,
    ),
    Arm(
        RANDOM_REWARD,
        label="random reward",
        description="PPO trained on rewards dealt to cells at random",
        role="control",
        needs=frozenset({"table", "training", "controls", "features"}),
        trained_by="judging",
        gate_per_prompt=False,
        seeds="own",
        page_order=8,
    ),
    Arm(
        SHUFFLED_PROMPT,
        label="shuffled prompt",
        description="RL's gates dealt out to other prompts, in expectation",
        role="control",
        needs=frozenset({"table", "training", "features"}),
        trained_by="training",
        gate_per_prompt=False,
        seeds="rl",
        expectation=True,
        page_order=7,
    ),
    Arm(
        ORACLE,
        label="oracle",
        description="best gate of each problem in hindsight: a bound, no rule",
        role="bound",
        needs=frozenset({"table"}),
        gate_per_prompt=False,
        unavailable_live="the best gate of every problem in hindsight",
        page_order=12,
    ),
)

ARMS: Mapping[str, Arm] = MappingProxyType({arm.name: arm for arm in _ENTRIES})
"""Every arm by name, in the order of tables and commands; of the fixed gates only the declared one,
see ``parse_arm``."""


def _ordered(place: Callable[[Arm], int | None]) -> tuple[str, ...]:
    """Return the names of the arms that have a place, in the order of their places."""
    places = {arm.name: order for arm in ARMS.values() if (order := place(arm)) is not None}
    return tuple(sorted(places, key=places.__getitem__))


DECLARED = _ordered(lambda arm: arm.contrast_order)
"""The declared arms in the order of the contrasts in ``results.json``."""

PAGE_ORDER = _ordered(lambda arm: arm.page_order)
"""The order of the report's page; ``fixed:G`` stand before ``best_fixed``."""

TRAINED_ON_TABLE = _ordered(lambda arm: arm.cost_order)
"""The arms that a figure shows at the cost of the whole train table."""


def parse_arm(name: str) -> Arm:
    """Return the arm of a name; ``fixed:G`` takes any gate.

    Raises:
        UserError: No arm has this name, or ``fixed:`` has no number behind it.
    """
    if not isinstance(name, str):
        raise UserError(f"an arm is named {name!r:.60}; give a text such as fixed:0.5")
    if name in ARMS:
        return ARMS[name]
    if not name.startswith(FIXED):
        raise UserError(f"no arm is named {name!r:.80}; arms are {', '.join(selectable())}")
    try:
        gate = float(name.removeprefix(FIXED))
    except ValueError:
        raise UserError(
            f"arm {name!r:.80} has no number after 'fixed:'; write e.g. fixed:0.5"
        ) from None
    check_gates(gate, f"arm {name!r:.80}")
    return fixed(gate, name)


def names(condition: Callable[[Arm], bool]) -> tuple[str, ...]:
    """Return the names of the arms that meet a condition, in the order of ``ARMS``."""
    return tuple(arm.name for arm in ARMS.values() if condition(arm))


def selectable(*, table: bool = True) -> tuple[str, ...]:
    """Return the names a user may give: ``baseline``, ``fixed:G``, ``best_fixed`` and so on.

    Args:
        table: Whether a table has the rewards of all gates; not so with live rollouts.
    """
    selected = names(lambda arm: arm.gate_per_prompt and (table or "table" not in arm.needs))
    return tuple(f"{FIXED}G" if name.startswith(FIXED) else name for name in selected)


def generable(*, live: bool = False) -> tuple[str, ...]:
    """Return the arms that give one gate to a prompt, so that they can be generated.

    Args:
        live: Only those that are judged in runs with live rollouts.
    """
    return names(lambda arm: arm.gate_per_prompt and not (live and arm.unavailable_live))


def reading() -> tuple[str, ...]:
    """Return the arms that read the prompt to give it its gate."""
    return names(lambda arm: arm.gate_per_prompt and arm.reads_prompt)


def from_controls() -> tuple[str, ...]:
    """Return the arms that give one gate to a prompt and are trained by judging."""
    return names(lambda arm: arm.gate_per_prompt and arm.trained_by == "judging")


def deterministic() -> tuple[str, ...]:
    """Return the arms that McNemar's test is defined against; every ``fixed:G`` is another."""
    return names(lambda arm: arm.deterministic)


def same_seeds() -> tuple[str, ...]:
    """Return the arms made of RL's seeds, which are compared with RL seed by seed."""
    return names(lambda arm: arm.seeds == "rl" and arm.role != "subject")


def rivals() -> tuple[str, ...]:
    """Return the arms that choose by the prompt without RL."""
    return names(lambda arm: arm.role == "rival")


def roles() -> ArmRoles:
    """Return the parts that arms play in the statistics of an outcome table."""
    (ceiling,) = names(lambda arm: arm.role == "ceiling")
    (bound,) = names(lambda arm: arm.role == "bound")
    return ArmRoles(
        declared=DECLARED,
        rivals=rivals(),
        deterministic=deterministic(),
        same_seeds=same_seeds(),
        subject=SUBJECT,
        selected=SELECTED,
        baseline=BASELINE,
        best_fixed=BEST_FIXED,
        ceiling=ceiling,
        bound=bound,
        grid_prefix=FIXED,
    )


def choosing() -> tuple[str, ...]:
    """Return the arms whose gates are drawn side by side: RL first, the weakest rival last."""
    subjects = names(lambda arm: arm.reads_prompt and arm.role == "subject")
    others = names(lambda arm: arm.reads_prompt and arm.deterministic)
    return (*subjects, *reversed(others))


def headline() -> tuple[str, ...]:
    """Return the arms that ``jroute.compare`` lists by default."""
    return names(lambda arm: arm.headline)


def unavailable_live() -> dict[str, str]:
    """Return the arms that live rollouts do not have and what a table would give them."""
    missing = [arm for arm in ARMS.values() if arm.unavailable_live]
    missing.sort(key=lambda arm: arm.role != "bound")  # results.json names bounds first
    return {arm.name: arm.unavailable_live for arm in missing}
