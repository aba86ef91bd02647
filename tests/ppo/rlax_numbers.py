"""Computes PPO's losses with rlax and prints them as JSON: the numbers in ``rlax.json``.

    python tests/ppo/rlax_numbers.py > tests/ppo/rlax.json

Run where rlax is installed (0.1.9 was used): the tests read the file, so that they need neither
rlax nor the nightly packages that it brings.
"""

import json
from importlib import metadata

import numpy as np
import rlax

rng = np.random.default_rng(0)
steps, batch, choices = 6, 8, 4
logits = rng.standard_normal((batch, choices)).astype(np.float32)
old_logits = (logits + 0.5 * rng.standard_normal((batch, choices))).astype(np.float32)
actions = rng.integers(0, choices, batch)
advantages = rng.standard_normal(batch).astype(np.float32)
rewards, values = rng.standard_normal((2, steps, batch)).astype(np.float32)
last = rng.standard_normal(batch).astype(np.float32)
ended = rng.random((steps, batch)) < 0.3
policy = rlax.softmax()
new_log, old_log = policy.logprob(actions, logits), policy.logprob(actions, old_logits)
gamma, gae_lambda, clip = 0.9, 0.8, 0.2
gae = [
    rlax.truncated_generalized_advantage_estimation(
        rewards[:, b],
        gamma * (1.0 - ended[:, b]).astype(np.float32),
        gae_lambda,
        np.append(values[:, b], last[b]),
    )
    for b in range(batch)
]
inputs = {
    name: np.asarray(value).tolist()
    for name, value in {
        "logits": logits,
        "old_logits": old_logits,
        "actions": actions,
        "advantages": advantages,
        "rewards": rewards,
        "values": values,
        "last_values": last,
        "ended": ended,
    }.items()
}
results = {
    "log_prob": new_log,
    "entropy": policy.entropy(logits),
    "policy_loss": rlax.clipped_surrogate_pg_loss(np.exp(new_log - old_log), advantages, clip),
    "kl": rlax.categorical_kl_divergence(old_logits, logits),
    "gae": np.stack([np.asarray(column) for column in gae], axis=1),
}
print(
    json.dumps(
        {
            "rlax": metadata.version("rlax"),
            "settings": {"gamma": gamma, "gae_lambda": gae_lambda, "clip_coef": clip},
            "inputs": inputs,
            "found": {name: np.asarray(value).tolist() for name, value in results.items()},
        }
    )
)
