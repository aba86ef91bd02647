"""The choice of the next token, held against NumPy, transformers' own filters, and frequencies."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from scipy import stats
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from jroute.generate.decoding import Decoding
from jroute.generate.sampling import Choice, Greedy, MinP, Temperature, TopK, TopP, choose
from jroute.utils.errors import UserError

CHOSEN = jax.jit(choose, static_argnames="choice")
PROBABILITIES = np.array([0.02, 0.30, 0.08, 0.25, 0.05, 0.20, 0.10])
LOGITS = np.log(PROBABILITIES).astype(np.float32) + 3.0  # logits need not be normalised
DRAWS = 10_000


def CHOOSE(logits, seeds, positions, decoding: Decoding):
    """The tokens alone."""
    return CHOSEN(logits, seeds, positions, choice=Choice(decoding.strategies)).token


def draws(decoding: Decoding, seed: int = 0, position: int = 5, logits=LOGITS) -> np.ndarray:
    """One token for each of many seeds."""
    seeds = np.arange(seed, seed + DRAWS, dtype=np.int32)
    rows = np.tile(logits, (DRAWS, 1))
    return np.asarray(CHOOSE(rows, seeds, np.full(DRAWS, position, np.int32), decoding=decoding))


def by_transformers(decoding: Decoding, logits: np.ndarray = LOGITS) -> np.ndarray:
    """The distribution that ``transformers`` samples from."""
    warpers = LogitsProcessorList([TemperatureLogitsWarper(decoding.temperature)])
    if decoding.top_k:
        warpers.append(TopKLogitsWarper(decoding.top_k))
    if decoding.top_p < 1:
        warpers.append(TopPLogitsWarper(decoding.top_p))
    if decoding.min_p:
        warpers.append(MinPLogitsWarper(decoding.min_p))
    ids = torch.zeros((1, 1), dtype=torch.long)
    return warpers(ids, torch.tensor(logits)[None]).softmax(-1)[0].double().numpy()  # type: ignore[arg-type]


def by_numpy(decoding: Decoding, logits: np.ndarray = LOGITS) -> np.ndarray:
    """The same from the definitions."""
    weights = np.exp((logits.astype(np.float64) - logits.max()) / decoding.temperature)
    order = np.argsort(-weights)
    if decoding.top_k:
        weights[order[decoding.top_k :]] = 0
    weights /= weights.sum()
    # The smallest number of most likely tokens whose probability reaches top_p.
    needed = int(np.searchsorted(np.cumsum(weights[order]), decoding.top_p - 1e-12)) + 1
    weights[order[needed:]] = 0
    weights[weights < decoding.min_p * weights.max()] = 0
    return weights / weights.sum()


@pytest.mark.parametrize(
    "decoding",
    [
        Decoding(temperature=1.0),
        Decoding(temperature=2.5),
        Decoding(temperature=1.0, top_k=3),
        Decoding(temperature=1.0, top_k=100),
        Decoding(temperature=1.0, top_p=0.56),
        Decoding(temperature=2.0, top_p=0.7),  # temperature before top_p
        Decoding(temperature=0.7, top_k=4, top_p=0.8),  # top_p of what top_k left
        Decoding(temperature=1.0, min_p=0.3),
        Decoding(temperature=3.0, min_p=0.6),  # min_p of the flattened distribution
        Decoding(temperature=1.5, top_k=5, top_p=0.9, min_p=0.5),
    ],
    ids=str,
)
def test_frequencies_follow_the_distribution(decoding: Decoding) -> None:
    expected = by_numpy(decoding)
    np.testing.assert_allclose(expected, by_transformers(decoding), atol=1e-6)
    counts = np.bincount(draws(decoding), minlength=len(LOGITS))
    kept = expected > 0
    assert counts[~kept].sum() == 0
    assert stats.chisquare(counts[kept], DRAWS * expected[kept]).pvalue > 1e-3


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 0.1), (0, 0.99), (9, 0.9), (2, 0.9999)])
def test_only_the_nucleus_is_drawn(top_k: int, top_p: float) -> None:
    decoding = Decoding(temperature=1.3, top_k=top_k, top_p=top_p)
    logits = np.random.default_rng(1).normal(0, 1.5, 12).astype(np.float32)
    expected = by_numpy(decoding, logits)
    np.testing.assert_allclose(expected, by_transformers(decoding, logits), atol=1e-5)
    drawn = set(draws(decoding, logits=logits))
    assert drawn <= set(np.flatnonzero(expected))
    assert drawn >= set(np.flatnonzero(expected > 0.002))


def test_rows_have_their_own_logits() -> None:
    logits = np.full((3, 5), -50.0, np.float32)
    logits[[0, 1, 2], [4, 0, 2]] = 50.0
    seeds = np.zeros(3, np.int32)
    for decoding in (Decoding(), Decoding(temperature=1.0, top_k=2, top_p=0.9)):
        assert CHOOSE(logits, seeds, seeds, decoding=decoding).tolist() == [4, 0, 2]


def test_seeds_and_positions_draw_independently() -> None:
    decoding = Decoding(temperature=1.0)
    here, next_seed = draws(decoding), draws(decoding, seed=1)
    next_position = draws(decoding, position=6)
    np.testing.assert_array_equal(here[1:], next_seed[:-1])  # a seed and position, nothing else
    for other in (next_seed, next_position):
        table = np.zeros((len(LOGITS), len(LOGITS)))
        np.add.at(table, (here, other), 1)
        assert stats.chi2_contingency(table).pvalue > 1e-3  # type: ignore[attr-defined]


def test_greedy_takes_the_best_and_the_limit_of_temperature_agrees() -> None:
    logits = np.random.default_rng(2).normal(size=(64, 50)).astype(np.float32)
    seeds = np.arange(64, dtype=np.int32)
    greedy = CHOOSE(logits, seeds, seeds, decoding=Decoding())
    np.testing.assert_array_equal(greedy, logits.argmax(axis=1))
    assert greedy.dtype == jnp.int32
    cold = Decoding(temperature=1e-5)
    for limit in (cold, Decoding(temperature=9.0, top_k=1), Decoding(temperature=9.0, top_p=1e-6)):
        np.testing.assert_array_equal(CHOOSE(logits, seeds, seeds, decoding=limit), greedy)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"top_k": -1}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.01}, "top_p"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"stop": ("a", "")}, "empty string"),
        ({"min_p": -0.1}, "min_p is -0.1"),
        ({"min_p": 1.1}, "min_p is 1.1"),
        ({"min_new_tokens": -1}, "min_new_tokens is -1"),
        ({"min_new_tokens": 65}, "min_new_tokens is 65; it must be from 0 to max_new_tokens, 64"),
    ],
    ids=str,
)
def test_bad_decoding_is_told(fields: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Decoding(**fields)


def test_strategies_stand_in_the_usual_order() -> None:
    assert Decoding().strategies == Decoding(top_k=3, min_p=0.5).strategies == (Greedy(),)
    assert Decoding(temperature=1.0).strategies == ()
    decoding = Decoding(temperature=0.5, top_k=4, top_p=0.9, min_p=0.1)
    assert decoding.strategies == (Temperature(0.5), TopK(4), TopP(0.9), MinP(0.1))


def test_a_draw_is_the_librarys() -> None:
    """``jax.random.categorical`` under the key of seed and position."""
    logits = np.random.default_rng(4).normal(size=(64, 50)).astype(np.float32)
    seeds, positions = np.arange(64, dtype=np.int32), np.arange(64, 128, dtype=np.int32)

    def draw(seed, position, row):
        return jax.random.categorical(jax.random.fold_in(jax.random.key(seed), position), row)

    drawn = CHOOSE(logits, seeds, positions, decoding=Decoding(temperature=1.0))
    np.testing.assert_array_equal(drawn, jax.vmap(draw)(seeds, positions, logits))


# What is told of the choice -------------------------------------------------------------------

ROWS = np.random.default_rng(5).normal(0, 2, (40, 12)).astype(np.float32)
SEEDS = np.arange(40, dtype=np.int32)


@pytest.mark.parametrize(
    "decoding",
    [Decoding(), Decoding(temperature=0.7, top_k=6, top_p=0.9, min_p=0.02)],
    ids=["greedy", "sampled"],
)
def test_log_probabilities_are_of_the_distribution_they_are_named_by(decoding: Decoding) -> None:
    logprobs = {}
    for name in ("raw", "truncated"):
        choice = Choice(decoding.strategies, logprobs=name)
        chosen = CHOSEN(ROWS, SEEDS, SEEDS, choice=choice)
        assert chosen.margin is None
        logprobs[name] = np.asarray(chosen.logprob)
        tokens = np.asarray(chosen.token)
    plain = Decoding(temperature=1.0)
    for i, token in enumerate(tokens):
        raw = np.log(by_numpy(plain, ROWS[i])[token])
        truncated = np.log(by_numpy(decoding, ROWS[i])[token]) if decoding.temperature else 0.0
        np.testing.assert_allclose(logprobs["raw"][i], raw, atol=1e-5)
        np.testing.assert_allclose(logprobs["truncated"][i], truncated, atol=1e-5)


def test_the_margin_is_the_distance_to_the_second_best() -> None:
    ordered = np.sort(ROWS, axis=1)
    greedy = CHOSEN(ROWS, SEEDS, SEEDS, choice=Choice(margins=True))
    np.testing.assert_allclose(greedy.margin, ordered[:, -1] - ordered[:, -2], atol=1e-6)
    # Of a draw it is what the second best score lacks: moving it by that much moves the draw.
    sampled = Choice(Decoding(temperature=1.0).strategies, margins=True)
    drawn = CHOSEN(ROWS, SEEDS, SEEDS, choice=sampled)
    token, margin = np.asarray(drawn.token), np.asarray(drawn.margin)
    for shift, same in ((0.999, True), (1.001, False)):
        moved = ROWS.copy()
        moved[SEEDS, token] -= shift * margin
        again = np.asarray(CHOSEN(moved, SEEDS, SEEDS, choice=sampled).token)
        assert (again == token).all() == same
        assert same or (again != token).all()


def test_no_end_token_before_its_time() -> None:
    ends = np.array([3, 5, -1], np.int32)  # -1 is none
    logits = ROWS.copy()
    logits[:, [3, 5]] += 50.0
    generated = np.where(np.arange(40) % 2 == 0, 2, 3).astype(np.int32)
    for strategies in (Decoding().strategies, Decoding(temperature=1.0, top_k=2).strategies):
        choice = Choice(strategies, minimum=3, logprobs="raw")
        chosen = CHOSEN(logits, SEEDS, SEEDS, choice=choice, generated=generated, ends=ends)
        ending = np.isin(chosen.token, ends)
        np.testing.assert_array_equal(ending, generated >= 3)
        assert (np.asarray(chosen.logprob)[~ending] < -20).all()  # still of the model's own
