"""What the engine takes, a model and requests, and the counts of its progress."""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from transformers import PreTrainedTokenizerFast

from jroute.generate.decoding import Decoding
from jroute.generate.shapes import Program
from jroute.model.config import DecoderConfig
from jroute.model.params import Params
from jroute.routing.mixing import Routing


class FrozenModel(NamedTuple):
    """A model to generate with.

    Attributes:
        params: Parameters, with ``blocks`` stacked.
        config: Shape of the model.
        tokenizer: Its tokenizer.
        end_token_ids: Tokens that end a completion.
        routing: Streams that gates act on; ``None`` allows no gates.
    """

    params: Params
    config: DecoderConfig
    tokenizer: PreTrainedTokenizerFast
    end_token_ids: Sequence[int]
    routing: Routing | None = None


class Request(NamedTuple):
    """One prompt to complete.

    Attributes:
        tokens: The prompt.
        gate: Mixing strength per layer, a row of the batch's array; ``None`` for the plain model.
        seed: Seed of its randomness.
        problem: Name of the problem, folded into the seed if given.
        sample: Number of the sample, folded into the seed if not 0.
        shared: How many leading tokens it has in common with others, as by few-shot examples: the
            model reads them once per gate.
        limit: Largest number of new tokens, at most that of the decoding; 0 takes that of the
            decoding.
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
        """Hash of seed, problem and sample; the seed itself without the others."""
        if not self.problem and not self.sample:
            return self.seed
        text = f"{self.seed}/{self.sample}/{self.problem}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1

    @property
    def prefix_length(self) -> int:
        """Number of leading tokens read once for many; never the whole prompt."""
        return min(self.shared, len(self.tokens) - 1)

    def max_new_tokens(self, decoding: Decoding) -> int:
        """Return the largest number of new tokens."""
        return self.limit or decoding.max_new_tokens


def any_gated(requests: Sequence[Request]) -> bool:
    """Return whether a request has a gate, so that the run needs the routing."""
    return any(request.gate is not None for request in requests)


class Progress(NamedTuple):
    """Progress of a run: counts only, and the programs it may compile.

    Attributes:
        finished: Completions returned so far.
        total: Number of requests.
        tokens: Tokens generated.
        steps: Decode steps run.
        active_steps: Unfinished rows, summed over the steps.
        slots: Rows of a step.
        programs: All programs that the run may compile.
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
