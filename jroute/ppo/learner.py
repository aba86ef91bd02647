"""PPO for episodes of one step: see a prompt, choose a gate, get a reward.

Everything is a pure function of a configuration, a state and arrays: ``init`` draws a state,
``update`` learns from one batch, ``train`` alternates rollouts and updates inside one
``lax.scan``. All of them map over seeds and over ``Hyperparameters`` with ``vmap``. Where rewards
cannot be computed inside a program, ``decide`` gives the gates, the caller finds what they pay,
and ``update`` goes on from there. Randomness is folded from the state's key and its update number,
so a state that was saved and restored goes on exactly as it would have, either way.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, Key

from jroute.controller import networks
from jroute.ppo import losses, seeds
from jroute.ppo.config import Hyperparameters, PPOConfig
from jroute.ppo.metrics import EPOCH_MEANS, Metrics
from jroute.ppo.metrics import scalars as scalars
from jroute.ppo.types import Batch, Decisions, Environment, LearnerState, Prompts
from jroute.utils.errors import UserError

PACKED_ROWS = 4096
"""Largest batch whose rows are shuffled as the low bits of the numbers that are sorted."""

COUNTED = 1_048_573
"""Places in which revealed cells are counted with live rollouts, a prime."""


def learning_rate(
    config: PPOConfig, update: Int[Array, ""], hyper: Hyperparameters | None = None
) -> Float[Array, ""]:
    """Adam's step size in a given update, counted from 0."""
    hyper = hyper or Hyperparameters.of(config)
    left = jnp.maximum(config.updates - update, 0).astype(jnp.float32) / config.updates
    return hyper.learning_rate * (left if config.anneal_lr else jnp.ones_like(left))


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
    """A state to start training from.

    Args:
        config: Of the learner.
        num_features: Length of an observation.
        action_nvec: Choices of each part of a decision, as in ``networks.init``.
        key: Of everything drawn in this training.
        num_cells: Size of the table of rewards, to count what the learner saw of it.
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
    """``config.seeds`` states stacked on a leading axis; the first ones do not depend on it."""
    return _init_seeds(config, num_features, tuple(action_nvec), key, num_cells)


@partial(jax.jit, static_argnums=(0, 1, 2, 4))
def _init_seeds(
    config: PPOConfig, num_features: int, nvec: tuple[int, ...], key: Key[Array, ""], num_cells: int
) -> LearnerState:
    keys = jax.vmap(lambda seed: jax.random.fold_in(key, seed))(jnp.arange(config.seeds))
    # Not vmap: several batched QR factorisations in one program can hang XLA's CPU runtime.
    return jax.lax.map(lambda k: init(config, num_features, nvec, k, num_cells=num_cells), keys)


class _Keys(NamedTuple):
    """Keys of one update."""

    action: Key[Array, ""]
    shuffle: Key[Array, ""]
    reset: Key[Array, " batch"]
    step: Key[Array, " batch"]


def _keys(config: PPOConfig, state: LearnerState) -> _Keys:
    """Keys of the coming update, of a single split: each further one takes time to compile."""
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.update)
    keys = jax.random.split(key, 2 + 2 * config.batch_size)
    return _Keys(keys[0], keys[1], keys[2 : 2 + config.batch_size], keys[2 + config.batch_size :])


def _constrain(tree: Any, sharding: NamedSharding | None) -> Any:
    """Lay the leading axis of every array out as ``sharding`` says."""
    return tree if sharding is None else jax.lax.with_sharding_constraint(tree, sharding)


def decide(
    config: PPOConfig,
    prompts: Prompts,
    state: LearnerState,
    *,
    sharding: NamedSharding | None = None,
) -> Decisions:
    """Draws ``config.batch_size`` prompts, and for each a gate from the policy."""
    keys = _keys(config, state)
    states, observations = _constrain(jax.vmap(prompts.reset)(keys.reset), sharding)
    logits, values = networks.apply(state.params, observations)
    actions = jax.random.categorical(keys.action, logits, axis=-1)
    return Decisions(states, observations, actions, losses.log_prob(logits, actions), values)


def rewarded(
    decisions: Decisions,
    rewards: Float[Array | np.ndarray, "*seeds batch"],
    cells: Int[Array | np.ndarray, "*seeds batch"] | None = None,
) -> Batch:
    """The batch that decisions become once it is known what they pay.

    Raises:
        UserError: Rewards of another number than the decisions, or not finite.
    """
    if rewards.shape != decisions.values.shape:
        raise UserError(
            f"{decisions.values.shape} decisions were answered with {rewards.shape} rewards; give "
            "one for each"
        )
    if not np.isfinite(rewards).all():
        where = tuple(map(int, np.argwhere(~np.isfinite(rewards))[0]))
        raise UserError(f"the reward of decision {where} is {np.asarray(rewards)[where]}")
    numbers = None if cells is None else jnp.asarray(np.asarray(cells, np.int32))
    return _batch(decisions, jnp.asarray(np.asarray(rewards, np.float32)), numbers)


def number_cells(
    problems: Int[np.ndarray, "*seeds batch"], choices: Int[np.ndarray, "..."], gates: int
) -> Int[np.ndarray, "*seeds batch"]:
    """Numbers of the cells that decisions reveal, to count the different ones.

    Args:
        problems: Indices of problems.
        choices: Of each problem, or of each part of its decision, an index below ``gates``.
        gates: Size of the grid.

    Returns:
        Numbers below ``COUNTED``; if problems times decisions are more, cells may share one.
    """
    numbers = problems.astype(np.int64)
    for part in np.moveaxis(choices.reshape(*problems.shape, -1), -1, 0):
        numbers = (numbers * gates + part) % COUNTED
    return numbers


def _batch(decisions: Decisions, rewards: Array, cells: Array | None) -> Batch:
    _, observations, actions, log_probs, values = decisions
    return Batch(observations, actions, log_probs, values, rewards, cells)


def rollout(
    config: PPOConfig,
    env: Environment,
    state: LearnerState,
    *,
    sharding: NamedSharding | None = None,
) -> Batch:
    """One episode each of ``config.batch_size`` prompts, with actions drawn from the policy."""
    decisions = decide(config, env, state, sharding=sharding)
    step_keys = _keys(config, state).step
    _, _, rewards, _, info = jax.vmap(env.step)(decisions.states, decisions.choices, step_keys)
    cells = None
    if "problem" in info and decisions.actions.shape[1] == 1:
        choices = networks.num_choices(state.params)
        cells = info["problem"] * choices + decisions.choices
    return _constrain(_batch(decisions, rewards, cells), sharding)


def minibatch_rows(config: PPOConfig, state: LearnerState) -> Int[Array, "steps rows"]:
    """Rows of the batch that each gradient step of the coming update sees, over all epochs.

    An epoch's order is that of random numbers. Sorting single words is several times faster than
    sorting pairs, so the rows are their low bits; the rest decides, and is alike for fewer than
    1 row in 200.
    """
    key, size = _keys(config, state).shuffle, config.batch_size
    if size > PACKED_ROWS:
        keys = jax.random.split(key, config.epochs)
        epochs = jax.vmap(lambda k: jax.random.permutation(k, size))(keys)
    else:
        bits = max((size - 1).bit_length(), 1)
        drawn = jax.random.bits(key, (config.epochs, size)) << jnp.uint32(bits)
        drawn = drawn | jnp.arange(size, dtype=jnp.uint32)[None]
        drawn = jax.lax.sort(drawn, dimension=1, is_stable=False)
        epochs = (drawn & jnp.uint32(2**bits - 1)).astype(jnp.int32)
    return epochs.reshape(config.epochs * config.minibatches, -1)


def _check_batch(config: PPOConfig, state: LearnerState, batch: Batch) -> None:
    """Shapes and types at the boundary; all are known while a program is traced."""
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
        config: Of the learner; the batch must have its ``batch_size``.
        state: Before the update.
        batch: Episodes rolled out with ``state.params``.
        hyper: Numbers to use in place of the configuration's.
        sharding: How the leading axis of the batch and of every minibatch lies on the devices.

    Returns:
        The state after the update, and the update's metrics.

    Raises:
        AssertionError: A batch of other shapes or types than the configuration and the network's.
    """
    _check_batch(config, state, batch)
    hyper = hyper or Hyperparameters.of(config)
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
    step_size = learning_rate(config, state.update, hyper)
    optimizer = _optimizer(hyper, step_size)
    # One vector of all parameters: Adam is then one loop and not one for every layer.
    flat, unravel = ravel_pytree(state.params)

    def loss_of(
        params: networks.Params, rows: Batch, advantages: Array, returns: Array
    ) -> tuple[Array, tuple[Array, ...]]:
        logits, values = networks.apply(params, rows.observations)
        log_probs = losses.log_prob(logits, rows.actions)
        policy_loss = losses.clipped_surrogate(
            log_probs, rows.log_probs, advantages, hyper.clip_coef
        )
        value_loss = losses.value_loss(
            values, returns, rows.values, hyper.clip_coef if config.clip_vloss else None
        )
        entropy = losses.entropy(logits).mean()
        loss = policy_loss - hyper.ent_coef * entropy + hyper.vf_coef * value_loss
        return loss, (
            loss,
            policy_loss,
            value_loss,
            entropy,
            losses.old_approx_kl(log_probs, rows.log_probs),
            losses.approx_kl(log_probs, rows.log_probs),
            losses.clip_fraction(log_probs, rows.log_probs, hyper.clip_coef),
        )

    def gradient_step(
        carry: tuple[Array, optax.OptState], rows: Array
    ) -> tuple[tuple[Array, optax.OptState], Array]:
        flat, optimizer_state = carry
        minibatch = jax.tree.map(lambda x: x[rows], (learnt_from, advantages, returns))
        minibatch = _constrain(minibatch, sharding)
        gradients, seen = jax.grad(loss_of, has_aux=True)(unravel(flat), *minibatch)
        gradient = ravel_pytree(gradients)[0]
        seen = jnp.stack([*seen, optax.tree.norm(gradient)])
        with jax.numpy_dtype_promotion("standard"):  # optax raises a float to its integer count
            change: Any
            change, optimizer_state = optimizer.update(gradient, optimizer_state, flat)
        return (flat + change, optimizer_state), seen

    learnt_from = batch._replace(cells=None)
    (flat, optimizer_state), seen = jax.lax.scan(
        gradient_step, (flat, state.optimizer), minibatch_rows(config, state)
    )
    chosen = jax.nn.one_hot(batch.actions, networks.num_choices(state.params)).mean(axis=0)
    revealed, cells_revealed = state.revealed, jnp.float32(jnp.nan)
    if batch.cells is not None and revealed.size:
        revealed = revealed.at[batch.cells].set(True)
        cells_revealed = revealed.sum().astype(jnp.float32)
    metrics = Metrics(
        episodic_return=batch.rewards.mean(),
        learning_rate=step_size,
        explained_variance=losses.explained_variance(batch.values, returns),
        gate_entropy=jax.scipy.special.entr(chosen).sum(axis=1).mean(),
        gate_fraction=chosen.mean(axis=0),
        cells_revealed=cells_revealed,
        **dict(zip(EPOCH_MEANS, seen.mean(axis=0), strict=True)),
    )
    after = LearnerState(unravel(flat), optimizer_state, state.key, state.update + 1, revealed)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
    return after, metrics


