"""Figures of arms, and paired comparisons of them: intervals and p-values, over cases and over trainings.

Scores of an arm are `(S, N)`: S seeds (trainings), N cases, the same cases in the same order in both arms of a
comparison. An arm's figure is the mean over its seeds. The truth `(N,)` is whether a case is positive, or, where cases
were tested in folds, `2 fold + positive`: the scores of two folds are of two trainings and not of one scale, so that an
AUC compares cases of one fold only.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats

from sa_swin.bootstrap import limits, resamples

Figure = Callable[[np.ndarray, np.ndarray], float]
"""Of the truth `(N,)` and the scores `(S, N)`: the mean over the seeds."""


def mean_auc(truth: np.ndarray, scores: np.ndarray) -> float:
    """Mean over seeds of the area under the ROC curve, within folds; truth `(N,)`, scores `(S, N)`."""
    above, pairs = np.zeros(len(scores)), 0
    for own in folds(truth):
        positives = truth[own] % 2 == 1
        positive, negative = int(positives.sum()), int((~positives).sum())
        ranks = stats.rankdata(scores[:, own], axis=1)[:, positives]
        above += ranks.sum(axis=1) - positive * (positive + 1) / 2
        pairs += positive * negative
    return float(np.mean(above / pairs)) if pairs else math.nan


def folds(truth: np.ndarray) -> list[np.ndarray]:
    """Which cases are of each fold, `(N,)` bool."""
    fold = truth.astype(int) // 2
    return [fold == number for number in np.unique(fold)]


def mean_score(truth: np.ndarray, scores: np.ndarray) -> float:
    """Mean over seeds and cases of a score that is a figure of each case, such as Dice."""
    return float(scores.mean())


def mean_log_loss(truth: np.ndarray, logits: np.ndarray) -> float:
    """Mean over seeds and cases of the negative log of the probability that a case's truth was given; of logits."""
    return float(np.logaddexp(0, np.where(truth, -logits, logits)).mean())


def nested_draws(truth: np.ndarray, seeds: int, count: int = 1000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Resampled cases `(count, N)`, by class and fold, and resampled seeds `(count, S)`."""
    cases = resamples(truth, count, seed)
    return cases, np.random.default_rng([seed, 1]).integers(seeds, size=(count, seeds))


def figure_interval(figure: Figure, truth: np.ndarray, scores: np.ndarray) -> tuple[float, float]:
    """95 % percentile interval of an arm's figure: cases (by class and fold) and seeds are both resampled."""
    draws = zip(*nested_draws(truth, len(scores)), strict=True)
    low, high = limits(np.array([figure(truth[cases], scores[np.ix_(seeds, cases)]) for cases, seeds in draws]))
    return float(low), float(high)


def difference_interval(
    figure: Figure, truth: np.ndarray, first: np.ndarray, second: np.ndarray
) -> tuple[float, float]:
    """95 % interval of the first arm's figure less the second's: the same cases and seeds are drawn for both."""
    samples = []
    for cases, seeds in zip(*nested_draws(truth, len(first)), strict=True):
        drawn = (scores[np.ix_(seeds, cases)] for scores in (first, second))
        samples.append(np.subtract(*(figure(truth[cases], scores) for scores in drawn)))
    low, high = limits(np.array(samples))
    return float(low), float(high)


def placements(truth: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """DeLong's structural components: for each positive the share of negatives below it, and the reverse; `(N,)`.

    Within folds; a fold's components count by its share of the pairs, so that their means are the AUC.
    """
    parts, pairs = [], []
    for own in folds(truth):
        positives = truth[own] % 2 == 1
        positive, negative = scores[own][positives], scores[own][~positives]
        wins = (positive[:, None] > negative) + 0.5 * (positive[:, None] == negative)
        if wins.size:
            parts.append((wins.mean(axis=1), wins.mean(axis=0)))
            pairs.append(wins.size)
    of_positives, of_negatives = (weighted(side, pairs) for side in zip(*parts, strict=True))
    return of_positives, of_negatives


def weighted(components: Sequence[np.ndarray], pairs: Sequence[int]) -> np.ndarray:
    """The components of all folds, each times its fold's weight, so that their mean weighs the folds by their pairs."""
    count = sum(map(len, components))
    weights = [own / sum(pairs) * count / len(part) for part, own in zip(components, pairs, strict=True)]
    return np.concatenate([part * weight for part, weight in zip(components, weights, strict=True)])


Variances = list[tuple[float, int]]
"""Independent parts of the variance of a mean, each with its degrees of freedom; infinite where nothing is known."""


def delong_variance(truth: np.ndarray, first: np.ndarray, second: np.ndarray) -> Variances:
    """Variance over cases of a difference between two AUCs of the same cases, each a mean over seeds: of either class.

    The structural components are averaged over the seeds, as the AUC is. With fewer than two cases of a class it is
    infinite: there is no evidence.

    Args:
        truth: `(N,)`.
        first: scores `(S, N)` of one arm.
        second: and of the other.

    References:
        DeLong, DeLong and Clarke-Pearson, Biometrics 44 (1988) 837-845.
    """
    parts = []
    for scores in (first, second):
        parts.append([np.mean(part, axis=0) for part in zip(*(placements(truth, own) for own in scores), strict=True)])
    of_positives, of_negatives = (a - b for a, b in zip(*parts, strict=True))
    return [of_mean(of_positives), of_mean(of_negatives)]


def score_variance(truth: np.ndarray, first: np.ndarray, second: np.ndarray) -> Variances:
    """Variance over cases of a mean difference of a score that is a figure of each case; as `delong_variance`."""
    return [of_mean((first - second).mean(axis=0))]


def of_mean(values: np.ndarray) -> tuple[float, int]:
    """Variance of the mean of values `(N,)`, with its degrees of freedom."""
    return (float(values.var(ddof=1) / len(values)), len(values) - 1) if len(values) > 1 else (math.inf, 1)


def difference_test(of_seeds: np.ndarray, of_cases: Variances) -> tuple[float, float, float]:
    """95 % interval and two-sided p-value of a difference, over other cases and other trainings.

    The variance is that over cases and that of the mean over trainings together, the degrees of freedom are
    Satterthwaite's. Of one training the second part is not known and left out: its figures are over cases alone.
    Where nothing is known of the cases, the interval is all that can be.

    Args:
        of_seeds: difference of each training, `(S,)`; their mean is what is tested.
        of_cases: variances of the mean over cases.

    Returns:
        Lower and upper end, and p.

    References:
        Satterthwaite, Biometrics Bulletin 2 (1946) 110-114.
    """
    difference = float(of_seeds.mean())
    parts = [*of_cases, *([of_mean(of_seeds)] if len(of_seeds) > 1 else [])]
    if not math.isfinite(total := sum(variance for variance, _ in parts)):
        return -1.0, 1.0, 1.0  # all that a difference of shares can be
    if total == 0:
        return difference, difference, 1.0 if difference == 0 else 0.0
    freedom = total**2 / sum(variance**2 / own for variance, own in parts)
    reach = stats.t.ppf(0.975, freedom) * math.sqrt(total)
    return difference - reach, difference + reach, float(2 * stats.t.sf(abs(difference) / math.sqrt(total), freedom))
