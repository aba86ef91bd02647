"""Filling a part of the outcome table, and the figures printed of it."""

import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from jroute.mesh import MeshConfig
from jroute.outcomes import main
from jroute.run import load_run


@pytest.fixture(scope="module")
def config(tiny_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("outcomes")
    content = {
        "run": str(folder / "run"),
        "model": str(tiny_directory),
        "gates": [0.0, 0.5, 1.0],
        "task": {"name": "synthetic", "train": 8, "validation": 8, "test": 40},
        "decoding": {"max_new_tokens": 24},
        "engine": {"slots": 16},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(content))
    return folder / "config.yaml"


def figures(printed: str) -> dict[float, list[float]]:
    """n, correct, accuracy, truncated and tokens by gate."""
    lines = re.findall(r"^gate (\S+) +(\d+) +(\d+) +([\d.]+)% +([\d.]+)% +([\d.]+)$", printed, re.M)
    return {float(gate): [float(number) for number in rest] for gate, *rest in lines}


def test_a_sanity_check_then_the_rest(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    part = ["--config", str(config), "--split", "[test]"]
    assert main([*part, "--only_gates", "[0]", "--problems", "30"]) == 0
    first = capsys.readouterr().out
    assert list(figures(first)) == [0.0]
    assert figures(first)[0.0][0] == 30
    assert "30 cells made now" in first
    assert main(part) == 0
    rest = capsys.readouterr().out
    assert "90 cells made now" in rest  # 40 problems x 3 gates, less the 30 that were there
    run = load_run(config.parent / "run")
    assert f"{run.table.folder}: outcome table" in rest
    correct = run.matrix("test")
    cells = [[run.outcome("test", p.id, g) for p in run.problems("test")] for g in (0.0, 0.5, 1.0)]
    for i, (gate, found) in enumerate(figures(rest).items()):
        assert gate == (0.0, 0.5, 1.0)[i]
        truncated = np.mean([cell.stop_reason == "length" for cell in cells[i]])
        tokens = np.mean([cell.tokens for cell in cells[i]])
        right = correct[:, i].sum()
        expected = [40, right, 100 * right / 40, 100 * truncated, tokens]
        np.testing.assert_allclose(found, expected, atol=0.051)  # as printed
    assert figures(first)[0.0][1] == correct[:30, 0].sum()
    assert len({tuple(values) for values in figures(rest).values()}) > 1
    assert main([*part, "--problems", "5"]) == 0
    assert "0 cells made now" in capsys.readouterr().out


def test_devices_are_no_part_of_a_run(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What several devices have made, one device finds, and asks for no more of."""
    run = str(config.parent / "spread")
    part = ["--config", str(config), "--run", run, "--split", "[test]", "--problems", "4"]
    assert main([*part, "--mesh.data", "3"]) == 2
    assert "engine.slots is 16, which the 3 replicas" in capsys.readouterr().err
    assert not Path(run).exists()
    assert main([*part, "--mesh.data", "2"]) == 0
    assert "12 cells made now" in capsys.readouterr().out
    assert main(part) == 0
    assert "0 cells made now" in capsys.readouterr().out
    opened = load_run(run)
    assert opened.lm.mesh is None
    assert opened.outcome("test", opened.problems("test")[3].id, 0.5).tokens > 0
    mesh = load_run(run, mesh=MeshConfig(data=2)).lm.mesh
    assert mesh is not None and mesh.size == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--only_gates", "[0.3]"], r"only_gates holds 0.3, .* gates \[0.0, 0.5, 1.0\]"),
        (["--split", "[ood]"], "split 'ood' is not used by the experiment"),
        (["--problems", "-1"], "problems is -1"),
        (["--onlygates", "[0]"], "only_gates"),
    ],
)
def test_parts_that_are_none_are_told(
    config: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(["--config", str(config), *options]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_gates_that_do_nothing_are_warned_of(config: Path, tmp_path: Path, capsys) -> None:
    """Outcomes are data, so they are made all the same; gate 0 alone asks nothing of a routing."""
    (tmp_path / "copies.yaml").write_text("streams: [copies]\n")
    part = ["--config", str(config), "--run", str(tmp_path / "run"), "--split", "[test]"]
    part += ["--routing", str(tmp_path / "copies.yaml"), "--problems", "2"]
    assert main([*part, "--only_gates", "[0]"]) == 0
    assert "warning" not in capsys.readouterr().err
    assert main(part) == 0
    told = capsys.readouterr()
    assert "4 cells made now" in told.out
    assert "warning: this routing is inert: no gate moves" in told.err