def train(
    config: PPOConfig,
    env: Environment,
    state: LearnerState,
    num_updates: int,
    *,
    hyper: Hyperparameters | None = None,
    sharding: NamedSharding | None = None,
) -> tuple[LearnerState, Metrics]:
    """``num_updates`` rollouts and updates; metrics get a leading axis ``[num_updates]``."""

    def one(state: LearnerState, _: None) -> tuple[LearnerState, Metrics]:
        batch = rollout(config, env, state, sharding=sharding)
        return update(config, state, batch, hyper=hyper, sharding=sharding)

    return jax.lax.scan(one, state, length=num_updates)


def compile_train(
    config: PPOConfig,
    num_updates: int,
    *,
    sharding: NamedSharding | None = None,
    together: bool | None = None,
) -> Callable[..., tuple[LearnerState, Metrics]]:
    """``train`` as one program of ``(env, state, hyper=None)``, for one seed or for many.

    The state's memory is given away: use the state that comes back. A state may have leading axes,
    ``[seeds]`` as ``init_seeds`` makes them or several such as ``[trials, seeds]``; all it holds is
    trained at once. ``hyper`` replaces the configuration's numbers: by others, or by some for each
    place of the first of those axes.

    Args:
        config: Of the learner.
        num_updates: Updates of one call.
        sharding: Over a mesh whose axes are automatic, as ``Mesh`` makes them: parameters are
            copied to every device and batches are spread over them.
        together: Whether all seeds are one batch. By default they are, but on processors they take
            turns, on every core.

    Returns:
        ``(env, state, hyper) -> (state, metrics)``; metrics are ``[..., num_updates]``.
    """

    def run(
        env: Environment, state: LearnerState, hyper: Hyperparameters
    ) -> tuple[LearnerState, Metrics]:
        def one(state: LearnerState, hyper: Hyperparameters) -> tuple[LearnerState, Metrics]:
            return train(config, env, state, num_updates, hyper=hyper, sharding=sharding)

        return seeds.on_each(one, together, state, hyper)

    jitted = jax.jit(run, donate_argnums=1, compiler_options=seeds.options())
    program = _placed(jitted, sharding)
    dealt = sharding is None and together is None and seeds.in_turn()
    spread, numbers = seeds.on_every_core(jitted), Hyperparameters.of(config)

    def call(
        env: Environment, state: LearnerState, hyper: Hyperparameters | None = None
    ) -> tuple[LearnerState, Metrics]:
        many = dealt and state.update.ndim > 0
        return (spread if many else program)(env, state, numbers if hyper is None else hyper)

    return call


