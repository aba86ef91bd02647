"""What names an outcome table, and how decisions become gates."""

import copy
import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jroute.controller.features import FeatureConfig
from jroute.distributed.mesh import MeshConfig
from jroute.experiment.config import Experiment
from jroute.experiment.run import Run
from jroute.generate.config import EngineConfig
from jroute.generate.decoding import Decoding
from jroute.lm import LanguageModel, resolve_routing
from jroute.ppo.config import PPOConfig
from jroute.tasks import TaskConfig
from jroute.tasks.prompts import PromptConfig
from jroute.tasks.rewards import RewardConfig

TASK = TaskConfig(name="synthetic", train=4, validation=4, test=4)


def run_of(lm: LanguageModel, folder: Path, **changes) -> Run:
    """A run of a model that is loaded already."""
    experiment = Experiment(**{"run": str(folder), "model": "m", "task": TASK, **changes})
    return Run(folder, experiment, lm)


def routed(lm: LanguageModel, name: str) -> LanguageModel:
    return lm.routed(resolve_routing(lm.directory, name))


def test_what_a_cell_means_names_its_table_and_nothing_else_does(tiny_lm, tmp_path) -> None:
    def name(lm: LanguageModel = tiny_lm, **changes) -> str:
        return run_of(lm, tmp_path, **changes).outcomes.table.fingerprint

    plain = name()
    assert {
        name(engine=EngineConfig(slots=8, unroll=False)),
        name(mesh=MeshConfig(data=2)),
        name(gates=(0.0, 0.5)),
        name(seed=1),  # greedy decoding draws nothing
        name(reward=RewardConfig(length_penalty=0.01)),
        name(features=FeatureConfig(components=2)),
        name(ppo=PPOConfig(seeds=1)),
        name(task=dataclasses.replace(TASK, train=8)),
        name(rollouts="live"),
        name(judged=("test", "ood")),
    } == {plain}
    other, half = copy.copy(tiny_lm), copy.copy(tiny_lm)
    other.fingerprint = "0" * 64
    half.params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), tiny_lm.params)
    ending = copy.copy(tiny_lm)
    ending.end_token_ids = (*tiny_lm.end_token_ids, 5)
    different = [
        name(other),
        name(half),
        name(ending),
        name(routed(tiny_lm, "soft_skip")),
        name(routed(tiny_lm, "mvp")),
        name(task=dataclasses.replace(TASK, seed=1)),
        name(prompt=PromptConfig(template="{question} ")),
        name(decoding=Decoding(max_new_tokens=8)),
        name(decoding=Decoding(stop=("\n\n",))),
        name(decoding=Decoding(temperature=1.0)),
        name(decoding=Decoding(temperature=1.0), seed=1),
    ]
    assert len({plain, *different}) == 1 + len(different)


def test_a_gate_per_layer_is_one_for_each_mixing_site(tiny_lm, tmp_path) -> None:
    """``soft_skip`` mixes after blocks 2 and 3 of six."""
    skipping = routed(tiny_lm, "soft_skip")
    per_layer = run_of(skipping, tmp_path, gate_per="layer", rollouts="live")
    assert per_layer.grid.num_gate_dims == 2
    gates = per_layer.grid.gates(np.array([[2, 4], [1, 0]]))
    assert gates == [(0.5, 1.0), (0.25, 0.0)]
    np.testing.assert_array_equal(
        per_layer.grid.array(gates), [[0, 0, 0.5, 1, 0, 0], [0, 0, 0.25, 0, 0, 0]]
    )
    memo, table = per_layer.outcomes.memo, per_layer.outcomes.table
    assert memo.fingerprint != table.fingerprint and memo.num_gate_dims == 2
    one = run_of(skipping, tmp_path)
    assert one.grid.num_gate_dims == 1 and one.outcomes.memo is one.outcomes.table
    np.testing.assert_array_equal(one.grid.array(one.grid.gates(np.array([[2], [4]]))), [0.5, 1])


@pytest.mark.parametrize("gate_per", ["prompt", "layer"])
def test_a_long_common_beginning_is_shared_by_prompts_of_one_gate(
    tiny_lm, tmp_path, gate_per
) -> None:
    examples = "What is 1 + 2? It is 3. " * 20
    rollouts = "table" if gate_per == "prompt" else "live"
    prompt = PromptConfig(template=examples + "{question}", chat=False)
    run = run_of(tiny_lm, tmp_path, prompt=prompt, gate_per=gate_per, rollouts=rollouts)
    # The last token before a question may be one with what follows.
    length = len(tiny_lm.encode(examples))
    shared = run.outcomes.generator.shared_tokens
    assert shared == 0 if gate_per == "layer" else length - 2 <= shared <= length
    if shared:
        ids = {tuple(tiny_lm.encode(text)[:shared]) for text in run.data.prompts("train")}
        assert len(ids) == 1
    assert (
        run_of(tiny_lm, tmp_path).outcomes.generator.shared_tokens == 0
    )  # too short to be worth a program
