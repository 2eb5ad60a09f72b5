"""Pictures of results: a case with its mirror image, prediction and truth; the curves of a training.

Slices are axial and coronal, shown as radiologists look at them: the patient's right is at the left of the picture,
marked R. They are slices of the aligned volume, as the network saw it. `nilearn.plotting` cuts along the axes of the
world, for which it would resample a volume that is aligned to its head, and it has no place for a mirror image.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")

from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

OUTLINES = {"prediction": "red", "truth": "lime"}
COLUMNS = ("image", "mirrored", "prediction", "truth", "asymmetry")
VIEWS = ("axial", "coronal")
WIDTH = 11.0  # inches: that of the page


def mosaic(cases: Sequence[Mapping[str, object]]) -> Figure:
    """One row per case: the image, its mirror image, the prediction and the truth outlined, the asymmetry map.

    The mirror image is shown in the axial slice alone, all else in the coronal one, too. Asymmetry has one colour scale
    over all cases, from 0 to their largest, and a bar of it.

    Args:
        cases: each with `name`, `image` and `mirrored` `(X, Y, Z)` aligned arrays in RAS, and, where there are any,
            `prediction` and `truth` masks and `asymmetry`. The slices shown have most of the truth, else of the
            prediction, else they are the middle ones.
    """
    columns = [name for name in COLUMNS if any(name in case for case in cases)]
    panels = [(name, view) for view in VIEWS for name in columns if (name, view) != ("mirrored", "coronal")]
    side = WIDTH / len(panels)
    figure = Figure(figsize=(WIDTH, (1.2 * side + 0.2) * len(cases) + 0.7), layout="constrained")
    axes = figure.subplots(len(cases), len(panels), squeeze=False)
    maps = [case["asymmetry"] for case in cases if "asymmetry" in case]
    scale = Normalize(0, max((float(np.max(layer)) for layer in maps), default=0) or 1)
    for row, case in zip(axes, cases, strict=True):
        for axis, (column, view) in zip(row, panels, strict=True):
            _draw(axis, case, column, _slice_of_interest(case, view), scale)
        row[0].set_title(str(case["name"]), fontsize=8, loc="left")
    for axis, panel in zip(axes[-1], panels, strict=True):
        axis.text(0.5, -0.02, ", ".join(panel), transform=axis.transAxes, ha="center", va="top", fontsize=8)
    if maps:
        bar = figure.colorbar(ScalarMappable(scale, "inferno"), ax=axes, location="bottom", shrink=0.4, aspect=40)
        bar.set_label("asymmetry", fontsize=8)
    return figure


def _slice_of_interest(case: Mapping[str, object], view: str) -> tuple[slice | int, ...]:
    """The index of a slice."""
    along = 2 if view == "axial" else 1
    position = case["image"].shape[along] // 2
    for name in ("prediction", "truth"):
        mask = case.get(name)
        if mask is not None and np.any(mask):
            position = int(np.argmax(np.sum(mask > 0, axis=(0, 3 - along))))
    return tuple(position if axis == along else slice(None) for axis in range(3))


def _draw(
    axis: Axes, case: Mapping[str, object], column: str, index: tuple[slice | int, ...], scale: Normalize
) -> None:
    axis.axis("off")
    image = case["mirrored"] if column == "mirrored" else case["image"]
    low, high = np.percentile(image, (1, 99.5))
    axis.imshow(seen(image[index]), cmap="gray", vmin=low, vmax=max(high, low + 1e-6))
    layer = case.get(column) if column in (*OUTLINES, "asymmetry") else None
    if column == "asymmetry" and layer is not None:
        axis.imshow(seen(layer[index]), cmap="inferno", alpha=0.6, norm=scale)
    elif layer is not None and np.any(layer[index]):
        axis.contour(seen(layer[index] > 0), [0.5], colors=OUTLINES[column], linewidths=1)
    for x, letter in () if column == "mirrored" else ((0.02, "R"), (0.98, "L")):
        axis.text(x, 0.98, letter, transform=axis.transAxes, color="white", fontsize=7, ha="center", va="top")


def seen(plane: np.ndarray) -> np.ndarray:
    """A slice `(X, Y or Z)` with the patient's right at the left, and the front or the top up."""
    return plane[::-1, ::-1].T


def panel_grid(count: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure with so many panels of a width and height in inches, four in a row."""
    across, down = min(4, max(1, count)), max(1, -(-count // 4))
    figure = Figure(figsize=(width * across, height * down), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False).ravel().tolist()
    for axis in axes[count:]:
        axis.axis("off")
    return figure, axes[:count]


def curves(scalars: Mapping[str, Sequence[tuple[int, float]]], kept: int | None = None) -> Figure:
    """Scalars of a training over epochs: a panel for each quantity, with its training and its validation values.

    Args:
        scalars: of `read_scalars`; `train_loss` and `loss` are one quantity.
        kept: epoch to mark, whose weights were kept.
    """
    measured = quantities(scalars)
    figure, axes = panel_grid(len(measured), 2.75, 2.2)
    for axis, (name, lines) in zip(axes, measured.items(), strict=True):
        _plot_quantity(axis, lines, kept)
        axis.set_title(name.replace("_", " "), fontsize=8)
    return figure


def quantities(
    scalars: Mapping[str, Sequence[tuple[int, float]]],
) -> dict[str, dict[str, Sequence[tuple[int, float]]]]:
    """What was measured, the losses first, and its values in `training` and `validation`, where there are any.

    `neg_loss`, by which weights are chosen, says the same as `loss`.
    """
    found: dict[str, dict[str, Sequence[tuple[int, float]]]] = {}
    for name in sorted(scalars, key=lambda name: (not name.endswith("loss"), name)):
        if not (name == "neg_loss" and "loss" in scalars):
            part = "training" if name.startswith("train_") else "validation"
            found.setdefault(name.removeprefix("train_"), {})[part] = scalars[name]
    return found


def _plot_quantity(axis: Axes, lines: Mapping[str, Sequence[tuple[int, float]]], kept: int | None) -> None:
    for part, points in sorted(lines.items()):
        axis.plot(*zip(*points, strict=True), marker=".", label=part, color="C0" if part == "training" else "C1")
    if kept is not None:
        axis.axvline(kept, linestyle=":", color="grey", linewidth=1)
    axis.legend(fontsize=6)
    axis.tick_params(labelsize=7)
    axis.set_xlabel("epoch", fontsize=7)
    axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))


def read_scalars(run_dir: str | Path) -> dict[str, list[tuple[int, float]]]:
    """Scalars in the TensorBoard files of a folder: name to (epoch, value) pairs, in order.

    A later file goes on with a scalar from its first epoch of it: of a training begun anew in the same folder nothing
    older is left. One run writes two files, training values and those of the validation.
    """
    scalars: dict[str, dict[int, float]] = {}
    for file in sorted(Path(run_dir).glob("events.out.tfevents.*")):
        events = EventAccumulator(str(file)).Reload()
        for name in events.Tags()["scalars"]:
            own = {event.step: event.value for event in events.Scalars(name)}
            scalars[name] = {step: v for step, v in scalars.get(name, {}).items() if step < min(own)} | own
    return {name: sorted(points.items()) for name, points in scalars.items()}
