"""The grid of routings, its cells, and what is told of them."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from jroute.ablate.__main__ import main
from jroute.ablate.ablation_run import AblationRun
from jroute.ablate.grid import Ablation, variants
from jroute.lm import LanguageModel, resolve_routing
from jroute.routing.presets import preset_names
from jroute.tasks.synthetic import problems
from jroute.utils.config import load as load_config
from jroute.utils.errors import UserError
from tests.model.tiny import chat_prompts

ROOT = Path(__file__).parent.parent.parent
GRID = {
    "presets": ["histories", "soft_skip"],
    "guards": ["own", "none"],
    "gates": [0.0, 1.0],
    "problems": 12,
    "probed": 2,
    "task": {"name": "synthetic", "test": 20},
    "decoding": {"max_new_tokens": 24},
    "engine": {"slots": 16, "unroll": False},
}


def grid(**changes) -> Ablation:
    return Ablation(**{"run": "r", "model": "m", "presets": ("mvp",), **changes})


def test_side_streams_are_cut_or_repeated_or_left_out() -> None:
    kept, left_out = variants(grid(presets=("mvp", "histories"), streams=(0, 2, 6)), layers=6)
    listed = [(variant.preset, variant.streams, variant.routing.streams) for variant in kept]
    assert listed == [
        ("mvp", 4, ("persistent",) * 3),
        ("mvp", 2, ("persistent",)),
        ("mvp", 6, ("persistent",) * 5),
        ("histories", 4, ("delay(1)", "attention", "mlp")),
    ]
    rows = "the rows of this preset are for 4 streams"
    assert left_out == [f"histories with {n} streams: {rows}" for n in (2, 6)]


def test_unequal_shares_are_cut_but_not_repeated() -> None:
    kept, left_out = variants(grid(presets=("hyper_connections",), streams=(2, 4, 0, 8)), layers=6)
    shares = [variant.routing.stationary for variant in kept]  # 4 is its own size
    assert shares == [pytest.approx((4 / 7, 3 / 7)), (0.4, 0.3, 0.2, 0.1)]
    assert len(left_out) == 1 and "unequal shares of streams" in left_out[0]
    mixed = Ablation(run="r", model="m", presets=("mvp",), streams=(1,))
    assert variants(mixed, layers=6)[0] == []


def test_sites_and_guards_replace_the_presets_own() -> None:
    changes = {
        "sites": ("own", "all", "0-1, 4", "0.5-1.0"),
        "guards": ("own", "none", "exempt_first+cap"),
        "cap": 0.3,
    }
    kept, left_out = variants(grid(presets=("soft_skip", "histories"), **changes), layers=6)
    assert not left_out and len(kept) == 24
    sites = {v.sites: v.routing.site_indices(6) for v in kept if v.preset == "soft_skip"}
    assert sites == {"own": [2, 3], "all": [*range(6)], "0-1, 4": [0, 1, 4], "0.5-1.0": [3, 4, 5]}
    guards = {
        v.guards: (v.routing.norm_match, v.routing.exempt_first, v.routing.cap)
        for v in kept
        if v.preset == "histories"
    }
    assert guards == {
        "own": (True, False, 0.0),
        "none": (False, False, 0.0),
        "exempt_first+cap": (False, True, 0.3),
    }
    with pytest.raises(UserError, match="the model has blocks 0 to 5"):
        variants(grid(sites=("6",)), layers=6)


def test_the_committed_table_is_that_of_the_committed_grid() -> None:
    """Presets x streams x sites x guards x gates; what cannot be is named."""
    config = load_config(Ablation, ROOT / "configs" / "ablation_tiny.yaml")
    assert sorted(config.presets) == preset_names()
    assert min(len(config.streams), len(config.sites), len(config.guards), len(config.gates)) > 1
    table = json.loads((ROOT / "scripts" / "results" / "ablation_tiny.json").read_text())
    assert table["command"] == "python -m jroute.ablate --config configs/ablation_tiny.yaml"
    assert table["split"] == config.split
    made, left_out = variants(config, layers=6)
    assert table["left_out"] == left_out
    listed = [
        tuple(cell[name] for name in ("preset", "streams", "sites", "guards", "gate"))
        for cell in table["cells"]
    ]
    assert listed == [
        (v.preset, v.streams, v.sites, v.guards, gate) for v in made for gate in config.gates
    ]
    assert {cell["n"] for cell in table["cells"]} == {config.problems}
    assert len({v.streams for v in made if v.preset == "mvp"}) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"guards": ("norm_mach",)}, "guards: 'norm_mach' is not a guard"),
        ({"gates": ()}, "gates must hold at least one value"),
        ({"presets": ("mvp", "mvp")}, "presets must hold at least one value, and none twice"),
        ({"cap": 0.0}, "cap is above 0"),
    ],
)
def test_grids_that_are_none_are_told(changes, message) -> None:
    with pytest.raises(UserError, match=message):
        grid(**changes)


@pytest.fixture(scope="module")
def config(tiny_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ablation")
    content = {"run": str(folder / "run"), "model": str(tiny_directory), **GRID}
    (folder / "grid.yaml").write_text(yaml.safe_dump(content))
    return folder / "grid.yaml"


def cell_files(config: Path) -> dict[str, int]:
    return {p.name: p.stat().st_mtime_ns for p in (config.parent / "run" / "cells").iterdir()}


def test_a_killed_grid_goes_on(
    config: Path, tiny_lm: LanguageModel, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    made = []
    measure = AblationRun._measure

    def killed(self, variant, gate):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append((variant.preset, variant.guards, gate))
        return measure(self, variant, gate)

    monkeypatch.setattr(AblationRun, "_measure", killed)
    with pytest.raises(KeyboardInterrupt):
        main(["--config", str(config)])
    monkeypatch.undo()
    kept = cell_files(config)
    assert len(kept) == 2 and all(name.endswith(".json") for name in kept)
    assert not (config.parent / "run" / "ablation.json").exists()
    capsys.readouterr()
    assert main(["--config", str(config), "--plan"]) == 0
    assert re.search(r"test +24 cells to make \(24 of 48 are there\)", capsys.readouterr().out)
    assert cell_files(config) == kept and not (config.parent / "run" / "ablation.json").exists()
    assert main(["--config", str(config)]) == 0
    printed = capsys.readouterr().out
    # One at gate 0 for all; soft_skip's own guards are none, those of histories are not.
    assert "\n2 cells made now\n" in printed
    assert len(cell_files(config)) == 4 and cell_files(config).items() >= kept.items()
    assert main(["--config", str(config)]) == 0
    assert "\n0 cells made now\n" in capsys.readouterr().out

    run = config.parent / "run"
    content = json.loads((run / "ablation.json").read_text())
    assert content["command"] == f"python -m jroute.ablate --config {config}"
    assert content["machine"]["versions"]["jax"]
    cells = {(c["preset"], c["guards"], c["gate"]): c for c in content["cells"]}
    assert len(cells) == 8
    assert len({(c["accuracy"], c["kl"]) for key, c in cells.items() if key[2] == 0}) == 1
    # A cell is what the model does.
    lm = tiny_lm.routed(resolve_routing(tiny_lm.directory, "histories"))
    prompts = chat_prompts(lm.tokenizer, 12)
    options = {"max_new_tokens": 24, **GRID["engine"]}
    for gate in (0.0, 1.0):
        texts = [c.text for c in lm.generate(prompts, gate, **options)]
        pairs = zip(problems("test", 12), texts, strict=True)
        right = np.mean([text.endswith(f"#### {p.answer}") for p, text in pairs])
        cell = cells["histories", "own", gate]
        assert cell["accuracy"] == pytest.approx(right, abs=1e-6) and cell["n"] == 12
        assert cell["ci95"][0] < cell["accuracy"] < cell["ci95"][1]
    verdicts = [cells["histories", "own", gate]["verdict"] for gate in (0.0, 1.0)]
    assert verdicts == ["inert", "strong"]
    assert cells["soft_skip", "own", 1.0]["kl"] == cells["soft_skip", "none", 1.0]["kl"]
    assert cells["histories", "own", 1.0]["kl"] != cells["histories", "none", 1.0]["kl"]
    text = (run / "ablation.txt").read_text()
    assert text in printed and text.startswith("n = 12 problems")
    assert len(text.splitlines()) == 2 + 4
    accuracy = cells["soft_skip", "none", 1.0]["accuracy"]
    (line,) = (
        one for one in text.splitlines() if one.startswith("soft_skip  2        own    none")
    )
    assert line.split("]")[-2].split()[-3] == f"{accuracy:.1%}"
    assert (run / "ablation.png").read_bytes().startswith(b"\x89PNG")


def test_a_damaged_cell_is_told(config: Path, capsys) -> None:
    folder = config.parent / "run" / "cells"
    file = sorted(folder.iterdir())[0]
    text = file.read_text()
    file.write_text(text[:20])
    assert main(["--config", str(config)]) == 2
    assert f"{file} is not valid JSON" in capsys.readouterr().err
    file.write_text(text)


def test_a_grid_without_a_routing_is_told(config: Path, capsys) -> None:
    assert main(["--config", str(config), "--streams", "[7]"]) == 2
    assert "the grid holds no routing: histories with 7 streams" in capsys.readouterr().err
