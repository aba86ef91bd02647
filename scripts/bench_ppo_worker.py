"""One side of ``bench_ppo.py``: a learner in a process and an environment of its own.

Reads requests as lines of JSON on standard input and answers each with a line of JSON. Imports
nothing of the project but where the project is the side that is measured, so that it also runs
where only a peer is installed.

A side has ``train`` (programs by number of seeds, each going on from where its last call ended),
``update`` (the same rollouts again and again), or both.
"""

import functools
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

PROMPTS, FEATURES, GATES = 2000, 8, 5
HIDDEN, BATCH, EPOCHS, MINIBATCHES = (64, 64), 512, 4, 4
RATE, EPS, CLIP, ENTROPY, VALUE, NORM = 1e-3, 1e-5, 0.2, 0.01, 0.5, 0.5
CHUNK = 5
"""Updates between two looks at what the policy is worth."""


def bandit() -> tuple[Any, Any]:
    """Features ``[prompts, features]`` and the reward of every gate ``[prompts, gates]``.

    A gate pays by how near it is to a place that a projection of the features gives.
    """
    import numpy as np

    rng = np.random.default_rng(0)
    x = rng.standard_normal((PROMPTS, FEATURES))
    direction = rng.standard_normal(FEATURES)
    place = np.tanh(1.5 * x @ direction / np.linalg.norm(direction))
    rewards = 0.1 + 0.8 * np.exp(-4.0 * (place[:, None] - np.linspace(-1.0, 1.0, GATES)) ** 2)
    return x.astype(np.float32), rewards.astype(np.float32)


def rollout() -> dict[str, Any]:
    """A batch by a policy that draws gates evenly and expects 0."""
    import numpy as np

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
    """Value of choices ``[..., prompts]`` as a share of the best policy's, mean over seeds."""
    import numpy as np

    _, rewards = bandit()
    chosen = rewards[np.arange(PROMPTS), np.asarray(choices)]
    return float(chosen.mean() / rewards.max(axis=1).mean())


def timed(call: Callable[[], Any]) -> tuple[dict[str, float], Any]:
    """Seconds on the clock and of all processors until a call is done, and what it gives."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = call()
    return {
        "seconds": time.perf_counter() - wall,
        "cpu_seconds": time.process_time() - cpu,
    }, found


class Jroute:
    """This project's learner."""

    def __init__(self) -> None:
        import jax

        from jroute.controller import networks
        from jroute.envs.functional import TableEnv
        from jroute.ppo import learner

        self.jax, self.learner, self.networks = jax, learner, networks
        self.env = TableEnv.create(*bandit())
        self.states: dict[Any, Any] = {}
        self.programs: dict[Any, Any] = {}

    def config(self, seeds: int) -> Any:
        """The learner's settings."""
        return self.learner.PPOConfig(
            batch_size=BATCH,
            epochs=EPOCHS,
            minibatches=MINIBATCHES,
            learning_rate=RATE,
            anneal_lr=False,
            hidden=HIDDEN,
            seeds=seeds,
        )

    def start(self, seeds: int, seed: int) -> Any:
        """A state before training."""
        config, key = self.config(seeds), self.jax.random.key(seed)
        init = self.learner.init if seeds == 1 else self.learner.init_seeds
        cells = PROMPTS * GATES
        program = self.jax.jit(lambda key: init(config, FEATURES, (GATES,), key, num_cells=cells))
        return self.jax.block_until_ready(program(key))

    def compile(self, seeds: int, updates: int) -> dict[str, Any]:
        """Times of making a state, and of the first call of a program: compilation and a turn."""
        begin, self.states[seeds] = timed(lambda: self.start(seeds, 0))

        def make() -> None:
            program = self.learner.compile_train(self.config(seeds), updates)
            self.programs[seeds, updates] = program
            self.run(seeds, updates)

        return {"start": begin, "first": timed(make)[0]}

    def run(self, seeds: int, updates: int) -> None:
        """Trains on from where the last call ended."""
        program = self.programs[seeds, updates]
        self.states[seeds], metrics = program(self.env, self.states[seeds])
        self.jax.block_until_ready(metrics)

    def compile_update(self) -> dict[str, Any]:
        """Time of the first update."""
        import jax.numpy as jnp

        given = rollout()
        given["actions"] = given["actions"][:, None]
        self.batch = self.learner.Batch(**{name: jnp.asarray(x) for name, x in given.items()})
        self.program = self.learner.compile_update(self.config(1))
        self.state = self.start(1, 0)
        return {"first": timed(lambda: self.update(1))[0]}

    def update(self, updates: int) -> None:
        """Learns from the same rollouts again and again."""
        for _ in range(updates):
            self.state, _ = self.program(self.state, self.batch)
        self.jax.block_until_ready(self.state)

    def restart(self, seeds: int, seed: int) -> None:
        """Begins a training anew."""
        self.states[seeds] = self.start(seeds, seed)

    def worth(self, seeds: int) -> float:
        """Value of the present policy's favourite gates."""
        act = self.networks.act if seeds == 1 else self.jax.vmap(self.networks.act, (0, None))
        return worth(act(self.states[seeds].params, self.env.observations)[..., 0])


