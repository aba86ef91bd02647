"""Headroom: how much a rule for choosing gates could gain, in hindsight and learnably.

The *hindsight* oracle takes the best gate of every problem after looking at the outcomes. With one
greedy sample per cell it is an upper bound that noise inflates: 3 % of independent flips fake one
to four points. The *learnable* headroom is what a rule that sees only the features gains on
problems it was not fitted on, over the gate that was best on train. It is cross-validated within
the judged problems: each fold is answered by a rule that is fitted on train, validation and the
other folds, that is with more labels than any arm has.

The rule is a ridge regression of the gates' rewards on the features and on a kernel of them
(Nyström's approximation of an RBF kernel), which is linear in the rewards: everything except
the rewards is prepared once, and serves thousands of reward tables. Its bound limits what *this*
rule class finds with that many problems; a class that finds more may be given as an arm of its own
(``exact_gradient`` and ``supervised_features`` are).

The rules of two folds learn from each other's problems, so their errors are correlated and a plain
interval is too short: in simulations with an effect that is barely learnable it covered 90 %
instead of 95 %. Deviations are therefore widened as Nadeau and Bengio propose (2003, Machine
Learning 52:239), by sqrt(1 + judged / learned from), which is conservative.

Where a cell has several samples, ``cross_fitted`` picks gates by half of them and scores them by
the other half, which noise does not inflate, and ``placebo`` is what picking the best of as many
samples of *one* gate seems to gain.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import special
from scipy.spatial.distance import cdist, pdist

from jroute.statistics.bootstrap import REPLICATES
from jroute.statistics.contrasts import Contrast, linear_contrast, paired_contrast
from jroute.utils.keys import Keys, keys

LANDMARKS = 256
"""Problems that the kernel is anchored at, drawn from all of them."""

PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3, 1e12)
"""Ridge penalties per problem; the last one leaves nothing but the mean of every gate."""


@dataclass(frozen=True)
class Headroom:
    """What choosing gates by problem could gain over the gate that was best on train.

    Attributes:
        hindsight: The oracle's gain.
        learnable: The cross-validated rule's gain; ``upper95`` is its one-sided bound.
        folds: Number of folds.
    """

    stored_keys: ClassVar[Keys] = keys("hindsight", "learnable", "folds")

    hindsight: Contrast
    learnable: Contrast
    folds: int


@dataclass(frozen=True)
class _Fold:
    """What one fold needs, except the rewards.

    Attributes:
        rows: The problems that the fold's rule is fitted on.
        held_out: The judged problems that it answers.
        basis: Left singular vectors of the centred design, ``[rows, rank]``.
        spectrum: Its squared singular values.
        projected: Held-out problems in that basis.
    """

    rows: Int[np.ndarray, " rows"]
    held_out: Int[np.ndarray, " held_out"]
    basis: Float[np.ndarray, "rows rank"]
    spectrum: Float[np.ndarray, " rank"]
    projected: Float[np.ndarray, "held_out rank"]


class CrossValidator:
    """Cross-validated columns of judged problems, prepared for any table of rewards.

    Args:
        judged: Features of the problems that are answered.
        extra: Features of problems that every fold learns from (train and validation).
        folds: Number of folds of the judged problems.
        seed: Seed of the folds and of the kernel's anchors.
    """

    def __init__(
        self,
        judged: Float[np.ndarray, "judged features"],
        extra: Float[np.ndarray, "extra features"],
        *,
        folds: int = 5,
        seed: int = 0,
    ):
        rng = np.random.default_rng(seed)
        self.judged = len(judged)
        features = np.concatenate([judged, extra]).astype(np.float64)
        design = _design(features, rng)
        fold = rng.permutation(self.judged) % folds
        self.folds = [self._prepare(design, fold == k) for k in range(folds)]

    def _prepare(
        self, design: Float[np.ndarray, "all columns"], in_fold: Bool[np.ndarray, " judged"]
    ) -> _Fold:
        held_out = np.flatnonzero(in_fold)
        rows = np.setdiff1d(np.arange(len(design)), held_out)
        mean = design[rows].mean(axis=0)
        centred = design[rows] - mean
        # Singular vectors from the columns' products: there are far fewer columns than rows.
        spectrum, right = np.linalg.eigh(centred.T @ centred)
        keep = spectrum > 1e-10 * max(spectrum[-1], 1e-24)
        rotation = right[:, keep] / np.sqrt(spectrum[keep])
        projected = (design[held_out] - mean) @ rotation
        return _Fold(rows, held_out, centred @ rotation, spectrum[keep], projected)

    def columns(
        self, rewards: Float[np.ndarray, "judged gates"], extra: Float[np.ndarray, "extra gates"]
    ) -> Int[np.ndarray, " judged"]:
        """Return the column that each judged problem gets from the rule of its fold.

        The penalty of a fold is the one with the least leave-one-out squared error on the rule's
        own problems, which ridge regression gives in closed form.
        """
        all_rewards = np.concatenate([rewards, extra])
        columns = np.zeros(self.judged, np.int64)
        for fold in self.folds:
            y = all_rewards[fold.rows]
            mean = y.mean(axis=0)
            coordinates = fold.basis.T @ (y - mean)
            squares = fold.basis**2
            least, best_shrinkage = np.inf, np.zeros_like(fold.spectrum)
            for penalty in PENALTIES:
                shrinkage = fold.spectrum / (fold.spectrum + penalty * len(y))
                leverage = squares @ shrinkage + 1.0 / len(y)
                residual = y - mean - fold.basis @ (shrinkage[:, None] * coordinates)
                error = float(((residual / (1.0 - leverage)[:, None]) ** 2).mean())
                if error < least:
                    least, best_shrinkage = error, shrinkage
            predicted = mean + fold.projected @ (best_shrinkage[:, None] * coordinates)
            columns[fold.held_out] = predicted.argmax(axis=1)
        return columns

    def contrast(
        self,
        values: Float[np.ndarray, "judged gates"],
        columns: Int[np.ndarray, " judged"],
        fixed: int,
        *,
        replicates: int = REPLICATES,
        seed: int = 0,
    ) -> Contrast:
        """Return what ``columns`` gain over a fixed gate, with an interval that allows for folds.

        Args:
            values: Values of every gate of the judged problems.
            columns: From the method ``columns``.
            fixed: The fixed gate's column.
            replicates: Bootstrap resamples.
            seed: Seed of the resampling.
        """
        gains = values[np.arange(self.judged), columns] - values[:, fixed]
        learned_from = np.mean([len(fold.rows) for fold in self.folds])
        wider = np.sqrt(1.0 + self.judged / learned_from)
        widened = gains.mean() + wider * (gains - gains.mean())
        return linear_contrast([widened], [1.0], replicates=replicates, seed=seed)


def _design(
    features: Float[np.ndarray, "all features"], rng: np.random.Generator
) -> Float[np.ndarray, "all columns"]:
    """Return standardised features and the kernel's columns, of similar total variance each."""
    scale = features.std(axis=0)
    x = (features - features.mean(axis=0)) / np.where(scale > 1e-9, scale, 1.0)
    anchors = x[rng.choice(len(x), min(LANDMARKS, len(x)), replace=False)]
    distances = pdist(anchors, "sqeuclidean") if len(anchors) > 1 else np.zeros(0)
    width = float(np.median(distances)) if distances.size else 0.0
    if width <= 0.0:  # all problems look alike
        return x / np.sqrt(max(x.shape[1], 1))
    columns = np.exp(-cdist(x, anchors, "sqeuclidean") / width)
    gram = np.exp(-cdist(anchors, anchors, "sqeuclidean") / width)
    values, vectors = np.linalg.eigh(gram)
    keep = values > 1e-8 * values[-1]
    kernel = columns @ (vectors[:, keep] / np.sqrt(values[keep]))
    return np.concatenate([x / np.sqrt(x.shape[1]), kernel], axis=1)


