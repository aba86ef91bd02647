"""Episodes to learn from: the policy's decisions on a batch of prompts, and their rewards."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array, Float, Int

from jroute.controller import networks
from jroute.ppo import losses
from jroute.ppo.config import PPOConfig
from jroute.ppo.random_keys import update_keys
from jroute.ppo.sharding import constrain
from jroute.ppo.types import Batch, Decisions, Environment, LearnerState, Prompts
from jroute.utils.errors import UserError

MAX_CELL_NUMBERS = 1_048_573
"""Distinct numbers of cells with live rollouts, a prime; further cells share them."""


def decide(
    config: PPOConfig,
    prompts: Prompts,
    state: LearnerState,
    *,
    sharding: NamedSharding | None = None,
) -> Decisions:
    """Draw ``config.batch_size`` prompts, and a decision of the policy for each."""
    keys = update_keys(config, state)
    states, observations = constrain(jax.vmap(prompts.reset)(keys.reset), sharding)
    logits, values = networks.apply(state.params, observations)
    actions = jax.random.categorical(keys.action, logits, axis=-1)
    return Decisions(states, observations, actions, losses.log_prob(logits, actions), values)


def rollout(
    config: PPOConfig,
    env: Environment,
    state: LearnerState,
    *,
    sharding: NamedSharding | None = None,
) -> Batch:
    """Play one episode for each of ``config.batch_size`` prompts, with the policy's decisions."""
    decisions = decide(config, env, state, sharding=sharding)
    step_keys = update_keys(config, state).step
    _, _, rewards, _, info = jax.vmap(env.step)(decisions.states, decisions.choices, step_keys)
    cells = None
    if "problem" in info and decisions.actions.shape[1] == 1:
        choices = networks.num_choices(state.params)
        cells = info["problem"] * choices + decisions.choices
    return constrain(_batch(decisions, rewards, cells), sharding)


def add_rewards(
    decisions: Decisions,
    rewards: Float[Array | np.ndarray, "*seeds batch"],
    cells: Int[Array | np.ndarray, "*seeds batch"] | None = None,
) -> Batch:
    """Make a batch of decisions whose rewards were computed outside the program.

    Args:
        decisions: As ``decide`` returns them.
        rewards: The reward of each decision.
        cells: The number of each decision's cell (see ``number_cells``), to count distinct cells.

    Raises:
        UserError: There is not one reward for each decision, or a reward is not finite.
    """
    if rewards.shape != decisions.values.shape:
        raise UserError(
            f"decisions of shape {decisions.values.shape} got rewards of shape {rewards.shape}; "
            "give one reward for each decision"
        )
    if not np.isfinite(rewards).all():
        where = tuple(map(int, np.argwhere(~np.isfinite(rewards))[0]))
        raise UserError(f"the reward of decision {where} is {np.asarray(rewards)[where]}")
    numbers = None if cells is None else jnp.asarray(np.asarray(cells, np.int32))
    return _batch(decisions, jnp.asarray(np.asarray(rewards, np.float32)), numbers)


def number_cells(
    problems: Int[np.ndarray, "*seeds batch"], choices: Int[np.ndarray, "..."], num_gates: int
) -> Int[np.ndarray, "*seeds batch"]:
    """Assign numbers to the cells that decisions reveal, to count distinct cells.

    Args:
        problems: Row of each problem.
        choices: An index below ``num_gates`` for each problem, or for each dimension of its gate.
        num_gates: Size of the grid of gates.

    Returns:
        Numbers below ``MAX_CELL_NUMBERS``; where there are more cells than that, some share one.
    """
    numbers = problems.astype(np.int64)
    for dimension in np.moveaxis(choices.reshape(*problems.shape, -1), -1, 0):
        numbers = (numbers * num_gates + dimension) % MAX_CELL_NUMBERS
    return numbers


def _batch(decisions: Decisions, rewards: Array, cells: Array | None) -> Batch:
    _, observations, actions, log_probs, values = decisions
    return Batch(observations, actions, log_probs, values, rewards, cells)
