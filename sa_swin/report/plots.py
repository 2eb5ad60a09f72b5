"""Plots of a report: ROC and precision-recall with confidence bands, calibration, confusion, Dice against volume."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn.metrics import ConfusionMatrixDisplay, precision_recall_curve, roc_curve

from custom.evaluation.calibration import bins
from sa_swin.bootstrap import limits, resamples
from sa_swin.report.figures import panel_grid

GRID = np.linspace(0, 1, 101)


def detection(truth: np.ndarray, score: np.ndarray, caption: str) -> Figure:
    """The scores of both groups, and ROC and precision-recall with their bootstrapped 95 % bands.

    Args:
        truth: `(n,)` booleans, both present.
        score: `(n,)`, higher for what is true.
        caption: what is detected.
    """
    figure = Figure(figsize=(11, 3.9), layout="constrained")
    figure.suptitle(caption, fontsize=10)
    groups, left, right = figure.subplots(1, 3)
    _scores(groups, truth, score)
    _band(left, _roc, truth, score)
    left.plot([0, 1], [0, 1], ":", color="grey")
    left.set(xlabel="1 - specificity", ylabel="sensitivity", title="ROC")
    _band(right, _precision_recall, truth, score)
    right.axhline(truth.mean(), linestyle=":", color="grey")
    right.set(xlabel="sensitivity (recall)", ylabel="precision", title="precision and recall")
    for axis in (left, right):
        axis.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    for axis in (groups, left, right):
        axis.title.set_fontsize(9)
    return figure


def _scores(axis: Axes, truth: np.ndarray, score: np.ndarray) -> None:
    """The score of every case, beside each other in the two groups."""
    for place, group in enumerate((~truth, truth)):
        values = np.sort(score[group])
        spread = 0.3 * np.sin(2.4 * np.arange(len(values)))  # so that equal scores do not hide each other
        axis.scatter(place + spread, values, s=14, alpha=0.7)
        axis.hlines(np.median(values), place - 0.4, place + 0.4, color="black", linewidth=1)
    names = [f"{name} ({count})" for name, count in (("no", (~truth).sum()), ("yes", truth.sum()))]
    axis.set(xticks=[0, 1], xticklabels=names, xlim=(-0.6, 1.6), ylabel="score", title="scores, with medians")


def _roc(truth: np.ndarray, score: np.ndarray) -> np.ndarray:
    """Sensitivity at each false positive rate of `GRID`."""
    false, true, _ = roc_curve(truth, score, drop_intermediate=False)
    return true[np.searchsorted(false, GRID, side="right") - 1]


def _precision_recall(truth: np.ndarray, score: np.ndarray) -> np.ndarray:
    """The best precision at each recall of `GRID` or more."""
    precision, recall, _ = precision_recall_curve(truth, score)
    best = np.maximum.accumulate(precision[:-1])[::-1]  # now by rising recall; the last point, (0, 1), is no threshold
    return best[np.searchsorted(recall[:-1][::-1], GRID - 1e-9)]


def _band(axis: Axes, curve: Callable[..., np.ndarray], truth: np.ndarray, score: np.ndarray) -> None:
    draws = resamples(truth)
    low, high = limits(np.array([curve(truth[draw], score[draw]) for draw in draws]))
    axis.fill_between(GRID, low, high, alpha=0.25, step="post", linewidth=0)
    axis.step(GRID, curve(truth, score), where="post")


def calibration(truth: np.ndarray, probability: np.ndarray, caption: str) -> Figure:
    """How often a class is true where its predicted probability is so and so: ten bins, sized by their cases."""
    figure = Figure(figsize=(4, 3.9), layout="constrained")
    axis = figure.subplots()
    predicted, observed, counts = bins(truth, probability)
    axis.plot([0, 1], [0, 1], ":", color="grey")
    axis.plot(predicted, observed, color="C0", linewidth=1)
    axis.scatter(predicted, observed, s=20 + 200 * counts / counts.sum(), color="C0", alpha=0.7)
    axis.set(xlabel="predicted probability", ylabel="observed share", xlim=(-0.05, 1.05), ylim=(-0.05, 1.05))
    axis.set_title(f"calibration: {caption}", fontsize=9)
    return figure


def confusion(labels: Sequence[int], predictions: Sequence[int], names: Sequence[str]) -> Figure:
    """Counts of true and predicted classes."""
    figure = Figure(figsize=(3.6, 3.9), layout="constrained")
    axis = figure.subplots()
    look = {"cmap": "Blues", "im_kw": {"vmin": 0}, "colorbar": False}
    look |= {"display_labels": names, "xticks_rotation": 30 if max(map(len, names)) > 3 else 0}
    ConfusionMatrixDisplay.from_predictions(labels, predictions, labels=range(len(names)), ax=axis, **look)
    axis.set(xlabel="predicted class", ylabel="true class")
    axis.set_title("confusion matrix", fontsize=9)
    return figure


def dice_and_volume(dice: np.ndarray, truth_ml: np.ndarray, predicted_ml: np.ndarray) -> Figure:
    """Dice against true volume, and predicted against true volume, one point per case."""
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.scatter(truth_ml, dice, s=14, alpha=0.8)
    left.set(xlabel="true volume, ml", ylabel="Dice", ylim=(-0.03, 1.03))
    if 0 < 10 * truth_ml.min() < truth_ml.max():
        left.set_xscale("log")
    right.scatter(truth_ml, predicted_ml, s=14, alpha=0.8)
    most = max(truth_ml.max(), predicted_ml.max(), 1e-6) * 1.05
    right.plot([0, most], [0, most], ":", color="grey")
    right.set(xlabel="true volume, ml", ylabel="predicted volume, ml", xlim=(0, most), ylim=(0, most))
    return figure


def histograms(columns: Mapping[str, np.ndarray]) -> Figure:
    """One small histogram per column of numbers, four in a row."""
    figure, axes = panel_grid(len(columns), 2.7, 1.9)
    for axis, (name, values) in zip(axes, columns.items(), strict=True):
        axis.hist(values, bins=12)
        axis.set_title(name, fontsize=8)
        axis.tick_params(labelsize=7)
        axis.locator_params(axis="x", nbins=4)
        axis.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    return figure
