"""Curves: what is written for TensorBoard and W&B, and what a report reads back."""

import json
import sys
import types
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from jroute.observe.scalars import Scalars, read_curves
from jroute.train import main as train
from jroute.utils.errors import UserError
from tests.support import most_bytes_of_a_file

GATES = (0.0, 0.5, 1.0)


def curves(updates: int, seeds: int = 2, start: int = 0) -> dict[str, np.ndarray]:
    ones = np.ones((seeds, 1))
    step = np.arange(start, start + updates)
    spread = np.array([[0.0], [1.0]])[:seeds]
    named = {"charts/episodic_return": step * ones + spread, "charts/SPS": np.full(updates, 7.0)}
    for gate, share in zip(GATES, (0.5, 0.3, 0.2), strict=True):
        named[f"charts/gate_frac_{gate:g}"] = np.full((seeds, updates), share)
    return named


def events(folder: Path) -> list:
    read_events = []
    for path in sorted(folder.glob("events.*")):
        data, at = path.read_bytes(), 0
        while at < len(data):  # length, checksum, event, checksum
            size = int.from_bytes(data[at : at + 8], "little")
            read_events.append(Event.FromString(data[at + 12 : at + 12 + size]))
            at += 16 + size
    return read_events


def test_means_for_tensorboard_and_every_seed_for_the_report(tmp_path) -> None:
    scalars = Scalars(tmp_path)
    scalars.write(curves(3), 0)
    scalars.write(curves(2, start=3), 3)
    scalars.close()
    stored, banded = read_curves(tmp_path)
    assert banded
    np.testing.assert_array_equal(
        stored["charts/episodic_return"], [[0, 1, 2, 3, 4], [1, 2, 3, 4, 5]]
    )
    np.testing.assert_array_equal(stored["charts/SPS"], [[7] * 5])
    written = [
        (value.tag, event.step, value.simple_value)
        for event in events(tmp_path)
        for value in event.summary.value
        if value.tag == "charts/episodic_return"
    ]
    assert [(step, value) for _, step, value in written] == [(i, i + 0.5) for i in range(5)]


def test_the_gates_are_a_histogram_with_a_bar_around_each(tmp_path) -> None:
    scalars = Scalars(tmp_path)
    scalars.write(curves(1), 4)
    scalars.close()
    histograms = [
        (event.step, value.histo)
        for event in events(tmp_path)
        for value in event.summary.value
        if value.tag == "charts/gate"
    ]
    assert len(histograms) == 1 and histograms[0][0] == 4
    histogram = histograms[0][1]
    # TensorBoard's bucket i ends at limit i; the first one's start is `min`.
    assert histogram.min == -0.25 and list(histogram.bucket_limit) == [0.25, 0.75, 1.25]
    np.testing.assert_allclose(list(histogram.bucket), [0.5, 0.3, 0.2])
    assert histogram.sum == pytest.approx(0.5 * 0 + 0.3 * 0.5 + 0.2 * 1)


def test_a_value_that_no_seed_has_is_left_out(tmp_path) -> None:
    scalars = Scalars(tmp_path)
    nothing = np.array([[np.nan, 1.0], [np.nan, np.nan]])
    scalars.write({"losses/explained_variance": nothing}, 0)
    scalars.close()
    written = [
        (event.step, value.simple_value)
        for event in events(tmp_path)
        for value in event.summary.value
    ]
    assert written == [(1, 1.0)]
    stored, _ = read_curves(tmp_path)
    np.testing.assert_array_equal(stored["losses/explained_variance"], nothing)


def test_what_is_resumed_is_written_anew(tmp_path) -> None:
    for purge, start, updates in ((None, 0, 6), (2, 2, 1)):
        scalars = Scalars(tmp_path, purge_step=purge)
        for first in range(start, start + updates, 2):
            scalars.write(curves(min(2, updates), start=first), first)
        scalars.close()
    stored, _ = read_curves(tmp_path)
    assert stored["charts/episodic_return"].shape == (2, 3)  # 0, 1, and the new 2
    assert sorted(p.name for p in (tmp_path / "seeds").iterdir()) == [
        "00000000.npz",
        "00000002.npz",
    ]


def test_a_full_disk_is_one_sentence_and_leaves_whole_events(tmp_path) -> None:
    scalars = Scalars(tmp_path)
    scalars.write(curves(3), 0)
    before = len(events(tmp_path))
    (file,) = tmp_path.glob("events.*")
    size = file.stat().st_size
    with (
        most_bytes_of_a_file(size + 50),
        pytest.raises(UserError, match=r"events\S+ \(File too large; it takes [\d,]+ bytes; "),
    ):
        scalars.write(curves(3, start=3), 3)
    assert file.stat().st_size == size
    scalars.write(curves(3, start=3), 3)
    assert len(events(tmp_path)) == 2 * before - 1  # the head is there once
    (tmp_path / "seeds" / "00000003.npz").unlink()
    with most_bytes_of_a_file(50), pytest.raises(UserError, match=r"00000003\.npz"):
        scalars.write(curves(3, start=3), 3)
    assert [path.name for path in (tmp_path / "seeds").iterdir()] == ["00000000.npz"]


