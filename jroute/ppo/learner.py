"""PPO for episodes of one step: see a prompt, choose a gate, get a reward.

Everything is a pure function of a configuration, a state and arrays: ``init`` draws a state,
``update`` learns from one batch, ``train`` alternates rollouts and updates inside one
``lax.scan``. All of them map over seeds with ``vmap``. Randomness is folded from the state's key
and its update number, so a state that was saved and restored goes on exactly as it would have.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, Key, UInt32

from jroute.controller import networks
from jroute.errors import UserError
from jroute.ppo import losses


@dataclass(frozen=True)
class PPOConfig:
    """How a controller is trained. The defaults are CleanRL's, but where one-step episodes differ.

    Attributes:
        updates: Number of updates of a whole training; the learning rate is annealed over them.
        batch_size: Episodes (prompts) per update.
        epochs: Passes over the batch per update.
        minibatches: Parts a pass is cut into; must divide ``batch_size``.
        learning_rate: Adam's step size at the first update.
        anneal_lr: Whether the step size falls linearly, to ``learning_rate / updates`` at the
            last update.
        adam_eps: Adam's epsilon.
        max_grad_norm: Limit on the global norm of a gradient.
        clip_coef: How far the ratio of new to old probability may move from 1.
        clip_vloss: Whether the value's moves are clipped too, by ``clip_coef`` in units of reward.
        vf_coef: Weight of the value loss.
        ent_coef: Weight of the entropy bonus.
        norm_adv: Whether advantages are normalised over the whole batch.
        adv_std_floor: Least standard deviation of the advantages that is scaled up to 1, in units
            of reward.
        gamma: Discount; without effect in one-step episodes.
        gae_lambda: GAE's weight of longer look-ahead; without effect in one-step episodes.
        hidden: Widths of the tanh layers of the actor and of the critic.
        seeds: Number of controllers that are trained, side by side.
    """

    updates: int = 300
    batch_size: int = 512
    epochs: int = 4
    minibatches: int = 4
    learning_rate: float = 3e-3
    anneal_lr: bool = True
    adam_eps: float = 1e-5
    max_grad_norm: float = 0.5
    clip_coef: float = 0.2
    clip_vloss: bool = False
    vf_coef: float = 0.5
    ent_coef: float = 0.01
    norm_adv: bool = True
    adv_std_floor: float = 0.05
    gamma: float = 0.99
    gae_lambda: float = 0.95
    hidden: tuple[int, ...] = (64, 64)
    seeds: int = 20

    def __post_init__(self) -> None:
        """Refuse numbers that cannot be trained with."""
        counts = ("updates", "batch_size", "epochs", "minibatches", "seeds")
        positive = (*counts, "learning_rate", "adam_eps", "max_grad_norm", "clip_coef")
        for name in (*positive, "adv_std_floor"):
            if not getattr(self, name) > 0:
                raise UserError(f"ppo.{name} is {getattr(self, name)}; give a number above 0")
        if self.batch_size % self.minibatches:
            raise UserError(
                f"ppo.batch_size {self.batch_size} cannot be cut into {self.minibatches} equal "
                "minibatches; choose ppo.minibatches to divide it"
            )


@runtime_checkable
class Environment(Protocol):
    """What the learner asks of an environment: pure functions of one prompt, to be vmapped.

    A frozen dataclass registered as a pytree, so that its tables are arguments of the compiled
    training and not constants within it.
    """

    def reset(self, key: Key[Array, ""]) -> tuple[Any, Any]:
        """Draw a prompt: ``(state, observation [features])``."""
        ...

    def step(self, state: Any, action: Any, key: Any) -> tuple[Any, Any, Any, Any, Any]:
        """Answer it: ``(state, observation, reward, done, info)``; every step ends an episode.

        ``action`` is the index of a gate, or ``[parts]`` of them if a decision has several parts.
        """
        ...


class LearnerState(NamedTuple):
    """All that training goes on from; nothing but arrays of plain dtypes."""

    params: networks.Params
    """Of the actor-critic, as ``networks.init`` returns them."""
    optimizer: optax.OptState
    """Adam's moments and step count."""
    key: UInt32[Array, " words"]
    """Words of the key that every draw is folded from; the same throughout a training."""
    update: Int[Array, ""]
    """Number of updates done."""


