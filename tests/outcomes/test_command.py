"""Filling a part of the outcome table, and the figures printed of it."""

import dataclasses
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from jroute.distributed.mesh import MeshConfig
from jroute.experiment.config import Experiment
from jroute.experiment.plan import known_rate, memory_use, plan_outcomes
from jroute.experiment.run import Run, load_run
from jroute.generate.config import EngineConfig
from jroute.generate.engine import Engine
from jroute.generate.memory import estimate_memory
from jroute.generate.requests import Request
from jroute.outcomes.__main__ import main
from jroute.utils.config import load as load_config


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
    return {float(gate): [float(number) for number in numbers] for gate, *numbers in lines}


def test_a_sanity_check_then_the_rest(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    part = ["--config", str(config), "--split", "[test]"]
    assert main([*part[:2], "--split", "test", "--gates", "0", "--problems", "30"]) == 0
    first, bar = capsys.readouterr()
    # Counted, with the time left, the rate in cells and in tokens, and how busy the slots are.
    progress = r"30/30 \[\S+<\S+, +[\d.]+(?:cell/s|s/cell), [\d,]+ tokens/s, slots \d+% busy\]"
    assert re.search(rf"outcomes test: 100%.* {progress}", bar)
    assert list(figures(first)) == [0.0]
    assert figures(first)[0.0][0] == 30
    assert "30 cells made now" in first
    assert main(part) == 0
    second = capsys.readouterr().out
    assert "90 cells made now" in second  # 40 problems x 3 gates, less the 30 that were there
    run = load_run(config.parent / "run")
    assert f"{run.outcomes.table.folder}: outcome table" in second
    correct = run.outcomes.matrix("test")
    cells = [
        [run.outcomes.outcome("test", p.id, g) for p in run.data.problems("test")]
        for g in (0.0, 0.5, 1.0)
    ]
    for i, (gate, printed) in enumerate(figures(second).items()):
        assert gate == (0.0, 0.5, 1.0)[i]
        truncated = np.mean([cell.stop_reason == "length" for cell in cells[i]])
        tokens = np.mean([cell.tokens for cell in cells[i]])
        right = correct[:, i].sum()
        expected = [40, right, 100 * right / 40, 100 * truncated, tokens]
        np.testing.assert_allclose(printed, expected, atol=0.051)  # as printed
    assert figures(first)[0.0][1] == correct[:30, 0].sum()
    assert len({tuple(values) for values in figures(second).values()}) > 1
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
    assert opened.outcomes.outcome("test", opened.data.problems("test")[3].id, 0.5).tokens > 0
    mesh = load_run(run, mesh=MeshConfig(data=2)).lm.mesh
    assert mesh is not None and mesh.size == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--only_gates", "[0.3]"], r"--gates names 0.3, .* gates \[0.0, 0.5, 1.0\]"),
        (["--split", "[ood]"], "split 'ood' is not used by the experiment"),
        (["--problems", "-1"], "problems is -1"),
        (["--onlygates", "[0]"], "only_gates"),
        (["--gates=0,0.3"], "--gates names 0.3"),
        (["--share", "4/4"], "share is '4/4'; the shares of 4 are 0/4"),
        (["--share", "half"], "share is 'half'; give i/n"),
        (["--share", "0/" + "9" * 5000], "share is '0/9+; give i/n"),
        (["--share", "0/0"], "share is '0/0'; the shares of 4 are"),
        (["--share", "3/2"], "share is '3/2'; the shares of 4 are"),
        (["--share", "-1/4"], "share is '-1/4'; give i/n"),
        (["--share", "½"], "share is '½'; give i/n"),
        (["--share", "\u0661/\u0664"], "share is '\u0661/\u0664'; give i/n"),
        (["--share", "0 / 4"], "share is '0 / 4'; give i/n"),
        (["--replicate", "nan"], "replicate"),
        (["--samples", "2"], "samples is 2, but greedy decoding makes them identical"),
        (["--replicate", "-3"], "replicate is -3"),
    ],
)
def test_parts_that_are_none_are_told(
    config: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(["--config", str(config), *options]) == 2
    assert re.search(message, capsys.readouterr().err)


def cells_of(run: str | Path) -> dict[tuple, tuple]:
    """What every cell says, with its log-probability."""
    return {
        (c.problem_id, c.gate, c.sample): (c, c.logprob)
        for c in load_run(run).outcomes.table.cells()
    }


def test_shares_merge_into_the_table_of_one(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each share makes its own problems; together they are what one process makes."""
    part = ["--config", str(config), "--split", "train,validation"]
    apart, whole = str(config.parent / "apart"), str(config.parent / "together")
    made = []
    # Another process opened the table before there was anything, and fills it last.
    early = Run.start(load_config(Experiment, config, ["--run", apart]))
    assert len(early.outcomes.table) == 0
    for i in range(3):
        assert main([*part, "--run", apart, "--share", f"{i}/3"]) == 0
        made.append(sum(map(int, re.findall(r"(\d+) cells made now", capsys.readouterr().out))))
    assert made == [18, 18, 12]
    assert main([*part, "--run", whole]) == 0
    assert cells_of(apart) == cells_of(whole) and len(cells_of(whole)) == 48
    table, cells = early.outcomes.table, early.outcomes.cells("train")
    assert early.outcomes.generator.fill(table, cells, "early") == 0 and len(table) == 48
    assert main([*part, "--run", apart]) == 0
    assert "0 cells made now" in capsys.readouterr().out
    made_by = load_run(whole).outcomes.table.cells()[0].made
    assert made_by is not None
    assert '"slots": 16' in made_by.execution and '"jax": "' in made_by.versions
    assert made_by.machine.startswith("1 x ") and made_by.seconds > 0
    cells = load_run(whole).outcomes.table.cells()
    assert early.outcomes.generation_cost().keys() == {made_by.machine}
    cost = load_run(whole).outcomes.generation_cost()[made_by.machine]
    assert cost["cells"] == 48 and cost["tokens"] == sum(cell.tokens for cell in cells)
    assert cost["seconds"] == pytest.approx(sum(cell.made.seconds for cell in cells if cell.made))


def test_cells_tell_how_likely_the_model_held_them(config: Path) -> None:
    """The sum over the tokens that were generated, the end token among them, under the gate."""
    opened = load_run(config.parent / "run")  # which the sanity check filled
    lm, problems = opened.lm, opened.data.problems("test")[:8]
    for gate in (0.0, 1.0):
        cells = [opened.outcomes.outcome("test", problem.id, gate) for problem in problems]
        ended = [cell.stop_reason == "end_token" for cell in cells]
        assert any(ended) and {cell.stop_reason for cell in cells} <= {"end_token", "length"}
        ids = [
            [*lm.encode(cell.completion), *([lm.end_token_ids[0]] if end else [])]
            for cell, end in zip(cells, ended, strict=True)
        ]
        assert [len(row) for row in ids] == [cell.tokens for cell in cells]
        prompts = [lm.encode(opened.data.render(problem.question)) for problem in problems]
        scored = lm.loglikelihood(list(zip(prompts, ids, strict=True)), gate)
        np.testing.assert_allclose(
            [cell.logprob for cell in cells], [s for s, _ in scored], atol=1e-4
        )
        assert all(greedy for _, greedy in scored)


def test_a_plan_is_made_before_anything_is(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = config.parent / "planned"
    part = ["--config", str(config), "--run", str(run), "--split", "train,validation"]
    assert main([*part, "--plan"]) == 0
    plan = capsys.readouterr().out
    assert not run.exists()
    assert re.search(r"^train +24 cells to make \(0 of 24 are there\)$", plan, re.M)
    assert re.search(r"^validation +24 cells to make \(0 of 24 are there\)$", plan, re.M)
    tokens = re.search(
        r"^tokens +(\d+) of prompts, at most 1152 generated, about (\d+)", plan, re.M
    )
    assert tokens is not None and 0 < int(tokens[2]) <= 1152
    assert "a trial of 16 cells, without compilation" in plan
    assert main([*part, "--share", "0/2"]) == 0
    opened = load_run(run)
    lengths = {
        p.id: len(opened.lm.encode(text))
        for split in ("train", "validation")
        for p, text in zip(opened.data.problems(split), opened.data.prompts(split), strict=True)
    }
    assert int(tokens[1]) == 3 * sum(lengths.values())
    before = sorted(run.rglob("*"))
    capsys.readouterr()
    assert main([*part, "--plan"]) == 0
    plan = capsys.readouterr().out
    assert sorted(run.rglob("*")) == before
    assert re.search(r"^train +12 cells to make \(12 of 24 are there\)$", plan, re.M)
    assert "24 cells that were made like this, compilation included" in plan
    cells = opened.outcomes.table.cells()
    seconds = 24 * np.mean([cell.made.seconds for cell in cells if cell.made])
    estimate = plan_outcomes(opened, {"train": opened.outcomes.cells("train")})
    assert estimate.seconds == pytest.approx(seconds / 2)
    generator = opened.outcomes.generator
    other = dataclasses.replace(generator, engine=EngineConfig(slots=8))
    assert known_rate(opened.outcomes.memo, generator) is not None
    assert known_rate(opened.outcomes.memo, other) is None  # in another shape none were made
    # Memory is what the engine would ask for these very prompts.
    lm, e = opened.lm, opened.experiment
    requests = [
        Request(lm.encode(text), np.zeros(6, np.float32)) for text in opened.data.prompts("train")
    ]
    model, shape = lm.frozen, e.engine
    engine = Engine(model, e.decoding, shape)
    streams = lm.routing.config.size
    memory = estimate_memory(lm.params, lm.config, engine.plan(requests), shape, 10**9, streams)
    assert estimate.memory.weights == 4 * sum(leaf.size for leaf in jax.tree.leaves(lm.params))
    assert (estimate.memory.cache, estimate.memory.working) == (16 * memory.slot, memory.fixed)
    assert estimate.memory.limit > estimate.memory.total > estimate.memory.weights
    auto = dataclasses.replace(generator, engine=dataclasses.replace(shape, slots="auto"))
    # 24 rows are all there is to run at a time
    assert memory_use(auto, lengths.values()).cache == 16 * memory.slot


def test_replicates_tell_the_noise_floor(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In float32 nothing flips; another order and width are used; a repeated command is free."""
    run = str(config.parent / "replicated")
    part = ["--config", str(config), "--run", run, "--split", "train", "--replicate", "12"]
    for _ in range(2):
        assert main(part) == 0
        assert "0.00 % [0.00, 24.25] (0 of 12) of cells change" in capsys.readouterr().out
    opened = load_run(run)
    pairs = opened.outcomes.table.replicates()
    assert len(pairs) == 12 and len(opened.outcomes.table) == 24
    shapes = [(a.made.execution, b.made.execution) for a, b in pairs if a.made and b.made]
    assert all('"slots": 16' in a and '"slots": 8' in b for a, b in shapes) and len(shapes) == 12
    floor = opened.outcomes.noise_floor()
    assert floor is not None and floor["text"]["n"] == 12


def test_samples_are_drawn_anew_and_again(config: Path) -> None:
    run = str(config.parent / "sampled")
    hot = ["--decoding.temperature", "4.0", "--decoding.max_new_tokens", "8"]
    part = ["--config", str(config), "--run", run, "--split", "train", *hot]
    assert main([*part, "--samples", "2"]) == 0
    assert main([*part, "--samples", "3"]) == 0
    opened = load_run(run)
    tokens = opened.outcomes.samples("train", "tokens")
    assert tokens.shape == (8, 3, 3)
    texts = {(o.problem_id, o.gate): set() for o in opened.outcomes.table.cells()}
    for outcome in opened.outcomes.table.cells():
        texts[outcome.problem_id, outcome.gate].add(outcome.completion)
    assert sum(len(each) for each in texts.values()) > 65  # of 72, most differ
    other = [*part, "--run", str(config.parent / "other"), "--seed", "1"]
    assert main(other) == 0
    fingerprints = {
        load_run(config.parent / name).outcomes.table.fingerprint for name in ("sampled", "other")
    }
    assert len(fingerprints) == 2  # drawn otherwise, so another table


def test_a_killed_command_ends_with_the_table_of_a_whole_one(config: Path, tmp_path: Path) -> None:
    """Killed at five random moments, each of them mid-way, and given once more."""
    shape = ["--engine.slots", "8", "--split", "test", "--allow_inert", "true"]
    command = [sys.executable, "-m", "jroute.outcomes", "--config", str(config), *shape]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    here = ["--config", str(config), *shape]
    assert main([*here, "--run", str(whole)]) == 0
    everything = cells_of(whole)
    assert len(everything) == 120

    def parts() -> int:
        return sum(1 for _ in killed.glob("outcomes/*/part-*.parquet"))

    rng, seen = random.Random(0), [0]
    for i in range(5):
        process = subprocess.Popen(
            [*command, "--run", str(killed)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline, target = time.monotonic() + 600, parts() + rng.randint(1, 2)
        while parts() < target:
            assert process.poll() is None, "the command ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.002)
        time.sleep(rng.random() * 0.05)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        seen.append(len(cells_of(killed)))
        assert seen[i] < seen[i + 1] < 120, seen
    assert main([*here, "--run", str(killed)]) == 0
    assert cells_of(killed) == everything
    assert not [p for p in killed.rglob(".*") if p.name.endswith(f".{os.getpid()}.tmp")]


def test_two_commands_at_once_write_no_cell_twice(config: Path, tmp_path: Path, capsys) -> None:
    """Both start on a new folder with the same share; one is killed, and given once more."""
    run = tmp_path / "run"
    options = ["--config", str(config), "--run", str(run), "--split", "test", "--problems", "24"]
    options += ["--engine.slots", "8", "--allow_inert", "true"]
    command = [sys.executable, "-m", "jroute.outcomes", *options]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    first, second = (subprocess.Popen(command, **quiet) for _ in range(2))
    while not list(run.glob("outcomes/*/part-*.parquet")):
        assert first.poll() is None and second.poll() is None
        time.sleep(0.01)
    second.kill()
    assert first.wait() == 0 and second.wait() == -signal.SIGKILL
    assert main(options) == 0
    assert "0 cells made now" in capsys.readouterr().out
    (folder,) = run.glob("outcomes/*")
    rows = pq.read_table(folder).select(["problem_id", "gate", "sample"]).to_pylist()
    assert len(rows) == len({tuple(row.values()) for row in rows}) == 72
    names = {path.name for path in folder.iterdir()}
    assert {name for name in names if not name.startswith("part-")} == {"_table.json"}


def test_gates_that_do_nothing_are_warned_of(config: Path, tmp_path: Path, capsys) -> None:
    """Outcomes are data, so they are made all the same; gate 0 alone asks nothing of a routing."""
    (tmp_path / "copies.yaml").write_text("streams: [copies]\n")
    part = ["--config", str(config), "--run", str(tmp_path / "run"), "--split", "[test]"]
    part += ["--routing", str(tmp_path / "copies.yaml"), "--problems", "2"]
    assert main([*part, "--only_gates", "[0]"]) == 0
    assert "warning" not in capsys.readouterr().err
    assert main(part) == 0
    printed = capsys.readouterr()
    assert "4 cells made now" in printed.out
    assert "warning: this routing is inert: no gate moves" in printed.err
