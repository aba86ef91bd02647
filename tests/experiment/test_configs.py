"""The experiments that ship with jroute can be read, and are what they say."""

from pathlib import Path

import pytest

from jroute.experiment.config import Experiment
from jroute.lm import resolve_routing
from jroute.tasks.rewards import RewardConfig
from jroute.utils.config import load
from jroute.utils.errors import UserError

CONFIGS = Path(__file__).parent.parent.parent / "configs"


EXPERIMENTS = [path for path in sorted(CONFIGS.glob("*.yaml")) if "ablation" not in path.stem]


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_it_is_a_whole_experiment(path: Path) -> None:
    experiment = load(Experiment, path)
    assert experiment.run and experiment.model
    assert experiment.ppo.seeds == 20  # the claim is judged over seeds
    assert {0.0, 0.5} < set(experiment.gates)
    assert resolve_routing(Path(experiment.model), experiment.routing or None).size == 4


@pytest.mark.parametrize("name", ["qwen3_4b_gsm8k", "qwen3_0.6b_gsm8k"])
def test_decoding_is_greedy_exact_match_pays_and_answers_are_not_cut(name: str) -> None:
    experiment = load(Experiment, CONFIGS / f"{name}.yaml")
    assert experiment.decoding.temperature == 0
    assert experiment.decoding.max_new_tokens >= 1024
    assert experiment.reward == RewardConfig(0, 0, 0)
    assert experiment.prompt.chat and not experiment.prompt.enable_thinking
    assert experiment.prompt.template.endswith("within \\boxed{}.")
    assert experiment.prompt.template.startswith("{question}\n")


def test_equal_splits_are_refused() -> None:
    with pytest.raises(UserError, match=r"judged is \['test', 'test'\]; name each split once"):
        load(Experiment, EXPERIMENTS[0], ["--judged", "[test,test]"])
