"""Pictures of a scan's page: the head with its plane and its counterpart, and map and mask in three planes.

Slices are shown as radiologists look at them: the patient's right is at the left of the picture, marked R.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from monai.data import MetaTensor
from monai.utils import GridSampleMode
from scipy import ndimage
from torch import Tensor

from custom.alignment.grid import central_affine, to_grid
from custom.alignment.plane import grid_affine
from custom.symmetry import mirror
from custom.transforms.findings import central_plane
from custom.transforms.intensity import CT_WINDOW
from sa_swin.report.cases import FIELD_MM
from sa_swin.report.figures import WIDTH, seen

AXES = {"axial": 2, "coronal": 1, "sagittal": 0}
LIMIT = 4.0
"""End of the colour scale without a norm, in units of the image's texture: healthy heads stay below 2."""
FAINT = 0.25
"""Share of the colour scale that is not coloured: what any head has, or what is no alarm by the norm."""
COLOURS, OUTLINE = "RdBu_r", "lime"
OF_ALL_VALUES = (1, 99.5)
"""Percentiles of an image that are shown black and white."""
AIR_HU = -500.0
"""Values below it are those of a CT, of which `CT_WINDOW` is shown black and white."""


@dataclass(frozen=True)
class PicturedHead:
    """A head as it is pictured; arrays `(X, Y, Z)` in RAS, a millimetre or the file's finest spacing per voxel.

    Args:
        raw: as it lies in the file.
        distance: of each place of `raw` from the plane, mm, above 0 on the right.
        image: aligned.
        asymmetry: signed, or None.
        lesion: classes, or None.
        places: what is shown in three planes: a caption, and voxels of `image`.
    """

    raw: np.ndarray
    distance: np.ndarray
    image: np.ndarray
    asymmetry: np.ndarray | None
    lesion: np.ndarray | None
    places: Mapping[str, tuple[int, int, int]]


