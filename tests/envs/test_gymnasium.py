"""The Gymnasium environments hold its contracts, and the batch equals the singles."""

import copy
import dataclasses

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.error import InvalidAction, ResetNeeded
from gymnasium.utils.env_checker import check_env, data_equivalence
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics

from jroute.envs.data import EnvData
from jroute.envs.gymnasium import RoutingEnv, RoutingVectorEnv
from jroute.experiment import environments
from jroute.experiment.registration import ROUTING_ID, register_environments
from jroute.outcomes.backends import TableBackend
from jroute.outcomes.table import MissingOutcome, OutcomeTable
from jroute.utils.errors import UserError


def assert_same(one, other):
    """Equal values, types, dtypes and keys, through dictionaries and object arrays."""
    assert data_equivalence(one, other, exact=True), f"{one}\n!=\n{other}"


def make_sync(data: EnvData, count: int) -> SyncVectorEnv:
    envs = gymnasium.make_vec(
        ROUTING_ID,
        num_envs=count,
        vectorization_mode="sync",
        vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP},
        data=data,
    )
    assert isinstance(envs, SyncVectorEnv)
    return envs


def make_batch(data: EnvData, count: int) -> RoutingVectorEnv:
    envs = gymnasium.make_vec(ROUTING_ID, num_envs=count, data=data)
    assert isinstance(envs, RoutingVectorEnv)
    return envs


@pytest.fixture
def parted(make_data, live) -> EnvData:
    """Decisions of two parts, answered live."""
    return make_data(live, num_gate_dims=2)


def test_check_env_passes(data, parted):
    for one in (data, parted):
        check_env(gymnasium.make(ROUTING_ID, data=one).unwrapped)


def test_decisions_of_several_parts(parted):
    """The gates of a row are its own, and the batch equals the singles."""
    batch, sync = make_batch(parted, 4), make_sync(parted, 4)
    assert batch.single_action_space == spaces.MultiDiscrete([3, 3])
    assert batch.action_space == sync.action_space
    assert_same(*(envs.reset(seed=3) for envs in (batch, sync)))
    rng, paid = np.random.default_rng(2), []
    for _ in range(30):
        actions = rng.integers(3, size=(4, 2))
        step, single = batch.step(actions), sync.step(actions)
        assert_same(step, single)
        gates = [tuple(gate) for gate in step[4]["final_info"]["gate"]]
        assert gates == [tuple(parted.gates[i] for i in row) for row in actions]
        paid.append(step[1])
    assert 0.1 < np.mean(paid) < 0.9
    for wrong in (np.zeros(4, int), np.zeros((4, 3), int), np.full((4, 2), 3), np.zeros((4, 2))):
        with pytest.raises(InvalidAction):
            batch.step(wrong)


def test_another_split_is_drawn_from_when_asked(data, make_data, live, problems):
    """For the episodes that begin then; the batch equals the singles, with a mask and without."""
    others = [dataclasses.replace(p, id=p.id.replace("test", "train")) for p in problems[:3]]
    second = make_data(
        live,
        problems=others,
        prompts=data.prompts[:3],
        observations=data.observations[:3] + 100,
    )
    both = {"test": data, "train": second}
    batch = gymnasium.make_vec(ROUTING_ID, num_envs=3, data=both)
    sync = gymnasium.make_vec(
        ROUTING_ID,
        num_envs=3,
        vectorization_mode="sync",
        vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP},
        data=both,
    )
    assert_same(*(envs.reset(seed=1) for envs in (batch, sync)))
    mask = np.array([True, False, True])
    resets = [envs.reset(options={"split": "train", "reset_mask": mask}) for envs in (batch, sync)]
    assert_same(*resets)
    assert list(resets[0][0][:, 2] >= 100) == [True, False, True]
    first = [envs.step(np.array([0, 1, 2])) for envs in (batch, sync)]
    assert_same(*first)
    ids = first[0][4]["final_info"]["problem_id"]
    assert ["train" in name for name in ids] == [True, False, True]
    assert (first[0][0][:, 2] < 100).all()  # what follows is of the first split again
    assert_same(*(envs.step(np.array([0, 1, 2])) for envs in (batch, sync)))
    env = RoutingEnv(both, split="train")
    name = others[2].id
    observation, info = env.reset(options={"problem_ids": [name]})
    assert observation[2] == 102 and info["problem_id"] == name
    with pytest.raises(UserError, match="no split 'ood' in this environment"):
        env.reset(options={"split": "ood"})
    with pytest.raises(UserError, match="no problem 'sums/train/1'"):
        env.reset(options={"split": "test", "problem_ids": [others[0].id]})
    different = make_data(live, gates=(0.0, 1.0))
    with pytest.raises(UserError, match="different features or gates"):
        RoutingEnv({"test": data, "train": different}).reset(options={"split": "train"})


