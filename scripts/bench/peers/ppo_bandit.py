"""The bandit that PPO learners are raced on.

2,000 prompts with 8 features and 5 gates, rewards from a table. This file needs NumPy only: it runs
in every side's own environment.
"""

import functools
from typing import Any

import numpy as np

PROMPTS, FEATURES, GATES = 2000, 8, 5
HIDDEN, BATCH, EPOCHS, MINIBATCHES = (64, 64), 512, 4, 4
RATE, EPS, CLIP, ENTROPY, VALUE, NORM = 1e-3, 1e-5, 0.2, 0.01, 0.5, 0.5
CHUNK = 5
"""Updates between two evaluations of the policy."""


@functools.cache
def bandit() -> tuple[np.ndarray, np.ndarray]:
    """Return features ``[prompts, features]`` and the reward of every gate ``[prompts, gates]``.

    A gate pays by how near it is to a place that a projection of the features gives.
    """
    rng = np.random.default_rng(0)
    x = rng.standard_normal((PROMPTS, FEATURES))
    direction = rng.standard_normal(FEATURES)
    place = np.tanh(1.5 * x @ direction / np.linalg.norm(direction))
    rewards = 0.1 + 0.8 * np.exp(-4.0 * (place[:, None] - np.linspace(-1.0, 1.0, GATES)) ** 2)
    return x.astype(np.float32), rewards.astype(np.float32)


def rollout() -> dict[str, np.ndarray]:
    """Return a batch of a policy that draws gates evenly and expects 0."""
    x, rewards = bandit()
    rng = np.random.default_rng(1)
    rows, actions = rng.integers(0, PROMPTS, BATCH), rng.integers(0, GATES, BATCH)
    return {
        "observations": x[rows],
        "actions": actions.astype(np.int32),
        "log_probs": np.full(BATCH, -np.log(GATES), np.float32),
        "values": np.zeros(BATCH, np.float32),
        "rewards": rewards[rows, actions],
    }


def worth(choices: Any) -> float:
    """Return the mean value of choices ``[..., prompts]`` as a share of the best policy's."""
    _, rewards = bandit()
    chosen = rewards[np.arange(PROMPTS), np.asarray(choices)]
    return float(chosen.mean() / rewards.max(axis=1).mean())
