"""Calibration of class probabilities: how far they are from the shares that come true, and what corrects them.

Shapes: N cases, K classes.
"""

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax

NUM_BINS = 10
LIMITS = (1 / 32, 32.0)
"""Smallest and largest temperature."""
FEWEST = 20
"""Cases of each class that a fit needs. A share among 20 is known to about 0.2 (95 %, binomial); fitted to fewer, a
bias may move cases to the other class that the network tells apart."""


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


def fit_calibration(probabilities: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray]:
    """The temperature and the class biases with which `logits / temperature + bias` makes these cases most likely.

    The temperature alone cannot help a network that leans to one class. A few cases that are all told apart would call
    for certainty; the labels are therefore softened, as Platt does: a case of a class with n cases counts as
    `(n + 1) / (n + K)` of it, and as `1 / (n + K)` of every other class.

    Args:
        probabilities: `(N, K)`, as predicted.
        labels: `(N,)` integers.

    Returns:
        The temperature, between 1/32 and 32 (above 1 makes less certain), and the biases `(K,)`, whose sum is 0.

    References:
        Guo et al., On Calibration of Modern Neural Networks, ICML 2017, section 4.2; Platt, Probabilistic Outputs for
        Support Vector Machines, 1999.
    """
    logits = log_probabilities(probabilities)
    logits -= logits.mean(1, keepdims=True)
    targets = softened(labels, logits.shape[1])

    def loss_and_gradient(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        slope, bias = parameters[0], parameters[1:]
        log_likely = log_softmax(slope * logits + bias, axis=1)
        excess = (np.exp(log_likely) - targets) / len(logits)  # derivative by the calibrated logits
        return -float((targets * log_likely).sum() / len(logits)), np.array([(excess * logits).sum(), *excess.sum(0)])

    start = np.array([1.0, *np.zeros(logits.shape[1])])
    limits = [(1 / LIMITS[1], 1 / LIMITS[0]), *[(None, None)] * logits.shape[1]]
    slope, *bias = minimize(loss_and_gradient, start, jac=True, bounds=limits, method="L-BFGS-B").x
    return float(1 / slope), np.array(bias) - np.mean(bias)


def softened(labels: np.ndarray, classes: int) -> np.ndarray:
    """Labels `(N,)` as shares of classes `(N, K)`: less than certain where a class has few cases."""
    one_hot = labels[:, None] == np.arange(classes)
    counts = one_hot.sum(0)[labels][:, None]
    return (one_hot * counts + 1) / (counts + classes)
