"""A head around the ICBM152 brain, which nilearn ships without: skull, scalp, eyes, sinuses, neck from simple shapes.

Shapes are signed distances in mm, negative inside, on a grid in standard mm;
`compose` stacks them into volume fractions.
"""

from functools import lru_cache

import nibabel as nib
import numpy as np
import torch
from nilearn import datasets
from scipy import ndimage

from sa_swin.phantom.anatomy import (
    TISSUES,
    Anatomy,
    closed,
    normalized_grid,
    sample_normalized,
    signed_distance,
    thinned,
    thinned_affine,
    to_channels,
)

HEAD_BOX = np.array([[-100.0, 100.0], [-136.0, 125.0], [-136.0, 117.0]])
"""Extent in standard mm (x, y, z) of the head built around the ICBM152 brain."""

GAP, SKULL, SCALP = 2.0, 7.0, 6.0
"""Thickness in mm of the fluid around the brain, of the skull (two tables with marrow between) and of the scalp."""
SHARPNESS = 2.5
"""Exponent that makes an individual's tissues from the group's probabilities."""
FLUID = 1.5
"""Factor on the group's probability of fluid, which opens the sulci that averaging has closed."""


def ellipsoid(
    points: list[np.ndarray], centre: tuple[float, float, float], radii: tuple[float, float, float]
) -> np.ndarray:
    """Approximate signed distance to an ellipsoid, and to its mirror image where `centre` is off the plane."""
    x, y, z = points
    offsets = (np.abs(x) - centre[0], y - centre[1], z - centre[2])
    return (np.sqrt(sum((d / r) ** 2 for d, r in zip(offsets, radii, strict=True))) - 1) * min(radii)


def column(points: list[np.ndarray], top: float, radius: float) -> np.ndarray:
    """Signed distance to a cylinder that follows the spine down from `top` mm."""
    x, y, z = points
    return np.maximum(np.hypot(x, y + 42 + 0.12 * (-70 - z)) - radius, z - top)


