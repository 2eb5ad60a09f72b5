"""Contact sheets: many aligned heads on a page, with the central line drawn, so that a misaligned one stands out."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from custom.support.files import write_whole
from custom.transforms.intensity import CT_WINDOW

COLUMNS, ROWS = 4, 6


@dataclass(frozen=True)
class Tile:
    """One case of a sheet: a picture file of `thumbnail`, a caption, and whether it needs a look."""

    picture: Path
    caption: str
    suspect: bool


def thumbnail(image: Tensor) -> np.ndarray:
    """An axial and a coronal slice through the middle, side by side, as they are seen on a screen.

    The patient's right is on the left of the picture, as radiologists look at it.

    Args:
        image: `(X, Y, Z)` aligned, RAS.

    Returns:
        `(H, W)` uint8, superior and anterior up; the central line of each half is the midsagittal plane.
    """
    volume = image.numpy()
    x, y, z = volume.shape
    slices = [volume[::-1, :, int(z * 0.55)], volume[::-1, y // 2, :]]
    if volume.min() < -500:
        low, high = CT_WINDOW
    else:
        low = float(np.median(volume[0]))
        seen = np.concatenate([part.ravel() for part in slices])
        head = seen[seen > low + 0.02 * (seen.max() - low)]
        high = float(np.quantile(head, 0.97)) if head.size else low + 1
    height = max(y, z)
    canvas = np.zeros((height, 2 * x), dtype=np.uint8)
    for column, part in enumerate(slices):
        grey = np.clip((part.T[::-1] - low) / max(high - low, 1e-6), 0, 1) * 255
        top = (height - grey.shape[0]) // 2
        canvas[top : top + grey.shape[0], column * x : (column + 1) * x] = grey.astype(np.uint8)
    return canvas


def save_thumbnail(image: Tensor, path: Path) -> None:
    """Write `thumbnail` as a grey PNG."""
    picture = thumbnail(image)
    write_whole(path, lambda partial: matplotlib.image.imsave(partial, picture, cmap="gray", vmin=0, vmax=255))


def contact_sheets(tiles: Sequence[Tile], folder: Path) -> list[Path]:
    """Lay out tiles in pages `contact_sheet_01.png`, ...; captions of suspects are red.

    Args:
        tiles: in reading order: the least trusted first.
        folder: where the pages are written; those of an earlier run are replaced.
    """
    per_page = COLUMNS * ROWS
    starts = range(0, len(tiles), per_page)
    paths = [folder / f"contact_sheet_{page + 1:02d}.png" for page in range(len(starts))]
    for path, start in zip(paths, starts, strict=True):
        page = _page(tiles[start : start + per_page])
        write_whole(path, lambda partial, page=page: page.savefig(partial, dpi=110, facecolor="black"))
    for old in set(folder.glob("contact_sheet_*.png")) - set(paths):
        old.unlink()
    return paths


def _page(tiles: Sequence[Tile]) -> Figure:
    rows = -(-len(tiles) // COLUMNS)
    figure = Figure(figsize=(4.2 * COLUMNS, 2.9 * rows), layout="constrained")
    for axes, tile in zip(figure.subplots(rows, COLUMNS, squeeze=False).flat, tiles, strict=False):
        picture = matplotlib.image.imread(tile.picture)
        axes.imshow(picture)
        width = picture.shape[1]
        for center in (width / 4, 3 * width / 4):
            axes.axvline(center - 0.5, color="cyan", linewidth=0.6)
        axes.set_title(tile.caption, fontsize=8, color="red" if tile.suspect else "white")
    for axes in figure.axes:
        axes.axis("off")
    return figure