def test_an_episode_is_one_prompt(data, table):
    env = RoutingEnv(data)
    observation, info = env.reset(seed=0)
    row = int(observation[2])
    problem = data.problems[row]
    np.testing.assert_array_equal(observation, data.observations[row])
    assert info == {"problem_id": problem.id, "prompt": f"Q: {problem.question}\nA:"}
    after, reward, terminated, truncated, info = env.step(2)
    expected = table.outcome(problem.id, 1.0)
    assert (reward, terminated, truncated) == (expected.reward, True, False)
    np.testing.assert_array_equal(after, data.observations[row])
    assert info == {
        "problem_id": problem.id,
        "prompt": f"Q: {problem.question}\nA:",
        "gate": 1.0,
        "completion": expected.completion,
        "tokens": expected.tokens,
        "stop_reason": "end_token",
        "parsed": expected.parsed,
        "status": "ok",
        "correct": expected.correct,
    }


def test_spaces(data, problems):
    env, envs = RoutingEnv(data), make_batch(data, 3)
    assert env.observation_space.shape == (4,) and env.action_space == spaces.Discrete(3)
    assert envs.single_observation_space == env.observation_space
    assert envs.single_action_space == env.action_space
    sync = make_sync(data, 3)
    assert envs.observation_space == sync.observation_space
    assert envs.action_space == sync.action_space
    assert envs.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    # Two splits, one space: a policy moves from one to the other.
    fewer = EnvData(
        problems[:2],
        data.prompts[:2],
        data.observations[:2] * 3,
        data.feature_names,
        data.gates,
        data.backend,
    )
    assert RoutingEnv(fewer).observation_space == env.observation_space


@pytest.mark.parametrize("seed", [11, [5, 900, 5, 0, 77]])
def test_the_batch_equals_synchronous_singles(data, seed):
    batch, sync = make_batch(data, 5), make_sync(data, 5)
    batch_reset, sync_reset = (envs.reset(seed=copy.copy(seed)) for envs in (batch, sync))
    assert_same(batch_reset, sync_reset)
    assert batch.np_random_seed == sync.np_random_seed
    rng = np.random.default_rng(0)
    paid, kept = [], []
    for turn in range(60):
        if turn % 7 == 3:
            mask = rng.random(5) < 0.4
            mask[rng.integers(5)] = True
            seeds = [None, 3, None, 4, turn] if turn % 2 else None
            # Each gets its own dictionary: Gymnasium's takes the mask out of it.
            batch_reset, sync_reset = (
                envs.reset(seed=copy.copy(seeds), options={"reset_mask": mask.copy()})
                for envs in (batch, sync)
            )
            assert_same(batch_reset, sync_reset)
        actions = rng.integers(3, size=5)
        batch_step, sync_step = batch.step(actions), sync.step(actions)
        assert_same(batch_step, sync_step)
        paid.append(batch_step[1])
        kept.append(batch_step)
    assert 0.1 < np.mean(paid) < 0.9
    # What was returned earlier has not been written over since.
    assert len({tuple(step[0][:, 2]) for step in kept}) > 30
    assert [generator.bit_generator.state for generator in batch.np_random] == [
        generator.bit_generator.state for generator in sync.np_random
    ]


