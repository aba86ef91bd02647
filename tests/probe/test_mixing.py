"""Learning mixing weights: the gradient, the search, the file, and the base that never moves."""

import dataclasses
import hashlib
import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml

from jroute import load_run
from jroute.experiment.config import Experiment
from jroute.experiment.plan import without_mixing
from jroute.experiment.run import Run
from jroute.generate.finite import NotFiniteError
from jroute.lm import LanguageModel
from jroute.model.config import DecoderConfig
from jroute.model.params import abstract_params
from jroute.probe import mixing
from jroute.probe.mixing import MixingConfig, MixingProgress
from jroute.routing.config import RoutingConfig
from jroute.routing.mixing import Routing
from jroute.utils.config import load as load_config
from jroute.utils.errors import UserError
from tests.model.small import drawn_params
from tests.support import in_a_hurry

SMALL = DecoderConfig(
    vocab_size=24,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=3,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
    max_position_embeddings=64,
    rope_theta=1e4,
    rms_norm_eps=1e-6,
    tie_word_embeddings=False,
)
PAIRS = [([1, 2, 3, 4], [5, 6, 7]), ([8, 9], [10, 11]), ([3, 1, 4, 1, 5], [9, 2, 6, 5])]


@pytest.fixture(autouse=True, scope="module")
def compiled_in_a_hurry():
    with in_a_hurry(mixing, "_value_and_gradient"):
        yield


@pytest.fixture(scope="module")
def small():
    return drawn_params(SMALL, 3)


def streams(operator: str, **changes) -> Routing:
    config = RoutingConfig(
        streams=("persistent", "rotate"), operator=operator, strength=0.6, **changes
    )
    return Routing.create(config, SMALL.num_hidden_layers)


def guarded() -> Routing:
    """One configuration, so that one program serves several tests."""
    return streams("softmax", norm_match=True, cap=0.5, sites=(0, 2))


def batch(routing: Routing, gate: float):
    examples = mixing.pad_examples(PAIRS, SMALL.max_position_embeddings)
    return (*(part[:2] for part in examples), routing.layer_gates(gate, 2))


def test_the_gradient_is_that_of_finite_differences(small) -> None:
    routing = guarded()
    raw = routing.config.initial_raw(3)
    raw = raw + np.random.default_rng(0).normal(0, 0.1, raw.shape).astype(np.float32)
    arguments = (small, routing, *batch(routing, 1.5))
    measure = partial(mixing._value_and_gradient, config=SMALL)
    gradient = np.asarray(measure(raw, *arguments)[1])
    assert np.abs(gradient).max() > 1e-3
    step, places = 0.02, np.argsort(-np.abs(gradient).ravel())[:6]
    for place in places:
        moved = np.zeros(raw.size, np.float32)
        moved[place] = step
        moved = moved.reshape(raw.shape)
        up, down = (measure(raw + sign * moved, *arguments)[0] for sign in (1, -1))
        slope = (float(up) - float(down)) / (2 * step)
        assert gradient.flat[place] == pytest.approx(slope, rel=0.03, abs=2e-4)


def test_memory_grows_by_few_states_per_block() -> None:
    """On the way back blocks are run again; without that each would keep some 30 states' worth."""

    def temporary(layers: int) -> int:
        config = dataclasses.replace(SMALL, num_hidden_layers=layers)
        routing = Routing.create(RoutingConfig(("persistent",), strength=0.5), layers)
        ids = jax.ShapeDtypeStruct((8, 64), jnp.int32)
        arguments = (
            jax.ShapeDtypeStruct((layers, 1, 2, 2), jnp.float32),
            abstract_params(config),
            ids,
            ids,
            jax.ShapeDtypeStruct((8, 64), jnp.bool_),
            jax.ShapeDtypeStruct((8, layers), jnp.float32),
        )

        @jax.jit
        def program(raw, params, *batch):
            return jax.grad(mixing.loss)(raw, params, routing, *batch, config=config)

        hurry = {"xla_backend_optimization_level": 0}  # buffers are laid out before
        compiled = program.lower(*arguments).compile(compiler_options=hurry)
        return compiled.memory_analysis().temp_size_in_bytes

    state = 8 * 64 * SMALL.hidden_size * 4
    grown = (temporary(18) - temporary(6)) / 12 / state
    assert grown < 6  # trunk and side stream, and what the compiler adds


