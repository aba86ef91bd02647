"""CleanRL's arithmetic in torch in ``bench_ppo.py``: its network, losses and loops, update only."""

import os
from typing import Any

import numpy as np
import torch
from ppo_bandit import (
    BATCH,
    CLIP,
    ENTROPY,
    EPOCHS,
    EPS,
    FEATURES,
    GATES,
    HIDDEN,
    MINIBATCHES,
    NORM,
    RATE,
    VALUE,
    rollout,
)
from ppo_worker import answer


def layer(inputs: int, outputs: int, gain: float) -> torch.nn.Linear:
    """Return a layer initialised as CleanRL does."""
    made = torch.nn.Linear(inputs, outputs)
    torch.nn.init.orthogonal_(made.weight, gain)
    torch.nn.init.constant_(made.bias, 0.0)
    return made


def mlp(outputs: int, gain: float) -> torch.nn.Sequential:
    """Return tanh layers with a linear output."""
    layers: list[torch.nn.Module] = []
    for inputs, width in zip((FEATURES, *HIDDEN), HIDDEN, strict=False):
        layers += [layer(inputs, width, 2**0.5), torch.nn.Tanh()]
    return torch.nn.Sequential(*layers, layer(HIDDEN[-1], outputs, gain))


class Torch:
    """Updates on given rollouts."""

    def __init__(self) -> None:
        torch.set_num_threads(len(os.sched_getaffinity(0)))

    def prepare(self) -> None:
        """Prepare to learn from given rollouts."""
        self.actor, self.critic = mlp(GATES, 0.01), mlp(1, 1.0)
        self.parameters = [*self.actor.parameters(), *self.critic.parameters()]
        self.adam = torch.optim.Adam(self.parameters, lr=RATE, eps=EPS)
        self.batch = {name: torch.as_tensor(value) for name, value in rollout().items()}

    def update(self, updates: int) -> None:
        """Learn from the same rollouts again and again."""
        for _ in range(updates):
            self.update_once()

    def update_once(self) -> list[Any]:
        """Update once; return what would be logged."""
        batch, logged = self.batch, []
        advantages = batch["rewards"] - batch["values"]
        returns = advantages + batch["values"]
        rows = np.arange(BATCH)
        for _ in range(EPOCHS):
            np.random.shuffle(rows)
            for begin in range(0, BATCH, BATCH // MINIBATCHES):
                mb = rows[begin : begin + BATCH // MINIBATCHES]
                observations = batch["observations"][mb]
                policy = torch.distributions.Categorical(logits=self.actor(observations))
                log_ratio = policy.log_prob(batch["actions"][mb]) - batch["log_probs"][mb]
                ratio = log_ratio.exp()
                with torch.no_grad():
                    kl = (-log_ratio).mean(), ((ratio - 1) - log_ratio).mean()
                    clipfrac = ((ratio - 1.0).abs() > CLIP).float().mean().item()
                advantage = advantages[mb]
                advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
                bounded = torch.clamp(ratio, 1 - CLIP, 1 + CLIP)
                policy_loss = torch.max(-advantage * ratio, -advantage * bounded).mean()
                error = self.critic(observations).view(-1) - returns[mb]
                value_loss = 0.5 * (error**2).mean()
                loss = policy_loss - ENTROPY * policy.entropy().mean() + VALUE * value_loss
                self.adam.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(self.parameters, NORM)
                self.adam.step()
                logged.append((*kl, clipfrac, policy_loss, value_loss))
        return logged


if __name__ == "__main__":
    answer(Torch, "torch", "numpy")
