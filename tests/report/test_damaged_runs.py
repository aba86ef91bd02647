"""Damaged results, items, probes and curves are one sentence, whoever reads them."""

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jroute.experiment.comparison import read_judged
from jroute.experiment.results_file import read_results
from jroute.observe.scalars import read_curves
from jroute.probe.files import read_probe
from jroute.report.header import header
from jroute.report.report_data import ReportData
from jroute.report.sections import run_facts, split_tables
from jroute.report.stream_figures import stream_figures
from jroute.report.text import results_text
from jroute.utils.errors import UserError

RUN = Path(__file__).parents[1] / "fixtures" / "runs" / "table"
VALUES = (None, True, "x", -1, 1.5, 10**30, 1e300, float("nan"), [], {}, [[]], {"a": 1}, "../x")
PROBE = {
    "verdict": "gentle",
    "streams": ["trunk", "delay"],
    "sites": [0, 2],
    "prompts": 3,
    "split": "train",
    "effects": [
        {"gate": gate, "dominance": [[[0.5, 0.5]]] * 3, "diversity": [[0.1]] * 3}
        for gate in (0.0, 1.0)
    ],
}


def places(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the way to every value of a tree."""
    if isinstance(tree, list):
        tree = dict(enumerate(tree))
    for key, value in tree.items() if isinstance(tree, dict) else ():
        yield (*path, key)
        yield from places(value, (*path, key))


def mutated(content: Any, rng: random.Random) -> bytes:
    """Return JSON with a value deleted, replaced, nested or cut off."""
    tree = json.loads(json.dumps(content))
    *way, last = rng.choice(list(places(tree)))
    owner = tree
    for key in way:
        owner = owner[key]
    how = rng.randrange(4)
    if how == 0:
        del owner[last]
    elif how == 1:
        owner[last] = [owner[last]]
    else:
        owner[last] = rng.choice(VALUES)
    text = json.dumps(tree).encode()
    return text if rng.randrange(8) else text[: rng.randrange(len(text))]


def flipped(content: bytes, rng: random.Random) -> bytes:
    """Return bytes with one bit flipped, or cut off."""
    if not rng.randrange(4):
        return content[: rng.randrange(len(content))]
    changed = bytearray(content)
    changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def show_results(run: Path) -> None:
    results = read_results(run / "results.json")
    for part in (results, *results["other_splits"].values()):
        results_text(part, "a split")
    data = ReportData("run", results, ())
    assert header(data) and split_tables(data) == []
    run_facts(results)


def read_or_refuse(read: Any, file: Path) -> bool:
    """Return whether a file is read; otherwise one short sentence names it."""
    try:
        read()
    except UserError as error:
        assert str(file) in str(error) and len(str(error)) < 600 and "\n" not in str(error)
        return False
    return True


def test_mutated_results(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    content, rng = json.loads((RUN / "results.json").read_text()), random.Random(0)
    outcomes = set()
    for _ in range(150):
        file.write_bytes(mutated(content, rng))
        outcomes.add(read_or_refuse(lambda: show_results(tmp_path), file))
    assert outcomes == {True, False}


def test_mutated_probes(tmp_path: Path) -> None:
    file, rng = tmp_path / "probe.json", random.Random(0)
    outcomes = set()
    for _ in range(150):
        file.write_bytes(mutated(PROBE, rng))
        outcomes.add(read_or_refuse(lambda: stream_figures(read_probe(file)), file))
    assert outcomes == {True, False}


@pytest.mark.parametrize("name", ["items.parquet", "tensorboard"])
def test_flipped_bits(tmp_path: Path, name: str) -> None:
    run = tmp_path / "run"
    shutil.copytree(RUN, run)
    (run / "config.yaml").unlink()  # else its table is read for every flip
    curves = next(iter(sorted(run.glob("tensorboard/seeds/*.npz"))))
    file = curves if name == "tensorboard" else run / name
    content, rng = file.read_bytes(), random.Random(0)
    outcomes = set()
    for _ in range(100):
        file.write_bytes(flipped(content, rng))
        if name == "tensorboard":
            outcomes.add(read_or_refuse(lambda: read_curves(run / "tensorboard"), run))
        else:
            outcomes.add(read_or_refuse(lambda: read_judged(run, None), run))
    assert False in outcomes


def test_results_pass_through_as_they_were_written() -> None:
    for kind in ("table", "live"):
        file = RUN.parent / kind / "results.json"
        assert read_results(file) == json.loads(file.read_text())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"training": "../../x"}, "training"),
        ({"arms": {"rl": {"accuracy": float("nan"), "ci95": [0, 1]}}}, "arms.rl.accuracy"),
        ({"arms": {"rl": {"accuracy": 0.5, "ci95": [0.1]}}}, "arms.rl.ci95"),
        ({"contrasts": None}, "contrasts"),
        ({"verdict": None}, "has a headroom or a verdict without the other"),
        ({"gates": [0, 1]}, "has no count for each gate and seed of baseline"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    file = tmp_path / "results.json"
    content = json.loads((RUN / "results.json").read_text())
    file.write_text(json.dumps(content | change))
    with pytest.raises(UserError) as caught:
        read_results(file)
    assert message in str(caught.value)
    assert f"judge the run again with python -m jroute.evaluate --run {tmp_path}" in str(
        caught.value
    )
