"""Numbers that are not finite: the problem is named, and nothing of them is stored."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from jroute.controller.features import FeatureConfig
from jroute.experiment import feature_store, learned_mixing
from jroute.experiment.feature_store import FeatureStore
from jroute.experiment.learned_mixing import LearnedMixing
from jroute.experiment.run_folder import RunFolder
from jroute.experiment.task_data import TaskData
from jroute.generate.config import EngineConfig
from jroute.generate.decoding import Completion, Decoding
from jroute.generate.finite import NotFiniteError
from jroute.lm import LanguageModel
from jroute.outcomes.cells import Cell
from jroute.outcomes.generation import CellGenerator
from jroute.outcomes.grid import GateGrid
from jroute.probe.mixing import MixingConfig
from jroute.routing.config import RoutingConfig
from jroute.tasks import TaskConfig
from jroute.tasks.prompts import PromptConfig
from jroute.tasks.rewards import RewardConfig
from jroute.tasks.synthetic import problems


def injected(what: str, row: int) -> NotFiniteError:
    message = f"{what} {row} are not finite at position 7, at gate 0.5: they begin in block 1"
    return NotFiniteError(message, row, f"prompt {row}")


@pytest.fixture
def data(tiny_lm) -> TaskData:
    task = TaskConfig("synthetic", train=4, validation=4, test=4)
    return TaskData(task, PromptConfig(), tiny_lm)


def test_a_cell_names_its_problem_and_gate_and_keeps_what_was_made(tiny_lm, monkeypatch):
    some = problems("test", 2)
    cells = [Cell(problem, gate) for problem in some for gate in (0.0, 0.5)]
    kept = []

    def generate(self, prompts, gates, *, finished, **options):
        assert len(prompts) == 4
        finished([0], [Completion((5, 6), "#### 3", "end_token")])
        raise injected("the logits of prompt", 3)

    monkeypatch.setattr(LanguageModel, "generate", generate)
    generator = CellGenerator(
        tiny_lm, str, GateGrid((0.0, 0.5)), Decoding(), EngineConfig(slots=4), seed=0
    )
    with pytest.raises(NotFiniteError) as error:
        generator.generate(cells, on_outcomes=kept.extend)
    assert str(error.value).startswith(
        f"the logits of problem {some[1].id} are not finite at position 7, at gate 0.5: they begin"
    )
    assert error.value.row == 3
    assert [(outcome.problem_id, outcome.gate) for outcome in kept] == [(some[0].id, 0.0)]


def test_features_name_problem_and_split_and_leave_no_file(tiny_lm, data, tmp_path, monkeypatch):
    def read(*arguments, **options):
        raise injected("the features of prompt", 2)

    monkeypatch.setattr(feature_store, "raw_features", read)
    store = FeatureStore(
        FeatureConfig(), RunFolder(tmp_path, tmp_path), tiny_lm, data, {"model": "a"}, slots=2
    )
    name = data.problems("validation")[2].id
    with pytest.raises(NotFiniteError, match=f"features of problem {name} of validation are not"):
        store.raw("validation")
    assert not [*tmp_path.rglob("*.npz")]
    with pytest.raises(NotFiniteError, match="features of prompt 2 are not"):
        store.read(["one", "two", "three"])  # prompts of nobody's problems


@pytest.mark.parametrize("method", ["gradient", "search"])
def test_learning_names_the_problem_and_saves_no_weights(
    tiny_lm, data, tmp_path, monkeypatch, method
):
    def fail(*arguments, **options):
        raise injected("the states of prompt", 1)

    monkeypatch.setattr(learned_mixing.mixing, "learn_by_gradient", fail)
    monkeypatch.setattr(LanguageModel, "generate", fail)
    routing = RoutingConfig(("persistent",), operator="softmax", sites=(1,))
    stage = LearnedMixing(
        MixingConfig(method, 1.0, steps=2, problems=4),
        Decoding(),
        EngineConfig(slots=4),
        RewardConfig(),
        0,
        RunFolder(tmp_path, tmp_path),
        tiny_lm.routed(routing),
        data,
    )
    with pytest.raises(NotFiniteError, match=f"problem {data.problems('train')[1].id} are not"):
        stage.learn()
    assert not [*Path(tmp_path).rglob("*.json")]


def broken(lm: LanguageModel, token: int) -> LanguageModel:
    """The model with untied embeddings, of which that of one token is not a number."""
    config = dataclasses.replace(lm.config, tie_word_embeddings=False)
    params = dict(lm.params)
    params["lm_head"] = np.array(params["embed_tokens"]).T
    params["embed_tokens"] = jax.numpy.asarray(params["embed_tokens"]).at[token].set(np.nan)
    return LanguageModel(
        params,
        config,
        lm.tokenizer,
        lm.routing.config,
        end_token_ids=lm.end_token_ids,
        directory=lm.directory,
        fingerprint=lm.fingerprint,
    )


def test_logits_name_row_position_and_place(tiny_lm):
    lm = broken(tiny_lm, 40)
    rows = [[5, 6, 7], [-1, 8, 9, 40, 3], [40]]
    assert np.isfinite(np.asarray(lm.logits(rows[:1]))).all()
    with pytest.raises(NotFiniteError) as error:
        lm.logits(rows)
    # A weight of 0 times what is not a number is none either, so that it reaches earlier tokens.
    assert str(error.value).startswith(
        "the logits of row 1 are not finite at position 0, at gate 0: they begin in the embedding "
        "at position 2; check the weights of the model"
    )
    with pytest.raises(NotFiniteError, match=r"row 0 .* at gate 0\.5: .* give a gate nearer to 0"):
        lm.logits([[40, 3]], 0.5, metrics=True)
