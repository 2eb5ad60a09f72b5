"""Confidence intervals by resampling cases with replacement."""

from collections.abc import Callable

import numpy as np

NUM_RESAMPLES = 1000
LEVEL = 0.95


def resamples(strata: np.ndarray, count: int = NUM_RESAMPLES, seed: int = 0) -> np.ndarray:
    """Indices of resampled cases, `(count, n)`: as many of each stratum (class) as there are.

    Args:
        strata: `(n,)`, the class of each case; one value for all if classes do not matter.
        count: of resamples.
        seed: of the draws.
    """
    generator = np.random.default_rng(seed)
    members = [np.flatnonzero(strata == value) for value in np.unique(strata)]
    return np.concatenate([generator.choice(m, (count, len(m))) for m in members], axis=1)


def limits(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper percentile of samples `(count, ...)` over the first axis, between which `LEVEL` of them lie."""
    tail = (1 - LEVEL) / 2
    low, high = np.nanquantile(samples, (tail, 1 - tail), axis=0)
    return low, high


def interval(
    figure: Callable[..., float], *columns: np.ndarray, strata: np.ndarray | None = None
) -> tuple[float, float]:
    """Percentile bootstrap interval of a figure of cases, at `LEVEL`.

    Args:
        figure: of the resampled columns, e.g. an AUC of truth and score.
        columns: `(n,)` each, one entry per case.
        strata: class of each case, whose numbers are kept in every resample; None resamples all cases alike.

    References:
        Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
    """
    groups = np.zeros(len(columns[0])) if strata is None else strata
    low, high = limits(np.array([figure(*(column[draw] for column in columns)) for draw in resamples(groups)]))
    return float(low), float(high)
