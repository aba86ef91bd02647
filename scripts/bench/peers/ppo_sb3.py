"""stable-baselines3 in ``bench_ppo.py``, over a vector of array look-ups: its best case."""

import os
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from ppo_bandit import (
    BATCH,
    CLIP,
    ENTROPY,
    EPOCHS,
    FEATURES,
    GATES,
    HIDDEN,
    MINIBATCHES,
    NORM,
    PROMPTS,
    RATE,
    VALUE,
    bandit,
    worth,
)
from ppo_worker import answer
from stable_baselines3 import PPO  # pyright: ignore[reportMissingImports]
from stable_baselines3.common.vec_env import VecEnv  # pyright: ignore[reportMissingImports]

FEATURES_OF, REWARDS_OF = bandit()


class Bandit(VecEnv):
    """A batch of prompts at a time; every step ends all episodes and begins new ones."""

    def __init__(self) -> None:
        box = spaces.Box(-np.inf, np.inf, (FEATURES,), np.float32)
        self.render_mode = None
        super().__init__(BATCH, box, spaces.Discrete(GATES))
        self.rng = np.random.default_rng(0)

    def reset(self) -> Any:
        """Draw prompts."""
        self.problems = self.rng.integers(0, PROMPTS, BATCH)
        return FEATURES_OF[self.problems]

    def step_async(self, actions: Any) -> None:
        """Take gates."""
        self.actions = actions

    def step_wait(self) -> Any:
        """Pay for them."""
        paid = REWARDS_OF[self.problems, self.actions]
        return self.reset(), paid, np.ones(BATCH, bool), [{} for _ in range(BATCH)]

    def close(self) -> None:
        """Do nothing: no resource is open."""

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """Return the same value for every environment."""
        return [getattr(self, attr_name)] * BATCH

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Do nothing: no attribute can be set."""

    def env_method(self, method_name: str, *args: Any, **kwargs: Any) -> list[Any]:
        """Return nothing: the environments have no such methods."""
        return [None] * BATCH

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        """Return that nothing is wrapped."""
        return [False] * BATCH


class StableBaselines3:
    """One seed at a time; many seeds take that many times as long."""

    def __init__(self) -> None:
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        self.env = Bandit()

    def start(self, seeds: int, seed: int) -> None:
        """Start a training from new weights."""
        self.learner = PPO(
            "MlpPolicy",
            self.env,
            learning_rate=RATE,
            n_steps=1,
            batch_size=BATCH // MINIBATCHES,
            n_epochs=EPOCHS,
            clip_range=CLIP,
            ent_coef=ENTROPY,
            vf_coef=VALUE,
            max_grad_norm=NORM,
            seed=seed,
            device="cpu",
            policy_kwargs={
                "net_arch": {"pi": list(HIDDEN), "vf": list(HIDDEN)},
                "activation_fn": torch.nn.Tanh,
            },
        )

    def program(self, seeds: int, updates: int) -> None:
        """Do nothing: no program is compiled."""

    def run(self, seeds: int, updates: int) -> None:
        """Continue the training from where the last call ended."""
        self.learner.learn(updates * BATCH, reset_num_timesteps=False)

    def worth(self, seeds: int) -> float:
        """Return the value of the present policy's most probable gates."""
        return worth(self.learner.predict(FEATURES_OF, deterministic=True)[0])


if __name__ == "__main__":
    answer(StableBaselines3, "stable-baselines3", "torch", "gymnasium", "numpy")
