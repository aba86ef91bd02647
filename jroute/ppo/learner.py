"""The learner: draw a state, update it from a batch, train it on an environment."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jax.sharding import NamedSharding
from jaxtyping import Array, Float, Int, Key

from jroute.controller import networks
from jroute.ppo import losses
from jroute.ppo.config import Hyperparameters, PPOConfig
from jroute.ppo.metrics import EPOCH_MEANS, Metrics
from jroute.ppo.minibatches import minibatch_rows
from jroute.ppo.rollout import rollout
from jroute.ppo.sharding import constrain
from jroute.ppo.types import Batch, Environment, LearnerState


def learning_rate(
    config: PPOConfig, update: Int[Array, ""], hyper: Hyperparameters | None = None
) -> Float[Array, ""]:
    """Return Adam's step size in a given update, counted from 0."""
    hyper = hyper or Hyperparameters.of(config)
    remaining = jnp.maximum(config.updates - update, 0).astype(jnp.float32) / config.updates
    return hyper.learning_rate * (remaining if config.anneal_lr else jnp.ones_like(remaining))


def _optimizer(hyper: Hyperparameters, step_size: Any) -> optax.GradientTransformation:
    return optax.chain(
        optax.clip_by_global_norm(hyper.max_grad_norm),  # type: ignore[arg-type]
        optax.adam(step_size, eps=hyper.adam_eps),  # type: ignore[arg-type]
    )


def init(
    config: PPOConfig,
    num_features: int,
    action_nvec: Sequence[int],
    key: Key[Array, ""],
    *,
    num_cells: int = 0,
) -> LearnerState:
    """Draw a state to start training from.

    Args:
        config: The learner's configuration.
        num_features: Length of an observation.
        action_nvec: Choices for each dimension of a decision, as in ``networks.init``.
        key: Source of all random draws of this training.
        num_cells: Size of the table of rewards, to count the cells that the learner sees of it.
    """
    params_key, training_key = jax.random.split(key)
    params = networks.init(params_key, num_features, action_nvec, config.hidden)
    return LearnerState(
        params=params,
        optimizer=_optimizer(Hyperparameters.of(config), 0.0).init(ravel_pytree(params)[0]),
        key=jax.random.key_data(training_key),
        update=jnp.zeros((), jnp.int32),
        revealed=jnp.zeros(num_cells, bool),
    )


def init_seeds(
    config: PPOConfig,
    num_features: int,
    action_nvec: Sequence[int],
    key: Key[Array, ""],
    *,
    num_cells: int = 0,
) -> LearnerState:
    """Draw ``config.seeds`` states, stacked on a leading axis.

    The state of a seed does not depend on the number of seeds.
    """
    return _init_seeds(config, num_features, tuple(action_nvec), key, num_cells)


@partial(jax.jit, static_argnums=(0, 1, 2, 4))
def _init_seeds(
    config: PPOConfig, num_features: int, nvec: tuple[int, ...], key: Key[Array, ""], num_cells: int
) -> LearnerState:
    keys = jax.vmap(lambda seed: jax.random.fold_in(key, seed))(jnp.arange(config.seeds))
    # Not vmap: several batched QR factorisations in one program can hang XLA's CPU runtime.
    return jax.lax.map(lambda k: init(config, num_features, nvec, k, num_cells=num_cells), keys)


def update(
    config: PPOConfig,
    state: LearnerState,
    batch: Batch,
    *,
    hyper: Hyperparameters | None = None,
    sharding: NamedSharding | None = None,
) -> tuple[LearnerState, Metrics]:
    """Learn from one batch of one-step episodes.

    Args:
        config: The learner's configuration; the batch must have its ``batch_size``.
        state: The state before the update.
        batch: Episodes rolled out with ``state.params``.
        hyper: Numbers to use in place of the configuration's.
        sharding: How the devices share the leading axis of the batch and of every minibatch.

    Returns:
        The state after the update, and the update's metrics.

    Raises:
        AssertionError: The batch's shapes or types do not fit the configuration or the network.
    """
    _check_batch(config, state, batch)
    hyper = hyper or Hyperparameters.of(config)
    advantages, returns = _advantages_and_returns(config, hyper, batch)
    step_size = learning_rate(config, state.update, hyper)
    params, optimizer, terms = _gradient_steps(
        config, hyper, state, (batch._replace(cells=None), advantages, returns), step_size, sharding
    )
    metrics, revealed = _metrics(state, batch, returns, step_size, terms)
    updated = LearnerState(params, optimizer, state.key, state.update + 1, revealed)
    chex.assert_trees_all_equal_shapes_and_dtypes(updated, state)
    return updated, metrics


