"""Anatomies of the built-in cohort: tissue maps of a head whose midsagittal plane is x = 0.

An `Anatomy` holds volume fractions of `TISSUES` (what they leave free is air), with the brain and its depth below
the skull. It comes from the ICBM152 maps bundled with nilearn, around which `sa_swin.phantom.head` builds a head, or
from a FreeSurfer label map of a whole head. Coordinates are RAS in mm; those of the ICBM152 space are called standard.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from custom.volumes.nifti import read_volume

TISSUES = ("csf", "gm", "wm", "bone", "marrow", "fat", "muscle")
CHANNELS = (*TISSUES, "brain", "depth")
DEPTH_MM = 15.0
"""Depth below the skull's inner surface, in mm, at which the channel `depth` reaches 1."""

# FreeSurfer labels of one hemisphere or of the midline; the other hemisphere's follow from `LEFT_TO_RIGHT`.
LABEL_FRACTIONS: dict[int, dict[str, float]] = {
    2: {"wm": 1}, 3: {"gm": 1}, 4: {"csf": 1}, 5: {"csf": 1}, 7: {"wm": 1}, 8: {"gm": 1},
    10: {"gm": 0.6, "wm": 0.4}, 11: {"gm": 1}, 12: {"gm": 0.85, "wm": 0.15}, 13: {"gm": 0.4, "wm": 0.6},
    14: {"csf": 1}, 15: {"csf": 1}, 16: {"gm": 0.25, "wm": 0.75}, 17: {"gm": 1}, 18: {"gm": 1}, 24: {"csf": 1},
    25: {"wm": 0.7, "gm": 0.3}, 26: {"gm": 1}, 28: {"gm": 0.4, "wm": 0.6}, 30: {"csf": 1}, 72: {"csf": 1},
    85: {"wm": 1}, 136: {"wm": 1}, 137: {"gm": 1}, 502: {"muscle": 1}, 506: {"csf": 1},
    507: {"muscle": 0.85, "fat": 0.15}, 508: {"muscle": 1}, 509: {"muscle": 1},
    511: {"fat": 0.8, "muscle": 0.2}, 512: {"wm": 1}, 514: {"muscle": 1}, 515: {"bone": 1},
    516: {"marrow": 1}, 530: {"wm": 1},
}  # fmt: skip
LEFT_TO_RIGHT = {
    2: 41, 3: 42, 4: 43, 5: 44, 7: 46, 8: 47, 10: 49, 11: 50, 12: 51, 13: 52, 17: 53, 18: 54, 25: 57, 26: 58, 28: 60,
    30: 62, 136: 163, 137: 164,
}  # fmt: skip
LABEL_FRACTIONS |= {right: LABEL_FRACTIONS[left] for left, right in LEFT_TO_RIGHT.items()}
OUTSIDE_BRAIN = {0, 24, *(label for label in LABEL_FRACTIONS if label >= 500)}


@dataclass(frozen=True)
class Anatomy:
    """Tissue maps of one head.

    Args:
        maps: `(C, X, Y, Z)` uint8, the `CHANNELS` scaled to 0-255.
        affine: `(4, 4)`, voxels to mm, with the midsagittal plane at x = 0.
        to_standard: `(4, 4)`, those mm to standard mm, without moving the plane.
    """

    maps: np.ndarray
    affine: np.ndarray
    to_standard: np.ndarray

    def sample(self, points: Tensor, channels: tuple[str, ...] = CHANNELS) -> Tensor:
        """Interpolate channels, `(len(channels), ...)` in 0-1, at `points`, `(..., 3)` in mm."""
        grid = normalized_grid(points, self.affine, self.maps.shape[1:])
        maps = torch.from_numpy(self.maps)[[CHANNELS.index(name) for name in channels]].float()
        return sample_normalized(maps, grid).div_(255)


