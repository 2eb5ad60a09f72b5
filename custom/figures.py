"""Pictures of results: a case with its mirror image, prediction and truth; the curves of a training."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

DISCLAIMER = "research only, not for clinical use"


def mosaic(cases: Sequence[Mapping[str, object]], path: str | Path, title: str = "") -> None:
    """One row per case: the image, its mirror image, the prediction outlined, the truth outlined; written as a PNG.

    Args:
        cases: each with `image` and `mirrored` `(X, Y, Z)` arrays in RAS, `name`, and optionally `pred` and `label`
            masks. Axial
            slices are shown as seen from above, the patient's left at the left: the slice with most of the label, else
            of the prediction, else the middle one.
        path: of the PNG.
        title: above the picture.
    """
    columns = ["image", "mirrored"] + [name for name in ("pred", "label") if any(name in case for case in cases)]
    figure, axes = plt.subplots(len(cases), len(columns), figsize=(2.4 * len(columns), 2.7 * len(cases)), squeeze=False)
    for row, case in zip(axes, cases, strict=True):
        index = _slice_of_interest(case)
        for axis, column in zip(row, columns, strict=True):
            _draw(axis, case, column, index)
        row[0].set_title(f"{case['name']}", fontsize=7)
    for axis, column in zip(axes[-1], columns, strict=True):
        axis.text(0.5, -0.04, column, transform=axis.transAxes, ha="center", va="top", fontsize=8)
    _save(figure, path, title)


def _slice_of_interest(case: Mapping[str, object]) -> int:
    for name in ("label", "pred"):
        mask = case.get(name)
        if mask is not None and np.any(mask):
            return int(np.argmax(np.sum(mask, axis=(0, 1))))
    return case["image"].shape[2] // 2


def _draw(axis: Axes, case: Mapping[str, object], column: str, index: int) -> None:
    image = case["mirrored"] if column == "mirrored" else case["image"]
    low, high = np.percentile(image, (1, 99.5))
    axis.imshow(image[:, :, index].T, origin="lower", cmap="gray", vmin=low, vmax=high)
    mask = case.get(column) if column in ("pred", "label") else None
    if mask is not None and np.any(mask[:, :, index]):
        axis.contour(mask[:, :, index].T, [0.5], colors="red" if column == "pred" else "lime", linewidths=1)
    axis.axis("off")


def curves(run_dir: str | Path, path: str | Path, title: str = "") -> None:
    """Every scalar that a training logged for TensorBoard, over epochs, one panel each; written as a PNG."""
    scalars = read_scalars(run_dir)
    columns = min(4, max(1, len(scalars)))
    rows = max(1, -(-len(scalars) // columns))
    figure, axes = plt.subplots(rows, columns, figsize=(3 * columns, 2.2 * rows), squeeze=False)
    for axis in axes.flat[len(scalars) :]:
        axis.axis("off")
    for axis, (name, points) in zip(axes.flat, sorted(scalars.items()), strict=False):
        axis.plot(*zip(*points, strict=True), marker=".")
        axis.set_title(name, fontsize=8)
        axis.tick_params(labelsize=7)
    _save(figure, path, title)


def read_scalars(run_dir: str | Path) -> dict[str, list[tuple[int, float]]]:
    """Scalars in the TensorBoard files of a folder: name to (epoch, value) pairs, in order."""
    scalars: dict[str, dict[int, float]] = {}
    for file in sorted(Path(run_dir).glob("events.out.tfevents.*")):
        events = EventAccumulator(str(file)).Reload()
        for name in events.Tags()["scalars"]:
            scalars.setdefault(name, {}).update({event.step: event.value for event in events.Scalars(name)})
    return {name: sorted(points.items()) for name, points in scalars.items()}


def _save(figure: plt.Figure, path: str | Path, title: str) -> None:
    figure.suptitle(f"{title}\n{DISCLAIMER}" if title else DISCLAIMER, fontsize=8)
    figure.tight_layout()
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
