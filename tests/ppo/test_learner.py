from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jroute.checkpoint import load_state, save_state
from jroute.controller import networks
from jroute.envs.functional import TableEnv
from jroute.ppo import compilation, learner, rollout
from jroute.ppo.config import Hyperparameters, PPOConfig
from jroute.ppo.metrics import Metrics, named_scalars
from jroute.ppo.minibatches import minibatch_rows
from jroute.ppo.rollout import MAX_CELL_NUMBERS, add_rewards, decide, number_cells
from jroute.ppo.types import Batch, LearnerState
from jroute.utils.errors import UserError
from tests.ppo.bandits import Locks, Ridge

KEY = jax.random.key(0)
SMALL = PPOConfig(updates=6, batch_size=64, hidden=(16,), learning_rate=1e-2, seeds=3)
ENV = Ridge.make()


@partial(jax.jit, static_argnums=(0, 1, 2))
def init(config: PPOConfig, num_features: int, nvec: tuple[int, ...]) -> LearnerState:
    return learner.init(config, num_features, nvec, KEY)


def start() -> LearnerState:
    return init(SMALL, 6, (5,))


@partial(jax.jit, static_argnums=(0, 1))
def start_seeds(config: PPOConfig = SMALL, num_cells: int = 0) -> LearnerState:
    return learner.init_seeds(config, 6, (5,), KEY, num_cells=num_cells)


@cache
def trainer(updates: int) -> Callable[..., tuple[LearnerState, Metrics]]:
    return compilation.compile_train(SMALL, updates)


