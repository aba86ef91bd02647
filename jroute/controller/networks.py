"""The controller's networks: small tanh MLPs over the features of a prompt.

Flax NNX modules define the layers; everything outside this file sees plain nested dicts of arrays,
so ``scan`` carries parameters, ``vmap`` maps them over seeds, and they are saved as they are.

The head is factorised: a decision has ``gate_dims`` independent choices (one for a scalar gate; one
for each depth band or layer otherwise), each over the same ``choices`` gate values.
"""

from collections.abc import Sequence
from functools import lru_cache
from math import sqrt
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

Params = dict[str, Any]


class _MLP(nnx.Module):
    """Tanh layers and a linear output of any shape.

    Orthogonal kernels (gain sqrt 2 in hidden layers) and zero biases, as CleanRL initialises PPO.
    Products run at full float32 precision on every device: the networks are tiny, and a gate
    should not depend on TF32.
    """

    def __init__(
        self,
        num_features: int,
        hidden: tuple[int, ...],
        output: tuple[int, ...],
        output_gain: float,
        rngs: nnx.Rngs,
    ):
        sizes = (num_features, *hidden)
        self.hidden = nnx.Dict(
            {
                f"layer_{i}": nnx.Linear(
                    sizes[i],
                    sizes[i + 1],
                    kernel_init=nnx.initializers.orthogonal(sqrt(2.0)),
                    precision=jax.lax.Precision.HIGHEST,
                    rngs=rngs,
                )
                for i in range(len(hidden))
            }
        )
        self.output = nnx.LinearGeneral(
            sizes[-1],
            output,
            kernel_init=nnx.initializers.orthogonal(output_gain),
            precision=jax.lax.Precision.HIGHEST,
            rngs=rngs,
        )

    def __call__(self, x: Float[Array, "batch features"]) -> Float[Array, "batch *output"]:
        for i in range(len(self.hidden)):
            x = jnp.tanh(self.hidden[f"layer_{i}"](x))
        return self.output(x)


class _ActorCritic(nnx.Module):
    """Policy and value without shared layers. The policy starts almost uniform (gain 0.01)."""

    def __init__(
        self,
        num_features: int,
        hidden: tuple[int, ...],
        output: tuple[int, ...],
        rngs: nnx.Rngs,
    ):
        self.actor = _MLP(num_features, hidden, output, 0.01, rngs)
        self.critic = _MLP(num_features, hidden, (1,), 1.0, rngs)


@lru_cache(maxsize=64)
def _actor_critic(num_features: int, hidden: tuple[int, ...], output: tuple[int, ...]) -> Any:
    """Return the static half of an actor-critic of these sizes."""
    return nnx.graphdef(
        nnx.eval_shape(lambda: _ActorCritic(num_features, hidden, output, nnx.Rngs(0)))
    )


@lru_cache(maxsize=64)
def _regressor(num_features: int, hidden: tuple[int, ...], output: tuple[int, ...]) -> Any:
    """Return the static half of a regressor of these sizes."""
    return nnx.graphdef(
        nnx.eval_shape(lambda: _MLP(num_features, hidden, output, 1.0, nnx.Rngs(0)))
    )


def _sizes(mlp: Params) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    """Read features, hidden sizes and output shape off the parameters of an ``_MLP``."""
    layers = mlp.get("hidden", {})
    hidden = tuple(layers[f"layer_{i}"]["bias"].shape[0] for i in range(len(layers)))
    first = layers["layer_0"] if layers else mlp["output"]
    return first["kernel"].shape[0], hidden, mlp["output"]["bias"].shape


def num_features(params: Params) -> int:
    """Return the length of the observations that an actor-critic reads."""
    return _sizes(params["actor"])[0]


def num_choices(params: Params) -> int:
    """Return the number of choices for each dimension of an actor-critic's decisions."""
    return params["actor"]["output"]["bias"].shape[-1]


def init(
    key: Key[Array, ""],
    num_features: int,
    action_nvec: Sequence[int],
    hidden: Sequence[int] = (64, 64),
) -> Params:
    """Draw the parameters of an actor-critic.

    Args:
        key: Source of the initial weights.
        num_features: Length of an observation.
        action_nvec: Number of choices for each dimension of a decision, as in Gymnasium's
            ``MultiDiscrete``; ``(5,)`` is one gate from a grid of five.
        hidden: Widths of the tanh layers of both the actor and the critic.

    Returns:
        ``{"actor": ..., "critic": ...}``, each with ``hidden/layer_<i>`` and ``output``, each of
        those with ``kernel`` and ``bias``. The actor's output kernel is
        ``[hidden, gate_dims, choices]``.

    Raises:
        ValueError: The dimensions of a decision do not have the same number of choices.
    """
    if len(set(action_nvec)) != 1:
        raise ValueError(
            f"every dimension of a gate needs the same choices, got {tuple(action_nvec)}"
        )
    output = (len(action_nvec), int(action_nvec[0]))
    module = _ActorCritic(num_features, tuple(hidden), output, nnx.Rngs(key))
    return nnx.to_pure_dict(nnx.state(module))


def apply(
    params: Params, observations: Float[Array, "batch features"]
) -> tuple[Float[Array, "batch gate_dims choices"], Float[Array, " batch"]]:
    """Return the logits of every choice and the expected reward for a batch of observations."""
    module = nnx.merge(_actor_critic(*_sizes(params["actor"])), params)
    return module.actor(observations), module.critic(observations)[:, 0]


def policy(
    params: Params, observations: Float[Array, "batch features"]
) -> Float[Array, "batch gate_dims choices"]:
    """Return the probability of every choice."""
    return jax.nn.softmax(apply(params, observations)[0], axis=-1)


def act(
    params: Params, observations: Float[Array, "batch features"]
) -> Int[Array, "batch gate_dims"]:
    """Return the index of the most probable choice for each dimension; the first of equals."""
    return jnp.argmax(apply(params, observations)[0], axis=-1)


def init_regressor(
    key: Key[Array, ""],
    num_features: int,
    num_outputs: int,
    hidden: Sequence[int] = (64, 64),
) -> Params:
    """Draw the parameters of a multi-output regressor: features to the reward of every gate."""
    module = _MLP(num_features, tuple(hidden), (num_outputs,), 1.0, nnx.Rngs(key))
    return nnx.to_pure_dict(nnx.state(module))


def apply_regressor(
    params: Params, observations: Float[Array, "batch features"]
) -> Float[Array, "batch gates"]:
    """Predicted reward of every gate."""
    return nnx.merge(_regressor(*_sizes(params)), params)(observations)
