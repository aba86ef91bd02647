"""The pure environment: what it pays, how it draws, and that it lives inside jit and vmap."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium.error import InvalidAction

from jroute.envs.functional import LiveEnv, TableEnv, TableState
from jroute.utils.errors import UserError

PROBLEMS, GATES, FEATURES = 6, 3, 2


@pytest.fixture
def env() -> TableEnv:
    """Features name the problem, rewards the problem and the gate."""
    row = np.arange(PROBLEMS, dtype=np.float32)
    rewards = 10 * row[:, None] + np.arange(GATES, dtype=np.float32)
    return TableEnv.create(np.stack([row, -row], axis=1), rewards)


def test_sizes_and_leaves(env):
    assert (env.num_problems, env.num_features, env.num_gates) == (PROBLEMS, FEATURES, GATES)
    leaves = jax.tree.leaves(env)
    assert [leaf.dtype for leaf in leaves] == [jnp.float32, jnp.float32]


def test_a_batch_is_paid_for_its_own_problem_and_shown_the_next(env):
    keys = jax.random.split(jax.random.key(0), 64)
    states, observations = jax.jit(jax.vmap(env.reset))(keys)
    np.testing.assert_array_equal(observations[:, 0], states.problem)
    step = jax.jit(jax.vmap(env.step))
    seen = [np.asarray(states.problem)]
    for turn in range(3):
        actions = jax.random.randint(jax.random.key(turn), (64,), 0, GATES)
        keys = jax.random.split(jax.random.key(100 + turn), 64)
        following, observations, rewards, done, info = step(states, actions, keys)
        np.testing.assert_array_equal(rewards, 10 * states.problem + actions)
        np.testing.assert_array_equal(info["problem"], states.problem)
        assert done.dtype == jnp.bool_ and done.shape == (64,) and bool(done.all())
        np.testing.assert_array_equal(observations[:, 0], following.problem)
        np.testing.assert_array_equal(observations[:, 1], -following.problem)
        # The next problem is what a reset under the same key draws.
        np.testing.assert_array_equal(following.problem, jax.vmap(env.reset)(keys)[0].problem)
        states = following
        seen.append(np.asarray(states.problem))
    assert not any(np.array_equal(a, b) for a, b in itertools.pairwise(seen))


def test_problems_are_drawn_uniformly(env):
    draws = 60_000
    keys = jax.random.split(jax.random.key(7), draws)
    states, _ = jax.vmap(env.reset)(keys)
    counts = np.bincount(np.asarray(states.problem), minlength=PROBLEMS)
    deviation = np.sqrt(draws * (1 / PROBLEMS) * (1 - 1 / PROBLEMS))
    assert counts.shape == (PROBLEMS,)
    assert np.abs(counts - draws / PROBLEMS).max() < 5 * deviation


def test_the_same_key_is_the_same_episode(env):
    first, again = env.reset(jax.random.key(3)), env.reset(jax.random.key(3))
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), first, again))


@pytest.mark.parametrize("action", [-1, GATES, GATES + 5])
def test_an_action_outside_the_grid_pays_nan(env, action):
    _, _, reward, _, _ = env.step(TableState(jnp.array(2)), jnp.array(action), jax.random.key(0))
    assert np.isnan(float(reward))


def test_environments_can_be_mapped_over(env):
    scales = jnp.array([1.0, -2.0])
    envs = TableEnv(env.observations, env.rewards[None] * scales[:, None, None])

    def play(env: TableEnv):
        state, _ = env.reset(jax.random.key(5))
        return state.problem, env.step(state, jnp.array(1), jax.random.key(6))[2]

    problem, rewards = jax.vmap(play, in_axes=(TableEnv(None, 0),))(envs)  # pyright: ignore[reportArgumentType]
    np.testing.assert_array_equal(rewards, (10 * np.asarray(problem) + 1) * np.asarray(scales))


def test_bad_arrays_are_refused():
    observations = np.zeros((2, FEATURES), np.float32)
    rewards = np.ones((2, GATES))
    rewards[1, 2] = np.nan
    with pytest.raises(UserError, match=r"rewards .* problem 1, column 2"):
        TableEnv.create(observations, rewards)
    with pytest.raises(UserError, match="needs problems and gates"):
        TableEnv.create(observations[:0], rewards[:0])


def test_it_pays_what_the_gymnasium_environment_pays(data, table, problems):
    matrix = table.matrix([problem.id for problem in problems], data.gates, "reward")
    env = TableEnv.create(data.observations, matrix)
    for row, problem in enumerate(problems):
        for action, gate in enumerate(data.gates):
            state = TableState(jnp.array(row))
            _, _, reward, _, _ = env.step(state, jnp.array(action), jax.random.key(0))
            assert float(reward) == table.outcome(problem.id, gate).reward


def test_over_a_backend_a_batch_goes_the_same_way(data, table):
    """The live environment draws what the tabled one draws, and pays what the backend says."""
    ids = [problem.id for problem in data.problems]
    tabled = TableEnv.create(data.observations, table.matrix(ids, data.gates, "reward"))
    live = LiveEnv(data)
    keys = jax.random.split(jax.random.key(4), 12)
    states, seen = jax.vmap(tabled.reset)(keys)
    others, also = live.reset(keys)
    np.testing.assert_array_equal(seen, also)
    paid = []
    for turn in range(3):
        keys = jax.random.split(jax.random.key(50 + turn), 12)
        actions = jax.random.randint(jax.random.key(turn), (12,), 0, 3)
        states, seen, rewards, done, info = jax.vmap(tabled.step)(states, actions, keys)
        others, also, same, ended, live_info = live.step(others, actions, keys)
        for one, other in ((seen, also), (rewards, same), (done, ended)):
            np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(info["problem"], live_info["problem"])
        np.testing.assert_array_equal(states.problem, others.problem)
        paid.append(rewards)
    assert 0 < np.mean(paid) < 1


def test_rewards_of_several_parts_and_axes(make_data, live, generator):
    env = LiveEnv(make_data(live, num_gate_dims=2))
    problems, actions = np.array([[0, 1, 2], [3, 4, 5]]), np.ones((2, 3, 2), int)
    rewards = env.rewards(problems, actions)
    assert rewards.shape == (2, 3) and rewards.dtype == np.float32
    gates = [gate for _, gate in generator.calls[-1]]
    assert gates == [(0.5, 0.5)] * 6  # one call for all
    with pytest.raises(InvalidAction):
        env.rewards(problems, actions + 2)