def test_infos_tell_what_was_answered_apart_from_what_comes(data, table):
    envs = make_batch(data, 3)
    _, before = envs.reset(seed=4)
    actions = np.array([2, 0, 1])
    observations, rewards, terminated, truncated, infos = envs.step(actions)
    final = infos["final_info"]
    assert list(final["problem_id"]) == list(before["problem_id"])
    assert list(final["gate"]) == [1.0, 0.0, 0.5]
    expected = [
        table.outcome(problem_id, gate)
        for problem_id, gate in zip(before["problem_id"], (1.0, 0.0, 0.5), strict=True)
    ]
    np.testing.assert_array_equal(rewards, [outcome.reward for outcome in expected])
    assert list(final["completion"]) == [outcome.completion for outcome in expected]
    assert list(final["correct"]) == [outcome.correct for outcome in expected]
    assert infos["_final_obs"].all() and infos["_final_info"].all() and final["_gate"].all()
    for row, problem_id in zip(infos["final_obs"], before["problem_id"], strict=True):
        np.testing.assert_array_equal(row, data.observations[data.row(problem_id)])
    for row, problem_id in zip(observations, infos["problem_id"], strict=True):
        np.testing.assert_array_equal(row, data.observations[data.row(problem_id)])
    assert "gate" not in infos
    assert terminated.all() and not truncated.any()


def test_a_row_does_not_depend_on_its_neighbours(data):
    two, four = make_batch(data, 2), make_batch(data, 4)
    np.testing.assert_array_equal(two.reset(seed=9)[0], four.reset(seed=9)[0][:2])
    for _ in range(10):
        step, wide = two.step(np.array([1, 2])), four.step(np.array([1, 2, 0, 0]))
        np.testing.assert_array_equal(step[0], wide[0][:2])
        np.testing.assert_array_equal(step[1], wide[1][:2])


def test_problems_are_drawn_uniformly(data, problems):
    envs = make_batch(data, 50)
    envs.reset(seed=0)
    steps = [envs.step(np.zeros(50, np.int64))[0][:, 2] for _ in range(80)]
    counts = np.bincount(np.concatenate(steps).astype(int), minlength=len(problems))
    expected = 4000 / len(problems)
    assert np.abs(counts - expected).max() < 5 * np.sqrt(expected)


def test_episode_statistics_are_the_true_rewards(data, table):
    envs = RecordEpisodeStatistics(make_batch(data, 4), buffer_length=200)
    envs.reset(seed=2)
    rng = np.random.default_rng(1)
    returns = []
    for turn in range(25):
        if turn == 10:
            mask = np.array([True, False, False, True])
            envs.reset(options={"reset_mask": mask})
        actions = rng.integers(3, size=4)
        _, rewards, _, _, infos = envs.step(actions)
        final = infos["final_info"]
        truth = [
            table.outcome(problem_id, gate).reward
            for problem_id, gate in zip(final["problem_id"], final["gate"], strict=True)
        ]
        np.testing.assert_array_equal(rewards, truth)
        np.testing.assert_array_equal(infos["episode"]["r"], truth)
        np.testing.assert_array_equal(infos["episode"]["l"], [1, 1, 1, 1])
        assert infos["_episode"].all()
        returns += truth
    assert list(envs.return_queue) == returns and 0 < np.mean(returns) < 1
    assert envs.episode_count == 100


def test_reset_mask_touches_only_its_rows(data):
    envs = make_batch(data, 4)
    before, _ = envs.reset(seed=0, options={"problem_ids": [p.id for p in data.problems[:4]]})
    mask = np.array([False, True, False, True])
    names = [data.problems[row].id for row in (0, 5, 0, 6)]
    options = {"reset_mask": mask, "problem_ids": names}
    after, infos = envs.reset(options=options)
    assert list(after[:, 2]) == [0, 5, 2, 6]
    np.testing.assert_array_equal(after[[0, 2]], before[[0, 2]])
    np.testing.assert_array_equal(infos["_problem_id"], mask)
    assert list(infos["problem_id"]) == [None, names[1], None, names[3]]
    assert set(options) == {"reset_mask", "problem_ids"}  # left as it was
    _, _, _, _, infos = envs.step(np.zeros(4, np.int64))
    assert [data.row(name) for name in infos["final_info"]["problem_id"]] == [0, 5, 2, 6]