class Batch(NamedTuple):
    """One-step episodes, and what the policy that made them thought of them."""

    observations: Float[Array, "batch features"]
    actions: Int[Array, "batch parts"]
    log_probs: Float[Array, " batch"]
    values: Float[Array, " batch"]
    rewards: Float[Array, " batch"]


class Metrics(NamedTuple):
    """Scalars of one update; those of the losses are means over all its minibatches."""

    episodic_return: Array
    """Mean reward of the batch."""
    learning_rate: Array
    value_loss: Array
    policy_loss: Array
    entropy: Array
    """Of the policy given a prompt, in nats."""
    old_approx_kl: Array
    approx_kl: Array
    clipfrac: Array
    explained_variance: Array
    """Of the batch's rewards, by the critic before the update."""
    grad_norm: Array
    """Global norm before clipping."""
    loss: Array
    gate_entropy: Array
    """Of the batch's gate histogram, in nats: 0 if every prompt got the same gate."""
    gate_fraction: Array
    """``[choices]``, share of decisions for each gate."""


SCALAR_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "episodic_return": "charts/episodic_return",
        "learning_rate": "charts/learning_rate",
        "value_loss": "losses/value_loss",
        "policy_loss": "losses/policy_loss",
        "entropy": "losses/entropy",
        "old_approx_kl": "losses/old_approx_kl",
        "approx_kl": "losses/approx_kl",
        "clipfrac": "losses/clipfrac",
        "explained_variance": "losses/explained_variance",
        "grad_norm": "losses/grad_norm",
        "loss": "losses/loss",
        "gate_entropy": "charts/gate_entropy",
    }
)
"""Field of ``Metrics`` -> name it is logged under: CleanRL's names where CleanRL has one."""


def scalars(metrics: Metrics, gates: Sequence[float]) -> dict[str, np.ndarray]:
    """Metrics under the names they are logged by; leading axes (seeds, updates) are kept.

    ``gates`` are the gate values that choices stand for: ``charts/gate_frac_<g>`` is the share of
    decisions for ``g``. ``charts/SPS`` needs a clock and is added where one is.
    """
    named = {name: np.asarray(getattr(metrics, field)) for field, name in SCALAR_NAMES.items()}
    fractions = np.asarray(metrics.gate_fraction)
    return named | {f"charts/gate_frac_{g:g}": fractions[..., i] for i, g in enumerate(gates)}


def learning_rate(config: PPOConfig, update: Int[Array, ""]) -> Float[Array, ""]:
    """Adam's step size in a given update, counted from 0."""
    left = jnp.maximum(config.updates - update, 0).astype(jnp.float32) / config.updates
    return config.learning_rate * (left if config.anneal_lr else jnp.ones_like(left))


def _optimizer(config: PPOConfig, step_size: Any) -> optax.GradientTransformation:
    return optax.chain(
        optax.clip_by_global_norm(config.max_grad_norm),
        optax.adam(step_size, eps=config.adam_eps),
    )


def init(
    config: PPOConfig, num_features: int, action_nvec: Sequence[int], key: Key[Array, ""]
) -> LearnerState:
    """A state to start training from; ``action_nvec`` as in ``networks.init``."""
    params_key, training_key = jax.random.split(key)
    params = networks.init(params_key, num_features, action_nvec, config.hidden)
    return LearnerState(
        params=params,
        optimizer=_optimizer(config, config.learning_rate).init(params),
        key=jax.random.key_data(training_key),
        update=jnp.zeros((), jnp.int32),
    )


