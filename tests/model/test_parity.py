"""Converted weights in jroute's decoder give the logits of transformers' torch Qwen3."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

import converters.qwen3
from converters.safetensors import Checkpoint
from jroute import convert
from jroute.checkpoint import load_model
from jroute.model import attention, qwen3
from jroute.model.config import Qwen3Config

TOLERANCE = 1e-4
SEQ = 64
VOCAB = 97

# Everything that a port can get wrong is away from its default: grouped heads, a head_dim that is
# not hidden_size / heads, a norm epsilon large enough to be seen.
SHAPES = {
    "tied-1e6": {
        "tie_word_embeddings": True,
        "rope_theta": 1e6,
        "rms_norm_eps": 1e-3,
        "hidden_size": 40,
        "intermediate_size": 56,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
    },
    "untied-5e6": {
        "tie_word_embeddings": False,
        "rope_theta": 5e6,
        "rms_norm_eps": 2e-3,
        "hidden_size": 36,
        "intermediate_size": 64,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 8,
    },
}
MUTATED = "untied-5e6"


class Pair(NamedTuple):
    """The same random weights in torch and, by way of the converter, in jroute."""

    torch_model: torch.nn.Module
    params: dict
    config: Qwen3Config
    source: Path


def save_random_torch_model(shape: dict, folder: Path, shard_size: str) -> torch.nn.Module:
    """Random weights of a size at which mistakes show; norm weights are far from one."""
    torch.set_num_threads(2)
    torch.manual_seed(0)
    rest = {name: value for name, value in shape.items() if name != "rope_theta"}
    config = transformers.Qwen3Config(
        vocab_size=VOCAB,
        num_hidden_layers=3,
        max_position_embeddings=256,
        rope_parameters={"rope_type": "default", "rope_theta": shape["rope_theta"]},
        **rest,
    )
    model = transformers.Qwen3ForCausalLM(config).eval()
    model.set_attn_implementation("eager")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.uniform_(0.5, 1.5)
            else:
                weight.normal_(0.0, 0.25)
    model.save_pretrained(folder, max_shard_size=shard_size)
    return model


@pytest.fixture(scope="module", params=list(SHAPES))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A random torch model, saved in shards, converted by the command line, and loaded."""
    folder = tmp_path_factory.mktemp(request.param)
    model = save_random_torch_model(SHAPES[request.param], folder / "hf", shard_size="60KB")
    assert len(list((folder / "hf").glob("model-*.safetensors"))) >= 2
    assert convert.main(["--source", str(folder / "hf"), "--out", str(folder / "model")]) == 0
    params, config = load_model(folder / "model")
    return Pair(model, params, config, folder / "hf")


