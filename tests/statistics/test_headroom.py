"""Headroom against simulated tables whose best rule is known."""

import numpy as np
import pytest
from scipy import stats

from jroute.statistics import headroom as room
from jroute.statistics.contrasts import paired_contrast
from jroute.statistics.headroom import CrossValidator, headroom


def chances(x: np.ndarray, gain: float) -> np.ndarray:
    """Chance of three gates: the first is right with .6, the others where feature 0 says so.

    Gates 1 and 2 are ``2 gain`` better on one half of the problems and as much worse on the other,
    so the best rule gains ``2 gain`` over gate 0 everywhere and over any single gate.
    """
    sign = np.sign(x[:, 0])
    return 0.6 + np.stack([0 * sign, 2 * gain * sign, -2 * gain * sign], axis=1)


def draw(rng: np.random.Generator, n: int, gain: float) -> tuple[np.ndarray, np.ndarray]:
    x = rng.standard_normal((n, 4))
    return x, (rng.random((n, 3)) < chances(x, gain)).astype(float)


def test_it_finds_what_a_rule_can_gain() -> None:
    rng = np.random.default_rng(0)
    judged, extra = draw(rng, 1000, 0.1), draw(rng, 1000, 0.1)
    result = headroom(judged, extra, 0, replicates=1000)
    chosen = CrossValidator(judged[0], extra[0]).columns(judged[1], extra[1])
    right = np.where(judged[0][:, 0] > 0, 1, 2)
    assert (chosen == right).mean() > 0.85  # wrong only where the sign is close
    far = np.abs(judged[0][:, 0]) > 0.5
    assert (chosen == right)[far].mean() > 0.97
    truth = chances(judged[0], 0.1)
    reached = truth[np.arange(1000), chosen].mean() - 0.6
    assert 0.14 < reached <= 0.2
    assert result.learnable.ci95[0] <= reached <= result.learnable.ci95[1]
    assert result.learnable.n == result.hindsight.n == 1000 and result.folds == 5
    # In hindsight one of three independent coins is right far more often.
    assert result.hindsight.difference > result.learnable.difference + 0.05


def test_every_problem_is_answered_by_a_rule_that_never_saw_it() -> None:
    """With outcomes that are noise, fitting them must not pay; one leaked fold would show."""
    rng = np.random.default_rng(1)
    gains = []
    x, more = rng.standard_normal((300, 30)), rng.standard_normal((50, 30))
    validator = CrossValidator(x, more)
    covered = np.concatenate([fold.held_out for fold in validator.folds])
    assert sorted(covered.tolist()) == list(range(300))
    for fold in validator.folds:
        assert not set(fold.held_out) & set(fold.rows)
        assert len(fold.held_out) + len(fold.rows) == 350
    for _ in range(200):
        y, other = rng.random((300, 3)) < 0.5, rng.random((50, 3)) < 0.5
        chosen = validator.columns(y.astype(float), other.astype(float))
        gains.append((y[np.arange(300), chosen] - 0.5).mean())
    assert abs(np.mean(gains)) < 3 * np.std(gains) / np.sqrt(len(gains))
    assert abs(np.mean(gains)) < 0.01


def test_choices_are_those_of_ridge_regression_done_by_hand() -> None:
    rng = np.random.default_rng(2)
    (x, y), (more, other) = draw(rng, 60, 0.1), draw(rng, 30, 0.1)
    chosen = CrossValidator(x, more, folds=3, seed=5).columns(y, other)
    again = np.random.default_rng(5)
    everything, rewards = np.concatenate([x, more]), np.concatenate([y, other])
    design = room._design(everything, again)
    fold = again.permutation(60) % 3
    for k in range(3):
        held = np.flatnonzero(fold == k)
        rows = np.setdiff1d(np.arange(90), held)
        a, b = design[rows] - design[rows].mean(axis=0), rewards[rows]
        errors, answers = [], []
        for penalty in room.PENALTIES:
            hat = a @ np.linalg.solve(a.T @ a + penalty * len(rows) * np.eye(a.shape[1]), a.T)
            left = []
            for i in range(len(rows)):  # leave one out, with mean and weights fitted anew
                keep = np.arange(len(rows)) != i
                leverage = hat[i, i] + 1 / len(rows)
                fitted = b.mean(axis=0) + hat[i] @ (b - b.mean(axis=0))
                left.append((b[i] - fitted) / (1 - leverage))
                assert keep.sum() == len(rows) - 1
            errors.append(np.mean(np.square(left)))
            weights = np.linalg.solve(
                a.T @ a + penalty * len(rows) * np.eye(a.shape[1]), a.T @ (b - b.mean(axis=0))
            )
            answers.append(b.mean(axis=0) + (design[held] - design[rows].mean(axis=0)) @ weights)
        best = answers[int(np.argmin(errors))]
        np.testing.assert_array_equal(chosen[held], best.argmax(axis=1))


