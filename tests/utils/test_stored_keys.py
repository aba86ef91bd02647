"""Fingerprints and stored names stay as they are whatever the fields of dataclasses are called."""

import dataclasses
import json
import os
import shutil
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest

from jroute.ablate.grid import Ablation
from jroute.arms.supervised import SupervisedConfig
from jroute.checkpoint import load_state, model_fingerprint, save_state
from jroute.controller.features import FeatureConfig
from jroute.experiment.calibration import CalibrationConfig
from jroute.experiment.config import Experiment
from jroute.experiment.run import Run, load_run
from jroute.generate.config import EngineConfig
from jroute.generate.decoding import Decoding
from jroute.harness.cache_names import answer_cache_name
from jroute.outcomes.outcome import Outcome, Provenance
from jroute.outcomes.table import OutcomeTable
from jroute.ppo.config import PPOConfig
from jroute.probe.mixing import MixingConfig
from jroute.routing.config import RoutingConfig
from jroute.statistics.config import JudgeConfig
from jroute.tasks import TaskConfig
from jroute.tasks.prompts import PromptConfig
from jroute.tasks.rewards import RewardConfig
from jroute.utils import config
from jroute.utils.errors import UserError
from jroute.utils.fingerprint import semantic_fingerprint
from jroute.utils.keys import Keys, keys, old_keys, restored, stored, stored_keys, yaml_keys

TESTS = Path(__file__).parent.parent
GOLDEN = json.loads((TESTS / "golden" / "fingerprints.json").read_text(encoding="utf-8"))
PRESETS = TESTS.parent / "configs" / "routing"

CONFIGS = {
    cls.__name__: cls
    for cls in (
        Decoding,
        EngineConfig,
        MixingConfig,
        FeatureConfig,
        PPOConfig,
        SupervisedConfig,
        RewardConfig,
        PromptConfig,
        TaskConfig,
        JudgeConfig,
    )
}


def fingerprint(value: Any) -> str:
    return semantic_fingerprint({"value": value})


# What was fingerprinted before stays fingerprinted ------------------------------------------------


def test_all_golden_defaults_are_checked():
    assert GOLDEN["defaults"].keys() == CONFIGS.keys()
    assert GOLDEN["presets"].keys() == {path.stem for path in PRESETS.glob("*.yaml")}


@pytest.mark.parametrize("name", CONFIGS)
def test_defaults(name: str):
    default, golden = CONFIGS[name](), GOLDEN["defaults"][name]
    assert fingerprint(default) == golden["fingerprint"]
    assert json.loads(json.dumps(stored(default))) == golden["fields"]
    assert list(stored(default)) == list(golden["fields"])  # lm-eval's cache names hash a repr


@pytest.mark.parametrize("name", GOLDEN["presets"])
def test_presets(name: str):
    preset = config.load(RoutingConfig, PRESETS / f"{name}.yaml")
    assert fingerprint(preset) == GOLDEN["presets"][name]


def test_bundled_model(tiny_directory: Path, tiny_lm):
    assert model_fingerprint(tiny_directory) == GOLDEN["bundled"]["model"]
    assert fingerprint(tiny_lm.routing.config) == GOLDEN["bundled"]["routing"]


