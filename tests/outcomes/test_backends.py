"""Completions are judged, and backends say what gates give: the table, the model, a memo."""

import dataclasses
import random

import numpy as np
import pytest

from jroute.outcomes.backends import LiveBackend, OutcomeBackend, Shaping, TableBackend
from jroute.outcomes.outcome import Outcome, grade
from jroute.outcomes.table import MissingOutcome, OutcomeTable
from jroute.tasks.problem import Problem
from jroute.tasks.rewards import RewardConfig
from jroute.utils.fingerprint import semantic_fingerprint

DESCRIPTION = {"model": "abc"}
FINGERPRINT = semantic_fingerprint(DESCRIPTION)


@dataclasses.dataclass
class Text:
    text: str
    tokens: list[int]
    stop_reason: str


def test_judging_parses_rewards_and_marks_truncation():
    problem = Problem(id="p", question="?", answer="18")
    rewards = RewardConfig(parseable_bonus=0.05)

    right = grade(problem, 1.0, Text("9 + 9\n#### 18", [1] * 7, "end_token"), max_tokens=9)
    assert right == Outcome(
        problem_id="p",
        gate=1.0,
        sample=0,
        completion="9 + 9\n#### 18",
        tokens=7,
        parsed="18",
        status="ok",
        correct=True,
        reward=1.0,
        stop_reason="end_token",
    )
    wrong = grade(
        problem,
        0.5,
        Text("#### 17.50", [1], "stop_string"),
        max_tokens=9,
        rewards=rewards,
        sample=2,
    )
    assert (wrong.correct, wrong.parsed, wrong.reward, wrong.sample) == (False, "17.5", 0.05, 2)
    cut = grade(problem, 0.5, Text("Let us see", [1], "length"), max_tokens=1, rewards=rewards)
    assert (cut.status, cut.parsed, cut.correct, cut.reward) == ("truncated", "", False, 0.0)
    none = grade(problem, 0.5, Text("Let us see", [1], "end_token"), max_tokens=9)
    assert (none.status, none.parsed, none.reward) == ("no_answer", "", 0.0)


def test_live_and_table_backends_agree(problems, live, generator, table):
    backends = (live, TableBackend(OutcomeTable.open(table.folder)))
    assert all(isinstance(backend, OutcomeBackend) for backend in backends)
    rng = random.Random(1)
    requested = rng.choices(problems, k=40)
    gates = rng.choices((0.0, 0.5, 1.0), k=40)
    first, second = (backend.outcomes(requested, gates) for backend in backends)
    assert first == second
    assert [(o.problem_id, o.gate) for o in first] == [
        (p.id, g) for p, g in zip(requested, gates, strict=True)
    ]
    assert 5 < sum(outcome.correct for outcome in first) < 35
    assert len(generator.calls[-1]) == 40  # one call for the whole batch


def test_live_backend_passes_its_shaping_on(problems, generator):
    shaped = LiveBackend(generator, Shaping(RewardConfig(parseable_bonus=0.05), 64))
    outcomes = shaped.outcomes(problems, [0.5] * len(problems))
    assert {outcome.reward for outcome in outcomes} == {0.05, 1.05}


def test_a_generator_that_drops_a_row_is_found_out(tmp_path, problems, generator):
    def lossy(cells, **options):
        return generator(cells[:1], **options)

    with pytest.raises(ValueError, match="zip"):
        LiveBackend(lossy).outcomes(problems[:2], [0.0, 1.0])
    memo = OutcomeTable(tmp_path, FINGERPRINT, DESCRIPTION)
    with pytest.raises(MissingOutcome):
        LiveBackend(lossy, memo=memo).outcomes(problems[:2], [0.0, 1.0])


def test_shaping_is_paid_when_outcomes_are_read(problems, table):
    """The table holds exact match; what a learner is paid is made of it, and of the gate's push."""
    requested, gates = problems[:3], [0.0, 0.5, 1.0]
    plain = TableBackend(table).outcomes(requested, gates)
    assert {outcome.reward for outcome in plain} <= {0.0, 1.0}
    off = TableBackend(table, Shaping(RewardConfig(), 64)).outcomes(requested, gates)
    assert off == plain
    amounts = RewardConfig(parseable_bonus=0.05, length_penalty=0.01, stability_penalty=0.5)
    shaping = Shaping(amounts, 64, lambda problems, gates: np.array(gates, float) / 10)
    paid = TableBackend(table, shaping).outcomes(requested, gates)
    for was, now, gate in zip(plain, paid, gates, strict=True):
        expected = was.correct + 0.05 - 0.01 * was.tokens / 64 - 0.5 * gate / 10
        assert now.reward == pytest.approx(expected)
        assert dataclasses.replace(now, reward=was.reward) == was


def test_a_memo_generates_every_cell_once(tmp_path, problems, generator):
    memo = OutcomeTable(tmp_path, FINGERPRINT, DESCRIPTION, num_gate_dims=2)
    live = LiveBackend(generator, memo=memo)
    requested = [problems[0], problems[1], problems[0], problems[0]]
    gates = [(0.0, 0.5), (0.0, 0.5), (0.0, 0.5), (1.0, 0.5)]
    outcomes = live.outcomes(requested, gates)
    assert [(o.problem_id, o.gate) for o in outcomes] == [
        (p.id, g) for p, g in zip(requested, gates, strict=True)
    ]
    assert [len(call) for call in generator.calls] == [3]
    again = LiveBackend(generator, memo=OutcomeTable.open(memo.folder))  # after a restart
    assert again.outcomes([*requested, problems[2]], [*gates, (1.0, 1.0)])[:4] == outcomes
    assert [len(call) for call in generator.calls] == [3, 1]
    assert (
        TableBackend(memo).outcomes(requested, gates)
        == outcomes
        == LiveBackend(generator).outcomes(requested, gates)
    )


def test_a_memo_keeps_what_an_interrupted_generation_made(tmp_path, problems, generator):
    def interrupted(cells, **options):
        generator(cells[:2], **options)
        raise KeyboardInterrupt

    memo = OutcomeTable(tmp_path, FINGERPRINT, DESCRIPTION)
    with pytest.raises(KeyboardInterrupt):
        LiveBackend(interrupted, memo=memo).outcomes(problems[:3], [0.5] * 3)
    LiveBackend(generator, memo=OutcomeTable.open(memo.folder)).outcomes(problems[:3], [0.5] * 3)
    assert [len(call) for call in generator.calls] == [2, 1]