def test_the_loss_is_the_likelihood_of_the_answers(tiny_lm: LanguageModel) -> None:
    pairs = [
        (tiny_lm.encode(prompt), tiny_lm.encode(answer))
        for prompt, answer in [("Tom has 3 pens.", "#### 3"), ("Anna owns 12 books. ", "12-4=8")]
    ]
    examples = mixing.pad_examples(pairs, tiny_lm.context)
    raw = tiny_lm.routed(RoutingConfig()).routing.config.initial_raw(6)
    lm = tiny_lm.routed(RoutingConfig())
    for gate in (0.0, 1.0):
        loss = mixing.loss(
            raw, lm.params, lm.routing, *examples, lm.routing.layer_gates(gate, 2), config=lm.config
        )
        scores = [score for score, _ in lm.loglikelihood(pairs, gate)]
        tokens = sum(len(answer) for _, answer in pairs)
        assert float(loss) == pytest.approx(-sum(scores) / tokens, rel=1e-5)


def start(routing: Routing) -> MixingProgress:
    return MixingProgress(0, routing.config.initial_raw(SMALL.num_hidden_layers), [], [])


def test_adam_lowers_the_loss_and_leaves_the_base_alone(small) -> None:
    routing = guarded()
    before = jax.tree.map(lambda leaf: np.array(leaf, copy=True), small)
    config = MixingConfig("gradient", 1.0, steps=30, batch_size=2, learning_rate=0.1)
    examples = mixing.pad_examples(PAIRS, 64)
    kept: list[MixingProgress] = []
    arguments = (small, SMALL, routing, examples, config)
    end = mixing.learn_by_gradient(*arguments, seed=1, progress=start(routing), save=kept.append)
    assert len(end.values) == len(kept) == end.step == 30
    first, last = (
        float(
            mixing._value_and_gradient(raw, small, routing, *batch(routing, 1.0), config=SMALL)[0]
        )
        for raw in (start(routing).raw, end.raw)
    )
    assert last < first - 0.02
    moved = np.abs(end.raw - start(routing).raw)
    assert (moved[[0, 2]] > 1e-3).any(axis=(1, 2, 3)).all()
    assert not moved[1].any()  # no site
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(small), strict=True):
        assert old.tobytes() == np.asarray(new).tobytes()

    # Going on from any step, as read back from a file, ends with the same bits.
    read = json.loads(json.dumps([kept[11].state, kept[11].raw.tolist()]))
    half = MixingProgress(12, np.asarray(read[1], np.float32), kept[11].values, read[0])
    again = mixing.learn_by_gradient(*arguments, seed=1, progress=half, save=lambda _: None)
    assert again.raw.tobytes() == end.raw.tobytes() and again.values == end.values


def test_what_is_not_finite_ends_learning_and_is_not_saved(small, monkeypatch) -> None:
    routing, examples = guarded(), mixing.pad_examples(PAIRS, 64)
    config = MixingConfig("gradient", 1.0, steps=3, batch_size=3, learning_rate=0.1)
    broken = {**small, "embed_tokens": jnp.asarray(small["embed_tokens"]).at[8].set(jnp.nan)}
    kept: list[MixingProgress] = []
    options = {"seed": 1, "progress": start(routing), "save": kept.append}
    with pytest.raises(NotFiniteError) as error:
        mixing.learn_by_gradient(broken, SMALL, routing, examples, config, **options)
    assert str(error.value).startswith(
        "the states of example 1 are not finite at gate 1: they begin in the embedding at position "
    )
    # Adam squares a gradient, so that one that is finite may be too large all the same.
    huge = np.full_like(start(routing).raw, 1e30)
    monkeypatch.setattr(mixing, "_value_and_gradient", lambda *_, **__: (np.float32(1), huge))
    with pytest.raises(UserError, match="the gradient of the mixing weights is not finite at st"):
        mixing.learn_by_gradient(small, SMALL, routing, examples, config, **options)
    assert not kept