def assert_same(a, b) -> None:
    """Bit for bit."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def assert_close(a, b, **tolerance) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(partial(np.testing.assert_allclose, **tolerance), a, b)


# The arithmetic of an update, in torch


class TorchMLP(torch.nn.Module):
    def __init__(self, mlp) -> None:
        super().__init__()
        self.kernels, self.biases = torch.nn.ParameterList(), torch.nn.ParameterList()
        for layer in [*mlp["hidden"].values(), mlp["output"]]:
            bias = np.asarray(layer["bias"], np.float64)
            kernel = np.asarray(layer["kernel"], np.float64).reshape(-1, bias.size)
            self.kernels.append(torch.nn.Parameter(torch.tensor(kernel)))
            self.biases.append(torch.nn.Parameter(torch.tensor(bias.ravel())))
        self.shape = mlp["output"]["bias"].shape

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for i, (kernel, bias) in enumerate(zip(self.kernels, self.biases, strict=True)):
            x = (torch.tanh(x) if i else x) @ kernel + bias
        return x.reshape(-1, *self.shape)

    def arrays(self) -> list[np.ndarray]:
        return [p.detach().numpy() for p in (*self.kernels, *self.biases)]


def torch_update(config: PPOConfig, params, batch, rows, lr):
    """One PPO update as CleanRL computes it, in float64; advantages of the whole batch."""
    actor, critic = TorchMLP(params["actor"]), TorchMLP(params["critic"])
    both = [*actor.parameters(), *critic.parameters()]
    adam = torch.optim.Adam(both, lr=lr, eps=config.adam_eps)
    observations, old_log, old_values, rewards = (
        torch.tensor(np.asarray(x, np.float64))
        for x in (batch.observations, batch.log_probs, batch.values, batch.rewards)
    )
    actions = torch.tensor(np.asarray(batch.actions, np.int64))
    advantages = rewards - old_values
    if config.norm_adv:
        std = advantages.std(correction=0)
        advantages = (advantages - advantages.mean()) / std.clamp(min=config.adv_std_floor)
    seen: dict[str, list[float]] = {}
    for row in np.asarray(rows):
        mb = torch.tensor(np.array(row))
        distribution = torch.distributions.Categorical(logits=actor(observations[mb]))
        log_ratio = distribution.log_prob(actions[mb]).sum(-1) - old_log[mb]
        ratio = log_ratio.exp()
        pg1 = -advantages[mb] * ratio
        pg2 = -advantages[mb] * ratio.clamp(1 - config.clip_coef, 1 + config.clip_coef)
        policy_loss = torch.max(pg1, pg2).mean()
        value = critic(observations[mb])[:, 0]
        if config.clip_vloss:
            unclipped = (value - rewards[mb]) ** 2
            moved = (value - old_values[mb]).clamp(-config.clip_coef, config.clip_coef)
            clipped = (old_values[mb] + moved - rewards[mb]) ** 2
            value_loss = 0.5 * torch.max(unclipped, clipped).mean()
        else:
            value_loss = 0.5 * ((value - rewards[mb]) ** 2).mean()
        entropy = distribution.entropy().sum(-1).mean()
        loss = policy_loss - config.ent_coef * entropy + config.vf_coef * value_loss
        adam.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(both, config.max_grad_norm)
        adam.step()
        for name, x in {
            "loss": loss,
            "policy_loss": policy_loss,
            "value_loss": value_loss,
            "entropy": entropy,
            "old_approx_kl": (-log_ratio).mean(),
            "approx_kl": ((ratio - 1) - log_ratio).mean(),
            "clipfrac": ((ratio - 1).abs() > config.clip_coef).double().mean(),
            "grad_norm": norm,
        }.items():
            seen.setdefault(name, []).append(float(x.detach()))
    return (actor, critic), {name: np.mean(values) for name, values in seen.items()}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"clip_vloss": True, "norm_adv": False, "max_grad_norm": 0.05, "ent_coef": 0.3},
        {"adv_std_floor": 1.5, "vf_coef": 2.0, "epochs": 2, "minibatches": 1},
    ],
)
def test_update_equals_cleanrls_arithmetic(changes) -> None:
    config = replace(SMALL, **{"learning_rate": 0.05, "clip_coef": 0.1} | changes)
    state = init(config, 6, (4, 4))
    state = state._replace(update=jnp.asarray(2, jnp.int32))
    rng = np.random.default_rng(0)
    observations = jnp.asarray(rng.standard_normal((64, 6)), jnp.float32)
    actions = jnp.asarray(rng.integers(0, 4, (64, 2)), jnp.int32)
    logits, values = jax.jit(networks.apply)(state.params, observations)
    batch = Batch(
        observations,
        actions,
        learner.losses.log_prob(logits, actions),
        values,
        jnp.asarray(rng.random(64), jnp.float32),
    )
    after, metrics = jax.jit(partial(learner.update, config))(state, batch)
    lr = config.learning_rate * (1 - 2 / config.updates)
    rows = minibatch_rows(config, state)
    nets, expected = torch_update(config, state.params, batch, rows, lr)

    for net, name in zip(nets, ("actor", "critic"), strict=True):
        moved = TorchMLP(after.params[name]).arrays()
        start = TorchMLP(state.params[name]).arrays()
        for was, actual, wanted in zip(start, moved, net.arrays(), strict=True):
            assert np.abs(wanted - was).max() > 0.01
            np.testing.assert_allclose(actual, wanted, rtol=1e-3, atol=2e-4)
    assert expected["clipfrac"] > 0.1
    for name, value in expected.items():
        np.testing.assert_allclose(getattr(metrics, name), value, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(metrics.learning_rate, lr, rtol=1e-6)
    np.testing.assert_allclose(metrics.episodic_return, np.mean(batch.rewards), rtol=1e-6)
    shares = np.bincount(np.asarray(actions).ravel(), minlength=4) / 128
    np.testing.assert_allclose(metrics.gate_fraction, shares, rtol=1e-6)
    spread = 0.0
    for part in np.asarray(actions).T:
        each = np.bincount(part, minlength=4) / 64
        spread -= (each * np.log(each)).sum() / 2
    np.testing.assert_allclose(metrics.gate_entropy, spread, rtol=1e-5)
    assert int(after.update) == 3


def test_every_epoch_sees_every_row_once_in_a_new_order() -> None:
    state = start()
    epochs = np.asarray(minibatch_rows(SMALL, state)).reshape(4, 64)
    assert (np.sort(epochs, axis=1) == np.arange(64)).all()
    later = state._replace(update=jnp.asarray(1, jnp.int32))
    epochs = [*epochs, *np.asarray(minibatch_rows(SMALL, later)).reshape(4, 64)]
    assert len({tuple(epoch) for epoch in epochs}) == 8


@pytest.mark.parametrize("size", [1, 3, 8, 4096, 4100])
def test_rows_of_any_number_are_shuffled(size) -> None:
    config = replace(SMALL, batch_size=size, minibatches=1, epochs=3)
    epochs = np.asarray(jax.jit(partial(minibatch_rows, config))(start()))
    assert epochs.shape == (3, size)
    assert (np.sort(epochs, axis=1) == np.arange(size)).all()


def test_every_order_is_as_likely() -> None:
    config = replace(SMALL, batch_size=4, minibatches=1, epochs=1)
    keys = jax.random.key_data(jax.random.split(KEY, 24_000))
    states = jax.vmap(lambda key: start()._replace(key=key))(keys)
    orders = jax.jit(jax.vmap(partial(minibatch_rows, config)))(states)[:, 0]
    _, counts = np.unique(np.asarray(orders), axis=0, return_counts=True)
    assert len(counts) == 24
    # A chi-square of 23 degrees of freedom passes 49.7 once in a thousand.
    assert ((counts - 1000.0) ** 2 / 1000).sum() < 49.7


# State: resuming, seeds, devices


def test_training_resumed_from_a_checkpoint_is_identical(tmp_path) -> None:
    whole, metrics = trainer(6)(ENV, start_seeds())

    state, first = trainer(3)(ENV, start_seeds())
    assert state.update.tolist() == [3, 3, 3]
    save_state(tmp_path / "learner", 3, state)
    done, state = load_state(tmp_path / "learner", start_seeds())
    assert done == 3
    state, second = trainer(3)(ENV, state)
    assert_same(state, whole)
    together = jax.tree.map(lambda *x: np.concatenate(x, axis=1), first, second)
    assert_same(together, metrics)
    # Not because nothing happens in the second half.
    assert not np.array_equal(first.episodic_return, second.episodic_return)
    # The step size is annealed by the update number that the state carries.
    expected = np.tile(1e-2 * np.arange(6, 0, -1) / 6, (3, 1))
    np.testing.assert_allclose(metrics.learning_rate, expected, rtol=1e-6)


def test_learning_rate_without_annealing() -> None:
    rate = learner.learning_rate(replace(SMALL, anneal_lr=False), jnp.asarray(4))
    assert float(rate) == np.float32(1e-2)


def test_seeds_side_by_side_equal_seeds_alone() -> None:
    together, metrics = trainer(3)(ENV, start_seeds())
    assert metrics.loss.shape == (3, 3)
    assert metrics.gate_fraction.shape == (3, 3, 5)
    for i in range(3):
        pick = partial(jax.tree.map, lambda leaf, i=i: leaf[i])
        state, seen = trainer(3)(ENV, pick(start_seeds()))
        assert_close(pick(together), state, rtol=1e-4, atol=1e-5)
        assert_close(pick(metrics), seen, rtol=1e-4, atol=1e-5)
    assert not np.allclose(metrics.episodic_return[0], metrics.episodic_return[1])


def test_hyper_parameters_side_by_side_equal_trainings_alone() -> None:
    changes = {
        "learning_rate": 3e-3,
        "adam_eps": 1e-2,
        "max_grad_norm": 0.01,
        "clip_coef": 0.01,
        "vf_coef": 2.0,
        "ent_coef": 0.3,
        "adv_std_floor": 2.0,
    }
    trials = [SMALL, *(replace(SMALL, **{name: value}) for name, value in changes.items())]
    states = jax.tree.map(lambda leaf: jnp.stack([leaf] * len(trials)), start())
    states, metrics = trainer(3)(ENV, states, Hyperparameters.stack(trials))
    assert metrics.loss.shape == (8, 3)
    kernels = np.asarray(states.params["actor"]["hidden"]["layer_0"]["kernel"])
    for i, trial in enumerate(trials):
        pick = partial(jax.tree.map, lambda leaf, i=i: leaf[i])
        if i in (0, 1, 4):
            alone, seen = trainer(3)(ENV, start(), Hyperparameters.of(trial))
            assert_close(pick(states), alone, rtol=1e-4, atol=1e-5)
            assert_close(pick(metrics), seen, rtol=1e-4, atol=1e-5)
        if i and trial.vf_coef == SMALL.vf_coef:  # every number acts on the policy but this one
            assert np.abs(kernels[i] - kernels[0]).max() > 1e-4, trial
    np.testing.assert_allclose(metrics.learning_rate[1], 0.3 * metrics.learning_rate[0], rtol=1e-5)
    assert (np.asarray(metrics.clipfrac[4]) > metrics.clipfrac[0]).all()


def test_vmap_maps_over_hyper_parameters() -> None:
    rates = jnp.asarray([1e-3, 1e-4, 1e-5], jnp.float32)
    batch = jax.jit(partial(rollout.rollout, SMALL))(ENV, start())

    def moved(rate):
        hyper = Hyperparameters.of(SMALL)._replace(learning_rate=rate)
        after, _ = learner.update(SMALL, start(), batch, hyper=hyper)
        return after.params["critic"]["output"]["bias"][0]

    actual = np.abs(jax.jit(jax.vmap(moved))(rates))
    # Adam's first steps are the step size, whatever the gradient.
    np.testing.assert_allclose(actual, 16 * rates, rtol=0.3)


def test_sweep_of_more_than_numbers_is_refused() -> None:
    with pytest.raises(UserError, match="configuration 1 of the sweep differs"):
        Hyperparameters.stack([SMALL, replace(SMALL, epochs=2)])
    with pytest.raises(UserError, match="at least one"):
        Hyperparameters.stack([])


def test_more_seeds_do_not_change_the_first_ones() -> None:
    few, more = start_seeds(replace(SMALL, seeds=2)), start_seeds()
    assert_same(few, jax.tree.map(lambda leaf: leaf[:2], more))


def batch_sharding() -> NamedSharding:
    devices = jax.devices()
    assert len(devices) == 8
    return NamedSharding(Mesh(np.array(devices), ("data",)), PartitionSpec("data"))


@pytest.mark.parametrize("together", [False, True], ids=["in_turn", "in_one_batch"])
def test_eight_devices_equal_one_however_seeds_are_trained(together) -> None:
    state, metrics = trainer(3)(ENV, start_seeds())
    program = compilation.compile_train(SMALL, 3, sharding=batch_sharding(), together=together)
    state_of_8, metrics_of_8 = program(ENV, start_seeds())
    assert len(jax.tree.leaves(state_of_8)[0].devices()) == 8
    assert_close(state_of_8, state, rtol=1e-4, atol=1e-5)
    assert_close(metrics_of_8, metrics, rtol=1e-4, atol=1e-5)


def test_sharded_batch_is_spread_over_the_devices() -> None:
    sharding = batch_sharding()
    state = jax.device_put(start(), NamedSharding(sharding.mesh, PartitionSpec()))
    batch = jax.jit(partial(rollout.rollout, SMALL, sharding=sharding))(ENV, state)
    for leaf in jax.tree.leaves(batch):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
        assert leaf.addressable_shards[0].data.shape[0] == 8


def test_rollout_records_what_the_policy_thought() -> None:
    play = jax.jit(partial(rollout.rollout, SMALL))
    state = start()
    state = state._replace(params=jax.tree.map(lambda leaf: leaf + 0.3, state.params))
    batch = play(ENV, state)
    logits, values = map(np.asarray, jax.jit(networks.apply)(state.params, batch.observations))
    chances = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    chosen = chances[np.arange(64), 0, np.asarray(batch.actions)[:, 0]]
    np.testing.assert_allclose(np.exp(batch.log_probs), chosen, rtol=1e-5)
    np.testing.assert_allclose(batch.values, values, rtol=1e-5)
    assert len(np.unique(np.asarray(batch.observations)[:, 0])) == 64
    again = play(ENV, state._replace(update=jnp.asarray(1, jnp.int32)))
    assert not np.array_equal(again.observations, batch.observations)


def test_compiled_training_takes_over_the_state() -> None:
    for state in (start(), start_seeds()):
        trainer(3)(ENV, state)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))


# Rewards from outside


TABLE = TableEnv.create(
    np.random.default_rng(3).standard_normal((40, 6)), np.random.default_rng(4).random((40, 5))
)


def test_rewards_found_by_the_host_train_the_same_and_are_counted() -> None:
    def states() -> LearnerState:
        return start_seeds(replace(SMALL, seeds=2), 200)

    inside, metrics = trainer(3)(TABLE, states())

    decide, update = compilation.compile_decide(SMALL), compilation.compile_update(SMALL)
    state, cells, seen = states(), [set(), set()], []
    for i in range(3):
        decisions = decide(TABLE, state)
        problems, choices = np.asarray(decisions.states.problem), np.asarray(decisions.choices)
        assert choices.shape == (2, 64)
        rewards = np.asarray(TABLE.rewards)[problems, choices]
        batch = add_rewards(decisions, rewards, problems * 5 + choices)
        state, one_update = update(state, batch)
        seen.append(one_update)
        for seed in (0, 1):
            cells[seed] |= set(zip(problems[seed].tolist(), choices[seed].tolist(), strict=True))
            assert metrics.cells_revealed[seed, i] == len(cells[seed])
    assert_close(state, inside, rtol=1e-4, atol=1e-5)
    assert_close(jax.tree.map(lambda *x: jnp.stack(x, 1), *seen), metrics, rtol=1e-4, atol=1e-5)
    for seed in (0, 1):
        numbers = [problem * 5 + gate for problem, gate in sorted(cells[seed])]
        np.testing.assert_array_equal(np.flatnonzero(inside.revealed[seed]), numbers)
        assert 100 < len(cells[seed]) < 192  # fewer than rewards: a few were seen twice
    named = named_scalars(metrics, (0.0, 0.25, 0.5, 0.75, 1.0))
    np.testing.assert_array_equal(named["charts/cells_revealed"], metrics.cells_revealed)


def test_decisions_of_several_parts_are_made_for_the_host() -> None:
    env, config = Locks(jnp.ones(())), SMALL
    state = init(config, 1, (3, 3))
    choices = jax.eval_shape(lambda state: decide(config, env, state).choices, state)
    assert choices.shape == (64, 2)
    batch = jax.eval_shape(partial(rollout.rollout, config), env, state)
    assert batch.cells is None
    after, _ = jax.eval_shape(partial(learner.update, config), state, batch)
    assert jax.tree.structure(after) == jax.tree.structure(state)


def test_no_program_factorises_many_matrices_at_once() -> None:
    """Several batched QR factorisations in one program often hang XLA's CPU runtime."""
    made = jax.make_jaxpr(lambda key: learner.init_seeds(SMALL, 6, (5,), key))(KEY)
    program = made.eqns[0].params["jaxpr"].jaxpr
    (loop,) = [eqn for eqn in program.eqns if eqn.primitive.name == "scan"]
    assert loop.params["length"] == SMALL.seeds
    assert " qr[" in str(loop.params["jaxpr"])  # where the factorisations are
    assert " qr[" not in str([e for e in program.eqns if e is not loop])


