"""Calibration of class probabilities: how far they are from the shares that come true, and one temperature against it.

Shapes: N cases, K classes.
"""

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

NUM_BINS = 10
LIMITS = (1 / 32, 32.0)
"""Smallest and largest temperature."""


def bins(truth: np.ndarray, probability: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean probability, share that is true, and cases, of each of ten bins of equal width that holds any."""
    index = np.minimum((probability * NUM_BINS).astype(int), NUM_BINS - 1)
    held = [index == number for number in range(NUM_BINS) if np.any(index == number)]
    means = [[values[chosen].mean() for chosen in held] for values in (probability, truth.astype(float))]
    return np.array(means[0]), np.array(means[1]), np.array([chosen.sum() for chosen in held])


def calibration_error(truth: np.ndarray, probability: np.ndarray) -> float:
    """Expected calibration error: mean distance of predicted probability and observed share, over cases."""
    predicted, observed, counts = bins(truth, probability)
    return float((np.abs(predicted - observed) * counts).sum() / counts.sum())


def log_probabilities(probabilities: np.ndarray) -> np.ndarray:
    """Logarithms of `(N, K)` probabilities in single precision, those of 0 as the smallest it holds."""
    return np.log(np.maximum(probabilities, np.finfo(np.float32).tiny))


def fit_temperature(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The temperature by which logits must be divided so that these cases are most likely; above 1 makes less certain.

    A few cases that are all told apart would call for certainty. The labels are therefore softened, as Platt does: a
    case of a class with n cases counts as `(n + 1) / (n + K)` of it, and as `1 / (n + K)` of every other class.

    Args:
        probabilities: `(N, K)`, as predicted.
        labels: `(N,)` integers.

    Returns:
        The temperature, between 1/32 and 32.

    References:
        Guo et al., On Calibration of Modern Neural Networks, ICML 2017, section 4.2; Platt, Probabilistic Outputs for
        Support Vector Machines, 1999.
    """
    logits = log_probabilities(probabilities)
    classes = np.arange(logits.shape[1])
    counts = (labels[:, None] == classes).sum(0)[labels]
    targets = ((labels[:, None] == classes) * counts[:, None] + 1) / (counts[:, None] + len(classes))

    def loss(log_temperature: float) -> float:
        return -float((targets * log_softmax(logits / np.exp(log_temperature), axis=1)).sum(1).mean())

    return float(np.exp(minimize_scalar(loss, bounds=np.log(LIMITS), method="bounded").x))