@pytest.mark.parametrize(
    ("mask", "error"),
    [
        ([True, True], TypeError),
        (np.array([1, 0]), TypeError),
        (np.array([True, False, True]), ValueError),
        (np.array([[True, False]]), ValueError),
        (np.array([False, False]), ValueError),
    ],
)
def test_a_bad_mask_is_refused_as_gymnasium_does(data, mask, error):
    for envs in (make_batch(data, 2), make_sync(data, 2)):
        before, _ = envs.reset(seed=0)
        before = before.copy()
        with pytest.raises(error, match=r"options\['reset_mask'\]"):
            envs.reset(seed=1, options={"reset_mask": mask})
        if isinstance(envs, RoutingVectorEnv):
            assert envs.np_random_seed == (0, 1)  # nothing was changed
            final = envs.step(np.zeros(2, np.int64))[4]["final_obs"]
            np.testing.assert_array_equal(np.stack(final), before)


def test_problem_ids_choose_the_problems(data):
    env, envs = RoutingEnv(data), make_batch(data, 3)
    for row, problem in enumerate(data.problems):
        observation, info = env.reset(options={"problem_ids": [problem.id]})
        assert observation[2] == row and info["problem_id"] == problem.id
        assert env.step(0)[4]["problem_id"] == problem.id
    names = [data.problems[row].id for row in (6, 0, 6)]
    observations, infos = envs.reset(options={"problem_ids": names})
    assert list(observations[:, 2]) == [6, 0, 6] and list(infos["problem_id"]) == names
    with pytest.raises(UserError, match="no problem 'sums/test/99'"):
        env.reset(options={"problem_ids": ["sums/test/99"]})
    for wrong in (names[:2], names[0]):
        with pytest.raises(UserError, match="a list of 3, one problem id for each"):
            envs.reset(options={"problem_ids": wrong})
    with pytest.raises(UserError, match="unknown reset option 'problem_id'"):
        envs.reset(options={"problem_id": names})
    with pytest.raises(UserError, match="unknown reset option 'reset_mask'"):
        env.reset(options={"reset_mask": np.array([True])})


def test_wrong_seeds_are_refused(data):
    with pytest.raises(ValueError, match="seed must be a number or 3"):
        make_batch(data, 3).reset(seed=[1, 2])


def test_an_episode_must_have_begun(data):
    env, envs = RoutingEnv(data), make_batch(data, 2)
    with pytest.raises(ResetNeeded):
        env.step(0)
    env.reset(seed=0)
    env.step(0)
    with pytest.raises(ResetNeeded):
        env.step(0)
    with pytest.raises(ResetNeeded):
        envs.step(np.zeros(2, np.int64))
    with pytest.raises(ResetNeeded):
        envs.reset(options={"reset_mask": np.array([True, False])})
    envs.reset(options={"reset_mask": np.array([True, True])})


@pytest.mark.parametrize("action", [-1, 3])
def test_an_action_that_is_no_gate_is_refused(data, action):
    env, envs = RoutingEnv(data), make_batch(data, 2)
    env.reset(seed=0)
    with pytest.raises(InvalidAction):
        env.step(action)
    envs.reset(seed=0)
    for actions in ([0, action], [0], [0.0, 1.0], [[0, 1]]):
        with pytest.raises(InvalidAction):
            envs.step(np.array(actions))


def test_a_missing_cell_raises_through_the_environments(make_data, tmp_path, table, problems):
    partial = OutcomeTable(tmp_path / "partial", "some", {})
    partial.append(table.outcome(problem.id, 0.0) for problem in problems)
    data = make_data(TableBackend(partial))
    env, envs = RoutingEnv(data), make_batch(data, 2)
    env.reset(options={"problem_ids": [problems[3].id]})
    with pytest.raises(MissingOutcome, match=rf"'{problems[3].id}' at gate 0\.5 "):
        env.step(1)
    assert env.step(0)[4]["problem_id"] == problems[3].id  # still that prompt's turn
    envs.reset(options={"problem_ids": [problems[3].id, problems[4].id]})
    with pytest.raises(MissingOutcome, match=rf"'{problems[4].id}' at gate 1 "):
        envs.step(np.array([0, 2]))
    infos = envs.step(np.array([0, 0]))[4]
    assert list(infos["final_info"]["problem_id"]) == [problems[3].id, problems[4].id]


