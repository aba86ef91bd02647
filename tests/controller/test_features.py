"""Features, recomputed from transformers' hidden states and with NumPy."""

import numpy as np
import pytest
import torch

from jroute.controller.features import (
    SCALARS,
    FeatureConfig,
    Featurizer,
    RawFeatures,
    count_numbers,
    count_sentences,
    raw_features,
    trunk_change,
)
from jroute.lm import LanguageModel
from jroute.utils.errors import UserError
from tests.model.tiny import chat_prompts

SLOTS = 8
CONFIG = FeatureConfig()
BLOCKS = (1, 3, 5)  # after 0.34, 0.67 and all of six blocks
EMBED = 96


@pytest.fixture(scope="module")
def prompts(tiny_lm: LanguageModel) -> list[list[int]]:
    """Of two buckets, and more than fit into one batch."""
    whole = [tiny_lm.encode(prompt) for prompt in chat_prompts(tiny_lm.tokenizer, 14)]
    return [row[:cut] for row, cut in zip(whole, [99, 1, 32, 20, 49, *[99] * 9], strict=True)]


@pytest.fixture(scope="module")
def raw(tiny_lm: LanguageModel, prompts) -> RawFeatures:
    return raw_features(tiny_lm.params, tiny_lm.config, prompts, CONFIG, slots=SLOTS)