def head_of(
    image: MetaTensor, pair: MetaTensor, values: Tensor | None, lesion: MetaTensor | None, peak: Sequence[float] | None
) -> PicturedHead:
    """A head for its pictures.

    Args:
        image: of the file, `(1, X, Y, Z)`.
        pair: aligned.
        values: asymmetry on the grid of `pair`, `(X, Y, Z)`, or None.
        lesion: mask on the grid of the file, or None.
        peak: of the asymmetry, world mm, or None.
    """
    spacing = [max(1.0, float(image.pixdim.min()))] * 3
    size = tuple(int(side / spacing[0]) for side in FIELD_MM)
    affine, raw_affine = finer(pair, spacing, size), central_affine(image, spacing, size)
    aligned = to_grid(image, affine, size, GridSampleMode.BILINEAR)[0].numpy()
    shown = None
    if values is not None:
        shown = to_grid(MetaTensor(values[None], affine=pair.affine), affine, size, GridSampleMode.BILINEAR)[0].numpy()
    mask = None if lesion is None else to_grid(lesion, affine, size, GridSampleMode.NEAREST)[0].numpy()
    places = {}
    if peak is not None:
        voxel = np.linalg.inv(affine.numpy()) @ [*peak, 1]
        places["the peak of the asymmetry"] = tuple(
            int(np.clip(round(v), 0, n - 1)) for v, n in zip(voxel[:3], size, strict=True)
        )
    places |= lesion_place(mask, places.values())
    return PicturedHead(
        to_grid(image, raw_affine, size, GridSampleMode.BILINEAR)[0].numpy(),
        distances(pair, raw_affine, size),
        aligned,
        shown,
        mask,
        places or {"the middle": tuple(n // 2 for n in size)},
    )


def finer(pair: MetaTensor, spacing: Sequence[float], size: Sequence[int]) -> Tensor:
    """Affine of a grid with the axes and the middle of an aligned volume, and another spacing and size."""
    own = pair.affine.double()
    middle = own @ torch.tensor([*((np.array(pair.shape[1:]) - 1) / 2), 1.0], dtype=torch.float64)
    return grid_affine(own[:3, :3] / own[:3, :3].norm(dim=0), middle[:3], spacing, size)


def distances(pair: MetaTensor, affine: Tensor, size: Sequence[int]) -> np.ndarray:
    """Distance (mm) of each voxel of a grid from the midsagittal plane of an aligned volume."""
    plane, matrix = central_plane(pair), affine.numpy()
    steps, start = plane.normal @ matrix[:3, :3], plane.normal @ matrix[:3, 3] - plane.offset
    return sum(step * index for step, index in zip(steps, np.ogrid[tuple(map(slice, size))], strict=True)) + start


def lesion_place(mask: np.ndarray | None, taken: Sequence[Sequence[int]]) -> dict[str, tuple[int, int, int]]:
    """The deepest place of a mask's largest finding, unless a place that is taken is in the mask."""
    if mask is None or not mask.any() or any(mask[tuple(place)] for place in taken):
        return {}
    labelled, _ = ndimage.label(mask > 0)
    largest = labelled == np.bincount(labelled.ravel())[1:].argmax() + 1
    depth = ndimage.distance_transform_edt(largest)
    return {"the largest lesion": tuple(int(v) for v in np.unravel_index(depth.argmax(), depth.shape))}


def plane_figure(head: PicturedHead) -> Figure:
    """The head as it lies with its plane, axial and coronal; aligned, and its mirrored counterpart."""
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    panels = figure.subplots(1, 4)
    place = next(iter(head.places.values()))
    middle = tuple(n // 2 for n in head.raw.shape)
    grey = greys(head.image)
    for axis, view in zip(panels[:2], ("axial", "coronal"), strict=True):
        draw(axis, head.raw, view, middle, grey, f"as it lies, {view}")
        axis.contour(seen(cut(head.distance, view, middle)), [0], colors="cyan", linewidths=1)
    mirrored = mirror(torch.from_numpy(head.image)).numpy()
    for axis, image, title in ((panels[2], head.image, "aligned"), (panels[3], mirrored, "mirrored counterpart")):
        draw(axis, image, "axial", place, grey, title, sides=title == "aligned")
        axis.axvline((image.shape[0] - 1) / 2, color="cyan", linewidth=0.6)
        axis.plot(*on_screen(place, "axial", image.shape), "o", ms=16, mfc="none", mec="yellow", mew=1)
    return figure


def place_figure(head: PicturedHead, place: Sequence[int], limit: float, threshold: float | None, unit: str) -> Figure:
    """Three planes through a place: the image, and the map with its colour bar; the lesion is outlined in both.

    Args:
        head: pictured.
        place: voxels.
        limit: end of the colour scale.
        threshold: marked on the bar, or None.
        unit: of the map.
    """
    rows = 1 if head.asymmetry is None else 2
    figure = Figure(figsize=(WIDTH, 4.1 * rows + 0.3 * (rows - 1)), layout="constrained")
    widths = [cut(head.image, view, place).shape[0] for view in AXES]
    panels = figure.subplots(rows, 3, squeeze=False, width_ratios=widths)
    grey, scale = greys(head.image), Normalize(-limit, limit)
    for row, mapped in zip(panels, (False, True)[:rows], strict=True):
        for axis, view in zip(row, AXES, strict=True):
            draw(axis, head.image, view, place, grey, view if not mapped else "")
            if mapped:
                layer = cut(head.asymmetry, view, place)
                alpha = np.clip(np.abs(layer) / limit / FAINT - 1, 0, 0.75)
                axis.imshow(seen(layer), cmap=COLOURS, norm=scale, alpha=seen(alpha))
            if head.lesion is not None and (outline := cut(head.lesion, view, place) > 0).any():
                axis.contour(seen(outline), [0.5], colors=OUTLINE, linewidths=1)
            if not mapped:
                x, y = on_screen(place, view, head.image.shape)
                axis.axvline(x, color="yellow", linewidth=0.6, alpha=0.6)
                axis.axhline(y, color="yellow", linewidth=0.6, alpha=0.6)
    if rows == 2:
        bar = figure.colorbar(ScalarMappable(scale, COLOURS), ax=panels, location="bottom", shrink=0.6, aspect=50)
        bar.set_label(f"asymmetry, {unit}; below 0 the counterpart is the stranger of the two", fontsize=9)
        if threshold is not None:
            bar.ax.axvline(threshold, color="black")
    return figure


def draw(
    axis: Axes,
    volume: np.ndarray,
    view: str,
    place: Sequence[int],
    grey: tuple[float, float],
    title: str,
    sides: bool = True,
) -> None:
    """A grey slice with its sides marked."""
    axis.axis("off")
    axis.imshow(seen(cut(volume, view, place)), cmap="gray", vmin=grey[0], vmax=grey[1], interpolation="bilinear")
    axis.set_title(title, fontsize=9)
    left, right = ("A", "P") if view == "sagittal" else ("R", "L")
    for x, letter in ((0.03, left), (0.97, right)) if sides else ():
        axis.text(x, 0.98, letter, transform=axis.transAxes, color="white", fontsize=8, ha="center", va="top")


def cut(volume: np.ndarray, view: str, place: Sequence[int]) -> np.ndarray:
    """The slice of a view through a place."""
    return np.take(volume, place[AXES[view]], AXES[view])


def on_screen(place: Sequence[int], view: str, shape: Sequence[int]) -> tuple[int, int]:
    """Column and row of a place in the picture that `seen` makes of its slice."""
    across, up = (axis for axis in range(3) if axis != AXES[view])
    return shape[across] - 1 - place[across], shape[up] - 1 - place[up]


def greys(image: np.ndarray) -> tuple[float, float]:
    """Values shown black and white."""
    if image.min() < AIR_HU:
        return CT_WINDOW
    low, high = np.percentile(image, OF_ALL_VALUES)
    return float(low), max(float(high), float(low) + 1e-6)