def padded_batch(side: str) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and a mask of rows of different lengths, padded on one side."""
    rng = np.random.default_rng(1)
    tokens = rng.integers(0, VOCAB, (3, SEQ))
    mask = np.ones((3, SEQ), dtype=bool)
    for row, length in enumerate((SEQ, 41, 5)):
        padding = slice(length, None) if side == "right" else slice(None, SEQ - length)
        mask[row, padding] = False
    return tokens, mask


def torch_logits(model: torch.nn.Module, side: str) -> np.ndarray:
    tokens, mask = padded_batch(side)
    positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    with torch.no_grad():
        output = model(
            input_ids=torch.from_numpy(tokens),
            attention_mask=torch.from_numpy(mask.astype(np.int64)),
            position_ids=torch.from_numpy(positions),
        )
    return output.logits.numpy()[mask]


def jroute_logits(
    params: dict, config: Qwen3Config, tokens: jax.Array, positions: jax.Array
) -> jax.Array:
    return qwen3.unembed(params, config, qwen3.forward(params, config, tokens, positions).hidden)


RUN = jax.jit(jroute_logits, static_argnums=1)


def traced_anew() -> Callable[..., jax.Array]:
    """A function that JAX has not traced yet, so that a patched model is seen."""
    return jax.jit(lambda *arguments: jroute_logits(*arguments), static_argnums=1)


def assert_parity(pair: Pair, side: str = "right", run: Callable[..., jax.Array] = RUN) -> None:
    tokens, mask = padded_batch(side)
    positions = np.where(mask, np.cumsum(mask, axis=1) - 1, -1)
    expected = torch_logits(pair.torch_model, side)
    found = run(
        pair.params, pair.config, jnp.asarray(tokens, jnp.int32), jnp.asarray(positions, jnp.int32)
    )
    assert np.abs(expected).max() > 4.0  # logits of a size at which 1e-4 is a strict bound
    assert found.dtype == jnp.float32
    error = np.abs(np.asarray(found)[mask] - expected).max()
    assert error <= TOLERANCE, f"largest difference of a logit: {error:.2e}"


@pytest.mark.parametrize("side", ["right", "left"])
def test_logits_equal_transformers(pair: Pair, side: str) -> None:
    assert_parity(pair, side)


def test_the_config_is_read_not_assumed(pair: Pair) -> None:
    theta = {"tied-1e6": 1e6, "untied-5e6": 5e6}[pair.source.parent.name[:-1]]
    assert pair.config.rope_theta == theta
    assert pair.config.head_dim != pair.config.hidden_size // pair.config.num_attention_heads
    assert pair.config.num_key_value_heads < pair.config.num_attention_heads
    assert ("lm_head" in pair.params) is not pair.config.tie_word_embeddings


def without_norm_of(count: int) -> Callable[..., jax.Array]:
    """An ``rms_norm`` that leaves arrays of ``count`` heads as they are."""
    original = qwen3.rms_norm

    def rms_norm(x: jax.Array, weight: jax.Array, eps: float) -> jax.Array:
        return x if x.ndim == 4 and x.shape[2] == count else original(x, weight, eps)

    return rms_norm


def rotate_swapped_halves(x: jax.Array) -> jax.Array:
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([second, -first], axis=-1)


def rotate_neighbours(x: jax.Array) -> jax.Array:
    return jnp.stack([-x[..., 1::2], x[..., ::2]], axis=-1).reshape(x.shape)


def attend_interleaved(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array
) -> jax.Array:
    """Query head ``h`` reads key head ``h % kv_heads``."""
    repeats = (1, 1, query.shape[2] // key.shape[2], 1)
    return attention.attend(query, jnp.tile(key, repeats), jnp.tile(value, repeats), mask)


MUTATIONS: dict[str, tuple[object, str, Callable[..., jax.Array]]] = {
    "rope halves swapped": (attention, "rotate_half", rotate_swapped_halves),
    "rope over neighbours": (attention, "rotate_half", rotate_neighbours),
    "q-norm dropped": (qwen3, "rms_norm", without_norm_of(SHAPES[MUTATED]["num_attention_heads"])),
    "k-norm dropped": (qwen3, "rms_norm", without_norm_of(SHAPES[MUTATED]["num_key_value_heads"])),
    "heads grouped the other way": (qwen3, "attend", attend_interleaved),
}


@pytest.mark.parametrize("pair", [MUTATED], indirect=True)
@pytest.mark.parametrize("mutation", list(MUTATIONS))
def test_parity_fails_when_mutated(
    pair: Pair, mutation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(*MUTATIONS[mutation])
    with pytest.raises(AssertionError, match="largest difference"):
        assert_parity(pair, run=traced_anew())


@pytest.mark.parametrize("pair", [MUTATED], indirect=True)
@pytest.mark.parametrize("assumed", [{"rope_theta": 1e6}, {"rms_norm_eps": 1e-6}], ids=str)
def test_parity_fails_with_an_assumed_constant(pair: Pair, assumed: dict[str, float]) -> None:
    with pytest.raises(AssertionError, match="largest difference"):
        assert_parity(pair._replace(config=dataclasses.replace(pair.config, **assumed)))


@pytest.mark.parametrize("pair", [MUTATED], indirect=True)
@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("blocks/mlp/gate_proj", "blocks/mlp/up_proj"),
        ("blocks/attention/k_proj", "blocks/attention/v_proj"),
        ("blocks/attention/q_norm", "blocks/attention/k_norm"),
        ("blocks/input_norm", "blocks/post_attention_norm"),
    ],
)
def test_parity_fails_with_two_names_swapped(
    pair: Pair, one: str, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = converters.qwen3.TABLE
    names = {rule.flax: rule.hf for rule in table}
    swap = {one: other, other: one}
    swapped = tuple(rule._replace(hf=names[swap.get(rule.flax, rule.flax)]) for rule in table)
    checkpoint = Checkpoint(pair.source)
    tensors = {name: checkpoint.read(name) for name in checkpoint.tensors}

    def parity() -> None:
        assert_parity(pair._replace(params=converters.qwen3.from_hf(tensors, pair.config)))

    parity()
    monkeypatch.setattr(converters.qwen3, "TABLE", swapped)
    with pytest.raises(AssertionError, match="largest difference"):
        parity()