def test_live_and_table_backends_make_the_same_environment(data, make_data, live, generator):
    tabled, lively = make_batch(data, 4), make_batch(make_data(live), 4)
    assert_same(tabled.reset(seed=1), lively.reset(seed=1))
    calls = len(generator.calls)
    for turn in range(10):
        actions = np.array([0, 1, 2, turn % 3])
        assert_same(tabled.step(actions), lively.step(actions))
    assert [len(call) for call in generator.calls[calls:]] == [4] * 10  # whole batches


def test_the_data_is_shared_not_copied(make_data, table):
    class Precious(TableBackend):
        def __deepcopy__(self, memo):
            raise AssertionError("a model would have been copied")

    data = make_data(Precious(table))
    env = gymnasium.make(ROUTING_ID, data=data)
    assert env.spec is not None and env.spec.kwargs["data"] is data
    again = env.spec.make()
    assert isinstance(again.unwrapped, RoutingEnv) and again.unwrapped.data is data
    envs = make_batch(data, 2)
    assert envs.spec is not None and envs.spec.kwargs["data"] is data
    assert "What is" not in repr(data)
    register_environments()  # a second time warns of nothing


def test_a_loader_reads_a_split_when_it_is_first_needed(data):
    loaded = []

    def load(split: str) -> EnvData:
        loaded.append(split)
        return data

    env = RoutingEnv(load, split="validation")
    assert env.data is data and loaded == ["validation"]
    env.reset(options={"split": "train"})
    env.reset(options={"split": "train"})
    assert loaded == ["validation", "train"]
    RoutingVectorEnv(2, load)
    assert loaded == ["validation", "train", "test"]


def test_a_run_folder_is_opened_by_name(data, monkeypatch):
    loaded = []

    class OpenedRun:
        def __init__(self, folder):
            self.folder = folder

    def environment_data(run, split, live):
        loaded.append((run.folder, split, live))
        return data

    monkeypatch.setattr(environments, "load_run", OpenedRun)
    monkeypatch.setattr(environments, "environment_data", environment_data)
    env = gymnasium.make(ROUTING_ID, run="runs/demo", split="validation").unwrapped
    assert isinstance(env, RoutingEnv) and env.data is data
    envs = gymnasium.make_vec(ROUTING_ID, num_envs=2, run="runs/demo", live=True)
    assert isinstance(envs, RoutingVectorEnv)
    assert loaded == [("runs/demo", "validation", False), ("runs/demo", "test", True)]
    for arguments in ({}, {"data": data, "run": "runs/demo"}):
        with pytest.raises(UserError, match="exactly one"):
            gymnasium.make(ROUTING_ID, **arguments)
        with pytest.raises(UserError, match="exactly one"):
            gymnasium.make_vec(ROUTING_ID, **arguments)


def test_data_is_a_frozen_copy(make_data, table):
    source = np.arange(28, dtype=np.float64).reshape(7, 4)
    data = make_data(TableBackend(table), observations=source)
    source[:] = 0
    assert data.observations.dtype == np.float32 and data.observations[6, 3] == 27
    with pytest.raises(ValueError, match="read-only"):
        data.observations[0, 0] = 1
    observation, _ = RoutingEnv(data).reset(seed=0)
    observation[:] = -1  # what a user does to an observation stays the user's
    assert data.observations.min() == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": ["one"]}, "7 problems, 1 prompts and 7 rows"),
        ({"observations": np.zeros((6, 4))}, "7 problems, 7 prompts and 6 rows"),
        ({"feature_names": ("length_bucket", "prompt_length", "a", "b")}, "beginning with prompt_"),
        ({"feature_names": ("prompt_length", "length_bucket")}, "must be 4, one per feature"),
        ({"observations": np.full((7, 4), np.nan)}, "prompt_length of problem 'sums/test/1'"),
        ({"gates": ()}, "distinct gates"),
        ({"gates": (0.0, 1.0, 0.0)}, "distinct gates"),
    ],
)
def test_parts_that_do_not_fit_are_refused(make_data, table, changes, message):
    with pytest.raises(UserError, match=message):
        make_data(TableBackend(table), **changes)


def test_ids_must_be_unique(make_data, table, problems):
    with pytest.raises(UserError, match="same id"):
        make_data(TableBackend(table), problems=[*problems[:6], problems[0]])
