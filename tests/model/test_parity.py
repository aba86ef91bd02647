"""Converted weights in jroute's decoder give what transformers' classes give, block by block."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

import converters.mapping
from converters.safetensors import Checkpoint
from jroute import convert
from jroute.checkpoint import load_model
from jroute.model import attention, decoder, layers, rope
from jroute.model.config import DecoderConfig, Llama3Rope
from jroute.model.families import FAMILIES
from tests.model.parity import (
    RUN,
    TOLERANCE,
    Batch,
    Difference,
    batch,
    difference,
    jroute_states,
    retraced,
    torch_states,
)

LENGTHS = (64, 41, 5)
VOCAB = 97

# Everything that a port can get wrong is away from its default: grouped heads, a head_dim that is
# not hidden_size / heads, a norm epsilon large enough to be seen.
SIZES: dict[str, dict[str, Any]] = {
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
    "square-5e6": {  # q_proj and o_proj have as many rows as columns: nothing tells them turned
        "tie_word_embeddings": False,
        "rope_theta": 5e6,
        "rms_norm_eps": 1e-3,
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 8,
    },
}
# Of the dimensions of a head some turn often enough to be left, some are slowed, some are between.
LLAMA3 = Llama3Rope(
    factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32
)
SHAPES: dict[str, dict[str, Any]] = {
    f"{family}-{size}": {"family": family, **shape}
    for family in FAMILIES
    for size, shape in SIZES.items()
}
SCALED = "llama-llama3"
SHAPES[SCALED] = {**SHAPES["llama-tied-1e6"], "rope_theta": 1e4, "rope_scaling": LLAMA3}
SHAPES["qwen2-llama3"] = {**SHAPES["qwen2-tied-1e6"], "rope_scaling": LLAMA3}
SHAPES["qwen3-llama3"] = {**SHAPES["qwen3-tied-1e6"], "rope_scaling": LLAMA3}
MUTATED = "qwen3-untied-5e6"
SQUARE = "qwen3-square-5e6"
BIASED = "qwen2-untied-5e6"
PLAIN = "llama-untied-5e6"


class Pair(NamedTuple):
    """The same random weights in torch and, by way of the converter, in jroute."""

    torch_model: torch.nn.Module
    params: dict
    config: DecoderConfig
    source: Path


def save_random_torch_model(shape: dict, folder: Path, shard_size: str) -> torch.nn.Module:
    """Random weights of a size at which mistakes show; norm weights are far from one."""
    torch.set_num_threads(2)
    torch.manual_seed(0)
    fields = dict(shape)
    family, scaling = FAMILIES[fields.pop("family")], fields.pop("rope_scaling", None)
    rope = {"rope_type": "default", "rope_theta": fields.pop("rope_theta")}
    if scaling is not None:
        rope |= {"rope_type": "llama3", **dataclasses.asdict(scaling)}
    of_family = getattr(transformers, family.transformers_class)
    config = of_family.config_class(
        vocab_size=VOCAB,
        num_hidden_layers=3,
        max_position_embeddings=256,
        rope_parameters=rope,
        **fields,
    )
    model = of_family(config).eval()
    model.set_attn_implementation("eager")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.uniform_(0.5, 1.5)
            elif not family.head_norms and name.endswith(("q_proj.weight", "k_proj.weight")):
                # Scores as large as without norms would make torch's own error 1e-4 (by float64).
                weight.normal_(0.0, 0.15)
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


def differences(
    pair: Pair, side: str = "right", run: Callable[..., tuple[jax.Array, jax.Array]] = RUN
) -> Difference:
    inputs = batch(VOCAB, LENGTHS, side)
    expected = torch_states(pair.torch_model, inputs)
    assert len(expected.trunks) == 3 and len(expected.logits) == sum(LENGTHS)
    assert np.abs(expected.logits).max() > 4.0  # of a size at which 1e-4 is a strict bound
    return difference(expected, jroute_states(pair.params, pair.config, inputs, run))


@pytest.mark.parametrize("side", ["right", "left"])
def test_every_block_and_the_logits_equal_transformers(pair: Pair, side: str) -> None:
    deviation = differences(pair, side)
    assert max(deviation.trunks) <= TOLERANCE
    assert deviation.logits <= TOLERANCE
    assert deviation.agreement == 1.0


@pytest.mark.parametrize("pair", [MUTATED], indirect=True)
@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_does_not_change_real_tokens(pair: Pair, side: str) -> None:
    """Trunks and logits of rows in a padded batch are those of the rows alone."""
    inputs = batch(VOCAB, LENGTHS, side)
    padded = jroute_states(pair.params, pair.config, inputs)
    ends = np.cumsum(LENGTHS)
    for row, (end, length) in enumerate(zip(ends, LENGTHS, strict=True)):
        real = inputs.tokens[row, inputs.mask[row]][None]
        alone = jroute_states(pair.params, pair.config, Batch(real, np.ones_like(real, bool)))
        span = slice(end - length, end)
        for one, other in (
            (padded.trunks[:, span], alone.trunks),
            (padded.logits[span], alone.logits),
        ):
            assert np.abs(one - other).max() <= 1e-5 * np.abs(other).max()


def test_the_config_is_read_not_assumed(pair: Pair) -> None:
    shape = SHAPES[pair.source.parent.name[:-1]]
    assert {name: getattr(pair.config, name) for name in shape} == shape
    assert ("lm_head" in pair.params) is not pair.config.tie_word_embeddings


def without_norm_of(count: int) -> Callable[..., jax.Array]:
    """An ``rms_norm`` that leaves arrays of ``count`` heads as they are."""
    original = layers.rms_norm

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


def rope_tables_at_1e6(
    positions: jax.Array, config: DecoderConfig, dtype: jnp.dtype
) -> tuple[jax.Array, jax.Array]:
    return rope.rope_tables(positions, dataclasses.replace(config, rope_theta=1e6), dtype)


def rms_norm_at_1e6th(x: jax.Array, weight: jax.Array, eps: float) -> jax.Array:
    return RMS_NORM(x, weight, 1e-6)


RMS_NORM = layers.rms_norm
STRETCHED = rope.stretched

MUTATIONS: dict[str, tuple[object, str, Callable[..., object]]] = {
    "rope halves swapped": (rope, "rotate_half", rotate_swapped_halves),
    "rope over neighbours": (rope, "rotate_half", rotate_neighbours),
    "q-norm dropped": (
        layers,
        "rms_norm",
        without_norm_of(SHAPES[MUTATED]["num_attention_heads"]),
    ),
    "k-norm dropped": (
        layers,
        "rms_norm",
        without_norm_of(SHAPES[MUTATED]["num_key_value_heads"]),
    ),
    "heads grouped the other way": (layers, "attend", attend_interleaved),
    "rope_theta fixed at 1e6": (decoder, "rope_tables", rope_tables_at_1e6),
    "epsilon fixed at 1e-6": (layers, "rms_norm", rms_norm_at_1e6th),
}


def assert_wrong_from_the_first_block(deviation: Difference) -> None:
    assert min(deviation.trunks) > TOLERANCE
    assert deviation.logits > TOLERANCE


@pytest.mark.parametrize("pair", [MUTATED], indirect=True)
@pytest.mark.parametrize("mutation", list(MUTATIONS))
def test_parity_fails_when_mutated(
    pair: Pair, mutation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(*MUTATIONS[mutation])
    assert_wrong_from_the_first_block(differences(pair, run=retraced()))


@pytest.mark.parametrize("pair", [BIASED], indirect=True)
@pytest.mark.parametrize("name", ["q_bias", "k_bias", "v_bias"])
def test_parity_fails_without_a_bias(pair: Pair, name: str) -> None:
    blocks = pair.params["blocks"]
    attention = {**blocks["attention"], name: jnp.zeros_like(blocks["attention"][name])}
    params = {**pair.params, "blocks": {**blocks, "attention": attention}}
    assert_wrong_from_the_first_block(differences(pair._replace(params=params)))


def rope_after_norm(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    return rope.apply_rope(RMS_NORM(x, jnp.ones(x.shape[-1]), 1e-6), cos, sin)


@pytest.mark.parametrize("pair", [PLAIN, BIASED], indirect=True)
def test_parity_fails_with_the_head_norms_of_another_family(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "apply_rope", rope_after_norm)
    assert_wrong_from_the_first_block(differences(pair, run=retraced()))


@pytest.mark.parametrize("pair", [SCALED], indirect=True)
@pytest.mark.parametrize(
    "wrong",
    [
        lambda frequencies, _: frequencies,
        lambda frequencies, scaling: frequencies / scaling.factor,
        lambda frequencies, scaling: STRETCHED(
            frequencies, dataclasses.replace(scaling, original_max_position_embeddings=256)
        ),
    ],
    ids=["unscaled", "linear", "another original context"],
)
def test_parity_fails_with_another_scaling_of_the_rotation(
    pair: Pair, wrong: Callable[..., jax.Array], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rope, "stretched", wrong)
    assert_wrong_from_the_first_block(differences(pair, run=retraced()))


@pytest.mark.parametrize("pair", [SQUARE], indirect=True)
@pytest.mark.parametrize("projection", ["q_proj", "o_proj"])
def test_parity_fails_with_a_projection_transposed(
    pair: Pair, projection: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The converter turns every projection round but one."""
    place = converters.mapping.place

    def place_but_one(
        entry: converters.mapping.Entry, tensor: np.ndarray, out: np.ndarray, start: int = 0
    ) -> None:
        turned = entry.rule.path.endswith(projection)
        place(entry, np.ascontiguousarray(tensor.T) if turned else tensor, out, start)

    monkeypatch.setattr(converters.mapping, "place", place_but_one)
    assert convert.main(["--source", str(pair.source), "--out", str(tmp_path / "model")]) == 0
    params, _ = load_model(tmp_path / "model")
    assert_wrong_from_the_first_block(differences(pair._replace(params=params)))


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
    table = converters.mapping.TABLES[pair.config.family]
    names = {rule.path: rule.hf for rule in table}
    swap = {one: other, other: one}
    swapped = tuple(rule._replace(hf=names[swap.get(rule.path, rule.path)]) for rule in table)
    checkpoint = Checkpoint(pair.source)
    tensors = {name: checkpoint.read(name) for name in checkpoint.tensors}

    def converted() -> Difference:
        return differences(pair._replace(params=converters.mapping.from_hf(tensors, pair.config)))

    assert converted().largest <= TOLERANCE
    monkeypatch.setattr(converters.mapping, "TABLES", {pair.config.family: swapped})
    assert_wrong_from_the_first_block(converted())