class Rejax:
    """rejax, its environment in gymnax's dress; all of a batch at once, and never evaluated."""

    def __init__(self) -> None:
        import jax
        import jax.numpy as jnp
        from flax import struct
        from gymnax.environments import environment, spaces  # pyright: ignore[reportMissingImports]
        from rejax import PPO  # pyright: ignore[reportMissingImports]

        self.jax, self.ppo = jax, PPO
        x, rewards = map(jnp.asarray, bandit())
        self.observations = x

        @struct.dataclass
        class State(environment.EnvState):
            problem: Any

        class Bandit(environment.Environment):
            def reset_env(self, key: Any, params: Any) -> Any:
                problem = jax.random.randint(key, (), 0, PROMPTS)
                return x[problem], State(time=0, problem=problem)

            def step_env(self, key: Any, state: Any, action: Any, params: Any) -> Any:
                reward = rewards[state.problem, action]
                return x[state.problem], state.replace(time=1), reward, jnp.array(True), {}

            def action_space(self, params: Any) -> Any:
                return spaces.Discrete(GATES)

            def observation_space(self, params: Any) -> Any:
                return spaces.Box(-10.0, 10.0, (FEATURES,))

        self.env = Bandit()
        self.states: dict[Any, Any] = {}
        self.programs: dict[Any, Any] = {}

    def algorithm(self, updates: int) -> Any:
        """The algorithm, set to so many updates a call."""
        made = self.ppo.create(
            env=self.env,
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

    def start(self, seeds: int, seed: int) -> Any:
        """A state before training."""
        init, key = self.algorithm(1).init_state, self.jax.random.key(seed)
        if seeds > 1:
            init, key = self.jax.vmap(init), self.jax.random.split(key, seeds)
        return self.jax.block_until_ready(self.jax.jit(init)(key))

    def compile(self, seeds: int, updates: int) -> dict[str, Any]:
        """Times of making a state, and of the first call of a program: compilation and a turn."""
        begin, self.states[seeds] = timed(lambda: self.start(seeds, 0))

        def make() -> None:
            algorithm = self.algorithm(updates)

            def train(state: Any) -> Any:
                return algorithm.train(train_state=state)[0]

            train = train if seeds == 1 else self.jax.vmap(train)
            self.programs[seeds, updates] = self.jax.jit(train, donate_argnums=0)
            self.run(seeds, updates)

        return {"start": begin, "first": timed(make)[0]}

    def run(self, seeds: int, updates: int) -> None:
        """Trains on from where the last call ended."""
        program = self.programs[seeds, updates]
        self.states[seeds] = self.jax.block_until_ready(program(self.states[seeds]))

    def restart(self, seeds: int, seed: int) -> None:
        """Begins a training anew."""
        self.states[seeds] = self.start(seeds, seed)

    def worth(self, seeds: int) -> float:
        """Value of the present policy's favourite gates."""
        actor = self.algorithm(1).actor

        def act(params: Any) -> Any:
            def mode(module: Any, x: Any) -> Any:
                return module._action_dist(x).mode()

            return actor.apply(params, self.observations, method=mode)

        params = self.states[seeds].actor_ts.params
        return worth(act(params) if seeds == 1 else self.jax.vmap(act)(params))


class StableBaselines3:
    """stable-baselines3 over a vectorised environment of array look-ups: its best case."""

    def __init__(self) -> None:
        import numpy as np
        import torch
        from gymnasium import spaces
        from stable_baselines3 import PPO  # pyright: ignore[reportMissingImports]
        from stable_baselines3.common.vec_env import VecEnv  # pyright: ignore[reportMissingImports]

        torch.set_num_threads(len(os.sched_getaffinity(0)))
        self.torch, self.ppo = torch, PPO
        x, rewards = bandit()
        self.observations = x

        class Bandit(VecEnv):
            def __init__(self) -> None:
                box = spaces.Box(-np.inf, np.inf, (FEATURES,), np.float32)
                self.render_mode = None
                super().__init__(BATCH, box, spaces.Discrete(GATES))
                self.rng = np.random.default_rng(0)

            def reset(self) -> Any:
                self.problems = self.rng.integers(0, PROMPTS, BATCH)
                return x[self.problems]

            def step_async(self, actions: Any) -> None:
                self.actions = actions

            def step_wait(self) -> Any:
                paid = rewards[self.problems, self.actions]
                return self.reset(), paid, np.ones(BATCH, bool), [{} for _ in range(BATCH)]

            def close(self) -> None: ...

            def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
                return [getattr(self, attr_name)] * BATCH

            def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None: ...

            def env_method(self, method_name: str, *args: Any, **kwargs: Any) -> list[Any]:
                return [None] * BATCH

            def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
                return [False] * BATCH

        self.env = Bandit()

    def compile(self, seeds: int, updates: int) -> dict[str, Any]:
        """Times of making a state, and of the first call of a program: compilation and a turn."""
        begin, _ = timed(lambda: self.restart(seeds, 0))
        return {"start": begin, "first": timed(lambda: self.run(seeds, updates))[0]}

    def run(self, seeds: int, updates: int) -> None:
        """Trains on from where the last call ended."""
        self.learner.learn(updates * BATCH, reset_num_timesteps=False)

    def restart(self, seeds: int, seed: int) -> None:
        """Begins a training anew."""
        self.learner = self.ppo(
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
                "activation_fn": self.torch.nn.Tanh,
            },
        )

    def worth(self, seeds: int) -> float:
        """Value of the present policy's favourite gates."""
        return worth(self.learner.predict(self.observations, deterministic=True)[0])