def _check_batch(config: PPOConfig, state: LearnerState, batch: Batch) -> None:
    """Check the batch's shapes and types, which are known while a program is traced."""
    output = state.params["actor"]["output"]["bias"].shape
    chex.assert_shape(state.update, ())
    chex.assert_shape(batch.observations, (config.batch_size, networks.num_features(state.params)))
    chex.assert_shape(batch.actions, (config.batch_size, output[0]))
    chex.assert_shape([batch.log_probs, batch.values, batch.rewards], (config.batch_size,))
    floats = [batch.observations, batch.log_probs, batch.values, batch.rewards]
    chex.assert_type(floats, jnp.float32)
    chex.assert_type(batch.actions, jnp.int32)
    if batch.cells is not None:
        chex.assert_shape(batch.cells, (config.batch_size,))


def _advantages_and_returns(
    config: PPOConfig, hyper: Hyperparameters, batch: Batch
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
    advantages, returns = losses.gae(
        batch.rewards[None],
        batch.values[None],
        jnp.ones_like(batch.rewards[None], bool),
        jnp.zeros_like(batch.values),
        gamma=hyper.gamma,
        gae_lambda=hyper.gae_lambda,
    )
    advantages, returns = advantages[0], returns[0]
    if config.norm_adv:
        advantages = losses.normalise_advantages(advantages, hyper.adv_std_floor)
    return advantages, returns


def _gradient_steps(
    config: PPOConfig,
    hyper: Hyperparameters,
    state: LearnerState,
    examples: tuple[Batch, Float[Array, " batch"], Float[Array, " batch"]],
    step_size: Float[Array, ""],
    sharding: NamedSharding | None,
) -> tuple[networks.Params, optax.OptState, Float[Array, "steps terms"]]:
    """Take the gradient steps of an update.

    Args:
        config: The learner's configuration.
        hyper: The numbers to use.
        state: The state before the update.
        examples: The batch, its advantages and its returns.
        step_size: Adam's step size.
        sharding: How the devices share every minibatch.

    Returns:
        The parameters, the optimizer's state, and the terms of ``EPOCH_MEANS`` at every step.
    """
    optimizer = _optimizer(hyper, step_size)
    # One vector of all parameters: Adam is then one loop and not one for every layer.
    flat, unravel = ravel_pytree(state.params)

    def loss(params: networks.Params, *minibatch: Any) -> tuple[Array, losses.LossTerms]:
        batch, advantages, returns = minibatch
        logits, values = networks.apply(params, batch.observations)
        terms = losses.ppo_loss(
            logits, values, batch, advantages, returns, hyper, clip_vloss=config.clip_vloss
        )
        return terms.loss, terms

    def step(
        carry: tuple[Array, optax.OptState], rows: Int[Array, " rows"]
    ) -> tuple[tuple[Array, optax.OptState], Float[Array, " terms"]]:
        flat, optimizer_state = carry
        minibatch = constrain(jax.tree.map(lambda x: x[rows], examples), sharding)
        gradients, terms = jax.grad(loss, has_aux=True)(unravel(flat), *minibatch)
        gradient = ravel_pytree(gradients)[0]
        terms = jnp.stack([*terms, optax.tree.norm(gradient)])
        with jax.numpy_dtype_promotion("standard"):  # optax raises a float to its integer count
            change: Any
            change, optimizer_state = optimizer.update(gradient, optimizer_state, flat)
        return (flat + change, optimizer_state), terms

    carry, terms = jax.lax.scan(step, (flat, state.optimizer), minibatch_rows(config, state))
    flat, optimizer_state = carry
    return unravel(flat), optimizer_state, terms


def _metrics(
    state: LearnerState,
    batch: Batch,
    returns: Float[Array, " batch"],
    step_size: Float[Array, ""],
    terms: Float[Array, "steps terms"],
) -> tuple[Metrics, Array]:
    """Return the metrics of an update, and the cells whose reward has been seen so far."""
    fractions = jax.nn.one_hot(batch.actions, networks.num_choices(state.params)).mean(axis=0)
    revealed, cells_revealed = state.revealed, jnp.float32(jnp.nan)
    if batch.cells is not None and revealed.size:
        revealed = revealed.at[batch.cells].set(True)
        cells_revealed = revealed.sum().astype(jnp.float32)
    metrics = Metrics(
        episodic_return=batch.rewards.mean(),
        learning_rate=step_size,
        explained_variance=losses.explained_variance(batch.values, returns),
        gate_entropy=jax.scipy.special.entr(fractions).sum(axis=1).mean(),
        gate_fraction=fractions.mean(axis=0),
        cells_revealed=cells_revealed,
        **dict(zip(EPOCH_MEANS, terms.mean(axis=0), strict=True)),
    )
    return metrics, revealed


def train(
    config: PPOConfig,
    env: Environment,
    state: LearnerState,
    num_updates: int,
    *,
    hyper: Hyperparameters | None = None,
    sharding: NamedSharding | None = None,
) -> tuple[LearnerState, Metrics]:
    """Alternate ``num_updates`` rollouts and updates; metrics are ``[num_updates]``."""

    def step(state: LearnerState, _: None) -> tuple[LearnerState, Metrics]:
        batch = rollout(config, env, state, sharding=sharding)
        return update(config, state, batch, hyper=hyper, sharding=sharding)

    return jax.lax.scan(step, state, length=num_updates)
