"""Decoding: how tokens are chosen and when a completion ends."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from jroute.generate.sampling import Greedy, MinP, Strategy, Temperature, TopK, TopP
from jroute.utils.errors import UserError
from jroute.utils.inputs import check_text
from jroute.utils.keys import Keys, keys
from jroute.utils.ranges import Range, check_ranges, whole

StopReason = Literal["end_token", "stop_string", "length"]


RANGES = {
    "temperature": Range(1e-5, 1000.0, zero=True),
    "top_k": whole(0),
    "top_p": Range(0.0, 1.0, above=True),
    "max_new_tokens": whole(1),
    "min_p": Range(0.0, 1.0),
    "min_new_tokens": whole(0),
}
"""The numbers of a decoding. Below the least temperature, logits could overflow."""


@dataclass(frozen=True)
class Decoding:
    """The decoding of a whole experiment; every arm uses the same.

    Attributes:
        temperature: 0 is greedy; otherwise logits are divided by it and sampled from.
        top_k: Keep the k most likely tokens; 0 keeps all.
        top_p: Keep the smallest set of most likely tokens whose probability reaches p.
        max_new_tokens: Largest number of tokens of a completion.
        stop: Strings that end a completion; they are cut from its text.
        min_p: Keep tokens at least ``min_p`` times as likely as the most likely one; 0 keeps all.
        min_new_tokens: Number of tokens before which no end token is chosen and no stop string
            counts.
    """

    stored_keys: ClassVar[Keys] = keys(
        "temperature", "top_k", "top_p", "max_new_tokens", "stop", "min_p", "min_new_tokens"
    )

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    max_new_tokens: int = 64
    stop: tuple[str, ...] = ()
    min_p: float = 0.0
    min_new_tokens: int = 0

    def __post_init__(self) -> None:
        check_ranges("decoding", self, RANGES)
        if self.min_new_tokens > self.max_new_tokens:
            raise UserError(
                f"decoding.min_new_tokens is {self.min_new_tokens}; it must be from 0 to "
                f"max_new_tokens, {self.max_new_tokens}"
            )
        if not isinstance(self.stop, (tuple, list)):
            raise UserError(f"decoding.stop is {self.stop!r:.60}; give a list of texts")
        for text in self.stop:
            check_text(text, "decoding.stop")
        if "" in self.stop:
            raise UserError(
                "decoding.stop holds an empty string, which would end every completion; remove it"
            )

    @property
    def strategies(self) -> tuple[Strategy, ...]:
        """Temperature, top-k, top-p, min-p, in this order; or greedy alone."""
        if self.temperature == 0:
            return (Greedy(),)
        strategies: list[Strategy] = []
        if self.temperature != 1:
            strategies.append(Temperature(self.temperature))
        if self.top_k:
            strategies.append(TopK(self.top_k))
        if self.top_p < 1:
            strategies.append(TopP(self.top_p))
        if self.min_p > 0:
            strategies.append(MinP(self.min_p))
        return tuple(strategies)


@dataclass(frozen=True)
class Completion:
    """The completion of one prompt.

    Attributes:
        tokens: Ids as generated, with the end token if one was reached, or up to the token that
            completed a stop string.
        text: Decoded without special tokens, cut before the first stop string.
        stop_reason: ``end_token``, ``stop_string`` or ``length`` (cut off).
        logprobs: Natural-log probability of each token, if requested.
        margin: The smallest margin by which one of the tokens was chosen, if requested (see
            ``jroute.generate.sampling.Chosen``); below ``NEAR_TIE`` rounding could have decided.
    """

    tokens: tuple[int, ...]
    text: str
    stop_reason: StopReason
    logprobs: tuple[float, ...] | None = None
    margin: float | None = None


NEAR_TIE = 1e-5
"""Margins below this are near-ties in float32: from shape to shape logits move by about 2e-6."""
