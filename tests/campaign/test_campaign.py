"""A short part of the campaign; ``python -m tests.campaign`` runs the whole."""

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from jroute.checkpoint import load_state, save_state
from tests.campaign import broken, kills, readers
from tests.campaign.flips import flips
from tests.campaign.lab import Lab, live_through
from tests.campaign.mutations import mutations
from tests.campaign.trials import Trial, lines
from tests.campaign.worker import ROOT, Worker

SOURCE = ROOT / "jroute" / "assets" / "tiny-gated"
RUN = ROOT / "tests" / "fixtures" / "runs" / "table"


def no_faults(trials: Iterator[Trial]) -> int:
    """Asserts that nothing went wrong; returns how many disturbances took effect."""
    trials = list(trials)
    assert lines(trials) == []
    return sum(trial.took_effect for trial in trials)


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker() as worker:
        yield worker


@pytest.fixture(scope="module")
def lab(worker: Worker, tmp_path_factory) -> Lab:
    return live_through(worker, tmp_path_factory.mktemp("lab"), ("convert", "export"))


def test_kills_at_random_moments(lab, worker, tmp_path) -> None:
    assert no_faults(kills.random_kills(lab, worker, tmp_path / "day", random.Random(1), 4)) >= 1


def test_kills_at_renames(lab, worker, tmp_path) -> None:
    trials = kills.rename_kills(lab, worker, tmp_path / "day", every=12)
    assert no_faults(trials) >= 4


def test_broken_inputs(lab, worker, tmp_path) -> None:
    def plain(item) -> bool:
        return item[1][0] == "jroute.convert"

    trials = broken.broken_inputs(lab, worker, tmp_path, random.Random(2), 12, only=plain)
    assert no_faults(trials) >= 6


@pytest.fixture
def run(tmp_path) -> Path:
    """A judged run of an earlier jroute, with two parts of its table, which reads fast."""
    few = shutil.ignore_patterns("_replicates", "part-[1-9a-f]*")
    run = Path(shutil.copytree(RUN, tmp_path / "earlier", ignore=few))
    assert len(list(run.glob("outcomes/*/part-*"))) == 2
    return run


def test_flipped_bits(tiny_directory, run, tmp_path) -> None:
    """Files that have digests; an earlier jroute wrote the run without them."""
    day = tmp_path / "day"
    shutil.copytree(tiny_directory, day / "model")
    shutil.copytree(run / "outcomes", day / "run" / "outcomes")
    for kind in ("controller", "controls"):
        (state,) = (path for path in (run / kind).iterdir() if path.is_dir())
        save_state(day / "run" / kind / "id", *load_state(state))
    trials = list(flips(day, tmp_path / "flipped", random.Random(3), 5))
    assert len(trials) == 4 * 5 and not lines(trials)


def test_mutated_texts(tmp_path) -> None:
    for name, inputs, read in readers.text_readers(tmp_path):
        no_faults(mutations(name, inputs, read, random.Random(4), 25))


def test_mutated_files(tiny_directory, run, tmp_path) -> None:
    for name, inputs, read in readers.file_readers(SOURCE, tiny_directory, run, tmp_path):
        no_faults(mutations(name, inputs, read, random.Random(5), 10))


def test_a_fault_is_noticed(lab, worker, tmp_path) -> None:
    """The campaign is no use if it overlooks what it looks for."""
    step = lab.steps[0]
    day = lab.copy_before(step, tmp_path / "day")
    assert worker.run(step.argv, day).status == 0
    assert not list(kills.differences(lab, day, lab.after(step)))
    config = day / "model" / "config.json"
    config.write_text(config.read_text().replace("10000.0", "20000.0"))
    (day / "model.partial-x-1").mkdir()
    (day / "model" / "generation_config.json").unlink()
    found = {kind for kind, _ in kills.differences(lab, day, lab.after(step))}
    assert found == {"lost", "wrong", "leftover"}