def headroom(
    judged: tuple[Float[np.ndarray, "judged features"], Float[np.ndarray, "judged gates"]],
    extra: tuple[Float[np.ndarray, "extra features"], Float[np.ndarray, "extra gates"]],
    best_fixed: int,
    *,
    folds: int = 5,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> Headroom:
    """Return hindsight and learnable headroom of the judged problems.

    Args:
        judged: Features and values of every gate of the problems that are judged.
        extra: The same of train and validation, which every fold may learn from.
        best_fixed: Column that was best on train.
        folds: Number of folds.
        replicates: Bootstrap resamples of the intervals.
        seed: Seed of folds and resampling.
    """
    validator = CrossValidator(judged[0], extra[0], folds=folds, seed=seed)
    values = judged[1]
    columns = validator.columns(values, extra[1])
    hindsight = paired_contrast(
        values.max(axis=1), values[:, best_fixed], replicates=replicates, seed=seed
    )
    learnable = validator.contrast(values, columns, best_fixed, replicates=replicates, seed=seed)
    return Headroom(hindsight, learnable, folds)


def cross_fitted(
    samples: Float[np.ndarray, "problems gates samples"], best_fixed: int
) -> Float[np.ndarray, " problems"]:
    """Return the gain over a fixed gate of picking by half of the samples, scored by the others.

    Both halves take each part in turn and the two are averaged; ties share. Its mean is not
    inflated by noise, as hindsight's is, but it misses what half of the samples cannot resolve.

    Raises:
        ValueError: With one sample per cell there is no second half.
    """
    count = samples.shape[2]
    if count < 2:
        raise ValueError("cross-fitting needs at least two samples per cell; there is one")
    halves = samples[..., : count // 2].mean(axis=2), samples[..., count // 2 :].mean(axis=2)
    gains = []
    for picking, scoring in (halves, halves[::-1]):
        top = picking == picking.max(axis=1, keepdims=True)
        gains.append((top * scoring).sum(axis=1) / top.sum(axis=1) - scoring[:, best_fixed])
    return np.mean(gains, axis=0)


def placebo(
    samples: Float[np.ndarray, "problems samples"], gates: int
) -> Float[np.ndarray, " problems"]:
    """Return what the best of ``gates`` samples of one and the same gate gains over its mean.

    Exact for samples of 0 and 1: the chance that at least one of ``gates`` samples drawn without
    replacement is right. Subtract its mean from hindsight's gain to adjust that for noise.

    Raises:
        ValueError: There are fewer samples than gates, or samples are not 0 and 1.
    """
    count = samples.shape[1]
    if count < gates:
        raise ValueError(f"a placebo of {gates} gates needs as many samples, there are {count}")
    if not np.isin(samples, (0.0, 1.0)).all():
        raise ValueError("a placebo needs samples of 0 and 1")
    wrong = count - samples.sum(axis=1)
    none = special.comb(wrong, gates) / special.comb(count, gates)
    return 1.0 - none - samples.mean(axis=1)


def sampled(
    samples: Float[np.ndarray, "problems gates samples"],
    best_fixed: int,
    *,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> dict[str, Contrast]:
    """Return the headroom that several samples of every cell show, with intervals.

    Args:
        samples: At least two of every cell.
        best_fixed: Column that was best on train.
        replicates: Bootstrap resamples.
        seed: Seed of the resampling.

    Returns:
        ``cross_fitted``, and where there are as many samples as gates ``placebo_adjusted``:
        hindsight's gain on the first samples less what the best of as many samples of the best
        fixed gate alone seems to gain.
    """
    fixed, gates = samples[:, best_fixed], samples.shape[1]
    gains = {"cross_fitted": cross_fitted(samples, best_fixed)}
    if samples.shape[2] >= gates:
        hindsight = samples[..., 0].max(axis=1) - fixed[:, 0]
        gains["placebo_adjusted"] = hindsight - placebo(fixed, gates)
    return {
        name: linear_contrast([gain], [1.0], replicates=replicates, seed=seed)
        for name, gain in gains.items()
    }


def flip_chance(differing: float) -> float:
    """Return the chance of a flip from the chance that two generations of a cell differ."""
    return (1.0 - np.sqrt(1.0 - 2.0 * min(differing, 0.5))) / 2.0


def noise_gain(flips: float, accuracy: float, gates: int) -> float:
    """Return the hindsight gain that independent flips fake where all gates are equally good.

    Args:
        flips: Chance that an outcome is the opposite of the true one.
        accuracy: Share of problems that are solved in truth, at every gate.
        gates: Number of gates.
    """
    best = accuracy * (1.0 - flips**gates) + (1.0 - accuracy) * (1.0 - (1.0 - flips) ** gates)
    return best - (accuracy * (1.0 - flips) + (1.0 - accuracy) * flips)
