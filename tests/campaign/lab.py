"""The small experiment that the campaign disturbs: the commands of a researcher's day, in order."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import pyarrow.parquet as pq

from jroute.checkpoint import load_model
from jroute.checkpoint.storage import quiet
from jroute.utils.errors import UserError
from tests.campaign.worker import ROOT, Worker

CONFIG = """\
run: run
model: model
gates: [0.0, 0.5, 1.0]
judged: [test]
task: {name: synthetic, train: 24, validation: 12, test: 16, ood: 8}
decoding: {max_new_tokens: 24}
engine: {slots: 16}
ppo: {updates: 4, batch_size: 16, seeds: 2}
"""

ABLATION = """\
run: ablation
model: model
presets: [mvp]
streams: [0]
sites: [own]
guards: [none]
gates: [0.0, 1.0]
split: test
problems: 8
task: {name: synthetic, test: 16}
decoding: {max_new_tokens: 24}
engine: {slots: 8}
"""


@dataclass(frozen=True)
class Step:
    """One command of the day.

    Attributes:
        name: Its short name.
        argv: Module or script, and options; it runs in the folder of the day.
    """

    name: str
    argv: tuple[str, ...]


STEPS = (
    Step(
        "convert",
        ("jroute.convert", "--source", str(ROOT / "jroute/assets/tiny-gated"), "--out", "model"),
    ),
    Step("export", ("jroute.convert", "--to-hf", "model", "--out", "hf")),
    Step("outcomes", ("jroute.outcomes", "--config", "day.yaml", "--replicate", "6")),
    Step("train", ("jroute.train", "--config", "day.yaml")),
    Step("evaluate", ("jroute.evaluate", "--run", "run")),
    Step(
        "lm_eval",
        (
            "scripts/lm_eval_jax.py",
            "--run",
            "run",
            "--arm",
            "baseline,rl",
            "--tasks",
            "test",
            "--limit",
            "8",
        ),
    ),
    Step("report", ("jroute.report", "--run", "run")),
    Step("probe", ("jroute.probe", "--config", "day.yaml", "--prompts", "2")),
    Step("ablate", ("jroute.ablate", "--config", "ablation.yaml")),
    Step(
        "compare",
        ("jroute.compare", "run", "twin", "--replicates", "100", "--report", "compare.json"),
    ),
)


@dataclass
class Lab:
    """The day, undisturbed, and its state after every command.

    Attributes:
        folder: Where the states are.
        volatile: Places in JSON files that differ between two undisturbed days, such as times.
        seconds: How long each command took the second time.
        megabytes: The most memory that one of them took.
        steps: The commands.
    """

    folder: Path
    volatile: set[str] = field(default_factory=set)
    seconds: dict[str, float] = field(default_factory=dict)
    megabytes: float = 0.0
    steps: tuple[Step, ...] = STEPS

    def before(self, step: Step) -> Path:
        """Return the state before a command."""
        return self.folder / f"before-{step.name}"

    def after(self, step: Step) -> Path:
        """Return the state after a command."""
        return self.folder / f"after-{step.name}"

    @property
    def end(self) -> Path:
        """The state after the last command."""
        return self.after(self.steps[-1])

    def copy_before(self, step: Step, folder: Path) -> Path:
        """Copy the state before a command to a new folder."""
        shutil.rmtree(folder, ignore_errors=True)
        return Path(shutil.copytree(self.before(step), folder))


def live_through(worker: Worker, folder: Path, names: tuple[str, ...] | None = None) -> Lab:
    """Run the commands twice, undisturbed, and keep the state before each."""
    steps = tuple(step for step in STEPS if names is None or step.name in names)
    lab = Lab(folder, steps=steps)
    second = folder / "second"
    for day in (folder / "first", second):
        day.mkdir(parents=True)
        (day / "day.yaml").write_text(CONFIG)
        (day / "ablation.yaml").write_text(ABLATION)
        for step in steps:
            if step.name == "compare":
                shutil.copytree(day / "run", day / "twin")
            if day != second:
                shutil.copytree(day, lab.before(step))
            ended = worker.run(step.argv, day)
            if ended.status:
                raise RuntimeError(f"{step.name} ended with {ended.status}: {ended.stderr[-2000:]}")
            lab.seconds[step.name] = ended.seconds
            lab.megabytes = max(lab.megabytes, ended.megabytes)
            if day != second:
                shutil.copytree(day, lab.after(step))
    shutil.rmtree(folder / "first")
    one, two = meaning(lab.end), meaning(second)
    lab.volatile = {place for place in one.keys() & two.keys() if not equal(one[place], two[place])}
    shutil.rmtree(second)
    return lab


def differences(lab: Lab, found: Path, expected: Path) -> Iterator[tuple[str, str]]:
    """Yield what is lost, wrong or left over in a folder, each with its place."""
    have, want = meaning(found), meaning(expected)
    for place in want:
        if place not in have:
            yield "lost", place
        elif place not in lab.volatile and not equal(have[place], want[place]):
            yield "wrong", place
    for place in have.keys() - want.keys():
        yield "leftover", place


def equal(one: Any, other: Any) -> bool:
    """Return whether two values mean the same; arrays bit for bit."""
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return (
            one.dtype == other.dtype
            and one.shape == other.shape
            and one.tobytes() == other.tobytes()
        )
    return type(one) is type(other) and one == other


def meaning(folder: Path) -> dict[str, Any]:
    """Return everything that the files of a folder say, by place.

    Names that a run may choose otherwise (hashes of contents, times) are replaced, and what a
    folder of Parquet files or an Orbax checkpoint holds counts as a whole.
    """
    content: dict[str, Any] = {}
    units: set[Path] = set()
    for path in sorted(folder.rglob("*")):
        if any(unit == path or unit in path.parents for unit in units):
            continue
        place = _place(path.relative_to(folder))
        if path.is_dir():
            unit = _unit(path)
            if unit is not None:
                units.add(path)
                content.update({f"{place}: {key}": value for key, value in unit(path).items()})
            else:
                content[place] = "folder"
        elif path.suffix == ".parquet" and path.name.startswith(("part-", ".")) is False:
            content[place] = _rows(path)
        elif path.suffix == ".parquet" and path.name.startswith("part-"):
            continue  # in the table of its folder
        else:
            content.update(_file(place, path))
    for table in {path.parent for path in folder.rglob("part-*.parquet")}:
        rows = [row for part in sorted(table.glob("part-*.parquet")) for row in _rows(part)]
        content[f"{_place(table.relative_to(folder))}: rows"] = sorted(rows)
    return content


def _unit(path: Path) -> Callable[[Path], dict[str, Any]] | None:
    if (path / "manifest.json").is_file() and (path / "params").is_dir():
        return _model
    if (path / "state").is_dir() and path.name.isdigit():
        return _state
    return None


def _model(path: Path) -> dict[str, Any]:
    """Return what a model directory says; its arrays have digests in the manifest."""
    try:
        load_model(path)
        sound = "sound"
    except UserError as error:
        sound = str(error)
    content: dict[str, Any] = {"state": sound}
    for file in sorted(path.iterdir()):
        if file.is_file() and file.suffix == ".json":
            content.update(_file(file.name, file))
        else:
            content[file.name] = "file" if file.is_file() else "folder"
    return content


def _state(path: Path) -> dict[str, Any]:
    with quiet():
        leaves = ocp.PyTreeCheckpointer().restore((path / "state").absolute())
    return {name: np.asarray(leaf) for name, leaf in leaves.items()}


_TIMES = (
    (re.compile(r"\d{4}-\d\d-\d\dT[\d:.-]+\d"), "TIME"),
    (re.compile(r"tfevents.*"), "tfevents"),
)
_WRITTEN_TIMES = {"seconds"}


def _place(path: Path) -> str:
    name = str(path)
    for pattern, word in _TIMES:
        name = pattern.sub(word, name)
    return name


def _rows(file: Path) -> list[str]:
    table = pq.read_table(file)
    return [
        json.dumps(
            {k: v for k, v in row.items() if k not in _WRITTEN_TIMES}, sort_keys=True, default=str
        )
        for row in table.to_pylist()
    ]


def _file(place: str, path: Path) -> dict[str, Any]:
    if path.suffix == ".json":
        return {f"{place}{key}": value for key, value in _leaves(json.loads(path.read_text()))}
    if path.suffix == ".jsonl":
        lines = path.read_text().splitlines()
        pairs = [(f"[{i}]", json.loads(line)) for i, line in enumerate(lines)]
        return {f"{place}{at}{key}": value for at, line in pairs for key, value in _leaves(line)}
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            return {f"{place}: {name}": arrays[name] for name in arrays.files}
    if path.suffix in (".yaml", ".jinja"):
        return {place: path.read_text()}
    return {place: "file"}


def _leaves(value: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _leaves(item, f"{at}.{key}")
    elif isinstance(value, list) and value:
        for i, item in enumerate(value):
            yield from _leaves(item, f"{at}[{i}]")
    else:
        yield at, value
