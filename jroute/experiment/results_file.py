"""``results.json``, which ``judging`` writes: its schema and its reader.

Whatever reads the file (report, comparison, Python) sees what the schema says; a key that the
schema does not know passes through.
"""

from pathlib import Path
from typing import Annotated, Any

from annotated_types import Len
from pydantic import Field, model_validator

from jroute.utils.digested import read_digested
from jroute.utils.json_files import Number, OpenRecord, Record

Count = Annotated[int, Field(ge=0, le=10**15)]
Amount = Annotated[float, Field(ge=0, le=1e15)]
Ends = Annotated[list[Number], Len(2, 2)]
OpenEnds = Annotated[list[Number | None], Len(2, 2)]
Name = Annotated[str, Field(pattern=r"^[\w.-]{0,200}$")]
"""A fingerprint, which is also the name of a folder."""


class Score(OpenRecord):
    """What an arm scores."""

    accuracy: Number
    ci95: Ends


class Difference(OpenRecord):
    """An arm minus another; ``p_holm`` if it was declared."""

    a: str
    b: str
    difference: Number
    ci95: Ends
    p: Number
    p_holm: Number = 1.0


class Gain(Record):
    """A gain over the best fixed gate."""

    value: Number
    ci95: Ends
    p: Number
    n: Count
    lower95: Number
    upper95: Number


class Part(OpenRecord):
    """A share of ``n`` cells or problems."""

    share: Number
    ci95: Ends
    n: Count


class ShareOfGain(OpenRecord):
    """An arm's share of the ceiling's gain; open if the ceiling may gain nothing."""

    share: Number | None
    ci95: OpenEnds
    n: Count

    @model_validator(mode="after")
    def _closed(self) -> "ShareOfGain":
        if self.share is None and None not in self.ci95:
            raise ValueError("has an interval and no share")
        return self


class McNemarTest(OpenRecord):
    """The selected seed against an arm, problem by problem."""

    b: str
    only_a: Count
    only_b: Count
    p: Number


class Gap(OpenRecord):
    """The smallest gaps to an arm that the problems resolve; ``None`` if none is."""

    b: str
    discordance: Number
    n: Count
    just_significant: Number | None
    power_80: Number | None


class NoiseGain(OpenRecord):
    """What flips alone show in hindsight."""

    value: Number
    ci95: Ends
    n: Count


class HeadroomResult(OpenRecord):
    """Estimates of headroom."""

    learnable: Gain
    hindsight: Gain
    folds: Count
    noise_floor: NoiseGain | None = None
    cross_fitted: Gain | None = None
    placebo_adjusted: Gain | None = None


class VerdictResult(OpenRecord):
    """The verdict."""

    name: str
    sentence: str
    beside: list[str]


class SplitResults(OpenRecord):
    """The part of one split."""

    n: Count
    arms: dict[str, Score]
    contrasts: list[Difference]
    shares: dict[str, ShareOfGain] = Field(default_factory=dict)
    mcnemar: list[McNemarTest] = Field(default_factory=list)
    gaps: list[Gap] = Field(default_factory=list)
    gate_sensitive: Part | None = None
    resolvable_gap: Number | None = None
    headroom: HeadroomResult | None = None
    verdict: VerdictResult | None = None
    gates_chosen: dict[str, list[list[Count]]] = Field(default_factory=dict)
    not_available: dict[str, str] = Field(default_factory=dict)
    items: str = ""

    @model_validator(mode="after")
    def _whole(self) -> "SplitResults":
        if (self.headroom is None) != (self.verdict is None):
            raise ValueError("has a headroom or a verdict without the other")
        return self


class Flips(OpenRecord):
    """How many replicates differ from their cells."""

    correct: Part
    text: Part


class Cost(OpenRecord):
    """What generating took on a kind of machine."""

    cells: Amount
    tokens: Amount
    seconds: Amount


class Results(SplitResults):
    """The whole file: the primary split, the others, and what they are of."""

    split: str
    other_splits: dict[str, SplitResults]
    gates: list[Number] = Field(default_factory=list)
    parts: Count = 1
    seeds: Count = 0
    train_cells: Count | None = None
    best_fixed_gate: Number | None = None
    selected_seed: Count | None = None
    cells_generated: Count | None = None
    rewards_sampled_by_each_rl_seed: Count | None = None
    noise_floor: Flips | None = None
    generation: dict[str, Cost] = Field(default_factory=dict)
    model: str = ""
    outcomes: Name = ""
    training: Name = ""

    @model_validator(mode="after")
    def _gates_of_the_grid(self) -> "Results":
        for part in (self, *self.other_splits.values()):
            for arm, seeds in part.gates_chosen.items():
                if not seeds or {len(counts) for counts in seeds} != {len(self.gates)}:
                    raise ValueError(f"has no count for each gate and seed of {arm:.60}")
        return self


def read_results(file: Path) -> dict[str, Any]:
    """Return the content of a run's ``results.json`` as it was written, but for its digest.

    Raises:
        UserError: It is missing or damaged.
    """
    remedy = f"judge the run again with python -m jroute.evaluate --run {file.parent}"
    return read_digested(file, Results, remedy).model_dump(exclude_unset=True)
