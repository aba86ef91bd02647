"""The bundled model is a genuine small Hugging Face checkpoint."""

import json

import numpy as np
import pytest
import torch
import transformers
from safetensors import safe_open

from jroute.routing.config import RoutingConfig
from jroute.routing.mixing import Routing
from jroute.tasks.synthetic import CLASSES, problems
from jroute.utils.config import load as load_config
from tests.model.tiny import ASSET, chat_prompts, torch_logits

FILES = {
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "routing.yaml",
    "tokenizer.json",
    "tokenizer_config.json",
}


def test_it_is_small_and_complete() -> None:
    assert {path.name for path in ASSET.iterdir()} == FILES
    everything = sum(path.stat().st_size for path in ASSET.parent.rglob("*") if path.is_file())
    assert everything <= 6_000_000


def test_its_config_is_a_qwen3_with_every_feature_away_from_the_trivial() -> None:
    config = json.loads((ASSET / "config.json").read_text())
    assert config["model_type"] == "qwen3"
    assert config["architectures"] == ["Qwen3ForCausalLM"]
    assert config["head_dim"] != config["hidden_size"] // config["num_attention_heads"]
    assert config["num_key_value_heads"] < config["num_attention_heads"]
    generation = json.loads((ASSET / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [2, 0] and generation["do_sample"] is False


def test_transformers_loads_and_runs_it(tiny_lm) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(ASSET).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(ASSET)
    assert type(model) is transformers.Qwen3ForCausalLM
    assert model.dtype == torch.float32
    assert model.generation_config.eos_token_id == [2, 0]
    with safe_open(ASSET / "model.safetensors", "np") as weights:
        stored = sum(weights.get_tensor(name).size for name in weights.keys())  # noqa: SIM118
    assert model.num_parameters() == stored < 1_000_000
    for prompt in chat_prompts(tokenizer, 2, "ood"):
        row = tokenizer(prompt)["input_ids"]
        assert row == tiny_lm.encode(prompt)
        np.testing.assert_allclose(
            np.asarray(tiny_lm.logits([row]))[0], torch_logits(model, row), atol=1e-4
        )


def test_its_routing_is_that_of_its_training() -> None:
    routing = load_config(RoutingConfig, ASSET / "routing.yaml")
    assert routing.streams == ("delay(1)", "attention", "mlp")
    mixing = Routing.create(routing, 6).mixing
    np.testing.assert_array_equal(mixing[:, :, 0], np.full((6, 1, 4), 0.25))
    np.testing.assert_array_equal(mixing[:, :, 1:], np.broadcast_to(np.eye(4)[1:], (6, 1, 3, 4)))
    assert routing.norm_match


@pytest.mark.parametrize("gate", [0.0, 1.0])
def test_the_best_gate_depends_on_the_class(tiny_lm, gate: float) -> None:
    """The positive control: learnable headroom is in the model, by construction."""
    easy = [p for p in problems("test", 200) if not p.labels["hard"]][:96]
    prompts = chat_prompts(tiny_lm.tokenizer, 200)
    chosen = [prompts[int(p.id.rsplit("/")[-1])] for p in easy]
    completions = tiny_lm.generate(chosen, gate, max_new_tokens=32, slots=32)
    right = [
        c.text.rpartition("#### ")[2] == p.answer for c, p in zip(completions, easy, strict=True)
    ]
    accuracy = {
        name: np.mean([r for r, p in zip(right, easy, strict=True) if p.labels["class"] == name])
        for name in CLASSES
    }
    assert accuracy["start"] > 0.9
    solved, missed = ("two", "three") if gate == 0.0 else ("three", "two")
    assert accuracy[solved] > 0.8
    assert accuracy[missed] < 0.4
