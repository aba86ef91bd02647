"""Sharding rules, and that a sharded model computes what an unsharded one does."""

from collections.abc import Mapping

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jroute.errors import UserError
from jroute.mesh import AXES, RULES, make_mesh, shardings, spec
from jroute.model.config import Qwen3Config
from jroute.model.qwen3 import abstract_params, forward, init_params, logical_axes, unembed
from jroute.model.routing import Routing, RoutingConfig

CONFIG = Qwen3Config(
    vocab_size=96,
    hidden_size=48,
    intermediate_size=64,
    num_hidden_layers=3,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=16,
    rms_norm_eps=1e-6,
    rope_theta=10_000.0,
    tie_word_embeddings=False,
    max_position_embeddings=64,
)
BATCH, SEQ = 8, 12

# What every array of the parameters looks like on the mesh; changing this is a decision.
GOLDEN = {
    "embed_tokens": ("tensor", "fsdp"),
    "final_norm": ("fsdp",),
    "lm_head": ("fsdp", "tensor"),
    "blocks/input_norm": (None, "fsdp"),
    "blocks/post_attention_norm": (None, "fsdp"),
    "blocks/attention/q_proj": (None, "fsdp", "tensor", None),
    "blocks/attention/k_proj": (None, "fsdp", "tensor", None),
    "blocks/attention/v_proj": (None, "fsdp", "tensor", None),
    "blocks/attention/o_proj": (None, "tensor", None, "fsdp"),
    "blocks/attention/q_norm": (None, None),
    "blocks/attention/k_norm": (None, None),
    "blocks/mlp/gate_proj": (None, "fsdp", "tensor"),
    "blocks/mlp/up_proj": (None, "fsdp", "tensor"),
    "blocks/mlp/down_proj": (None, "tensor", "fsdp"),
}


def flat(tree: Mapping) -> dict:
    pairs, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in pairs}


def of_mesh(mesh: jax.sharding.Mesh, config: Qwen3Config = CONFIG) -> dict:
    return shardings(logical_axes(config), abstract_params(config), mesh)


def test_golden_specs() -> None:
    found = flat(of_mesh(make_mesh(2, 2, 2)))
    assert {name: tuple(sharding.spec) for name, sharding in found.items()} == GOLDEN


def test_every_axis_is_known_and_streams_are_replicated() -> None:
    assert set(RULES.values()) <= {None, *AXES}
    assert set(CONFIG.axis_sizes) <= set(RULES)
    assert RULES["streams"] is None
    mesh = make_mesh(2, 2, 2)
    states = spec(("streams", "batch", "seq", "embed"), (4, 8, 6, 48), mesh)
    assert states == PartitionSpec(None, "data", None, "fsdp")
    cache = spec(("slots", "seq", "kv_heads", "head_dim"), (8, 6, 4, 16), mesh)
    assert cache == PartitionSpec("data", None, "tensor", None)


@pytest.fixture(scope="module")
def params() -> dict:
    return init_params(CONFIG, jax.random.key(0))


@pytest.fixture(scope="module")
def routing() -> Routing:
    rows = ((0.4, 0.3, 0.2, 0.1),)
    streams = ("delay(1)", "attention", "mlp")
    return Routing.create(RoutingConfig(streams, "fixed", rows=rows, norm_match=True), 3)


@pytest.fixture(scope="module")
def inputs() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens, positions with padding, and a gate for each row and layer."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, CONFIG.vocab_size, (BATCH, SEQ)).astype(np.int32)
    columns = np.arange(SEQ)[None]
    lengths = rng.integers(1, SEQ + 1, (BATCH, 1))
    positions = np.where(columns < lengths, columns, -1).astype(np.int32)
    return tokens, positions, rng.choice([0, 0.5, 1], (BATCH, 3)).astype(np.float32)


@jax.jit
def logits(params, tokens, positions, routing, gate):
    """Of the plain model without a routing, otherwise of the routed one."""
    out = forward(params, CONFIG, tokens, positions, routing=routing, gate=gate)
    return unembed(params, CONFIG, out.hidden)


@pytest.fixture(scope="module")
def unsharded(params, inputs, routing) -> dict[str, np.ndarray]:
    tokens, positions, gate = inputs
    return {
        "plain": np.asarray(logits(params, tokens, positions, None, None)),
        "routed": np.asarray(logits(params, tokens, positions, routing, gate)),
    }


@pytest.mark.parametrize(
    ("sizes", "model"),
    [
        ((8, 1, 1), "routed"),
        ((2, 1, 4), "routed"),
        ((2, 2, 2), "routed"),
        ((2, 2, 2), "plain"),
    ],
    ids=str,
)
def test_sharded_equals_unsharded(params, inputs, routing, unsharded, sizes, model: str) -> None:
    data, fsdp, tensor = sizes
    mesh = make_mesh(*sizes)
    placed = jax.device_put(params, of_mesh(mesh))
    query = placed["blocks"]["attention"]["q_proj"]
    assert len(query.sharding.device_set) == 8
    assert query.addressable_shards[0].data.shape == (3, 48 // fsdp, 8 // tensor, 16)
    rows = NamedSharding(mesh, spec(("batch", "seq"), (BATCH, SEQ), mesh))
    tokens, positions, gate = (jax.device_put(x, rows) for x in inputs)
    assert tokens.addressable_shards[0].data.shape == (BATCH // data, SEQ)
    routing = jax.device_put(routing, NamedSharding(mesh, PartitionSpec()))
    if model == "plain":
        routing = gate = None
    found = logits(placed, tokens, positions, routing, gate)
    np.testing.assert_allclose(found, unsharded[model], atol=1e-5)
    assert np.abs(unsharded["plain"] - unsharded["routed"]).max() > 0.1


def test_a_mesh_takes_all_devices() -> None:
    assert len(jax.devices()) == 8
    assert dict(make_mesh().shape) == {"data": 8, "fsdp": 1, "tensor": 1}
    assert dict(make_mesh(fsdp=2, tensor=2).shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    mesh = make_mesh(2, 2, 2)
    assert mesh.axis_names == AXES
    assert [device.id for device in mesh.devices.ravel()] == list(range(8))


@pytest.mark.parametrize("sizes", [(3, 1, 1), (8, 2, 1), (0, 3, 1), (0, 16, 1), (1, 1, 1)])
def test_a_mesh_that_does_not_fit_is_told(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(UserError, match=rf"x {sizes[1]} x 1 .*there are 8"):
        make_mesh(*sizes)


def test_a_size_that_cannot_be_cut_is_told_with_array_axis_and_sizes() -> None:
    with pytest.raises(
        UserError,
        match=r"attention/k_proj: axis 'kv_heads' of size 4 .* 8 parts of mesh axis 'tensor'",
    ):
        of_mesh(make_mesh(1, 1, 8))
    with pytest.raises(UserError, match=r"tokens: axis 'batch' of size 6 .* 8 parts .* 'data'"):
        spec(("batch", "seq"), (6, 12), make_mesh(), "tokens")


def test_axes_without_a_place_are_told() -> None:
    mesh = make_mesh(2, 2, 2)
    with pytest.raises(UserError, match=r"scores has an axis 'colour' that no sharding rule names"):
        spec(("batch", "colour"), (8, 8), mesh, "scores")
    with pytest.raises(UserError, match=r"scores .*'heads', 'mlp'.* one mesh axis twice"):
        spec(("heads", "mlp"), (8, 8), mesh, "scores")