@pytest.mark.parametrize("name", GOLDEN["runs"])
def test_runs(name: str, tiny_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shutil.copytree(tiny_directory, tmp_path / "model")
    folder = tmp_path / f"{name}_run"
    shutil.copytree(TESTS / "fixtures" / "runs" / name, folder)
    monkeypatch.chdir(tmp_path)
    run = load_run(folder.name)
    assert names_of(run) == GOLDEN["runs"][name]
    # The folder that the earlier version wrote holds the controllers under this name.
    assert (folder / "controller" / GOLDEN["runs"][name]["training"]).is_dir()


def names_of(run: Run) -> dict[str, Any]:
    """All names under which a run files things."""
    names = {
        "outcomes": run.outcomes.memo.fingerprint,
        "training": run.controllers.training,
        "training_parts": run.controllers.training_parts,
        "described": {key: fingerprint(part) for key, part in run.outcomes.description.items()},
        "features": sorted(path.name for path in _features(run)),
        "lm_eval_cache": answer_cache_name(run.lm),
    }
    if run.experiment.mixing.method != "none":
        names["mixing"] = run.mixing.file.name
    return names


def _features(run: Run) -> Iterator[Path]:
    """Files of raw features that the run looks for; none of them is made."""
    before = set(os.listdir(run.directory / "features"))
    for split in run.experiment.splits:
        run.features.raw(split)
    assert set(os.listdir(run.directory / "features")) == before
    yield from (run.directory / "features").iterdir()


# Renaming a field -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Before:
    """As it was.

    Attributes:
        until: Strings that end a text.
        parts: Numbers in one decision.
    """

    stored_keys: ClassVar[Keys] = keys("until", "parts")

    until: tuple[str, ...] = ("\n",)
    parts: int = 1


@dataclass(frozen=True)
class After:
    """As it is: both fields have other names, and one is also another key in YAML.

    Attributes:
        stop: Strings that end a text.
        num_gate_dims: Numbers in one decision.
    """

    stored_keys: ClassVar[Keys] = keys(stop="until", num_gate_dims="parts")
    yaml_keys: ClassVar[Keys] = keys("stop", num_gate_dims="parts")
    old_keys: ClassVar[Keys] = {"until": "stop", "ends": "stop"}

    stop: tuple[str, ...] = ("\n",)
    num_gate_dims: int = 1


@dataclass(frozen=True)
class Trial:
    """A trial.

    Attributes:
        inner: What was renamed.
        seed: Its seed.
    """

    stored_keys: ClassVar[Keys] = keys("seed", inner="outer")
    old_keys: ClassVar[Keys] = {"oldest": "outer"}

    inner: After = field(default_factory=After)
    seed: int = 0


class StateBefore(NamedTuple):
    stored_keys = keys("weights", "step")

    weights: Any
    step: int


class StateAfter(NamedTuple):
    stored_keys = keys(params="weights", update="step")

    params: Any
    update: int


def test_a_renamed_field_keeps_its_fingerprint():
    assert fingerprint(After()) == fingerprint(Before()) == fingerprint(stored(After()))
    assert fingerprint([After(num_gate_dims=2)]) == fingerprint([Before(parts=2)])
    assert fingerprint(After(stop=())) != fingerprint(Before())
    assert repr(stored(After())) == repr(stored(Before()))
    assert stored(Trial()) == {"outer": {"until": ("\n",), "parts": 1}, "seed": 0}
    assert After(**restored(After, stored(After(num_gate_dims=3)))) == After(num_gate_dims=3)


def test_a_field_without_a_key_is_refused():
    @dataclass(frozen=True)
    class Undeclared:
        stop: str = ""

    @dataclass(frozen=True)
    class Forgotten(Before):
        more: int = 0

    @dataclass(frozen=True)
    class Renamed:
        stored_keys: ClassVar[Keys] = keys("until")

        stop: str = ""

    @dataclass(frozen=True)
    class Twice:
        stored_keys: ClassVar[Keys] = keys("a", b="a")

        a: int = 0
        b: int = 0

    for value in (Undeclared(), Forgotten(), Renamed(), Twice()):
        for use in (fingerprint, stored):
            with pytest.raises(TypeError, match="must declare one distinct key for each field"):
                use(value)


def test_every_configuration_declares_its_keys():
    def check(cls: type[Any]) -> None:
        assert list(stored_keys(cls).values()) == list(yaml_keys(cls).values())
        for kind in typing.get_type_hints(cls).values():
            if dataclasses.is_dataclass(kind):
                check(kind)  # pyright: ignore[reportArgumentType]

    for cls in (Experiment, Ablation, CalibrationConfig, RoutingConfig):
        check(cls)


# YAML and the command line --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "argv"),
    [
        ("outer: {stop: [a], parts: 2}\nseed: 3\n", []),
        ("outer: {until: [a], parts: 2}\nseed: 3\n", []),
        ("oldest: {ends: [a], parts: 2}\nseed: 3\n", []),
        ("seed: 3\n", ["--outer.stop", "[a]", "--outer.parts", "2"]),
        ("seed: 3\n", ["--oldest.until=[a]", "--oldest.parts", "2"]),
        ("oldest: {until: [b]}\nseed: 3\n", ["--outer.ends=[a]", "--outer.parts", "2"]),
    ],
)
def test_old_keys_still_read(text: str, argv: list[str], tmp_path: Path):
    file = tmp_path / "trial.yaml"
    file.write_text(text)
    trial = config.load(Trial, file, argv)
    assert trial == Trial(inner=After(stop=("a",), num_gate_dims=2), seed=3)
    assert config.dump(trial) == "outer:\n  stop:\n  - a\n  parts: 2\nseed: 3\n"
    file.write_text(config.dump(trial))
    assert config.load(Trial, file) == trial