def test_the_search_climbs_and_goes_on(small) -> None:
    raw = np.zeros((3, 1, 2, 2), np.float32)
    target = np.array([0.5, -0.5, 0.25, 0.0])
    config = MixingConfig("search", steps=40, change=0.5)
    seen: list[np.ndarray] = []

    def score(tried: np.ndarray) -> float:
        seen.append(tried)
        return -float(np.abs(tried[1].ravel() - target).sum())

    kept: list[MixingProgress] = []
    options = {"seed": 4, "save": kept.append}
    end = mixing.learn_by_search(
        score, [1], config, progress=MixingProgress(0, raw, [], []), **options
    )
    np.testing.assert_array_equal(end.raw[1].ravel(), target)  # 0.25 needs a halved change
    assert not end.raw[[0, 2]].any() and not raw.any()
    assert max(end.values) == 0 and len(end.values) == 41 == len(seen)
    again = mixing.learn_by_search(score, [1], config, progress=kept[16], **options)
    assert again.raw.tobytes() == end.raw.tobytes() and again.values == end.values
    with pytest.raises(UserError, match="a search over 512 mixing weights is infeasible"):
        many = MixingProgress(0, np.zeros((8, 1, 8, 8), np.float32), [], [])
        mixing.learn_by_search(score, range(8), config, progress=many, **options)


# A run that learns its mixing weights ----------------------------------------------------------


@pytest.fixture(scope="module")
def learned(tiny_directory: Path, tmp_path_factory) -> Path:
    """The configuration of a run whose mixing weights were learned, interrupted on the way."""
    folder = tmp_path_factory.mktemp("mixing")
    (folder / "routing.yaml").write_text(yaml.safe_dump({"sites": [1, 4], "norm_match": True}))
    content = {
        "run": str(folder / "run"),
        "model": str(tiny_directory),
        "routing": str(folder / "routing.yaml"),
        "gates": [0.0, 0.5, 1.0],
        "mixing": {"method": "gradient", "steps": 6, "problems": 8, "learning_rate": 0.2},
        "task": {"name": "synthetic", "train": 8, "validation": 4, "test": 4},
        "decoding": {"max_new_tokens": 24},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(content))
    return folder / "config.yaml"


def files(folder: Path) -> dict[str, str]:
    return {
        str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()
    }


def test_a_run_learns_keeps_and_uses_its_mixing_weights(
    learned, tiny_directory, monkeypatch
) -> None:
    run = Run.start(load_config(Experiment, learned))
    with pytest.raises(UserError, match=r"not learned yet; run python -m jroute.train"):
        _ = run.lm
    plain, notice = without_mixing(run)
    assert "6 steps of gradient come first, of batches of 8 of 8 problems" in notice
    assert plain.lm is run.base and not len(
        plain.outcomes.table
    )  # a plan does not wait for the weights
    on_disk = files(tiny_directory)
    before = jax.tree.map(lambda leaf: np.array(leaf, copy=True), run.base.params)

    write = mixing.save_progress

    def killed(file, description, progress, steps) -> None:
        write(file, description, progress, steps)
        if progress.step == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(mixing, "save_progress", killed)
    with pytest.raises(KeyboardInterrupt):
        run.mixing.learn()
    with pytest.raises(UserError, match="are only partly learned"):
        _ = run.lm
    assert "3 steps of gradient come first" in without_mixing(run)[1]
    monkeypatch.undo()
    run.mixing.learn()
    assert without_mixing(run) == (run, "")
    kept = files(run.directory)
    run.mixing.learn()
    assert files(run.directory) == kept  # nothing left to do

    stored = json.loads(run.mixing.file.read_text())
    raw = np.array(stored["raw"], np.float32)
    assert raw.shape == (6, 1, 4, 4) and 10 <= raw.size <= 999 and stored["state"] == []
    assert stored["step"] == 6 and stored["values"][-1] < stored["values"][0]
    config = run.base.routing.config
    assert np.abs(raw - config.initial_raw(6))[[1, 4]].max() > 0.1
    np.testing.assert_array_equal(raw[[0, 2, 3, 5]], config.initial_raw(6)[[0, 2, 3, 5]])

    assert files(tiny_directory) == on_disk
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(run.lm.params), strict=True):
        assert old.tobytes() == np.asarray(new).tobytes()
    expected = config.matrices(jnp.asarray(raw))
    for opened in (run, load_run(run.directory)):
        np.testing.assert_array_equal(opened.lm.routing.mixing, expected)
        assert opened.base.routing.mixing.tolist() != expected.tolist()
    row = run.mixing.examples[0][0]
    assert not np.array_equal(run.lm.logits([row], 1.0), run.base.logits([row], 1.0))
    np.testing.assert_array_equal(run.lm.logits([row], 0.0), run.base.logits([row], 0.0))
    assert run.base.tokenizer.decode(run.mixing.examples[0][1]).endswith(
        f"#### {run.data.problems('train')[0].answer}{run.base.tokenizer.eos_token or ''}"
    )

    # Other weights are another table.
    name = run.outcomes.table.fingerprint
    stored["raw"][1][0][0][0] += 1.0
    run.mixing.file.write_text(json.dumps(stored))
    with pytest.raises(UserError, match=r"is damaged \(it does not match its digest\); remove it"):
        load_run(run.directory).mixing.progress()
    del stored["digest"]  # as earlier versions wrote it
    run.mixing.file.write_text(json.dumps(stored))
    assert load_run(run.directory).outcomes.table.fingerprint != name
    plain = dataclasses.replace(run.experiment, mixing=MixingConfig())
    assert Run(run.directory, plain).outcomes.table.fingerprint != name


