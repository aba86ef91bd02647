"""A model spread over several devices, through the Python face, is the model on one."""

import jax
import numpy as np
import pytest

import jroute
from jroute.controller.features import FeatureConfig, raw_features
from jroute.distributed.mesh import MeshConfig
from jroute.lm import LanguageModel
from jroute.utils.errors import UserError
from tests.model.tiny import chat_prompts

GATES = [0.0, 0.25, 0.5, 1.0, 0.0, -0.5, 1.0]


@pytest.fixture(scope="module")
def spread_lm(tiny_directory) -> LanguageModel:
    return jroute.load(tiny_directory, mesh=MeshConfig(data=4, fsdp=2))


@pytest.fixture(scope="module")
def rows(tiny_lm) -> list[list[int]]:
    """Seven, which four replicas do not divide, of different lengths."""
    whole = [tiny_lm.encode(prompt) for prompt in chat_prompts(tiny_lm.tokenizer, len(GATES))]
    return [row[: 40 + 2 * i] for i, row in enumerate(whole)]


def test_every_device_holds_its_part(spread_lm, tiny_lm) -> None:
    query = spread_lm.params["blocks"]["attention"]["q_proj"]
    assert query.shape == tiny_lm.params["blocks"]["attention"]["q_proj"].shape == (6, 96, 4, 32)
    assert len(query.sharding.device_set) == 8
    assert {shard.data.shape for shard in query.addressable_shards} == {(6, 48, 4, 32)}
    assert spread_lm.fingerprint == tiny_lm.fingerprint


@pytest.mark.parametrize("gate", [None, GATES], ids=["plain", "routed"])
def test_logits(spread_lm, tiny_lm, rows, gate) -> None:
    spread, one = spread_lm.logits(rows, gate), tiny_lm.logits(rows, gate)
    assert spread.shape == one.shape
    # Each is about 1.3e-5 away from what float64 gives, in logits of up to 17.
    close = 1e-6 * np.abs(np.asarray(one)).max()
    for row, a, b in zip(rows, np.asarray(spread), np.asarray(one), strict=True):
        np.testing.assert_allclose(a[: len(row)], b[: len(row)], rtol=0, atol=close)


def test_stream_metrics(spread_lm, tiny_lm, rows) -> None:
    metrics = spread_lm.logits(rows, GATES, metrics=True)[1]
    one = tiny_lm.logits(rows, GATES, metrics=True)[1]
    for name, value in metrics._asdict().items():
        np.testing.assert_allclose(value, getattr(one, name), atol=1e-4, err_msg=name)


@pytest.mark.parametrize("unroll", [True, False], ids=["unrolled", "scanned"])
def test_completions(spread_lm, tiny_lm, rows, unroll) -> None:
    options = {"max_new_tokens": 12, "stop": ["="], "chunk": 5, "unroll": unroll}
    completions = spread_lm.generate(rows, GATES, slots=8, **options)
    assert completions == tiny_lm.generate(rows, GATES, slots=8, **options)
    assert len({completion.tokens for completion in completions}) > 4


def test_log_likelihoods(spread_lm, tiny_lm, rows) -> None:
    pairs = [(row[:-3], row[-3:]) for row in rows]
    spread = spread_lm.loglikelihood(pairs, GATES, slots=4)
    one = tiny_lm.loglikelihood(pairs, GATES, slots=4)
    np.testing.assert_allclose([a for a, _ in spread], [a for a, _ in one], atol=1e-4)
    assert [greedy for _, greedy in spread] == [greedy for _, greedy in one]


def test_features(spread_lm, tiny_lm, rows) -> None:
    read = {}
    for lm in (spread_lm, tiny_lm):
        with lm.devices():
            read[lm] = raw_features(
                lm.params, lm.config, rows, FeatureConfig(), slots=4, routing=lm.routing
            )
    for spread, one in zip(read[spread_lm][:2], read[tiny_lm][:2], strict=True):
        np.testing.assert_allclose(spread, one, atol=1e-5)


def test_slots_that_replicas_do_not_divide_are_told(spread_lm, rows) -> None:
    with pytest.raises(UserError, match=r"engine\.slots is 6, which the 4 replicas"):
        spread_lm.generate(rows[:1], slots=6)
    with pytest.raises(UserError, match=r"engine\.slots is 6, which the 4 replicas"):
        spread_lm.loglikelihood([(rows[0], rows[1])], slots=6)


def test_a_vocabulary_that_cannot_be_cut_is_told(tiny_directory) -> None:
    with pytest.raises(UserError, match=r"embed_tokens: axis 'vocab' of size 483 .* 2 parts"):
        jroute.load(tiny_directory, mesh=MeshConfig(tensor=2))


def test_one_device_needs_no_mesh(tiny_directory) -> None:
    lm = jroute.load(tiny_directory, mesh=MeshConfig())
    assert lm.mesh is None
    assert all(len(leaf.devices()) == 1 for leaf in jax.tree.leaves(lm.params))