def init_seeds(
    config: PPOConfig, num_features: int, action_nvec: Sequence[int], key: Key[Array, ""]
) -> LearnerState:
    """``config.seeds`` states stacked on a leading axis; the first ones do not depend on it."""
    keys = jax.vmap(lambda seed: jax.random.fold_in(key, seed))(jnp.arange(config.seeds))
    return jax.vmap(lambda k: init(config, num_features, action_nvec, k))(keys)


def _keys(state: LearnerState) -> tuple[Key[Array, ""], Key[Array, ""]]:
    """Keys of the rollout and of the minibatches of the coming update."""
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.update)
    rollout_key, minibatch_key = jax.random.split(key)
    return rollout_key, minibatch_key


def _constrain(tree: Any, sharding: NamedSharding | None) -> Any:
    """Lay the leading axis of every array out as ``sharding`` says."""
    return tree if sharding is None else jax.lax.with_sharding_constraint(tree, sharding)


def rollout(
    config: PPOConfig,
    env: Environment,
    state: LearnerState,
    *,
    sharding: NamedSharding | None = None,
) -> Batch:
    """One episode each of ``config.batch_size`` prompts, with actions drawn from the policy."""
    key, _ = _keys(state)
    reset_key, action_key, step_key = jax.random.split(key, 3)
    reset_keys = jax.random.split(reset_key, config.batch_size)
    env_states, observations = _constrain(jax.vmap(env.reset)(reset_keys), sharding)
    logits, values = networks.apply(state.params, observations)
    actions = jax.random.categorical(action_key, logits, axis=-1)
    step_keys = jax.random.split(step_key, config.batch_size)
    choices = actions[:, 0] if actions.shape[1] == 1 else actions
    _, _, rewards, _, _ = jax.vmap(env.step)(env_states, choices, step_keys)
    return _constrain(
        Batch(
            observations=observations,
            actions=actions,
            log_probs=losses.log_prob(logits, actions),
            values=values,
            rewards=rewards,
        ),
        sharding,
    )


def minibatch_rows(config: PPOConfig, state: LearnerState) -> Int[Array, "steps rows"]:
    """Rows of the batch that each gradient step of the coming update sees, over all epochs."""
    _, key = _keys(state)
    epochs = jax.vmap(lambda k: jax.random.permutation(k, config.batch_size))(
        jax.random.split(key, config.epochs)
    )
    return epochs.reshape(config.epochs * config.minibatches, -1)