@pytest.mark.parametrize(
    ("text", "argv", "message"),
    [
        ("inner: {}\n", [], "unknown key inner; the nearest known key is"),
        ("outer: {num_gate_dims: 2}\n", [], "unknown key outer.num_gate_dims;"),
        (
            "oldest: {until: [a], stop: [b]}\n",
            [],
            "outer.until and outer.stop are two names of one key",
        ),
        ("outer: {until: 3}\n", [], "outer.stop must be a list of texts, not 3"),
        ("", ["--outer.num_gate_dims", "2"], "unknown option --outer.num_gate_dims"),
        ("", ["--oldest.parts", "x"], "--outer.parts must be a whole number, not 'x'"),
    ],
)
def test_messages_name_present_keys(text: str, argv: list[str], message: str, tmp_path: Path):
    file = tmp_path / "trial.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=message):
        config.load(Trial, file, argv)


def test_help_lists_present_keys(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        config.parse(Trial, ["--oldest.until=[zz]", "--help"], prog="trial")
    shown = " ".join(capsys.readouterr().out.split())
    assert "--outer.stop " in shown and "--outer.parts " in shown and "--seed " in shown
    assert "Strings that end a text. (type: tuple[str, ...], default: [zz])" in shown
    assert "num_gate_dims" not in shown.lower() and "inner" not in shown and "until" not in shown


def test_old_keys_lead_somewhere():
    @dataclass(frozen=True)
    class Nowhere:
        old_keys: ClassVar[Keys] = {"before": "after"}

        now: int = 0

    @dataclass(frozen=True)
    class Taken:
        old_keys: ClassVar[Keys] = {"now": "now"}

        now: int = 0

    for cls in (Nowhere, Taken):
        with pytest.raises(TypeError, match="no longer in use"):
            old_keys(cls)


# Files -----------------------------------------------------------------------------------------


def test_orbax_paths_are_stored_keys(tmp_path: Path):
    weights = {"actor": np.arange(3.0), "inner": StateBefore(np.ones(2), 1)}
    renamed = {"actor": np.arange(3.0), "inner": StateAfter(np.ones(2), 1)}
    save_state(tmp_path, 1, StateBefore(weights, 7))
    step, state = load_state(tmp_path, StateAfter(jax.tree.map(np.zeros_like, renamed), 0))
    assert step == 1 and state.update == 7 and state.params["inner"].update == 1
    np.testing.assert_array_equal(state.params["actor"], weights["actor"])
    np.testing.assert_array_equal(state.params["inner"].params, weights["inner"].weights)


def test_columns_of_the_outcome_table(tmp_path: Path):
    made = Provenance(execution="{}", versions="{}", machine="1 x CPU", seconds=0.5)
    outcome = Outcome("p", 0.5, 0, "text", 3, "3", "ok", True, 1.0, "end_token", -1.0, made)
    table = OutcomeTable(tmp_path, "f" * 64, {})
    table.append([outcome])
    [part] = table.folder.glob("part-*.parquet")
    earlier = next((TESTS / "fixtures" / "runs" / "table" / "outcomes").glob("*/part-*.parquet"))
    assert pq.read_schema(part).names == pq.read_schema(earlier).names
    assert OutcomeTable.open(table.folder).cells() == [outcome]
