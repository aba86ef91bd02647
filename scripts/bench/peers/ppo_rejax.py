"""rejax in ``bench_ppo.py``, over a gymnax environment."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from gymnax.environments import environment, spaces  # pyright: ignore[reportMissingImports]
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
from rejax import PPO  # pyright: ignore[reportMissingImports]

FEATURES_OF, REWARDS_OF = map(jnp.asarray, bandit())


@struct.dataclass
class State(environment.EnvState):
    """The problem that the episode is about."""

    problem: Any


class Bandit(environment.Environment):
    """One-step episodes; the environment's own ``step`` resets it."""

    def reset_env(self, key: Any, params: Any) -> Any:
        """Draw a prompt."""
        problem = jax.random.randint(key, (), 0, PROMPTS)
        return FEATURES_OF[problem], State(time=0, problem=problem)

    def step_env(self, key: Any, state: Any, action: Any, params: Any) -> Any:
        """Pay for a gate."""
        reward = REWARDS_OF[state.problem, action]
        return FEATURES_OF[state.problem], state.replace(time=1), reward, jnp.array(True), {}

    def action_space(self, params: Any) -> Any:
        """Return the space of gates."""
        return spaces.Discrete(GATES)

    def observation_space(self, params: Any) -> Any:
        """Return the space of features."""
        return spaces.Box(-10.0, 10.0, (FEATURES,))


def algorithm(updates: int) -> Any:
    """Return the algorithm for this many updates a call: a whole batch at once, no evaluation."""
    made = PPO.create(
        env=Bandit(),
        agent_kwargs={"hidden_layer_sizes": HIDDEN, "activation": "tanh"},
        num_envs=BATCH,
        num_steps=1,
        num_epochs=EPOCHS,
        num_minibatches=MINIBATCHES,
        learning_rate=RATE,
        max_grad_norm=NORM,
        clip_eps=CLIP,
        ent_coef=ENTROPY,
        vf_coef=VALUE,
        total_timesteps=updates * BATCH,
        eval_freq=updates * BATCH,
        skip_initial_evaluation=True,
    )
    return made.replace(eval_callback=lambda algorithm, state, key: ())


@functools.cache
def init(seeds: int) -> Any:
    """Return a program that makes a state."""
    make = algorithm(1).init_state
    return jax.jit(make if seeds == 1 else jax.vmap(make))


class Rejax:
    """One seed, or many under ``vmap``, as rejax documents it."""

    def __init__(self) -> None:
        self.states: dict[int, Any] = {}
        self.programs: dict[tuple[int, int], Any] = {}

    def start(self, seeds: int, seed: int) -> None:
        """Start a training from new weights."""
        key = jax.random.key(seed)
        key = key if seeds == 1 else jax.random.split(key, seeds)
        self.states[seeds] = jax.block_until_ready(init(seeds)(key))

    def program(self, seeds: int, updates: int) -> None:
        """Compile a program of this many updates a call."""
        made = algorithm(updates)

        def train(state: Any) -> Any:
            return made.train(train_state=state)[0]

        train = train if seeds == 1 else jax.vmap(train)
        self.programs[seeds, updates] = jax.jit(train, donate_argnums=0)

    def run(self, seeds: int, updates: int) -> None:
        """Continue the training from where the last call ended."""
        program = self.programs[seeds, updates]
        self.states[seeds] = jax.block_until_ready(program(self.states[seeds]))

    def worth(self, seeds: int) -> float:
        """Return the value of the present policy's most probable gates."""
        actor = algorithm(1).actor

        def mode(module: Any, x: Any) -> Any:
            return module._action_dist(x).mode()

        def act(params: Any) -> Any:
            return actor.apply(params, FEATURES_OF, method=mode)

        params = self.states[seeds].actor_ts.params
        return worth(act(params) if seeds == 1 else jax.vmap(act)(params))


if __name__ == "__main__":
    answer(Rejax, "rejax", "gymnax", "jax", "jaxlib", "flax", "optax", "numpy")
