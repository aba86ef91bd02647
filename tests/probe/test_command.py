"""What the probe prints, writes and calibrates, and the refusal of routings that do nothing."""

import json
import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import yaml

from jroute.distributed.mesh import MeshConfig
from jroute.experiment import pipeline
from jroute.experiment.config import Experiment
from jroute.experiment.pipeline import inert_reason, refuse_inert
from jroute.experiment.run import Run
from jroute.lm import LanguageModel
from jroute.lm import load as load_lm
from jroute.model.decoder import ForwardOptions, forward
from jroute.probe import effects
from jroute.probe.__main__ import main
from jroute.routing.config import RoutingConfig
from jroute.routing.mixing import Routing
from jroute.train import main as train
from jroute.utils.config import load as load_config
from tests.model.tiny import chat_prompts
from tests.support import in_a_hurry


@pytest.fixture(autouse=True, scope="module")
def compiled_in_a_hurry():
    with in_a_hurry(effects, "_hidden", "_measure", "_diverge", "_trunk_rms"):
        yield


@pytest.fixture
def config(tiny_directory: Path, tmp_path: Path) -> Path:
    content = {
        "run": str(tmp_path / "run"),
        "model": str(tiny_directory),
        "gates": [0.0, 0.5, 1.0],
        "task": {"name": "synthetic", "train": 8, "validation": 8, "test": 8},
        "decoding": {"max_new_tokens": 24},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    return tmp_path / "config.yaml"


@pytest.fixture(scope="module")
def prompts(tiny_lm: LanguageModel) -> list[list[int]]:
    return [tiny_lm.encode(text) for text in chat_prompts(tiny_lm.tokenizer, 2, "train")]


def softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def test_the_door_tells_what_the_gates_do(config, tiny_lm, prompts, capsys) -> None:
    assert main(["--config", str(config), "--prompts", "2"]) == 0
    printed = capsys.readouterr().out
    folder = config.parent / "run" / "probe"
    assert [p.name for p in folder.parent.iterdir()] == ["probe"]  # no run was started
    content = json.loads((folder / "probe.json").read_text())
    assert content["model"] == tiny_lm.fingerprint and content["prompts"] == 2
    assert [effect["gate"] for effect in content["effects"]] == [0.0, 0.5, 1.0]
    for effect in content["effects"]:
        kls, same = [], []
        base, gated = (
            softmax(np.asarray(tiny_lm.logits(prompts, g), np.float64))
            for g in (None, effect["gate"])
        )
        for row, p, q in zip(prompts, base, gated, strict=True):
            p, q = p[: len(row)], q[: len(row)]
            kls.append((p * np.log(p / q)).sum(axis=-1))
            same.append(p.argmax(axis=-1) == q.argmax(axis=-1))
        assert effect["kl"] == pytest.approx(np.concatenate(kls).mean(), rel=1e-3, abs=1e-6)
        assert effect["kl_largest"] == pytest.approx(np.concatenate(kls).max(), rel=1e-3, abs=1e-5)
        assert effect["agreement"] == pytest.approx(np.concatenate(same).mean(), abs=1e-5)
        share = f"{effect['agreement']:.1%}"
        expected = rf"^ +{effect['gate']:g} +\S+ +\S+ +{share} .* {effect['verdict']}$"
        assert re.search(expected, printed, re.M)
    assert [effect["verdict"] for effect in content["effects"]] == ["inert", "gentle", "strong"]
    assert content["verdict"] == "strong" and "\nverdict: strong\n" in printed
    weights = np.array(content["effects"][0]["composition"])
    np.testing.assert_allclose(weights, np.tril(np.ones((13, 13))), atol=1e-5)
    for name in ("gates", "blocks", "composition"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert f"{folder / name}.png" in printed


def test_the_heatmap_shows_the_largest_gate(config, tmp_path, capsys) -> None:
    options = ["--routing", "attention_mlp_balance", "--gates", "[0.0, 0.5, -2.5]"]
    out = tmp_path / "elsewhere"
    arguments = ["--config", str(config), "--prompts", "1", "--out", str(out), *options]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert not (config.parent / "run").exists() and (out / "probe.json").is_file()
    # C is 1 + g / 2 for updates of attention and 1 - g / 2 for those of MLPs, from the hook on.
    assert "C(g) at gate -2.5" in printed
    rows = dict(re.findall(r"^ *(\w+) \|(\S*)$", printed, re.M))
    assert rows["a0"] == "=" and rows["m0"] == "==" and rows["a1"] == "=-#"
    assert len(rows) == 13 and rows["final"] == "=" + 6 * "-#"


def test_sinkhorns_columns_and_every_hook_are_told(config, capsys) -> None:
    options = ["--routing", "mhc", "--prompts", "2", "--gates", "[0.0, 0.5, 1.0]"]
    assert main(["--config", str(config), *options]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^Sinkhorn: columns are within \d\.\de-0\d of 1$", printed, re.M)
    for block in range(6):
        assert re.search(rf"^ +{block} attention +[\d.]+% ", printed, re.M)
        assert re.search(rf"^ +{block} mlp +[\d.]+% ", printed, re.M)


def test_divergence_is_the_probes(tiny_lm, prompts) -> None:
    arguments = (tiny_lm.params, tiny_lm.config, tiny_lm.routing, prompts, [0.0, -1.0, 1.0])
    for short, full in zip(
        effects.divergence(*arguments), effects.probe(*arguments).effects, strict=True
    ):
        np.testing.assert_allclose(short, full[:4], rtol=1e-3, atol=1e-6)


def test_a_mesh_changes_nothing(tiny_lm, tiny_directory, prompts) -> None:
    """Three prompts on two replicas: a row of padding is added, and counts nothing."""
    rows = [*prompts, prompts[0][:10]]
    lm = load_lm(tiny_directory, mesh=MeshConfig(data=2, fsdp=2))
    arguments = (tiny_lm.config, tiny_lm.routing, rows, [0.5, 1.0])
    with lm.devices():
        spread = effects.divergence(lm.params, *arguments)
    for divergence, expected in zip(
        spread, effects.divergence(tiny_lm.params, *arguments), strict=True
    ):
        np.testing.assert_allclose(divergence, expected, rtol=1e-4, atol=1e-6)


def test_sink_norms_are_causal_and_ready_to_paste(config, tiny_lm, capsys) -> None:
    assert main(["--config", str(config), "--calibrate_sinks", "true"]) == 0
    printed = capsys.readouterr().out
    norms = yaml.safe_load(printed)["sink_norms"]
    rows = [tiny_lm.encode(text) for text in chat_prompts(tiny_lm.tokenizer, 8, "train")]
    width = max(map(len, rows))
    tokens = jnp.array([[*row, *[0] * (width - len(row))] for row in rows])
    valid = np.array([[i < len(row) for i in range(width)] for row in rows])
    positions = jnp.where(valid, jnp.arange(width)[None], -1)
    options = ForwardOptions(tap=lambda block: block.trunk)
    out = forward(tiny_lm.params, tiny_lm.config, tokens, positions, options=options)
    trunks = np.asarray(out.taps, np.float64)[:, valid]
    rms = np.sqrt(np.mean(trunks**2, axis=-1))
    np.testing.assert_allclose(norms, 20 * np.median(rms, axis=1), rtol=1e-3)
    path = config.parent / "pasted.yaml"
    path.write_text(f"norm_match: true\n{printed}")
    Routing.create(load_config(RoutingConfig, path), 6)
    assert not (config.parent / "run").exists()


def test_a_token_of_huge_norm_counts_as_a_sink(tiny_lm, prompts) -> None:
    first = prompts[0][0]
    table = tiny_lm.params["embed_tokens"]
    params = {**tiny_lm.params, "embed_tokens": table.at[first].multiply(1e4)}
    _, above = effects.sink_norms(params, tiny_lm.config, prompts)
    share = np.mean([token == first for row in prompts for token in row])
    np.testing.assert_allclose(above, share)
    assert 0 < share < 0.5


def write_routing(folder: Path, **content) -> str:
    path = folder / "routing.yaml"
    path.write_text(yaml.safe_dump(content))
    return str(path)


def test_an_inert_routing_is_refused_unless_forced(config, tmp_path, capsys, monkeypatch) -> None:
    inert = write_routing(tmp_path, streams=["copies"], operator="softmax")
    arguments = ["--config", str(config), "--routing", inert]
    assert train(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("error: this routing is inert: no gate")
    assert re.search(r"more than \d\.\de[+-]\d+ nats .* below the floor of 0.0001", error)
    assert "--allow_inert true" in error
    run = Path(config.parent / "run")
    assert not run.exists()
    # Where nothing was made yet, the folder takes the experiment that was put right.
    Run.start(load_config(Experiment, config, arguments[2:]))
    (run / "model").mkdir()
    experiment = load_config(Experiment, config)
    started = Run.start(experiment)
    refuse_inert(started.lm, started.data, started.grid)
    assert load_config(Experiment, run / "config.yaml") == experiment
    forced = Run.start(load_config(Experiment, config, [*arguments[2:], "--allow_inert", "true"]))
    monkeypatch.setattr(pipeline, "fill_outcomes", lambda _: pytest.fail("reached"))
    with pytest.raises(pytest.fail.Exception, match="reached"):
        pipeline.train(forced)


def test_a_routing_that_breaks_the_model_is_not_inert(config, monkeypatch) -> None:
    gates = [(0.5, 1e-6), (1.0, float("nan"))]
    divergences = [effects.Divergence(gate, kl, kl, 1.0) for gate, kl in gates]
    run = Run.start(load_config(Experiment, config))
    for order in (divergences, divergences[::-1]):
        monkeypatch.setattr(effects, "divergence", lambda *_, order=order: order)
        assert inert_reason(run.lm, run.data, run.grid) == ""
    monkeypatch.setattr(effects, "divergence", lambda *_: divergences[:1])
    assert "at gate 0.5" in inert_reason(run.lm, run.data, run.grid)


def test_forcing_does_not_make_another_experiment(config) -> None:
    run = config.parent / "run"
    Run.start(load_config(Experiment, config))
    (run / "outcomes").mkdir()
    Run.start(load_config(Experiment, config, ["--allow_inert", "true"]))
    assert load_config(Experiment, run / "config.yaml").allow_inert


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--prompts", "0"], "prompts is 0"),
        (["--routing", "mph"], "no routing preset is named 'mph'"),
        (["--split", "dev"], "--split must be one of train"),
    ],
)
def test_bad_commands_end_in_one_sentence(config, capsys, options, message) -> None:
    assert main(["--config", str(config), *options]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message in error
    assert not (config.parent / "run").exists()