def update(
    config: PPOConfig,
    state: LearnerState,
    batch: Batch,
    *,
    sharding: NamedSharding | None = None,
) -> tuple[LearnerState, Metrics]:
    """Learn from one batch of one-step episodes.

    Args:
        config: Of the learner; the batch must have its ``batch_size``.
        state: Before the update.
        batch: Episodes rolled out with ``state.params``.
        sharding: How the leading axis of the batch and of every minibatch lies on the devices.

    Returns:
        The state after the update, and the update's metrics.
    """
    advantages, returns = losses.gae(
        batch.rewards[None],
        batch.values[None],
        jnp.ones_like(batch.rewards[None], bool),
        jnp.zeros_like(batch.values),
        gamma=config.gamma,
        gae_lambda=config.gae_lambda,
    )
    advantages, returns = advantages[0], returns[0]
    if config.norm_adv:
        advantages = losses.normalise_advantages(advantages, config.adv_std_floor)
    step_size = learning_rate(config, state.update)
    optimizer = _optimizer(config, step_size)

    def loss_of(
        params: networks.Params, rows: Batch, advantages: Array, returns: Array
    ) -> tuple[Array, dict[str, Array]]:
        logits, values = networks.apply(params, rows.observations)
        log_probs = losses.log_prob(logits, rows.actions)
        policy_loss = losses.clipped_surrogate(
            log_probs, rows.log_probs, advantages, config.clip_coef
        )
        value_loss = losses.value_loss(
            values, returns, rows.values, config.clip_coef if config.clip_vloss else None
        )
        entropy = losses.entropy(logits).mean()
        loss = policy_loss - config.ent_coef * entropy + config.vf_coef * value_loss
        return loss, {
            "loss": loss,
            "policy_loss": policy_loss,
            "value_loss": value_loss,
            "entropy": entropy,
            "old_approx_kl": losses.old_approx_kl(log_probs, rows.log_probs),
            "approx_kl": losses.approx_kl(log_probs, rows.log_probs),
            "clipfrac": losses.clip_fraction(log_probs, rows.log_probs, config.clip_coef),
        }

    def gradient_step(
        carry: tuple[networks.Params, optax.OptState], rows: Array
    ) -> tuple[tuple[networks.Params, optax.OptState], dict[str, Array]]:
        params, optimizer_state = carry
        minibatch = jax.tree.map(lambda x: x[rows], (batch, advantages, returns))
        minibatch = _constrain(minibatch, sharding)
        gradient, seen = jax.grad(loss_of, has_aux=True)(params, *minibatch)
        seen["grad_norm"] = optax.tree.norm(gradient)
        with jax.numpy_dtype_promotion("standard"):  # optax raises a float to its integer count
            change, optimizer_state = optimizer.update(gradient, optimizer_state, params)
        params = jax.tree.map(jnp.add, params, change)
        return (params, optimizer_state), seen

    (params, optimizer_state), seen = jax.lax.scan(
        gradient_step, (state.params, state.optimizer), minibatch_rows(config, state)
    )
    choices = state.params["actor"]["output"]["bias"].shape[-1]
    gate_fraction = jax.nn.one_hot(batch.actions, choices).mean(axis=(0, 1))
    metrics = Metrics(
        episodic_return=batch.rewards.mean(),
        learning_rate=step_size,
        explained_variance=losses.explained_variance(batch.values, returns),
        gate_entropy=jax.scipy.special.entr(gate_fraction).sum(),
        gate_fraction=gate_fraction,
        **{name: values.mean() for name, values in seen.items()},
    )
    after = LearnerState(params, optimizer_state, state.key, state.update + 1)
    return after, metrics


def train(
    config: PPOConfig,
    env: Environment,
    state: LearnerState,
    num_updates: int,
    *,
    sharding: NamedSharding | None = None,
) -> tuple[LearnerState, Metrics]:
    """``num_updates`` rollouts and updates; metrics get a leading axis ``[num_updates]``."""

    def one(state: LearnerState, _: None) -> tuple[LearnerState, Metrics]:
        batch = rollout(config, env, state, sharding=sharding)
        return update(config, state, batch, sharding=sharding)

    return jax.lax.scan(one, state, length=num_updates)


def compile_train(
    config: PPOConfig, num_updates: int, *, sharding: NamedSharding | None = None
) -> Callable[[Environment, LearnerState], tuple[LearnerState, Metrics]]:
    """``train`` as one program of ``(env, state)``, for one seed or for a stack of them.

    The state's memory is given away: use the state that comes back. With ``sharding`` (over a mesh
    whose axes are automatic, as ``Mesh`` makes them) the parameters are copied to every device and
    batches are spread over them.
    A state from ``init_seeds`` trains all seeds at once; metrics are then
    ``[seeds, num_updates]``.
    """

    def run(env: Environment, state: LearnerState) -> tuple[LearnerState, Metrics]:
        def one_seed(state: LearnerState) -> tuple[LearnerState, Metrics]:
            return train(config, env, state, num_updates, sharding=sharding)

        return jax.vmap(one_seed)(state) if state.update.ndim else one_seed(state)

    program = jax.jit(run, donate_argnums=1)
    if sharding is None:
        return program
    everywhere = NamedSharding(sharding.mesh, PartitionSpec())
    return lambda env, state: program(*jax.device_put((env, state), everywhere))
