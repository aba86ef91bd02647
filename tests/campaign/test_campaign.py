"""A short part of the campaign; ``python -m tests.campaign`` runs the whole."""

import random
import shutil
from collections.abc import Iterator

import pytest

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
    assert no_faults(kills.random_kills(lab, worker, tmp_path / "day", random.Random(1), 6)) >= 2


def test_kills_at_renames(lab, worker, tmp_path) -> None:
    trials = kills.rename_kills(lab, worker, tmp_path / "day", every=9)
    assert no_faults(trials) >= 5


def test_broken_inputs(lab, worker, tmp_path) -> None:
    def plain(item) -> bool:
        return item[1][0] == "jroute.convert"

    trials = broken.broken_inputs(lab, worker, tmp_path, random.Random(2), 12, only=plain)
    assert no_faults(trials) >= 6


def test_flipped_bits(tiny_directory, tmp_path) -> None:
    day = tmp_path / "day"
    shutil.copytree(tiny_directory, day / "model")
    shutil.copytree(RUN, day / "run")
    no_faults(flips(day, tmp_path / "flipped", random.Random(3), 5))


def test_mutated_texts(tmp_path) -> None:
    for name, inputs, read in readers.text_readers(tmp_path):
        no_faults(mutations(name, inputs, read, random.Random(4), 40))


def test_mutated_files(tiny_directory, tmp_path) -> None:
    for name, inputs, read in readers.file_readers(SOURCE, tiny_directory, RUN, tmp_path):
        no_faults(mutations(name, inputs, read, random.Random(5), 20))


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
