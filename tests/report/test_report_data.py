"""From the files of a run folder to what the report shows."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from jroute.arms.rl import decisions_of_policy
from jroute.checkpoint import save_state
from jroute.controller import networks
from jroute.controller.features import SCALARS, FeatureConfig, Featurizer, RawFeatures
from jroute.outcomes.outcome import Outcome
from jroute.outcomes.table import OutcomeTable
from jroute.report.__main__ import main as report
from jroute.report.episodes import episodes, run_attributes
from jroute.report.problem_table import pack
from jroute.report.run_reader import read_run
from jroute.tasks.synthetic import problems
from jroute.utils.errors import UserError
from tests.report import reports

COUNT = 8
GATES = (0.0, 0.5, 1.0)


def write_cells(folder, toy_problems, gates) -> None:
    """A table as experiments leave it; cell k of problem i is right if i + k is odd."""
    table = OutcomeTable(folder.parent, folder.name, {}, num_gate_dims=np.size(gates[0]))
    cells = [
        Outcome(
            problem_id=problem.id,
            gate=gate,
            sample=0,
            completion=f"#### {problem.answer}",
            tokens=5 + i,
            parsed=problem.answer,
            status="ok",
            correct=bool((i + k) % 2),
            reward=0.5,
            stop_reason="length" if k else "end_token",
        )
        for i, problem in enumerate(toy_problems)
        for k, gate in enumerate(gates)
    ]
    half = len(cells) // 2
    table.append(cells[:half])
    table.append(cells[half:])
    table.append(dataclasses.replace(cell, sample=1, completion="another sample") for cell in cells)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder as training leaves it, with a controller of random weights."""
    folder = tmp_path_factory.mktemp("runs") / "toy"
    folder.mkdir()
    config = {
        "run": "runs/toy",
        "model": "no/model",
        "gates": list(GATES),
        "task": {"name": "synthetic", "train": 4, "validation": 4, "test": COUNT},
        "decoding": {"max_new_tokens": 40},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    toy_problems = problems("test", COUNT)
    write_cells(folder / "outcomes" / "ab12", toy_problems, GATES)
    rng = np.random.default_rng(0)
    raw = RawFeatures(
        rng.normal(size=(COUNT, len(SCALARS))).astype(np.float32),
        rng.normal(size=(COUNT, 6)).astype(np.float32),
    )
    (folder / "features").mkdir()
    np.savez(folder / "features" / "test.npz", key="k", **raw._asdict())
    featurizer = Featurizer.fit(raw, FeatureConfig(components=4))
    size = featurizer(raw).shape[1]
    each = [networks.init(jax.random.key(i), size, (len(GATES),), (8,)) for i in range(2)]
    for params in each:  # far from the uniform policy that training starts from
        params["actor"]["output"]["kernel"] = 1e3 * params["actor"]["output"]["kernel"]
    seeds = jax.tree.map(lambda *leaves: np.stack(leaves), *each)
    tree = {"featurizer": featurizer.tree(), "seeds": seeds, "selected": 1, "best_fixed": 0}
    save_state(folder / "controller" / "cd34", 1, tree)
    results = {**reports.results(COUNT), "outcomes": "ab12", "training": "cd34"}
    (folder / "results.json").write_text(json.dumps({**results, "gates": list(GATES)}))
    chosen = [decisions_of_policy(p, featurizer(raw).astype(np.float32))[:, 0] for p in each]
    return folder, toy_problems, raw, np.stack(chosen)


def test_a_run_is_read_without_its_model(run) -> None:
    folder, toy_problems, raw, chosen = run
    data = read_run(folder)
    split = data.splits[0]
    assert data.name == "toy" and [s.name for s in data.splits] == ["test"] and not split.missing
    assert [row.problem for row in split.rows] == toy_problems
    assert len(np.unique(chosen)) > 1
    np.testing.assert_array_equal(split.gates[..., 0], np.asarray(GATES)[chosen])
    assert [row.rl for row in split.rows] == chosen[1].tolist()  # the selected seed
    assert {row.base for row in split.rows} == {0}
    row = split.rows[3]
    assert row.features == pytest.approx(dict(zip(SCALARS, raw.scalars[3].tolist(), strict=True)))
    assert [cell.gate for cell in row.cells] == [0.0, 0.5, 1.0]
    assert [cell.correct for cell in row.cells] == [True, False, True] and row.cells[0].tokens == 8
    assert {cell.completion for cell in row.cells} == {f"#### {toy_problems[3].answer}"}  # sample 0
    assert row.prompt == "" and data.curves == {} and data.probe is None
    expected = [[bool((i + chosen[s, i]) % 2) for i in range(COUNT)] for s in range(2)]
    np.testing.assert_array_equal(split.solved, expected)
    assert data.grid == [0.0, 0.5, 1.0]


def test_every_cell_is_an_episode_that_names_its_arms(run) -> None:
    folder, toy_problems, _, chosen = run
    data = read_run(folder)
    made = list(episodes(data.splits[0], data))
    assert len(made) == COUNT * len(GATES) == len({episode.key for episode in made})
    for i, episode in enumerate(made):
        problem, gate = divmod(i, len(GATES))
        expected = {f"fixed:{GATES[gate]:g}"}
        expected |= {"baseline", "best_fixed"} if gate == 0 else set()
        expected |= {"rl_selected"} if chosen[1, problem] == gate else set()
        assert set(episode.labels["arms"]) == expected
        assert episode.prompt == toy_problems[problem].question and episode.gate == (GATES[gate],)
    assert run_attributes(data)["gen_ai.request.max_tokens"] == 40


def test_the_command_writes_the_page_and_the_traces(run, tmp_path, capsys) -> None:
    folder, toy_problems, _, _ = run
    out = tmp_path / "out"
    before = sorted(path for path in folder.rglob("*"))
    options = ["--run", str(folder), "--out", str(out), "--traces.format", "jsonl"]
    assert report(options) == 0
    printed = capsys.readouterr().out
    assert "test: n = 8 problems" in printed and f"{out / 'report.html'}: the report" in printed
    assert "24 of 24 episodes of test" in printed
    page = (out / "report.html").read_text()
    assert toy_problems[0].question in page and (out / "figures" / "arms-test.png").is_file()
    assert len((out / "traces" / "test.jsonl").read_text().splitlines()) == 24
    assert before == sorted(path for path in folder.rglob("*"))


def test_what_is_missing_is_named(run, tmp_path, capsys) -> None:
    folder = run[0]
    assert report(["--run", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path} is not a run folder")
    part = tmp_path / "part"
    part.mkdir()
    (part / "config.yaml").write_text((folder / "config.yaml").read_text())
    with pytest.raises(UserError, match=r"has no results\.json"):
        read_run(part)
    (part / "results.json").write_text((folder / "results.json").read_text())
    split = read_run(part).splits[0]
    assert not split.rows and "The problems cannot be shown: " in split.missing
    assert "no outcome table ab12" in split.missing


def test_what_judging_wrote_down_is_taken_before_controllers_are_asked(run, tmp_path) -> None:
    folder, toy_problems, _, _ = run
    copy = tmp_path / "toy"
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("controller"))
    rng = np.random.default_rng(1)
    rows = []
    for arm, seeds in (("baseline", 1), ("supervised", 1), ("rl_selected", 1), ("rl", 3)):
        rows += [
            ("test", arm, seed, p.id, 0.0 if arm == "baseline" else float(rng.choice(GATES)))
            for seed in range(seeds)
            for p in toy_problems
        ]
    rows += [("test", "random", 0, p.id, None) for p in toy_problems]
    rows += [("ood", a, seed, f"{p}-other", g) for _, a, seed, p, g in rows[:8]]
    rng.shuffle(rows)  # of no order
    names = ("split", "arm", "seed", "problem", "gate")
    columns = {name: [row[i] for row in rows] for i, name in enumerate(names)}
    columns |= {"seed": list(map(int, columns["seed"]))}
    pq.write_table(pa.table(columns), copy / "items.parquet")
    (split,) = read_run(copy).splits
    assert not split.missing and split.gates.shape == (3, COUNT, 1)
    stored = {(a, seed, p): g for s, a, seed, p, g in rows if s == "test"}
    for i, (row, problem) in enumerate(zip(split.rows, toy_problems, strict=True)):
        assert set(row.arms) == {"baseline", "supervised", "rl_selected"}
        assert row.arms["supervised"] == stored["supervised", 0, problem.id]
        assert (
            row.cells[row.rl].gate
            == row.arms["rl_selected"]
            == stored["rl_selected", 0, problem.id]
        )
        assert split.gates[:, i, 0].tolist() == [stored["rl", s, problem.id] for s in range(3)]
    half = {name: values[: len(rows) // 2] for name, values in columns.items()}
    pq.write_table(pa.table(half), copy / "items.parquet")
    assert "judge the run again" in read_run(copy).splits[0].missing


def test_gates_of_several_parts_are_read_from_the_memo(run, tmp_path) -> None:
    """A gate per band: controllers decide each part, and only requested cells are known."""
    folder, toy_problems, raw, _ = run
    copy = tmp_path / "toy"
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("controller", "outcomes"))
    featurizer = Featurizer.fit(raw, FeatureConfig(components=4))
    observations = featurizer(raw).astype(np.float32)
    params = networks.init(jax.random.key(5), observations.shape[1], (3, 3), (8,))
    params["actor"]["output"]["kernel"] = 1e3 * params["actor"]["output"]["kernel"]
    seeds = jax.tree.map(lambda leaf: np.asarray(leaf)[None], params)
    tree = {"featurizer": featurizer.tree(), "seeds": seeds, "selected": 0}
    save_state(copy / "controller" / "cd34", 1, tree)
    decided = np.asarray(networks.act(params, jnp.asarray(observations)))
    expected = [tuple(GATES[part] for part in row) for row in decided]
    assert len(set(expected)) > 1
    write_cells(copy / "memo" / "ab12", toy_problems, list(dict.fromkeys([(0.0, 0.0), *expected])))
    (split,) = read_run(copy).splits
    assert not split.missing and split.gates.shape == (1, COUNT, 2)
    assert [row.cells[row.rl].gate for row in split.rows] == expected
    assert {row.cells[row.base].gate for row in split.rows} == {(0.0, 0.0)}
    data = dataclasses.replace(read_run(copy), splits=(split,))
    packed = pack(data.splits, data.grid)["splits"][0]["rows"][0]
    label, colours, *_ = packed["cells"][packed["rl"]]
    assert label == " ".join(f"{part:g}" for part in expected[0])
    assert colours == decided[0].tolist()
