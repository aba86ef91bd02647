"""The learner beside its peers: the bandit, rounds, ratios, and our side of the pipe."""

import importlib
import sys
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from scripts.bench import bench_ppo
from scripts.bench.bench_ppo import TURNS
from scripts.bench.peers import ppo_bandit
from scripts.bench.peers.client import Worker


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(ppo_bandit.__file__).parent))
    return importlib.import_module("ppo_worker")


def test_the_bandit_is_for_policies_that_read_the_features() -> None:
    x, rewards = ppo_bandit.bandit()
    assert x.shape == (2000, 8) and rewards.shape == (2000, 5)
    assert rewards.mean(axis=0).max() < 0.75 * rewards.max(axis=1).mean()
    best = rewards.argmax(axis=1)
    assert ppo_bandit.worth(best) == pytest.approx(1.0)
    fixed = np.full(2000, 2)
    both = ppo_bandit.worth(np.stack([best, fixed]))
    assert both == pytest.approx((1.0 + ppo_bandit.worth(fixed)) / 2)
    given = ppo_bandit.rollout()
    row = int(np.flatnonzero((x == given["observations"][7]).all(axis=1))[0])
    assert given["rewards"][7] == rewards[row, given["actions"][7]]
    np.testing.assert_allclose(np.exp(given["log_probs"]), 0.2, rtol=1e-6)


class Fake:
    """A bench whose sides answer at once: ours takes 1 s for each turn, the others ``others``."""

    def __init__(self, others: float, machine: tuple[float, ...] = (1.0,)):
        self.others, self.machine = others, machine
        self.calls: list[tuple[str, str, int | None]] = []

    def loaded(self, name: str, stack: ExitStack) -> tuple[str, dict[str, str]]:
        return name, {}

    def ask(self, side: str, do: str, **arguments: Any) -> dict[str, Any]:
        timed = do in ("run", "update")
        slow = self.machine[sum(do in ("run", "update") for _, do, _ in self.calls) // len(TURNS)]
        self.calls.append((side, do, arguments.get("seeds")))
        if timed:
            took = (1.0 if side == "jroute" else self.others) * slow
            return {"seconds": took, "cpu_seconds": 2 * took}
        calls = {"first_state": 2.0, "first_call": 5.0, "second_call": 1.5}
        return {name: {"seconds": value, "cpu_seconds": 3 * value} for name, value in calls.items()}


def test_a_round_is_a_turn_of_each_and_ratios_are_of_rounds() -> None:
    # The machine is ten times slower in the second round; the ratios are not.
    fake = Fake(2.0, (1.0, 10.0))
    figures = bench_ppo.race(fake, {name: name for name in bench_ppo.SIDES}, 2)
    turns = [(side, seeds) for side, do, seeds in fake.calls if do in ("run", "update")]
    each = [(turn.side, turn.seeds) for turn in TURNS]
    assert turns == [*each, *each[1:], each[0]]
    rate = figures["rates"]["env-steps/s, 1 seed: jroute"]["seconds"]
    assert rate["rounds"] == pytest.approx([200 * 512, 20 * 512])
    assert figures["rates"]["updates/s, 1 seed: jroute"]["seconds"]["max"] == pytest.approx(200)
    many = figures["rates"]["env-steps/s, 64 seeds: rejax"]["seconds"]
    assert many["max"] == pytest.approx(5 * 64 * 512 / 2)
    over = {what: of["seconds"]["ratio"] for what, of in figures["ratios"].items()}
    assert over == pytest.approx(
        {
            "env-steps/s, 1 seed: over rejax": 2.0,
            "env-steps/s, 1 seed: over stable-baselines3": 20.0,  # a tenth of the work
            "env-steps/s, 64 seeds: over rejax": 2.0,
            "updates/s, given rollouts: over torch": 8.0,
        }
    )
    goals = {what: of["goal"] for what, of in figures["ratios"].items() if "goal" in of}
    assert list(goals.values()) == [2.0, 20.0, 2.0]


@pytest.mark.parametrize(("others", "met"), [(2.1, True), (1.9, False)], ids=["met", "missed"])
def test_goals_are_of_the_clock(others: float, met: bool) -> None:
    figures = bench_ppo.race(Fake(others), {name: name for name in bench_ppo.SIDES}, 1)
    judged = [of["met"] for of in figures["ratios"].values() if "met" in of]
    assert judged == [met] * 3


def test_compilation_is_the_first_call_less_the_second_of_fresh_processes() -> None:
    fake = Fake(1.0)
    figures = bench_ppo.compilation(fake, 2)
    assert list(figures) == [
        "1 seed: jroute",
        "1 seed: rejax",
        "64 seeds: jroute",
        "64 seeds: rejax",
    ]
    for of in figures.values():
        assert of["seconds"]["rounds"] == [3.5, 3.5]
        assert of["cpu_seconds"]["median"] == 10.5
        assert of["first_state_seconds"]["median"] == 2.0


def test_a_side_trains_until_it_is_worth_enough(worker: ModuleType) -> None:
    class Side:
        def start(self, seeds: int, seed: int) -> None:
            self.updates = 0

        def run(self, seeds: int, updates: int) -> None:
            self.updates += updates

        def worth(self, seeds: int) -> float:
            return self.updates / 40

    figures = worker.reach(Side(), 1, 0, 0.5, 300)
    assert (figures["updates"], figures["worth"]) == (20, 0.5) and figures["seconds"] > 0
    assert worker.reach(Side(), 1, 0, 0.95, 30)["updates"] is None


def test_our_side_learns_to_the_goal(tmp_path: Path) -> None:
    settings = {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(bench_ppo.ROOT)}
    log = tmp_path / "log"
    with Worker(
        "jroute", sys.executable, "ppo_ours.py", log, threads=1, environment=settings
    ) as side:
        assert side.ask("load")["versions"]["jax"]
        took = side.ask("compile", seeds=1, updates=ppo_bandit.CHUNK)
        assert took["first_call"]["seconds"] > took["second_call"]["seconds"] > 0
        figures = side.ask("to", seeds=1, seed=1, share=0.95, limit=300)
        assert figures["updates"] <= 200 and figures["worth"] >= 0.95


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--rounds", "0"], "must be positive"),
        (["--threads", "4096"], "no more than there are cores"),
        (["--environments", "nowhere"], "--make-environments"),
    ],
    ids=["rounds", "threads", "environments"],
)
def test_it_refuses(
    argv: list[str],
    says: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bench_ppo, "TURNS", [turn for turn in TURNS if turn.side == "rejax"])
    assert bench_ppo.main(argv) == 2
    assert says in capsys.readouterr().err