def compile_decide(
    config: PPOConfig, *, sharding: NamedSharding | None = None
) -> Callable[[Prompts, LearnerState], Decisions]:
    """``decide`` as one program of ``(prompts, state)``; the state stays."""
    numbers = Hyperparameters.of(config)

    def run(prompts: Prompts, state: LearnerState) -> Decisions:
        def one(state: LearnerState, _: Hyperparameters) -> Decisions:
            return decide(config, prompts, state, sharding=sharding)

        return seeds.on_each(one, None, state, numbers)

    return _placed(jax.jit(run, compiler_options=seeds.options()), sharding)


def compile_update(
    config: PPOConfig, *, sharding: NamedSharding | None = None
) -> Callable[..., tuple[LearnerState, Metrics]]:
    """``update`` as one program of ``(state, batch, hyper=None)``, for rollouts made outside.

    The loop is ``decisions = decide(prompts, state)``, finding what ``decisions.choices`` pay, and
    ``state, metrics = update(state, rewarded(decisions, rewards))``. The state's memory is given
    away. A batch has the leading axes of the state.
    """

    def run(
        state: LearnerState, batch: Batch, hyper: Hyperparameters
    ) -> tuple[LearnerState, Metrics]:
        def one(
            state: LearnerState, hyper: Hyperparameters, batch: Batch
        ) -> tuple[LearnerState, Metrics]:
            return update(config, state, batch, hyper=hyper, sharding=sharding)

        return seeds.on_each(one, None, state, hyper, batch)

    program = _placed(jax.jit(run, donate_argnums=0, compiler_options=seeds.options()), sharding)
    numbers = Hyperparameters.of(config)

    def call(
        state: LearnerState, batch: Batch, hyper: Hyperparameters | None = None
    ) -> tuple[LearnerState, Metrics]:
        return program(state, batch, numbers if hyper is None else hyper)

    return call


def _placed(program: Callable[..., Any], sharding: NamedSharding | None) -> Callable[..., Any]:
    """A program whose arguments are first copied to all devices of ``sharding``'s mesh."""
    if sharding is None:
        return program
    everywhere = NamedSharding(sharding.mesh, PartitionSpec())
    return lambda *arguments: program(*jax.device_put(arguments, everywhere))
