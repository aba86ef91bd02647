"""Fingerprints and stored names stay as they are whatever the fields of dataclasses are called."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jroute.arms.supervised import SupervisedConfig
from jroute.checkpoint.model import model_fingerprint
from jroute.controller.features import FeatureConfig
from jroute.experiment.run import Run, load_run
from jroute.generate.config import EngineConfig
from jroute.generate.decoding import Decoding
from jroute.harness.cache_names import answer_cache_name
from jroute.ppo.config import PPOConfig
from jroute.probe.mixing import MixingConfig
from jroute.routing.routing import RoutingConfig
from jroute.statistics.config import JudgeConfig
from jroute.tasks import TaskConfig
from jroute.tasks.prompts import PromptConfig
from jroute.tasks.rewards import RewardConfig
from jroute.utils import config
from jroute.utils.fingerprint import semantic_fingerprint
from jroute.utils.keys import stored

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
    # Each of them is found under its name, in the folder that the earlier version wrote.
    assert (folder / "controller" / GOLDEN["runs"][name]["training"]).is_dir()


def names_of(run: Run) -> dict[str, Any]:
    """All names under which a run files things."""
    names = {
        "outcomes": run.memo.fingerprint,
        "training": run.training,
        "training_parts": run.training_parts,
        "described": {key: fingerprint(part) for key, part in run.described.items()},
        "features": sorted(path.name for path in _features(run)),
        "lm_eval_cache": answer_cache_name(run.lm),
    }
    if run.experiment.mixing.method != "none":
        names["mixing"] = run.mixing_file.name
    return names


def _features(run: Run) -> Iterator[Path]:
    """Files of raw features that the run looks for; none of them is made."""
    before = set(os.listdir(run.directory / "features"))
    for split in run.experiment.splits:
        run.raw_features(split)
    assert set(os.listdir(run.directory / "features")) == before
    yield from (run.directory / "features").iterdir()