def test_intervals_cover_what_the_rules_are_worth() -> None:
    """500 tables with an effect that is barely learnable; a rule is worth its mean chance."""
    rng = np.random.default_rng(3)
    x, more = rng.standard_normal((300, 4)), rng.standard_normal((100, 4))
    validator = CrossValidator(x, more)
    truth, other = chances(x, 0.05), chances(more, 0.05)
    rows, trials, hits, below, plain = np.arange(300), 500, 0, 0, 0
    for trial in range(trials):
        y, z = rng.random(truth.shape) < truth, rng.random(other.shape) < other
        y, z = y.astype(float), z.astype(float)
        chosen = validator.columns(y, z)
        contrast = validator.contrast(y, chosen, 0, replicates=400, seed=trial)
        short = paired_contrast(y[rows, chosen], y[:, 0], replicates=400, seed=trial)
        assert contrast.difference == pytest.approx(short.difference)
        worth = truth[rows, chosen].mean() - 0.6
        hits += contrast.ci95[0] <= worth <= contrast.ci95[1]
        below += worth <= contrast.upper95
        plain += short.ci95[0] <= worth <= short.ci95[1]
    low, _ = np.array(stats.binom.interval(0.999, trials, 0.95)) / trials
    assert low <= hits / trials  # careful: more than 95 % is welcome
    assert low <= below / trials
    # As if each problem's rule had been fitted elsewhere, it would be too short.
    assert plain / trials < low


def test_features_that_are_all_alike_teach_one_gate() -> None:
    rng = np.random.default_rng(4)
    y = (rng.random((200, 3)) < [0.3, 0.8, 0.5]).astype(float)
    chosen = CrossValidator(np.ones((200, 3)), np.ones((50, 3))).columns(y, y[:50])
    assert (chosen == 1).all()


# Several samples of a cell


def test_cross_fitting_is_not_inflated_by_noise() -> None:
    rng = np.random.default_rng(5)
    noise = (rng.random((4000, 5, 4)) < 0.5).astype(float)
    gains = room.cross_fitted(noise, 0)
    assert abs(gains.mean()) < 3 * gains.std() / np.sqrt(4000)
    hindsight = noise[..., 0].max(axis=1) - noise[:, 0, 0]
    assert hindsight.mean() > 0.4
    # The placebo sees the very same inflation in samples of one gate.
    samples = (rng.random((4000, 10)) < 0.5).astype(float)
    placebo = room.placebo(samples, 5)
    assert placebo.mean() == pytest.approx(1 - 0.5**5 - 0.5, abs=0.02)
    assert hindsight.mean() - placebo.mean() == pytest.approx(0.0, abs=0.03)


def test_cross_fitting_finds_gates_that_are_better() -> None:
    rng = np.random.default_rng(6)
    best = rng.integers(0, 3, 2000)
    truth = np.where(np.arange(3) == best[:, None], 0.95, 0.05)
    samples = (rng.random((2000, 3, 6)) < truth[..., None]).astype(float)
    # Picking by three samples of .95 against .05 is nearly always right.
    assert room.cross_fitted(samples, 0).mean() == pytest.approx(0.95 - 0.35, abs=0.03)


def test_samples_adjust_hindsight_for_noise() -> None:
    rng = np.random.default_rng(8)
    noise = (rng.random((3000, 3, 8)) < 0.5).astype(float)
    estimates = room.sampled(noise, 1, replicates=400)
    assert set(estimates) == {"cross_fitted", "placebo_adjusted"}
    for one in estimates.values():
        assert one.n == 3000 and one.ci95[0] < 0.0 < one.ci95[1]
    real = noise.copy()
    real[:, 2] = 1.0  # a gate that is always right gains a half
    estimates = room.sampled(real, 1, replicates=400)
    assert estimates["cross_fitted"].difference == pytest.approx(0.5, abs=0.03)
    # Hindsight gains a half; three coins that are all alike would have gained 3/8 of it.
    assert estimates["placebo_adjusted"].difference == pytest.approx(0.5 - 0.375, abs=0.03)
    assert set(room.sampled(noise[..., :2], 1, replicates=400)) == {"cross_fitted"}


def test_placebo_is_the_mean_over_all_draws() -> None:
    from itertools import combinations

    samples = np.array([[1, 0, 0, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]], float)
    for gates in (2, 3):
        by_hand = [
            np.mean([max(draw) for draw in combinations(row, gates)]) - row.mean()
            for row in samples
        ]
        np.testing.assert_allclose(room.placebo(samples, gates), by_hand)


def test_one_sample_has_no_second_half() -> None:
    with pytest.raises(ValueError, match="at least two samples"):
        room.cross_fitted(np.ones((5, 3, 1)), 0)
    with pytest.raises(ValueError, match="there are 2"):
        room.placebo(np.ones((5, 2)), 3)
    with pytest.raises(ValueError, match="0 and 1"):
        room.placebo(np.full((5, 3), 0.5), 3)


def test_what_flips_alone_would_fake() -> None:
    # Known: 3 % of flips on a model that is right on 90 % fake 3.8 points, 1 % fake 1.3.
    assert 100 * room.noise_gain(0.03, 0.9, 5) == pytest.approx(3.8, abs=0.05)
    assert 100 * room.noise_gain(0.01, 0.9, 5) == pytest.approx(1.3, abs=0.05)
    rng = np.random.default_rng(7)
    solved = rng.random(200_000) < 0.7
    cells = solved[:, None] ^ (rng.random((200_000, 4)) < 0.05)
    faked = cells.max(axis=1).mean() - cells[:, 0].mean()
    assert room.noise_gain(0.05, 0.7, 4) == pytest.approx(faked, abs=0.004)
    assert room.noise_gain(0.0, 0.7, 4) == 0.0
    # What is seen of flips is how often two makings differ.
    again = solved[:, None] ^ (rng.random((200_000, 4)) < 0.05)
    assert room.flip_chance(float((cells != again).mean())) == pytest.approx(0.05, abs=0.001)
    assert room.flip_chance(0.0) == 0.0 and room.flip_chance(0.6) == 0.5
