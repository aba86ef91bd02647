"""What holds for one family of models holds for all: the gate, the mesh, decoding and features."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from converters.mapping import to_hf
from jroute.controller.features import FeatureConfig, raw_features
from jroute.distributed.mesh import make_mesh, place, replicate, shardings
from jroute.generate.cache import from_prefill
from jroute.model.config import DecoderConfig, Llama3Rope
from jroute.model.decoder import forward, unembed
from jroute.model.families import FAMILIES
from jroute.model.params import abstract_params, logical_axes, unstack_blocks
from jroute.routing.mixing import Routing
from tests.model.small import CONFIG, EVERYTHING, LAYERS

SCALING = Llama3Rope(
    factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16
)
CONFIGS = {
    f"{family}, {'tied' if tied else 'untied'}": dataclasses.replace(
        CONFIG,
        family=family,
        tie_word_embeddings=tied,
        vocab_size=60,
        rope_scaling=SCALING if (family, tied) == ("llama", True) else None,
    )
    for family in FAMILIES
    for tied in (True, False)
}
BATCH, SEQ = 8, 11
ZERO = np.array([True, False, True, True, False, True, False, True])
GATES = np.where(ZERO, 0.0, 0.8).astype(np.float32)


@functools.cache
def parameters(config: DecoderConfig):
    """Random parameters of which no norm is 1 and no bias 0."""
    keys = iter(jax.random.split(jax.random.key(4), 32))

    def draw(path, like):
        noise = jax.random.normal(next(keys), like.shape, jnp.float32)
        if "norm" in jax.tree_util.keystr(path):
            return 1 + 0.3 * noise
        return noise * (0.3 if "bias" in jax.tree_util.keystr(path) else 32**-0.5)

    return jax.tree_util.tree_map_with_path(draw, abstract_params(config))


@functools.cache
def inputs() -> tuple[np.ndarray, np.ndarray]:
    tokens = np.random.default_rng(0).integers(0, 60, (BATCH, SEQ))
    return tokens, np.broadcast_to(np.arange(SEQ), (BATCH, SEQ))


@functools.partial(jax.jit, static_argnames="config")
def run(params, tokens, positions, routing=None, gate=None, cache=None, *, config):
    out = forward(params, config, tokens, positions, cache=cache, routing=routing, gate=gate)
    return unembed(params, config, out.hidden), out.kv


def gated() -> tuple[Routing, np.ndarray, np.ndarray]:
    """The fullest routing, with gates of which some are 0, and with gates of 0."""
    routing = Routing.create(EVERYTHING, LAYERS)
    return routing, *(np.asarray(routing.layer_gates(g, BATCH)) for g in (GATES, 0.0))


def hold(mixed, at_zero, plain) -> None:
    mixed, at_zero, plain = (np.asarray(x) for x in (mixed, at_zero, plain))
    np.testing.assert_array_equal(at_zero, plain)
    np.testing.assert_array_equal(mixed[ZERO], plain[ZERO])
    assert (np.abs(mixed - plain).max(axis=(1, 2))[~ZERO] > 0.01).all()


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("unrolled", [False, True], ids=["scanned", "unrolled"])
def test_gate_zero_is_the_base_bit_for_bit(config: DecoderConfig, unrolled: bool) -> None:
    """Without a cache, and for one more token with one."""
    params = parameters(config)
    params = unstack_blocks(params) if unrolled else params
    tokens, positions = inputs()
    routing, gates, zeros = gated()
    call = functools.partial(run, config=config)
    plain, _ = call(params, tokens, positions)
    hold(*(call(params, tokens, positions, routing, g)[0] for g in (gates, zeros)), plain)
    _, keys = call(parameters(config), tokens[:, :-1], positions[:, :-1])
    cache = from_prefill(keys, SEQ, stacked=not unrolled)
    last = tokens[:, -1:], positions[:, -1:]
    step, _ = call(params, *last, cache=cache)
    hold(*(call(params, *last, routing, g, cache)[0] for g in (gates, zeros)), step)
    np.testing.assert_allclose(step[:, 0], plain[:, -1], atol=1e-4)  # decoding is the forward pass


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_over_eight_devices(config: DecoderConfig) -> None:
    tokens, positions = inputs()
    routing, gates, _ = gated()
    mesh = make_mesh(2, 2, 2)
    alone = [
        run(parameters(config), tokens, positions, *more, config=config)[0]
        for more in ((), (routing, gates))
    ]
    places = shardings(logical_axes(config), abstract_params(config), mesh)
    params = jax.device_put(parameters(config), places)
    if FAMILIES[config.family].biases:
        bias = params["blocks"]["attention"]["q_bias"]
        assert bias.addressable_shards[0].data.shape == (LAYERS, 2, 12)  # its heads are cut in two
    with jax.set_mesh(mesh):
        ids = [place(np.asarray(x), ("batch", "seq")) for x in (tokens, positions)]
        more = replicate(routing), place(gates, ("batch", "layers"))
        spread = [run(params, *ids, *m, config=config)[0] for m in ((), more)]
        assert len(spread[0].sharding.device_set) == 8
        _, keys = run(params, *(part[:, :-1] for part in ids), config=config)
        cache, last = from_prefill(keys, SEQ, stacked=True), [part[:, -1:] for part in ids]
        step = run(params, *last, *more, cache, config=config)[0]
    for one, other in zip(alone, spread, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)
    keys = run(parameters(config), tokens[:, :-1], positions[:, :-1], config=config)[1]
    cache = from_prefill(keys, SEQ, stacked=True)
    one = run(
        parameters(config),
        *(tokens[:, -1:], positions[:, -1:]),
        *(routing, gates, cache),
        config=config,
    )[0]
    np.testing.assert_allclose(one, step, atol=1e-4)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_features_are_those_of_transformers_states(config: DecoderConfig) -> None:
    from converters.hf_config import config_to_hf

    cls = getattr(transformers, FAMILIES[config.family].transformers_class)
    model = cls(cls.config_class.from_dict(config_to_hf(config))).eval()
    state = {name: torch.tensor(x) for name, x in to_hf(parameters(config), config).items()}
    model.load_state_dict(state, strict=not config.tie_word_embeddings)
    rows = [row[: 3 + i].tolist() for i, row in enumerate(inputs()[0])]
    raw = raw_features(parameters(config), config, rows, FeatureConfig(), slots=BATCH)
    for row, scalars, hidden in zip(rows, raw.scalars, raw.hidden, strict=True):
        trunks: list[np.ndarray] = []
        last = model.model.layers[-1]
        hook = last.register_forward_hook(lambda _, __, out, t=trunks: t.append(out.numpy()))
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row])).logits[0, -1].double()
        hook.remove()
        entropy = torch.distributions.Categorical(logits=logits).entropy()
        np.testing.assert_allclose(scalars[[0, 2]], [len(row), entropy], atol=1e-3)
        states = trunks[0].reshape(len(row), -1)
        unit = states / np.linalg.norm(states, axis=1, keepdims=True)
        parts = np.concatenate([unit.mean(axis=0), unit[-1]])
        np.testing.assert_allclose(hidden[-len(parts) :], parts, atol=1e-4)