def test_an_older_run_has_means_alone(tmp_path) -> None:
    scalars = Scalars(tmp_path)
    scalars.write(curves(3), 0)
    scalars.close()
    for chunk in (tmp_path / "seeds").iterdir():
        chunk.unlink()
    file = next(tmp_path.glob("events.*"))
    file.write_bytes(file.read_bytes()[:-3])  # as a killed run leaves it
    stored, banded = read_curves(tmp_path)
    assert not banded
    np.testing.assert_array_equal(stored["charts/episodic_return"], [[0.5, 1.5, 2.5]])
    assert read_curves(tmp_path / "nothing") == ({}, False)


def stored_offline(content: bytes) -> list[bytes]:
    """Records of a W&B file: LevelDB's log format behind 7 bytes of its own."""
    records, part, at = [], b"", 7
    while at + 7 <= len(content):
        left = 32768 - at % 32768
        if left < 7:  # a block's end too short for a header
            at += left
            continue
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        part += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last of several
            records.append(part)
            part = b""
    return records


def test_wandb_gets_the_same(tmp_path, monkeypatch, caplog) -> None:
    wandb = pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    folder = tmp_path / "run" / "tensorboard"
    scalars = Scalars(folder, track="wandb", config={"seed": 3})
    scalars.write(curves(3), 0)
    scalars.close()
    assert wandb.run is None
    assert not [record for record in caplog.records if record.name.startswith("jroute")]
    wandb.teardown()  # waits for what its service has still to write
    file = next(folder.glob("wandb/offline-run-*/*.wandb"))
    rows, config = [], {}
    for data in stored_offline(file.read_bytes()):
        record = wandb_internal_pb2.Record.FromString(data)
        if record.HasField("history"):
            keys = {i.key or "/".join(i.nested_key): i.value_json for i in record.history.item}
            rows.append(keys)
        if record.HasField("run"):
            config |= {i.key: i.value_json for i in record.run.config.update}
            assert record.run.project == "jroute" and record.run.display_name == "run"
    assert config["seed"] == "3"
    assert [float(row["charts/episodic_return"]) for row in rows] == [0.5, 1.5, 2.5]
    assert [int(row["_step"]) for row in rows] == [0, 1, 2]
    assert json.loads(rows[0]["charts/gate/_type"]) == "histogram"
    assert json.loads(rows[0]["charts/gate/values"]) == pytest.approx([0.5, 0.3, 0.2])
    assert json.loads(rows[0]["charts/gate/bins"]) == [-0.25, 0.25, 0.75, 1.25]


@pytest.mark.parametrize("broken", ["init", "log", "finish"])
def test_a_failing_tracker_stops_nothing(tmp_path, monkeypatch, caplog, broken) -> None:
    calls = []

    def service(name: str):
        def act(*_: object, **__: object) -> types.SimpleNamespace:
            calls.append(name)
            if name == broken:
                raise ConnectionError("the service is away")
            return types.SimpleNamespace(id="x", log=service("log"), finish=service("finish"))

        return act

    fake = types.ModuleType("wandb")
    fake.__spec__ = ModuleSpec("wandb", None, origin="fake")
    fake.init, fake.Histogram = service("init"), dict
    monkeypatch.setitem(sys.modules, "wandb", fake)
    scalars = Scalars(tmp_path, track="wandb")
    scalars.write(curves(3), 0)
    scalars.close()
    assert read_curves(tmp_path)[0]["charts/episodic_return"].shape == (2, 3)
    messages = [record.message for record in caplog.records if record.name.startswith("jroute")]
    assert messages == ["W&B takes no more curves (the service is away); the run continues"]
    assert (
        calls
        == {  # what failed is not called again
            "init": ["init"],
            "log": ["init", "log"],
            "finish": ["init", "log", "log", "log", "finish"],
        }[broken]
    )


def test_training_refuses_a_tracker_that_is_missing_at_once(monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    options = ["--run", "no/run", "--model", "no/model", "--track"]
    assert train([*options, "wandb"]) == 2
    assert "pip install 'jroute[wandb]'" in capsys.readouterr().err
    assert train([*options, "mlflow"]) == 2
    assert "--track must be one of" in capsys.readouterr().err


def test_a_missing_tracker_is_named_before_anything_is_written(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"jroute\[wandb\]"):
        Scalars(tmp_path / "tensorboard", track="wandb")
    assert not list(tmp_path.iterdir())