def by_torch(model, row: list[int]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Logits after the last token, and the residual after each block, ``[seq, embed]``."""
    trunks: list[np.ndarray] = []
    hooks = [
        layer.register_forward_hook(lambda _, __, out: trunks.append(out[0].numpy()))
        for layer in model.model.layers
    ]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([row])).logits[0, -1].double().numpy()
    for hook in hooks:
        hook.remove()
    return logits, [trunk.reshape(len(row), EMBED) for trunk in trunks]


def test_features_equal_those_of_transformers_own_states(tiny_torch, prompts, raw) -> None:
    assert raw.scalars.shape == (14, len(SCALARS))
    assert raw.hidden.shape == (14, len(BLOCKS) * 2 * EMBED)
    for row, scalars, hidden in zip(prompts, raw.scalars, raw.hidden, strict=True):
        logits, trunks = by_torch(tiny_torch, row)
        p = np.exp(logits - logits.max())
        p /= p.sum()
        first, second = np.sort(p)[::-1][:2]
        bucket = 5 if len(row) <= 32 else 6  # log2 of 32 and 64
        expected = [len(row), bucket, -(p * np.log(p)).sum(), np.log(first / second)]
        np.testing.assert_allclose(scalars, expected, atol=1e-3, rtol=1e-4)
        parts = []
        for block in BLOCKS:
            unit = trunks[block] / np.linalg.norm(trunks[block], axis=1, keepdims=True)
            parts += [unit.mean(axis=0), unit[-1]]
        np.testing.assert_allclose(hidden, np.concatenate(parts), atol=1e-4)


def test_scalars_follow_from_the_logits(tiny_lm: LanguageModel, prompts, raw) -> None:
    logits = np.asarray(tiny_lm.logits(prompts), np.float64)
    for row, row_logits, (_, _, entropy, margin) in zip(prompts, logits, raw.scalars, strict=True):
        log_p = row_logits[len(row) - 1] - np.logaddexp.reduce(row_logits[len(row) - 1])
        assert entropy == pytest.approx(-(np.exp(log_p) * log_p).sum(), abs=1e-4)
        assert margin == pytest.approx(np.diff(np.sort(log_p)[-2:])[0], abs=1e-4)


def test_features_do_not_depend_on_what_is_asked_together(tiny_lm, prompts, raw) -> None:
    def read(indices: list[int]) -> RawFeatures:
        subset = [prompts[i] for i in indices]
        return raw_features(tiny_lm.params, tiny_lm.config, subset, CONFIG, slots=SLOTS)

    for indices in ([3], [9], [13, 4, 0, 1], list(range(14))[::-1]):
        actual = read(indices)
        np.testing.assert_array_equal(actual.scalars, raw.scalars[indices])
        np.testing.assert_array_equal(actual.hidden, raw.hidden[indices])


def test_depths_are_rounded_to_blocks(tiny_lm: LanguageModel, tiny_torch, prompts, raw) -> None:
    depths = FeatureConfig(depths=(0.01, 0.6, 1.0))  # of six blocks the first, fourth and last
    actual = raw_features(tiny_lm.params, tiny_lm.config, prompts[5:], depths, slots=SLOTS)
    first, others = np.split(actual.hidden, [2 * EMBED], axis=1)
    np.testing.assert_allclose(others, raw.hidden[5:, 2 * EMBED :], atol=1e-5)
    trunk = by_torch(tiny_torch, prompts[5])[1][0]
    unit = trunk / np.linalg.norm(trunk, axis=1, keepdims=True)
    np.testing.assert_allclose(first[0], [*unit.mean(axis=0), *unit[-1]], atol=1e-4)


def test_streams_and_counts_come_after_what_there_always_is(tiny_lm, prompts, raw) -> None:
    """Stream metrics are those of gate 0; nothing else moves by a bit; counts are of the text."""
    texts = [tiny_lm.tokenizer.decode(row) for row in prompts]
    both = raw_features(
        tiny_lm.params,
        tiny_lm.config,
        prompts,
        CONFIG,
        slots=SLOTS,
        routing=tiny_lm.routing,
        texts=texts,
    )
    kinds = ("diversity", "effective_streams", "rms_ratio")
    streams = [f"{kind}_{depth:g}" for depth in CONFIG.depths for kind in kinds]
    assert both.names == (*SCALARS, *streams, "numbers", "sentences")
    np.testing.assert_array_equal(both.scalars[:, :2], raw.scalars[:, :2])
    np.testing.assert_allclose(both.scalars[:, 2:4], raw.scalars[:, 2:], atol=1e-5)
    np.testing.assert_allclose(both.hidden, raw.hidden, atol=1e-6)
    _, metrics = tiny_lm.logits(prompts, 0.0, metrics=True)
    expected = []
    for block in BLOCKS:
        rms = np.asarray(metrics.rms)[block, -1]
        ratio = rms[:, 1:].mean(axis=1) / rms[:, 0]
        expected += [metrics.diversity[block, -1], metrics.effective_streams[block, -1], ratio]
    actual = both.scalars[:, 4:-2]
    np.testing.assert_allclose(actual, np.stack(expected, axis=1), atol=1e-4)
    assert np.ptp(actual, axis=0).max() > 1e-3
    assert both.scalars[:, -2:].tolist() == [[count_numbers(t), count_sentences(t)] for t in texts]
    without = FeatureConfig(counts=False, streams=False)
    plain = raw_features(
        tiny_lm.params,
        tiny_lm.config,
        prompts,
        without,
        slots=SLOTS,
        routing=tiny_lm.routing,
        texts=texts,
    )
    assert plain.names == SCALARS
    np.testing.assert_array_equal(plain.scalars, raw.scalars)


@pytest.mark.parametrize(
    ("text", "numbers", "sentences"),
    [
        ("Tom has 3 pens. He buys 12 more! How many?", 2, 3),
        ("It costs $1,250.50, or 3.5 times 7/2.", 4, 1),
        ("No end", 0, 0),
        ("Wait... what?! 1. 2. 3.", 3, 5),
        ("", 0, 0),
    ],
    ids=["plain", "decimals", "none", "dots", "empty"],
)
def test_counting(text: str, numbers: int, sentences: int) -> None:
    assert (count_numbers(text), count_sentences(text)) == (numbers, sentences)


def test_how_far_gates_move_the_trunk(tiny_lm: LanguageModel, prompts) -> None:
    gates = np.linspace(0, 1, len(prompts))
    spread = np.asarray(tiny_lm.layer_gates(gates, len(prompts)))
    actual = trunk_change(
        tiny_lm.params, tiny_lm.config, prompts, tiny_lm.routing, spread, slots=SLOTS
    )
    _, metrics = tiny_lm.logits(prompts, gates, metrics=True)
    sites = np.asarray(tiny_lm.routing.sites)
    expected = np.asarray(metrics.change)[sites].mean(axis=(0, 1))
    np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-6)
    assert actual[0] == 0 and actual[-1] > 0.01


def test_bad_input_is_told(tiny_lm: LanguageModel) -> None:
    def read(prompts: list[list[int]]) -> RawFeatures:
        return raw_features(tiny_lm.params, tiny_lm.config, prompts, CONFIG, slots=2)

    with pytest.raises(UserError, match="context of 1024"):
        read([[1], [1] * 1025])
    with pytest.raises(UserError, match="empty"):
        read([[1], []])
    for depths in ((), (0.0, 1.0), (0.5, 1.01)):
        with pytest.raises(UserError, match=r"features\.depths"):
            FeatureConfig(depths=depths)
    with pytest.raises(UserError, match=r"features\.components is 0"):
        FeatureConfig(components=0)


# The fitted part ------------------------------------------------------------------------------


def some_raw(count: int, seed: int) -> RawFeatures:
    """Scalars of different scales, one of them constant; hidden states of rank 5 in 12."""
    rng = np.random.default_rng(seed)
    scalars = rng.normal((50, 6, 1, 2), (7, 0, 0.3, 0.01), (count, 4)).astype(np.float32)
    mixing = np.random.default_rng(9).normal(size=(5, 12)) * np.array([5, 2, 1, 0.5, 0.1])[:, None]
    hidden = (rng.normal(size=(count, 5)) @ mixing + 3.0).astype(np.float32)
    return RawFeatures(scalars, hidden)


TRAIN = some_raw(400, 0)


def test_fitting_whitens_the_train_features() -> None:
    featurizer = Featurizer.fit(TRAIN, FeatureConfig(components=4))
    x = featurizer(TRAIN)
    assert x.shape == (400, 8)
    assert x.dtype == np.float32
    np.testing.assert_allclose(x.mean(axis=0), 0, atol=1e-3)
    np.testing.assert_allclose(x.std(axis=0), [1, 0, 1, 1, 1, 1, 1, 1], atol=1e-3)
    components = np.cov(x[:, 4:].T, bias=True)
    np.testing.assert_allclose(components, np.eye(4), atol=2e-3)
    # The first component is the direction in which train prompts differ most.
    centred = TRAIN.hidden - TRAIN.hidden.mean(axis=0)
    values, directions = np.linalg.eigh(centred.T @ centred / 400)
    expected = centred @ directions[:, -1] / values[-1] ** 0.5
    assert abs(np.corrcoef(x[:, 4], expected)[0, 1]) == pytest.approx(1, abs=1e-4)
    assert featurizer.names == (*SCALARS, *(f"component_{i}" for i in range(4)))


def test_other_prompts_are_measured_by_the_train_prompts_numbers() -> None:
    featurizer = Featurizer.fit(TRAIN, FeatureConfig(components=4))
    shifted = RawFeatures(TRAIN.scalars[:3] + np.float32(7), TRAIN.hidden[:3])
    x = featurizer(shifted)
    scale = TRAIN.scalars.std(axis=0)
    expected = (shifted.scalars - TRAIN.scalars.mean(axis=0)) / np.where(scale > 0, scale, 1)
    assert expected.max() > 20  # far outside train: held at ten standard deviations
    np.testing.assert_allclose(x[:, :4], np.clip(expected, -10, 10), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(x[:, 4:], featurizer(TRAIN)[:3, 4:])
    np.testing.assert_allclose(featurizer(some_raw(2000, 1)).std(axis=0)[4:], 1, atol=0.1)


def test_no_more_components_than_the_prompts_span() -> None:
    assert len(Featurizer.fit(TRAIN, FeatureConfig(components=32)).names) == 4 + 5
    few = RawFeatures(TRAIN.scalars[:3], TRAIN.hidden[:3])
    x = Featurizer.fit(few, FeatureConfig())(few)
    assert x.shape == (3, 4 + 2)
    assert np.isfinite(x).all()
    alike = RawFeatures(TRAIN.scalars[:4], np.ones((4, 12), np.float32))
    assert Featurizer.fit(alike, FeatureConfig())(alike).shape == (4, 4)


def test_a_featurizer_is_rebuilt_from_its_tree() -> None:
    featurizer = Featurizer.fit(TRAIN, FeatureConfig(components=3))
    again = Featurizer.of(featurizer.tree())
    np.testing.assert_array_equal(again(TRAIN), featurizer(TRAIN))
    assert (
        again.names == featurizer.names == (*SCALARS, "component_0", "component_1", "component_2")
    )
    assert all(isinstance(leaf, np.ndarray) for leaf in featurizer.tree().values())