class Torch:
    """The arithmetic of CleanRL's ``ppo.py``, update only: its network, losses and loops."""

    def compile_update(self) -> dict[str, Any]:
        """Time of the first update."""
        import numpy as np
        import torch
        from torch import nn

        torch.set_num_threads(len(os.sched_getaffinity(0)))
        self.numpy, self.torch = np, torch

        def mlp(outputs: int, gain: float) -> nn.Sequential:
            sizes = (FEATURES, *HIDDEN)
            layers: list[nn.Module] = []
            for i in range(len(HIDDEN)):
                layers += [self.layer(sizes[i], sizes[i + 1], 2**0.5), nn.Tanh()]
            return nn.Sequential(*layers, self.layer(HIDDEN[-1], outputs, gain))

        self.actor, self.critic = mlp(GATES, 0.01), mlp(1, 1.0)
        self.parameters = [*self.actor.parameters(), *self.critic.parameters()]
        self.adam = torch.optim.Adam(self.parameters, lr=RATE, eps=EPS)
        self.batch = {name: torch.as_tensor(value) for name, value in rollout().items()}
        return {"first": timed(lambda: self.update(1))[0]}

    def layer(self, inputs: int, outputs: int, gain: float) -> Any:
        """A layer as CleanRL makes it."""
        layer = self.torch.nn.Linear(inputs, outputs)
        self.torch.nn.init.orthogonal_(layer.weight, gain)
        self.torch.nn.init.constant_(layer.bias, 0.0)
        return layer

    def update(self, updates: int) -> None:
        """Learns from the same rollouts again and again."""
        for _ in range(updates):
            self.one()

    def one(self) -> None:
        """One update."""
        np, torch = self.numpy, self.torch
        batch = self.batch
        advantages = batch["rewards"] - batch["values"]
        returns = advantages + batch["values"]
        rows, clipped = np.arange(BATCH), []
        for _ in range(EPOCHS):
            np.random.shuffle(rows)
            for begin in range(0, BATCH, BATCH // MINIBATCHES):
                mb = rows[begin : begin + BATCH // MINIBATCHES]
                seen = batch["observations"][mb]
                policy = torch.distributions.Categorical(logits=self.actor(seen))
                log_ratio = policy.log_prob(batch["actions"][mb]) - batch["log_probs"][mb]
                ratio = log_ratio.exp()
                with torch.no_grad():
                    (-log_ratio).mean()
                    ((ratio - 1) - log_ratio).mean()
                    clipped.append(((ratio - 1.0).abs() > CLIP).float().mean().item())
                advantage = advantages[mb]
                advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
                bounded = torch.clamp(ratio, 1 - CLIP, 1 + CLIP)
                policy_loss = torch.max(-advantage * ratio, -advantage * bounded).mean()
                value_loss = 0.5 * ((self.critic(seen).view(-1) - returns[mb]) ** 2).mean()
                loss = policy_loss - ENTROPY * policy.entropy().mean() + VALUE * value_loss
                self.adam.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(self.parameters, NORM)
                self.adam.step()


SIDES: dict[str, Callable[[], Any]] = {
    "jroute": Jroute,
    "rejax": Rejax,
    "stable-baselines3": StableBaselines3,
    "torch": Torch,
}


def reach(side: Any, seeds: int, seed: int, share: float, limit: int) -> dict[str, Any]:
    """Time of training until the policy is worth ``share`` of the best; looks cost none of it."""
    side.restart(seeds, seed)
    total, found = {"seconds": 0.0, "cpu_seconds": 0.0}, 0.0
    for updates in range(CHUNK, limit + 1, CHUNK):
        took, _ = timed(functools.partial(side.run, seeds, CHUNK))
        total = {name: total[name] + took[name] for name in total}
        if (found := side.worth(seeds)) >= share:
            return {**total, "updates": updates, "worth": found}
    return {**total, "updates": None, "worth": found}


def answer(side: Any, request: dict[str, Any]) -> dict[str, Any]:
    """Does what a request asks."""
    match request:
        case {"do": "compile", "seeds": seeds, "updates": updates}:
            return side.compile(seeds, updates)
        case {"do": "run", "seeds": seeds, "updates": updates}:
            return timed(lambda: side.run(seeds, updates))[0]
        case {"do": "compile update"}:
            return side.compile_update()
        case {"do": "update", "updates": updates}:
            return timed(lambda: side.update(updates))[0]
        case {"do": "reach", "seeds": seeds, "seed": seed, "share": share, "limit": limit}:
            return reach(side, seeds, seed, share, limit)
    raise ValueError(f"no such request: {request}")


def main() -> None:
    """Answers requests until there are none."""
    name, cores = sys.argv[1], [int(core) for core in sys.argv[2].split(",")]
    os.sched_setaffinity(0, cores)  # before a library counts processors
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is no reply
    took, side = timed(SIDES[name])
    versions: dict[str, str] = {}
    from importlib import metadata

    for package in ("jax", "jaxlib", "torch", "rejax", "gymnax", "stable-baselines3", "numpy"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    print(json.dumps({"import": took, "versions": versions}), file=replies, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(side, json.loads(line))), file=replies, flush=True)


if __name__ == "__main__":
    main()
