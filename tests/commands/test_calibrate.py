"""The calibration command, with little of everything; what it measures is tested beside it."""

import dataclasses
import json

import numpy as np
import pytest

from jroute import calibrate
from jroute.arms.supervised import SupervisedConfig
from jroute.calibrate import PARTS
from jroute.experiment import calibration
from jroute.experiment.calibration import CalibrationConfig, ModelTables, Tables
from jroute.experiment.calibration_runs import ModelRuns
from jroute.experiment.result_cache import ResultCache
from jroute.ppo.config import PPOConfig
from jroute.report.calibration_text import calibration_text
from jroute.statistics.calibration import GRID, planted
from jroute.statistics.config import JudgeConfig

PPO = PPOConfig(seeds=2, updates=3, batch_size=64, hidden=(8,))
FIT = SupervisedConfig(hidden=(8,), steps=20, learning_rates=(1e-2,), weight_decays=(0.0,))
CONFIG = CalibrationConfig(
    ppo=PPO,
    small_ppo=PPO,
    supervised=FIT,
    small_supervised=FIT,
    judge=JudgeConfig(replicates=200),
    permutations=12,
    tables=1,
    gains=(0.0, 0.1),
    problems=(60, 30, 60),
)
DESCRIPTION = {"source": "simulated", "problems": {"test": 60}}


def tables() -> Tables:
    rng = np.random.default_rng(0)
    train, validation, test = (planted(0.2, n, rng) for n in (60, 30, 60))
    return Tables(train, validation, {"test": test}, GRID)


def test_it_goes_on_where_it_was(tmp_path, monkeypatch) -> None:
    kept = tmp_path / "kept.json"
    ran: list[str] = []
    for name in ("train_and_judge", "null_rl", "dose"):
        inner = getattr(calibration, name)

        def counted(*args, inner=inner, name=name, **options):
            ran.append(name)
            if len(ran) == 3:
                raise KeyboardInterrupt
            return inner(*args, **options)

        monkeypatch.setattr(calibration, name, counted)
    models = [ModelTables(tables(), DESCRIPTION)]
    with pytest.raises(KeyboardInterrupt):
        calibration.calibrate(models, [], CONFIG, ("positive", "null"), ResultCache(kept))
    assert ran == ["train_and_judge", "null_rl", "null_rl"]  # the second chunk was cut short
    results = calibration.calibrate(models, models, CONFIG, PARTS, ResultCache(kept))
    # The tables and the first chunk were cached; the dose trains and judges its tables too.
    assert ran[3:] == ["null_rl", "dose", "train_and_judge", "dose", "train_and_judge"]
    again = calibration.calibrate(models, models, CONFIG, PARTS, ResultCache(kept))
    assert len(ran) == 8 and again == results
    json.dumps(results, allow_nan=False)
    assert results["null"]["permutations"] == 12
    assert [one["gain"] for one in results["dose"]] == [0.0, 0.1]
    # The same table, but nothing is expected of it there.
    assert results["plain"][0]["splits"] == results["positive"][0]["splits"]
    assert "passes" not in results["plain"][0]
    printed = calibration_text(results)
    for line in (
        "positive, simulated, test: n = 60",
        "plain, simulated",
        "12 permutations, n = 60",
    ):
        assert line in printed
    assert "(2 allowed)" in printed and "verdict: " in printed
    assert "four contrasts significant" in printed and "1 tables each, n = 60" in printed


def test_other_settings_are_another_calibration(tmp_path) -> None:
    kept = ResultCache(tmp_path / "kept.json")
    assert kept.get({"a": 1}, lambda: 1) == 1
    assert kept.get({"a": 2}, lambda: 2) == 2
    assert ResultCache(tmp_path / "kept.json").get({"a": 1}, lambda: 3) == 1


def test_what_does_not_decide_a_part_does_not_undo_it(tmp_path, monkeypatch) -> None:
    models, file = [ModelTables(tables(), DESCRIPTION)], tmp_path / "kept.json"
    first = calibration.calibrate(models, [], CONFIG, ("positive",), ResultCache(file))
    monkeypatch.setattr(calibration, "train_and_judge", None)
    more = dataclasses.replace(CONFIG, permutations=40, tables=3, gains=(0.5,))
    assert calibration.calibrate(models, [], more, ("positive",), ResultCache(file)) == first
    with pytest.raises(TypeError):
        other = dataclasses.replace(CONFIG, seed=1)
        calibration.calibrate(models, [], other, ("positive",), ResultCache(file))


def test_an_estimate_counts_trainings(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(calibration, "training_seconds", lambda ppo, problems: 2.0)
    runs = ModelRuns(tmp_path, tmp_path / "none.yaml")
    lines = runs.estimate([], 3, CONFIG, ("positive", "null", "dose")).splitlines()
    assert lines[0].startswith("models       6 trainings of 2 seeds x 3 updates, about 12 s")
    assert lines[1].startswith("null         12 trainings of 2 seeds x 3 updates, about 24 s")
    assert lines[2].startswith("dose         4 trainings of 2 seeds x 3 updates, about 8 s")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--permutations", "0"], "--permutations: '0' is not a whole number at least 1"),
        (["--models", "no/such/model"], "no/such/model is not a folder"),
        (["--parts", "dose", "--permutatons", "9"], "of this command itself: --permutations"),
        (["--parts", "dose", "--ppo.update", "9"], "the nearest known option is --ppo.updates"),
    ],
    ids=["permutations", "model", "misspelt", "misspelt-experiment"],
)
def test_bad_commands(arguments, message, tmp_path, capsys) -> None:
    assert calibrate.main([*arguments, "--out", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
