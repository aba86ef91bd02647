"""From the files of a run folder to what the report shows."""

import json

import jax
import numpy as np
import pytest
import yaml

from jroute.checkpoint import save_state
from jroute.controller import arms, networks
from jroute.controller.features import SCALARS, FeatureConfig, Featurizer, RawFeatures
from jroute.envs.outcomes import Outcome, OutcomeTable
from jroute.errors import UserError
from jroute.evaluation.html import figures
from jroute.evaluation.html.episodes import episodes, shared
from jroute.evaluation.html.material import gather
from jroute.report import main as report
from jroute.tasks.synthetic import problems
from tests.evaluation import reports

COUNT = 8
GATES = (0.0, 0.5, 1.0)


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
    table = OutcomeTable(folder / "outcomes", "ab12", {"model": "toy"})
    asked = problems("test", COUNT)
    table.append(
        Outcome(p.id, gate, 0, f"#### {p.answer}", 5 + i, p.answer, "ok", bool((i + k) % 2), 0.5, s)
        for i, p in enumerate(asked)
        for k, (gate, s) in enumerate(zip(GATES, ("end_token", "length", "length"), strict=True))
    )
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
    tree = {"featurizer": featurizer.tree(), "seeds": seeds, "selected": 1}
    save_state(folder / "controller" / "cd34", 1, tree)
    results = {**reports.results(COUNT), "outcomes": "ab12", "training": "cd34"}
    (folder / "results.json").write_text(json.dumps({**results, "gates": list(GATES)}))
    chosen = [arms.choices_of_policy(p, featurizer(raw).astype(np.float32)) for p in each]
    return folder, asked, raw, np.stack(chosen)


def test_a_run_is_read_without_its_model(run) -> None:
    folder, asked, raw, chosen = run
    found = gather(folder)
    judged = found.splits[0]
    assert found.name == "toy" and [s.name for s in found.splits] == ["test"] and not judged.absent
    assert [row.problem for row in judged.rows] == asked
    assert len(np.unique(chosen)) > 1
    np.testing.assert_array_equal(judged.gates[..., 0], np.asarray(GATES)[chosen])
    assert [row.rl for row in judged.rows] == chosen[1].tolist()  # the selected seed
    assert {row.base for row in judged.rows} == {0}
    row = judged.rows[3]
    assert row.features == pytest.approx(dict(zip(SCALARS, raw.scalars[3].tolist(), strict=True)))
    assert [cell.gate for cell in row.cells] == [(0.0,), (0.5,), (1.0,)]
    assert [cell.correct for cell in row.cells] == [True, False, True] and row.cells[0].tokens == 8
    assert row.prompt == "" and found.curves == {} and found.probe is None
    expected = [[bool((i + chosen[s, i]) % 2) for i in range(COUNT)] for s in range(2)]
    np.testing.assert_array_equal(judged.right, expected)
    assert figures.grid(found) == [(0.0,), (0.5,), (1.0,)]


def test_every_cell_is_an_episode_that_names_its_arms(run) -> None:
    folder, asked, _, chosen = run
    found = gather(folder)
    made = list(episodes(found.splits[0], found))
    assert len(made) == COUNT * len(GATES) == len({episode.key for episode in made})
    for i, episode in enumerate(made):
        problem, gate = divmod(i, len(GATES))
        expected = {f"fixed:{GATES[gate]:g}"}
        expected |= {"baseline", "best_fixed"} if gate == 0 else set()
        expected |= {"rl_selected"} if chosen[1, problem] == gate else set()
        assert set(episode.labels["arms"]) == expected
        assert episode.prompt == asked[problem].question and episode.gate == (GATES[gate],)
    assert shared(found)["gen_ai.request.max_tokens"] == 40


def test_the_door_writes_the_page_and_the_traces(run, tmp_path, capsys) -> None:
    folder, asked, _, _ = run
    out = tmp_path / "out"
    before = sorted(path for path in folder.rglob("*"))
    options = ["--run", str(folder), "--out", str(out), "--traces.format", "jsonl"]
    assert report(options) == 0
    printed = capsys.readouterr().out
    assert "test: n = 8 problems" in printed and f"{out / 'report.html'}: the report" in printed
    assert "24 of 24 episodes of test" in printed
    page = (out / "report.html").read_text()
    assert asked[0].question in page and (out / "figures" / "arms-test.png").is_file()
    assert len((out / "traces" / "test.jsonl").read_text().splitlines()) == 24
    assert before == sorted(path for path in folder.rglob("*"))


def test_what_is_missing_is_named(run, tmp_path, capsys) -> None:
    folder = run[0]
    assert report(["--run", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path} is no run folder")
    part = tmp_path / "part"
    part.mkdir()
    (part / "config.yaml").write_text((folder / "config.yaml").read_text())
    with pytest.raises(UserError, match=r"has no results\.json"):
        gather(part)
    (part / "results.json").write_text((folder / "results.json").read_text())
    found = gather(part).splits[0]
    assert not found.rows and "The problems cannot be shown: " in found.absent
    assert "ab12 is no outcome table" in found.absent