def normalized_grid(points: Tensor, affine: np.ndarray, shape: tuple[int, ...]) -> Tensor:
    """Points `(..., 3)` in mm as the coordinates, -1 to 1 in the order z, y, x, that `grid_sample` reads."""
    matrix = np.diag(2 / (np.array(shape) - 1)) @ np.linalg.inv(affine)[:3]
    grid = torch.empty_like(points)
    for axis, row in enumerate(matrix):
        column = grid[..., 2 - axis].fill_(float(row[3] - 1))
        for i in np.flatnonzero(row[:3]):
            column.add_(points[..., i], alpha=float(row[i]))
    return grid


def sample_normalized(volumes: Tensor, grid: Tensor) -> Tensor:
    """Linear interpolation of `(C, X, Y, Z)` at a normalized grid `(..., 3)`, `(C, ...)`; zero outside."""
    sampled = F.grid_sample(volumes[None], grid.reshape(1, 1, 1, -1, 3), align_corners=True)
    return sampled.reshape(len(volumes), *grid.shape[:-1])


def signed_distance(mask: np.ndarray, spacing: float) -> np.ndarray:
    """Distance in mm to the surface of a mask, negative inside."""
    outside, inside = ndimage.distance_transform_edt(~mask), ndimage.distance_transform_edt(mask)
    return ((outside - inside + np.where(mask, 0.5, -0.5)) * spacing).astype(np.float32)


def closed(mask: np.ndarray, radius: float, spacing: float) -> np.ndarray:
    """Morphological closing by a ball of `radius` mm."""
    dilated = ndimage.distance_transform_edt(~mask) * spacing <= radius
    return ndimage.distance_transform_edt(dilated) * spacing > radius


