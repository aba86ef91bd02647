"""The reward of an answer: exact match, plus optional shaping."""

from dataclasses import dataclass
from typing import ClassVar

from jroute.tasks.answers import ParsedAnswer, is_correct
from jroute.utils.keys import Keys, keys
from jroute.utils.ranges import Range, check_ranges


@dataclass(frozen=True)
class RewardConfig:
    """Shaping on top of exact match; off by default, because the claim is about exact match.

    Customary amounts are 0.05 and 0.01. The stability penalty needs a model, so
    ``jroute.outcomes.backends.Shaping`` subtracts it, not ``reward``.

    Attributes:
        parseable_bonus: Added when the status is ``ok``, whether or not the answer is right.
        length_penalty: Subtracted in proportion to the share of the token limit that was used:
            a completion that uses all of it pays the whole penalty.
        stability_penalty: Subtracted in proportion to how far the gate moves the trunk of the
            prompt, relative to its norm and on average over tokens and mixing sites.
    """

    stored_keys: ClassVar[Keys] = keys("parseable_bonus", "length_penalty", "stability_penalty")

    parseable_bonus: float = 0.0
    length_penalty: float = 0.0
    stability_penalty: float = 0.0

    def __post_init__(self) -> None:
        """Refuse negative amounts: the signs are part of the definition."""
        check_ranges("reward", self, dict.fromkeys(self.stored_keys, Range(0.0)))


def reward(
    parsed: ParsedAnswer,
    gold: str,
    *,
    tokens: int,
    max_tokens: int,
    config: RewardConfig,
) -> float:
    """Return the reward of an answer: exact match plus optional shaping.

    ``correct + parseable_bonus · [status is ok] - length_penalty · tokens / max_tokens``, where
    ``correct`` is 1 or 0. Without shaping the reward is exactly 1.0 or 0.0.

    Args:
        parsed: From ``parse_answer``.
        gold: The problem's gold answer.
        tokens: Number of generated tokens, the end token included.
        max_tokens: The decoding's limit on them.
        config: The shaping.

    Raises:
        ValueError: ``tokens`` is not between 0 and ``max_tokens``.
    """
    if not 0 <= tokens <= max_tokens or max_tokens < 1:
        raise ValueError(f"{tokens} tokens are not between 0 and the limit of {max_tokens}")
    value = float(is_correct(parsed, gold))
    if parsed.status == "ok":
        value += config.parseable_bonus
    return value - config.length_penalty * tokens / max_tokens
