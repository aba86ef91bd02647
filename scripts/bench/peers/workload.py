"""Prompts and the tokens to generate for each; a seed gives the same workload everywhere."""

from typing import NamedTuple

import numpy as np

MEAN_NEW, MOST_NEW = 300, 1024
"""Completion lengths of the ragged workload before scaling: geometric, cut off."""

LOG_MEAN_PROMPT, LOG_DEVIATION_PROMPT = 4.05, 0.35
"""Of a normal distribution that fits the logarithms of the lengths of GSM8K's test questions.

In tokens of Qwen3 they have the median 57 and run from 23 to 188.
"""


class Workload(NamedTuple):
    """Prompts as token ids, and the tokens to generate for each."""

    prompts: list[list[int]]
    new: list[int]

    def describe(self) -> dict[str, float]:
        """Return the counts and lengths."""
        lengths = [len(row) for row in self.prompts]
        return {
            "requests": len(self.new),
            "prompt_tokens": sum(lengths),
            "shortest_prompt": min(lengths),
            "longest_prompt": max(lengths),
            "new_tokens": sum(self.new),
            "mean_new": sum(self.new) / len(self.new),
            "longest_new": max(self.new),
        }


def equal(batch: int, prompt: int, new: int, vocabulary: int, seed: int = 0) -> Workload:
    """Return ``batch`` random prompts of equal length and equal limit."""
    ids = np.random.default_rng([seed, batch]).integers(3, vocabulary, (batch, prompt))
    return Workload(ids.tolist(), [new] * batch)


def ragged(requests: int, scale: float, vocabulary: int, seed: int = 0) -> Workload:
    """Return random prompts as long as GSM8K's questions, with completions of geometric length.

    Args:
        requests: Number of prompts.
        scale: All lengths are divided by it, and rounded up.
        vocabulary: Size of the vocabulary.
        seed: Of lengths and ids.
    """
    rng = np.random.default_rng([seed, 1])
    prompts = np.exp(rng.normal(LOG_MEAN_PROMPT, LOG_DEVIATION_PROMPT, requests))
    new = np.minimum(rng.geometric(1 / MEAN_NEW, requests), MOST_NEW)
    lengths = np.ceil(prompts / scale).astype(int)
    return Workload(
        [rng.integers(3, vocabulary, length).tolist() for length in lengths],
        np.ceil(new / scale).astype(int).tolist(),
    )