def test_weights_of_something_else_are_refused(learned, tmp_path) -> None:
    experiment = load_config(Experiment, learned)
    run = Run(tmp_path, experiment)
    shape = (6, 1, 4, 4)
    done = MixingProgress(6, np.zeros(shape, np.float32), [1.0], [])
    mixing.save_progress(run.mixing.file, run.mixing.description, done, 6)
    assert run.mixing.progress()[1]
    assert [p.name for p in run.mixing.file.parent.iterdir()] == [run.mixing.file.name]
    other = {**run.mixing.description, "model": "0" * 64}
    with pytest.raises(UserError, match=r"learned under other conditions \(different: model\)"):
        mixing.load_progress(run.mixing.file, other, shape)
    with pytest.raises(UserError, match=r"shape \(6, 1, 4, 4\), this routing takes \(6, 1, 3, 3\)"):
        mixing.load_progress(run.mixing.file, run.mixing.description, (6, 1, 3, 3))
    text = run.mixing.file.read_text()
    run.mixing.file.write_text(text[: len(text) // 2])
    with pytest.raises(UserError, match=r"is not valid JSON .*; remove it to learn the mixing"):
        mixing.load_progress(run.mixing.file, run.mixing.description, shape)
    # A file that was copied under the name of another experiment's.
    changed = dataclasses.replace(experiment, mixing=dataclasses.replace(experiment.mixing, gate=2))
    copied = Run(tmp_path, changed)
    assert copied.mixing.file != run.mixing.file
    copied.mixing.file.write_text(text)
    with pytest.raises(UserError, match=r"different: mixing\)"):
        _ = copied.lm


def test_a_search_in_a_run_asks_how_many_are_solved(learned, tmp_path, monkeypatch) -> None:
    arguments = ["--run", str(tmp_path), "--mixing.method", "search", "--mixing.steps", "1"]
    engine = ["--engine.slots", "8", "--engine.unroll", "false"]
    run = Run(tmp_path, load_config(Experiment, learned, [*arguments, *engine]))
    run.mixing.learn()
    values = run.mixing.progress()[0].values
    assert len(values) == 2 and all(8 * value == round(8 * value) for value in values)
    prompts = run.data.prompts("train")
    e = run.experiment
    completions = run.base.generate(prompts, 1.0, decoding=e.decoding, engine=e.engine)
    right = [
        f"#### {problem.answer}" in c.text
        for problem, c in zip(run.data.problems("train"), completions, strict=True)
    ]
    assert values[0] == np.mean(right)


def test_a_routing_without_weights_has_nothing_to_learn(learned) -> None:
    experiment = load_config(Experiment, learned, ["--routing", "histories"])
    with pytest.raises(UserError, match="this routing has no weights to learn"):
        Run(Path(experiment.run), experiment).mixing.learn()
    with pytest.raises(UserError, match=r"mixing.gate is 0"):
        MixingConfig(gate=0.0)