def test_cells_are_numbered_apart() -> None:
    """One number for each cell while there are places; of cells without number hardly two share."""
    problems = np.repeat(np.arange(4), 27).reshape(2, -1)
    choices = np.stack(np.unravel_index(np.arange(108) % 27, (3, 3, 3)), axis=-1)
    numbers = number_cells(problems, choices.reshape(2, 54, 3), 3)
    assert numbers.shape == (2, 54) and sorted(numbers.ravel()) == list(range(108))
    single = number_cells(np.array([[2, 0]]), np.array([[4, 1]]), 5)
    np.testing.assert_array_equal(single, [[14, 1]])
    rng = np.random.default_rng(0)
    many, parts = rng.integers(0, 5000, 2000), rng.integers(0, 5, (2000, 36))
    spread = number_cells(many, parts, 5)
    assert spread.max() < MAX_CELL_NUMBERS and len(np.unique(spread)) > 1985
    np.testing.assert_array_equal(spread, number_cells(many, parts, 5))


# Edges


def test_batches_of_another_make_are_refused() -> None:
    state = start()
    batch = jax.jit(partial(rollout.rollout, SMALL))(ENV, state)
    wrong = {
        "rows": batch._replace(rewards=batch.rewards[:32]),
        "features": batch._replace(observations=batch.observations[:, :5]),
        "parts": batch._replace(actions=jnp.tile(batch.actions, (1, 2))),
        "types": batch._replace(values=batch.values.astype(jnp.bfloat16)),
        "size": jax.tree.map(lambda leaf: leaf[:32], batch),
    }
    for name, other in wrong.items():
        with pytest.raises((AssertionError, TypeError)):
            jax.eval_shape(partial(learner.update, SMALL), state, other)
            pytest.fail(name)