def compose(layers: list[tuple[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Volume fractions of stacked layers, each a tissue (or air) and its fraction; later ones cover earlier ones."""
    fractions = {name: np.zeros(layers[0][1].shape, np.float32) for name in TISSUES}
    for tissue, cover in layers:
        box = ndimage.find_objects((cover > 0).astype(np.uint8))[0]
        for volume in fractions.values():
            volume[box] *= 1 - cover[box]
        if tissue in fractions:
            fractions[tissue][box] += cover[box]
    return fractions


def brain_tissues(brain: np.ndarray, gm: np.ndarray, wm: np.ndarray) -> dict[str, np.ndarray]:
    """CSF, grey and white matter of one individual from a group's probabilities; together they fill the brain."""
    inside = brain > 0
    shares = np.stack([FLUID * (1 - gm[inside] - wm[inside]), gm[inside], wm[inside]])
    shares = np.clip(shares, 1e-6, None) ** SHARPNESS
    shares *= brain[inside] / shares.sum(axis=0)
    tissues = {name: np.zeros_like(brain) for name in ("csf", "gm", "wm")}
    for volume, share in zip(tissues.values(), shares, strict=True):
        volume[inside] = share
    return tissues


def shells(brain: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Signed distances to the cavity of the skull and to the head without its scalp.

    Args:
        brain: `(X, Y, Z)` mask at 2 mm.
        affine: its own, without rotation.
    """
    cavity = signed_distance(closed(brain, 12, 2), 2) - GAP
    points = grid_points(brain.shape, affine)
    parts = [
        cavity - SKULL,
        ellipsoid(points, (0, 34, -84), (60, 54, 88)),
        ellipsoid(points, (0, 90, -58), (11, 15, 20)),
        column(points, -60, 50),
    ]
    return cavity, signed_distance(closed(np.minimum.reduce(parts) <= 0, 18, 2), 2)


def grid_points(shape: tuple[int, ...], affine: np.ndarray) -> list[np.ndarray]:
    """Sparse x, y and z in mm of a grid without rotation."""
    axes = [
        (np.arange(n) * step + start).astype(np.float32)
        for n, step, start in zip(shape, np.diag(affine)[:3], affine[:3, 3], strict=True)
    ]
    return list(np.meshgrid(*axes, indexing="ij", sparse=True))


def resampled(volume: np.ndarray, affine: np.ndarray, points: list[np.ndarray]) -> np.ndarray:
    """A volume interpolated at points in mm, those outside taken at its border."""
    dense = torch.stack([torch.from_numpy(axis) for axis in np.broadcast_arrays(*points)], dim=-1)
    grid = normalized_grid(dense, affine, volume.shape).clamp(-1, 1)
    return sample_normalized(torch.from_numpy(volume)[None], grid)[0].numpy()


def head_layers(
    points: list[np.ndarray], cavity: np.ndarray, head: np.ndarray, step: float
) -> list[tuple[str, np.ndarray]]:
    """What a head is made of, outside in: tissue (or air) and the fraction it covers, on a grid of `step` mm."""

    def inside(distance: np.ndarray) -> np.ndarray:
        return np.broadcast_to(np.clip(0.5 - distance / step, 0, 1), cavity.shape)

    orbit = ellipsoid(points, (32, 56, -36), (19, 26, 19))
    ear = ellipsoid(points, (80, -22, -42), (9, 13, 24))
    septum = 1.5 - np.abs(points[0])
    return [
        ("muscle", inside(np.minimum(head - SCALP, ear))),
        ("fat", inside(np.maximum(head - SCALP + 2, -head - 0.5))),
        ("fat", inside(np.maximum(ellipsoid(points, (44, 52, -78), (16, 22, 26)), head + 2)) * 0.7),
        ("bone", inside(np.maximum(ellipsoid(points, (0, 60, -74), (36, 26, 30)), head + 5)) * 0.3),
        ("bone", inside(column(points, -78, 17))),
        ("marrow", inside(column(points, -78, 14))),
        ("bone", inside(orbit - 2)),
        ("bone", inside(np.maximum(cavity - SKULL, -cavity))),
        ("marrow", inside(np.maximum(cavity - SKULL + 2, 2 - cavity))),
        ("fat", inside(orbit)),
        ("muscle", inside(ellipsoid(points, (26, 42, -36), (5, 18, 5)))),
        ("csf", inside(ellipsoid(points, (32, 64, -36), (12, 12, 12)))),
        ("muscle", inside(ellipsoid(points, (32, 73, -36), (5, 2.5, 5)))),
        ("air", inside(np.maximum(ellipsoid(points, (0, 62, -56), (13, 32, 20)), septum))),
        ("muscle", inside(ellipsoid(points, (7, 62, -60), (3, 24, 9)))),
        ("air", inside(ellipsoid(points, (30, 56, -66), (11, 14, 12)))),
        ("air", inside(np.maximum(ellipsoid(points, (10, 78, -12), (9, 4, 12)), 2 - cavity))),
        ("air", inside(ellipsoid(points, (0, 8, -82), (11, 7, 40)))),
        ("air", inside(ellipsoid(points, (56, -32, -50), (6, 8, 10))) * 0.6),
        ("csf", inside(np.minimum(cavity, column(points, -60, 9)))),
        ("wm", inside(column(points, -68, 5.5))),
    ]


@lru_cache(maxsize=4)
def icbm_anatomy(factor: int = 1) -> Anatomy:
    """The ICBM152 brain in a head built around it, at `factor` mm; it is its own mirror image."""
    fine = np.eye(4)
    fine[:3, 3] = HEAD_BOX[:, 0]
    affine = thinned_affine(fine, tuple(np.rint(np.ptp(HEAD_BOX, axis=1)).astype(int) + 1), factor)
    templates = (
        datasets.load_mni152_brain_mask(resolution=1),
        datasets.load_mni152_gm_template(resolution=1),
        datasets.load_mni152_wm_template(resolution=1),
    )
    brain, gm, wm = (place(image) for image in templates)
    cavity, head = shells(brain[::2, ::2, ::2] > 0.5, fine @ np.diag([2, 2, 2, 1]))
    tissue = {name: thinned(volume, factor) for name, volume in brain_tissues(brain, gm, wm).items()}
    brain = thinned(brain, factor)
    points = grid_points(brain.shape, affine)
    cavity, head = (resampled(volume, fine @ np.diag([2, 2, 2, 1]), points) for volume in (cavity, head))
    fractions = compose(head_layers(points, cavity, head, factor))
    for name, volume in fractions.items():
        volume *= 1 - brain
        volume += tissue.get(name, 0)
    return Anatomy(to_channels(fractions, brain, -cavity), affine, np.eye(4))


def place(image: nib.Nifti1Image) -> np.ndarray:
    """Copy a 1 mm RAS image into the `HEAD_BOX`, which contains it."""
    lower = HEAD_BOX[:, 0]
    box = np.zeros(np.rint(HEAD_BOX[:, 1] - lower).astype(int) + 1, np.float32)
    start = np.rint(image.affine[:3, 3] - lower).astype(int)
    box[tuple(slice(a, a + n) for a, n in zip(start, image.shape, strict=True))] = image.get_fdata(dtype=np.float32)
    return box