def to_channels(fractions: dict[str, np.ndarray], brain: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Stack fractions, the brain and the depth in mm into the uint8 `CHANNELS`."""
    volumes = [*(fractions[name] for name in TISSUES), brain, np.clip(depth / DEPTH_MM, 0, 1)]
    return np.stack([np.rint(255 * np.clip(volume, 0, 1)).astype(np.uint8) for volume in volumes])


def thinned(volume: np.ndarray, factor: int) -> np.ndarray:
    """Every `factor`-th voxel along each axis after a triangular filter of that width; symmetric about the centre."""
    for axis in range(3):
        start = first(volume.shape[axis], factor)
        padded = np.pad(volume, [(factor, factor) if i == axis else (0, 0) for i in range(3)])
        last = factor + volume.shape[axis]
        shifts = range(1 - factor, factor)
        parts = (
            np.take(padded, np.arange(factor + start, last, factor) + k, axis) * np.float32(1 - abs(k) / factor)
            for k in shifts
        )
        volume = sum(parts) / np.float32(factor)
    return volume


def first(size: int, factor: int) -> int:
    """The first voxel that `thinned` keeps along an axis, so that what it keeps is centred."""
    return (size - 1) % factor // 2


def thinned_affine(affine: np.ndarray, shape: tuple[int, ...], factor: int) -> np.ndarray:
    """The affine that goes with `thinned`."""
    coarse = affine.copy()
    coarse[:3, :3] *= factor
    coarse[:3, 3] = affine[:3, :3] @ [first(size, factor) for size in shape] + affine[:3, 3]
    return coarse


@lru_cache(maxsize=16)
def label_anatomy(path: str, factor: int = 1) -> Anatomy:
    """A head from a map of FreeSurfer labels (from 500 on: skull, skin and the like), at `factor` of its voxels.

    Raises:
        ValueError: when the file has labels of neither or of only one hemisphere.
    """
    image = nib.as_closest_canonical(read_volume(path))
    labels = np.asarray(image.dataobj).astype(np.int16)
    spacing = float(np.mean(image.header.get_zooms()[:3]))
    brain = ~np.isin(labels, list(OUTSIDE_BRAIN))
    left, right = np.isin(labels, list(LEFT_TO_RIGHT)), np.isin(labels, list(LEFT_TO_RIGHT.values()))
    if not (left.any() and right.any()):
        raise ValueError(
            f"{path}: expected FreeSurfer labels of both hemispheres, such as 2, 3 and 41, 42; got none of one"
        )
    to_plane = plane_transform(left, right, image.affine)
    box = head_box(brain, spacing)
    affine = to_plane @ image.affine
    affine[:3, 3] += affine[:3, :3] @ [part.start for part in box]
    labels, brain = labels[box], brain[box]
    shape = labels.shape
    brain = closed(thinned(brain.astype(np.float32), factor) > 0.5, 4, spacing * factor)
    depth = -signed_distance(brain, spacing * factor) + 2
    fractions = {name: thinned(label_fraction(labels, name), factor) for name in TISSUES}
    affine = thinned_affine(affine, shape, factor)
    return Anatomy(to_channels(fractions, brain, depth), affine, brain_to_standard(brain, affine))


def label_fraction(labels: np.ndarray, tissue: str) -> np.ndarray:
    """Volume fraction of one tissue in every voxel of a label map."""
    table = np.zeros(int(max(labels.max(), *LABEL_FRACTIONS)) + 1, np.float32)
    for label, fractions in LABEL_FRACTIONS.items():
        table[label] = fractions.get(tissue, 0)
    return table[labels]


def head_box(brain: np.ndarray, spacing: float) -> tuple[slice, ...]:
    """A box around the brain with room for skull, scalp and face: 60 mm in front, 45 below, 30 elsewhere."""
    parts = ndimage.find_objects(brain.astype(np.uint8))[0]
    margins = zip(parts, (30, 30, 45), (30, 60, 30), strict=True)
    return tuple(slice(max(0, int(s.start - a / spacing)), int(s.stop + b / spacing)) for s, a, b in margins)


def plane_transform(left: np.ndarray, right: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """The rigid transform, in mm, that takes the plane between two hemispheres to x = 0 and their centre to y = z = 0.

    The plane is the trimmed least-squares plane through the points halfway between the hemispheres.
    """
    left, right = left[::2, ::2, ::2], right[::2, ::2, ::2]
    to_left, to_right = ndimage.distance_transform_edt(~left), ndimage.distance_transform_edt(~right)
    halfway = (np.abs(to_left - to_right) < 0.7) & (to_left < 4)
    coarse = affine @ np.diag([2, 2, 2, 1])
    points = nib.affines.apply_affine(coarse, np.argwhere(halfway))
    for _ in range(5):
        centre = points.mean(axis=0)
        normal = np.linalg.svd(points - centre, full_matrices=False)[2][2]
        residual = np.abs((points - centre) @ normal)
        points = points[residual <= np.quantile(residual, 0.95)]
    normal *= np.sign(normal[0])
    forward = np.array([0.0, 1.0, 0.0]) - normal[1] * normal
    forward /= np.linalg.norm(forward)
    transform = np.eye(4)
    transform[:3, :3] = np.stack([normal, forward, np.cross(normal, forward)])
    middle = nib.affines.apply_affine(coarse, np.argwhere(left | right)).mean(axis=0)
    transform[:3, 3] = -transform[:3, :3] @ middle
    transform[0, 3] = -normal @ centre
    return transform


def brain_to_standard(brain: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Scale and shift, without moving x = 0, that fit the brain's extent to the ICBM152 brain's."""
    standard = np.array([[-70.0, 70.0], [-105.0, 71.0], [-55.0, 81.0]])
    points = nib.affines.apply_affine(affine, np.argwhere(brain))
    lower, upper = np.quantile(points, 0.002, axis=0), np.quantile(points, 0.998, axis=0)
    scale = (standard[:, 1] - standard[:, 0]) / (upper - lower)
    shift = standard[:, 1] - scale * upper
    shift[0] = 0
    transform = np.diag([*scale, 1])
    transform[:3, 3] = shift
    return transform


def label_maps(folder: str | Path) -> list[str]:
    """The NIfTI files of a folder, sorted.

    Raises:
        ValueError: when the folder is missing or holds none.
    """
    paths = sorted(str(path) for path in Path(folder).glob("*.nii*"))
    if not paths:
        raise ValueError(f"{folder}: expected NIfTI files (*.nii, *.nii.gz), found none")
    return paths
