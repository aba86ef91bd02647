"""What goes into the engine, and what it says of its progress."""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from jroute.generate.shapes import Program


class Request(NamedTuple):
    """One prompt to complete.

    Attributes:
        tokens: The prompt.
        gate: Mixing strength per layer; ``None`` for the plain model.
        seed: Of its randomness.
        problem: Name of the problem, folded into the seed if given.
        sample: Number of the sample, folded into the seed if not 0.
        shared: How many leading tokens it has in common with others, as by few-shot examples: they
            are read once for each gate.
        limit: Most new tokens; 0 takes that of the decoding, which it may not pass.
    """

    tokens: Sequence[int]
    gate: Float[np.ndarray, " layers"] | None
    seed: int = 0
    problem: str = ""
    sample: int = 0
    shared: int = 0
    limit: int = 0

    @property
    def row_seed(self) -> int:
        """Seed of seed, problem and sample; the seed itself without the others."""
        if not self.problem and not self.sample:
            return self.seed
        text = f"{self.seed}/{self.sample}/{self.problem}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


class Progress(NamedTuple):
    """How far a run is; counts only, and the programs it may compile.

    Attributes:
        finished: Completions told so far.
        total: Requests.
        tokens: Tokens generated.
        steps: Decode steps run.
        active_steps: Unfinished rows, summed over the steps.
        slots: Rows of a step.
        programs: What is compiled at most.
    """

    finished: int
    total: int
    tokens: int
    steps: int
    active_steps: int
    slots: int
    programs: tuple[Program, ...]

    @property
    def occupancy(self) -> float:
        """Share of the slots' steps that generated a token."""
        return self.active_steps / (self.slots * self.steps) if self.steps else 0.0
