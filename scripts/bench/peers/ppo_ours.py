"""This project's learner in ``bench_ppo.py``."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
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
    PROMPTS,
    RATE,
    VALUE,
    bandit,
    rollout,
    worth,
)
from ppo_worker import answer

from jroute.controller import networks
from jroute.envs.functional import TableEnv
from jroute.ppo import compilation, learner
from jroute.ppo.config import PPOConfig
from jroute.ppo.types import Batch


@functools.cache
def config(seeds: int) -> PPOConfig:
    """Return the learner's configuration."""
    return PPOConfig(
        batch_size=BATCH,
        epochs=EPOCHS,
        minibatches=MINIBATCHES,
        learning_rate=RATE,
        anneal_lr=False,
        adam_eps=EPS,
        max_grad_norm=NORM,
        clip_coef=CLIP,
        vf_coef=VALUE,
        ent_coef=ENTROPY,
        hidden=HIDDEN,
        seeds=seeds,
    )


@functools.cache
def init(seeds: int) -> Any:
    """Return a program that makes a state."""
    make = learner.init if seeds == 1 else learner.init_seeds
    cells = PROMPTS * GATES  # what the learner saw of the table is counted, as in real trainings
    return jax.jit(lambda key: make(config(seeds), FEATURES, (GATES,), key, num_cells=cells))


class Jroute:
    """Seeds are trained as ``compile_train`` chooses: on processors in turn, on every core."""

    def __init__(self) -> None:
        self.env = TableEnv.create(*bandit())
        self.states: dict[int, Any] = {}
        self.programs: dict[tuple[int, int], Any] = {}

    def start(self, seeds: int, seed: int) -> None:
        """Start a training from new weights."""
        self.states[seeds] = jax.block_until_ready(init(seeds)(jax.random.key(seed)))

    def program(self, seeds: int, updates: int) -> None:
        """Compile a program of this many updates a call."""
        self.programs[seeds, updates] = compilation.compile_train(config(seeds), updates)

    def run(self, seeds: int, updates: int) -> None:
        """Continue the training from where the last call ended."""
        program = self.programs[seeds, updates]
        self.states[seeds], metrics = program(self.env, self.states[seeds])
        jax.block_until_ready((self.states[seeds], metrics))

    def worth(self, seeds: int) -> float:
        """Return the value of the present policy's most probable gates."""
        act = networks.act if seeds == 1 else jax.vmap(networks.act, (0, None))
        return worth(act(self.states[seeds].params, self.env.observations)[..., 0])

    def prepare(self) -> None:
        """Prepare to learn from given rollouts."""
        given = rollout()
        given["actions"] = given["actions"][:, None]
        self.batch = Batch(**{name: jnp.asarray(x) for name, x in given.items()})
        self.step = compilation.compile_update(config(1))
        self.state = init(1)(jax.random.key(0))  # not that of the race

    def update(self, updates: int) -> None:
        """Learn from the same rollouts again and again."""
        for _ in range(updates):
            self.state, _ = self.step(self.state, self.batch)
        jax.block_until_ready(self.state)


if __name__ == "__main__":
    answer(Jroute, "jroute", "jax", "jaxlib", "flax", "optax", "numpy")
