import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jroute.controller import networks

KEY = jax.random.key(0)


def forward(mlp, x):
    """The network in NumPy."""
    for i in range(len(mlp.get("hidden", {}))):
        layer = mlp["hidden"][f"layer_{i}"]
        x = np.tanh(x @ np.asarray(layer["kernel"], np.float64) + np.asarray(layer["bias"]))
    kernel = np.asarray(mlp["output"]["kernel"], np.float64)
    return np.tensordot(x, kernel, 1) + np.asarray(mlp["output"]["bias"])


def jittered(params):
    """Params with biases that are not zero."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [
        leaf + 0.1 * jax.random.normal(k, leaf.shape) for leaf, k in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(tree, noisy)


@pytest.mark.parametrize("hidden", [(), (16, 8)])
@pytest.mark.parametrize("nvec", [(5,), (3, 3, 3, 3)])
def test_forward_is_two_separate_mlps(hidden, nvec) -> None:
    params = jittered(networks.init(KEY, 6, nvec, hidden))
    x = np.random.default_rng(0).standard_normal((11, 6))
    logits, value = networks.apply(params, jnp.asarray(x, jnp.float32))
    assert logits.shape == (11, len(nvec), nvec[0])
    np.testing.assert_allclose(logits, forward(params["actor"], x), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(value, forward(params["critic"], x)[:, 0], rtol=1e-4, atol=1e-5)


def test_params_are_a_plain_tree_and_survive_a_reordering_of_keys() -> None:
    params = networks.init(KEY, 3, (5,), (4,) * 11)  # "layer_10" sorts before "layer_2"
    assert {type(node) for node in (params, params["actor"], params["actor"]["hidden"])} == {dict}
    x = jnp.ones((2, 3))
    before = networks.apply(params, x)
    after = networks.apply(jax.tree.map(lambda leaf: leaf, params), x)
    jax.tree.map(np.testing.assert_array_equal, before, after)
    np.testing.assert_allclose(before[0], forward(params["actor"], np.ones((2, 3))), atol=1e-5)


def test_initial_kernels_are_orthogonal_with_ppos_gains() -> None:
    params = networks.init(KEY, 64, (5, 5), (64, 64))

    def gains(kernel):
        matrix = np.asarray(kernel, np.float64).reshape(kernel.shape[0], -1)
        return np.linalg.svd(matrix, compute_uv=False)

    for net, output_gain in (("actor", 0.01), ("critic", 1.0)):
        for layer in params[net]["hidden"].values():
            np.testing.assert_allclose(gains(layer["kernel"]), np.sqrt(2), rtol=1e-4)
        np.testing.assert_allclose(gains(params[net]["output"]["kernel"]), output_gain, rtol=1e-4)
    biases = [leaf for path, leaf in jax.tree.leaves_with_path(params) if "bias" in str(path)]
    assert len(biases) == 6
    assert all((np.asarray(bias) == 0).all() for bias in biases)
    actor, critic = (params[net]["hidden"]["layer_0"]["kernel"] for net in ("actor", "critic"))
    assert np.abs(np.asarray(actor) - np.asarray(critic)).max() > 0.1


def test_policy_and_act() -> None:
    params = jittered(networks.init(KEY, 6, (4, 4), (8,)))
    x = jax.random.normal(KEY, (20, 6))
    logits = np.asarray(networks.apply(params, x)[0], np.float64)
    chances = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(networks.policy(params, x), chances, rtol=1e-5)
    np.testing.assert_array_equal(networks.act(params, x), chances.argmax(-1))


def test_parts_must_have_the_same_choices() -> None:
    with pytest.raises(ValueError, match="same choices"):
        networks.init(KEY, 6, (4, 5))


def test_regressor() -> None:
    params = jittered(networks.init_regressor(KEY, 6, 5, (16, 8)))
    x = np.random.default_rng(0).standard_normal((11, 6))
    actual = networks.apply_regressor(params, jnp.asarray(x, jnp.float32))
    assert actual.shape == (11, 5)
    np.testing.assert_allclose(actual, forward(params, x), rtol=1e-4, atol=1e-5)
