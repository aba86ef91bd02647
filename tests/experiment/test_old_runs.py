"""Run folders that an earlier version made still train, are judged and reported, for ever.

``tests/fixtures/runs`` holds a run with a table, and one with live rollouts and learned mixing
weights, as the code before the packages were rearranged left them. Nothing in them may be made
again.
"""

import shutil
from pathlib import Path

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest

import jroute
from jroute.checkpoint import load_state
from jroute.evaluate import main as evaluate
from jroute.experiment.items import ITEMS_SHA256
from jroute.experiment.results_file import read_results
from jroute.outcomes.generation import CellGenerator
from jroute.report.__main__ import main as report
from jroute.train import main as train

RUNS = Path(__file__).parent.parent / "fixtures" / "runs"


@pytest.fixture(params=["table", "live"])
def old_run(request, tiny_directory, tmp_path, monkeypatch) -> Path:
    """A copy of a run folder beside its model, in the working directory it was made in."""
    (tmp_path / "model").symlink_to(tiny_directory)
    shutil.copytree(RUNS / request.param, tmp_path / f"{request.param}_run")
    monkeypatch.chdir(tmp_path)
    return Path(f"{request.param}_run")


def cells_and_features(run: Path) -> dict[str, int]:
    """Return the files that cost a model, and when they were written."""
    patterns = ("outcomes/**/*.parquet", "memo/**/*.parquet", "features/*", "mixing/*")
    files = [file for pattern in patterns for file in run.glob(pattern)]
    return {str(file): file.stat().st_mtime_ns for file in files}


def test_an_old_run_trains_is_judged_and_reported(old_run, monkeypatch, capsys) -> None:
    made = cells_and_features(old_run)
    assert len(made) >= 4
    results = read_results(old_run / "results.json")
    items = pq.read_table(old_run / "items.parquet")
    monkeypatch.setattr(
        CellGenerator, "generate", lambda *_, **__: pytest.fail("a cell was generated again")
    )
    command = ["--config", str(old_run / "config.yaml")]
    assert train(command) == 0
    judged = read_results(old_run / "results.json")
    assert judged == results | {ITEMS_SHA256: judged[ITEMS_SHA256]}  # earlier ones had none
    assert pq.read_table(old_run / "items.parquet").equals(items)
    assert evaluate(["--run", str(old_run)]) == 0
    judged = read_results(old_run / "results.json")
    assert judged == results | {ITEMS_SHA256: judged[ITEMS_SHA256]}  # earlier ones had none
    assert report(["--run", str(old_run)]) == 0
    assert f"n = {results['n']} problems" in capsys.readouterr().out
    assert "cannot be shown" not in (old_run / "report.html").read_text()
    assert cells_and_features(old_run) == made


def test_controllers_of_an_old_run_come_from_its_learner_again(old_run) -> None:
    """Without its controllers, the old learner's checkpoint is read and gives the same ones."""
    folder = jroute.load_run(old_run).controllers.training
    stored = load_state(old_run / "controller" / folder)[1]
    shutil.rmtree(old_run / "controller")
    made = cells_and_features(old_run)
    assert train(["--config", str(old_run / "config.yaml")]) == 0
    again = load_state(old_run / "controller" / folder)[1]
    assert jax.tree.map(np.shape, again) == jax.tree.map(np.shape, stored)
    for name in ("seeds", "rl", "selected"):  # the supervised arm is fitted again
        for old, new in zip(*map(jax.tree.leaves, (stored[name], again[name])), strict=True):
            np.testing.assert_array_equal(np.asarray(new), np.asarray(old))
    assert cells_and_features(old_run) == made
