"""One-step environments whose best policy is known."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Ridge:
    """Five gates; how often each pays depends on where a projection of the features lies."""

    direction: Array

    @classmethod
    def make(cls, num_features: int = 6, seed: int = 0) -> "Ridge":
        direction = np.random.default_rng(seed).standard_normal(num_features)
        return cls(jnp.asarray(direction / np.linalg.norm(direction), jnp.float32))

    def chances(self, observation: Array) -> Array:
        """Probability that each gate pays 1."""
        place = jnp.tanh(1.5 * jnp.dot(observation, self.direction))
        return 0.1 + 0.8 * jnp.exp(-4.0 * jnp.square(place - jnp.linspace(-1.0, 1.0, 5)))

    def reset(self, key: Array) -> tuple[Array, Array]:
        observation = jax.random.normal(key, self.direction.shape)
        return observation, observation

    def step(self, state: Array, action: Array, key: Array) -> tuple[Any, ...]:
        paid = jax.random.bernoulli(key, self.chances(state)[action])
        return state, state, paid.astype(jnp.float32), jnp.array(True), {}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Locks:
    """A decision of two parts that pays where both are right: (sign, not sign)."""

    pay: Array

    def reset(self, key: Array) -> tuple[Array, Array]:
        sign = jax.random.bernoulli(key).astype(jnp.int32)
        return sign, (2 * sign - 1).astype(jnp.float32)[None]

    def step(self, state: Array, action: Array, key: Array) -> tuple[Any, ...]:
        observation = (2 * state - 1).astype(jnp.float32)[None]
        right = (action[0] == state) & (action[1] == 1 - state)
        return state, observation, jnp.where(right, self.pay, 0.0), jnp.array(True), {}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Layers:
    """A gate for each layer, paid by the share that is right; which is right hangs on a sign."""

    right: Array
    """``[2, layers]``: the right choice of each layer, for either sign."""

    @classmethod
    def make(cls, layers: int = 36, choices: int = 5, seed: int = 0) -> "Layers":
        right = np.random.default_rng(seed).integers(0, choices, (2, layers))
        return cls(jnp.asarray(right, jnp.int32))

    def reset(self, key: Array) -> tuple[Array, Array]:
        sign = jax.random.bernoulli(key).astype(jnp.int32)
        return sign, (2 * sign - 1).astype(jnp.float32)[None]

    def step(self, state: Array, action: Array, key: Array) -> tuple[Any, ...]:
        observation = (2 * state - 1).astype(jnp.float32)[None]
        reward = (action == self.right[state]).astype(jnp.float32).mean()
        return state, observation, reward, jnp.array(True), {}