def test_rewards_that_cannot_be_learned_from_are_refused() -> None:
    decisions = compilation.compile_decide(SMALL)(ENV, start())
    with pytest.raises(UserError, match=r"decisions of shape \(64,\) got rewards of shape \(63,\)"):
        add_rewards(decisions, np.zeros(63))
    rewards = np.zeros(64)
    rewards[7] = np.nan
    with pytest.raises(UserError, match=r"reward of decision \(7,\) is nan"):
        add_rewards(decisions, rewards)


def test_scalars_have_cleanrls_names() -> None:
    _, metrics = trainer(3)(ENV, start_seeds())
    named = named_scalars(metrics, (0.0, 0.25, 0.5, 0.75, 1.0))
    assert set(named) == {
        "charts/episodic_return",
        "charts/learning_rate",
        "charts/gate_entropy",
        *(f"charts/gate_frac_{g}" for g in ("0", "0.25", "0.5", "0.75", "1")),
        "losses/value_loss",
        "losses/policy_loss",
        "losses/entropy",
        "losses/old_approx_kl",
        "losses/approx_kl",
        "losses/clipfrac",
        "losses/explained_variance",
        "losses/grad_norm",
        "losses/loss",
    }
    assert {values.shape for values in named.values()} == {(3, 3)}
    np.testing.assert_array_equal(named["charts/gate_frac_0.75"], metrics.gate_fraction[..., 3])
    np.testing.assert_array_equal(named["losses/approx_kl"], metrics.approx_kl)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"minibatches": 3}, "ppo.batch_size 64 cannot be cut into 3"),
        ({"updates": 0}, "ppo.updates is 0"),
        ({"learning_rate": float("nan")}, "ppo.learning_rate is nan"),
        ({"adv_std_floor": 0.0}, "ppo.adv_std_floor is 0.0"),
        ({"ent_coef": -0.1}, "ppo.ent_coef is -0.1"),
    ],
    ids=["minibatches", "updates", "learning_rate", "adv_std_floor", "ent_coef"],
)
def test_numbers_that_cannot_be_trained_with(changes, message) -> None:
    with pytest.raises(UserError, match=message):
        replace(SMALL, **changes)
