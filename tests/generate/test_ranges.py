"""Settings that are not finite or absurd are refused where they are made, in one sentence."""

import re
from typing import Any

import numpy as np
import pytest

from jroute.arms.registry import parse_arm
from jroute.arms.supervised import SupervisedConfig
from jroute.controller.features import FeatureConfig
from jroute.experiment.config import Experiment
from jroute.generate.config import EngineConfig
from jroute.generate.decoding import Decoding
from jroute.outcomes.grid import GateGrid
from jroute.ppo.config import PPOConfig
from jroute.probe.mixing import MixingConfig
from jroute.routing.config import RoutingConfig
from jroute.routing.mixing import Routing
from jroute.statistics.config import JudgeConfig
from jroute.tasks.rewards import RewardConfig
from jroute.utils.errors import UserError

NAN, INF = float("nan"), float("inf")

CASES: list[tuple[type[Any], str, list[Any]]] = [
    (Decoding, "temperature", [NAN, INF, -INF, 1e-300, -0.5, 1e30]),
    (Decoding, "top_p", [NAN, INF, 0.0, -0.1, 1.5]),
    (Decoding, "top_k", [-1, 2**40]),
    (Decoding, "min_p", [NAN, INF, -0.1, 1.5]),
    (Decoding, "max_new_tokens", [0, -5, 2**40]),
    (Decoding, "min_new_tokens", [-1, 2**40]),
    (EngineConfig, "slots", [0, -1, 10**9]),
    (EngineConfig, "chunk", [0, 10**9]),
    (EngineConfig, "prefill_tokens", [0, -1]),
    (EngineConfig, "ahead", [-1, 10**9]),
    (PPOConfig, "learning_rate", [NAN, INF, 0.0, -1e-3, 1e30]),
    (PPOConfig, "adam_eps", [NAN, INF, 0.0]),
    (PPOConfig, "max_grad_norm", [NAN, INF, 0.0, 1e30]),
    (PPOConfig, "clip_coef", [NAN, INF, 0.0]),
    (PPOConfig, "vf_coef", [NAN, INF, -1.0]),
    (PPOConfig, "ent_coef", [NAN, INF, -1.0]),
    (PPOConfig, "gamma", [NAN, INF, -0.1, 1.1]),
    (PPOConfig, "gae_lambda", [NAN, INF, -0.1, 1.1]),
    (PPOConfig, "adv_std_floor", [NAN, INF, 0.0]),
    (PPOConfig, "hidden", [(0,), (64, -1)]),
    (PPOConfig, "seeds", [0, -3]),
    (SupervisedConfig, "learning_rates", [(NAN,), (1e-3, INF), (0.0,)]),
    (SupervisedConfig, "weight_decays", [(NAN,), (-0.1,), (INF,)]),
    (SupervisedConfig, "hidden", [(0,)]),
    (RewardConfig, "length_penalty", [NAN, INF, -0.1, 1e30]),
    (RewardConfig, "stability_penalty", [NAN, INF]),
    (MixingConfig, "gate", [NAN, INF, 1e30]),
    (MixingConfig, "learning_rate", [NAN, INF, 0.0, -1.0]),
    (MixingConfig, "change", [NAN, 0.0]),
    (FeatureConfig, "depths", [(NAN,), (INF,)]),
    (JudgeConfig, "delta", [NAN, INF, 0.0]),
    (RoutingConfig, "strength", [NAN, INF, 1e30, -0.1]),
    (RoutingConfig, "cap", [NAN, INF, 1e30, -1.0]),
    (RoutingConfig, "diagonal", [NAN, INF, 1e30]),
    (RoutingConfig, "sink_norms", [(NAN,), (-1.0,)]),
]
FLAT = [(config, name, value) for config, name, values in CASES for value in values]


@pytest.mark.parametrize(
    ("config", "name", "value"), FLAT, ids=[f"{c.__name__}.{n}={v}" for c, n, v in FLAT]
)
def test_a_setting_outside_its_range_is_refused(config, name, value) -> None:
    with pytest.raises(UserError, match=name) as error:
        config(**{name: value})
    assert "\n" not in str(error.value) and ";" in str(error.value)


def test_the_ends_of_the_ranges_are_allowed() -> None:
    Decoding(temperature=1e-5, top_p=1.0, min_p=1.0, max_new_tokens=1)
    Decoding(temperature=1000, top_p=1e-6, top_k=0)
    EngineConfig(slots="auto", ahead=0)
    PPOConfig(gamma=1.0, gae_lambda=0.0, ent_coef=0.0, hidden=(), learning_rate=1)
    RoutingConfig(streams=(), scale=-1e6)


GATES = [NAN, INF, -INF, 1e30, -1e30, 1000.5]


@pytest.mark.parametrize("gate", GATES)
def test_a_gate_that_is_not_finite_or_absurd_is_refused_everywhere(gate: float) -> None:
    routing = Routing.create(RoutingConfig(bands=2), 4)
    one_of_many = np.zeros((3, 4))
    one_of_many[1, 2] = gate
    per_band = np.zeros((3, 2))
    per_band[2, 1] = gate
    for value in (gate, [0.0, gate, 0.5], one_of_many, per_band):
        with pytest.raises(
            UserError, match=r"gate holds .*; (gates are real|give gates from -1000)"
        ):
            routing.layer_gates(value, 3)
    with pytest.raises(UserError, match=rf"arm 'fixed:{re.escape(str(gate))}' holds"):
        parse_arm(f"fixed:{gate}")
    with pytest.raises(UserError, match="gates holds"):
        Experiment("run", "model", gates=(0.0, 0.5, gate))
    with pytest.raises(UserError, match="gates holds"):
        GateGrid.create((0.0, gate), "prompt", routing)


def test_the_largest_gates_are_allowed() -> None:
    routing = Routing.create(RoutingConfig(), 4)
    assert routing.layer_gates([1000.0, -1000.0], 2)[:, 0].tolist() == [1000.0, -1000.0]
    assert parse_arm("fixed:-1000").gate == -1000.0


@pytest.mark.parametrize("value", [NAN, INF])
def test_learned_mixing_weights_must_be_finite(value: float) -> None:
    config = RoutingConfig()
    raw = config.initial_raw(4)
    raw[2, 0, 1, 1] = value
    with pytest.raises(UserError, match="mixing weights hold a number that is not finite"):
        Routing.create(config, 4, raw)
