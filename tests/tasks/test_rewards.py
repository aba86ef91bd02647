"""The reward: exact match and its shaping."""

import pytest

from jroute.tasks.answers import parse_answer
from jroute.tasks.rewards import RewardConfig, reward
from jroute.utils.errors import UserError

RIGHT, WRONG = parse_answer("#### 18"), parse_answer("#### 17")
NONE, CUT_OFF = parse_answer("none"), parse_answer("The sum is 18", truncated=True)


def test_reward_without_shaping_is_exact_match():
    rewards = [
        reward(parsed, "18", tokens=7, max_tokens=10, config=RewardConfig())
        for parsed in (RIGHT, WRONG, NONE, CUT_OFF)
    ]
    assert rewards == [1.0, 0.0, 0.0, 0.0]


def test_reward_with_shaping():
    config = RewardConfig(parseable_bonus=0.05, length_penalty=0.01)
    rewards = [
        reward(parsed, "18", tokens=tokens, max_tokens=10, config=config)
        for parsed, tokens in ((RIGHT, 5), (WRONG, 5), (NONE, 1), (CUT_OFF, 10))
    ]
    assert rewards == pytest.approx([1.045, 0.045, -0.001, -0.01], abs=1e-12)


def test_reward_refuses_impossible_input():
    for tokens, limit in ((11, 10), (-1, 10), (0, 0)):
        with pytest.raises(ValueError, match="tokens"):
            reward(RIGHT, "18", tokens=tokens, max_tokens=limit, config=RewardConfig())
    with pytest.raises(UserError, match=r"reward\.length_penalty is -0\.01"):
        RewardConfig(length_penalty=-0.01)
    with pytest.raises(UserError, match=r"reward\.parseable_bonus is nan"):
        RewardConfig(parseable_bonus=float("nan"))
