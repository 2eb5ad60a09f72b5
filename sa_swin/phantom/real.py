"""Healthy heads of real people as the ground for painted lesions: where the brain is, and what its tissues look like.

Everything is taken from the T1w image itself: the midsagittal plane by `custom.alignment`, the brain by thresholds
and morphology, the tissues by a mixture of three Gaussians, slow shading and noise by smoothing.
"""

from dataclasses import dataclass

import nibabel as nib
import numpy as np
import torch
from scipy import ndimage
from sklearn.mixture import GaussianMixture
from torch import Tensor

from custom.alignment.head import otsu
from custom.alignment.plane import MidsagittalPlane, aligned_affine, estimate_plane
from custom.volumes.nifti import read_volume
from sa_swin.phantom.anatomy import DEPTH_MM, brain_to_standard

CORE_MM = 4.0
"""The brain is the largest bright body that is left when this much is taken off all surfaces."""
GROWTH_MM = 6.0
"""How far it then grows back within what is bright."""
SULCI_MM = 8.0
"""Radius of the closing that gives sulci and ventricles to the brain."""
SHADING_MM = 20.0
"""Standard deviation of the filter that leaves only the coil's shading."""
LEAST_ML, MOST_ML = 600.0, 2200.0
"""Volumes between which a brain's lies, sulci and ventricles included."""


@dataclass(frozen=True)
class Head:
    """A healthy head, in RAS.

    Args:
        image: `(X, Y, Z)` float32, in the file's own unit.
        affine: `(4, 4)`, voxels to the world, mm.
        spacing: `(3,)`, mm.
        plane: midsagittal.
        to_head: `(4, 4)`, voxels to the head, mm.
        points: `(X, Y, Z, 3)`, mm in the head: its plane is x = 0, its right side positive.
        brain: `(X, Y, Z)` bool, ventricles and sulci included.
        depth: `(X, Y, Z)`, below the brain's surface, 0 to 1 at `DEPTH_MM`.
        standard: `(X, Y, Z, 3)`, mm in standard space, roughly.
        means: of fluid, grey and white matter, rising.
        shading: `(X, Y, Z)`, factor on them.
        noise: standard deviation of the image in white matter.
    """

    image: np.ndarray
    affine: np.ndarray
    spacing: np.ndarray
    plane: MidsagittalPlane
    to_head: np.ndarray
    points: Tensor
    brain: np.ndarray
    depth: np.ndarray
    standard: Tensor
    means: tuple[float, float, float]
    shading: np.ndarray
    noise: float

    @property
    def tissue(self) -> np.ndarray:
        """Grey and white matter, `(X, Y, Z)` bool."""
        fluid, grey, _ = self.means
        return self.brain & (self.image > self.shading * (fluid + grey) / 2)


def read_head(path: str) -> tuple[Head, nib.Nifti1Image]:
    """A head and the image it is from; the plane is taken as it is found, trusted or not.

    Raises:
        ValueError: when no head or no brain is found.
        VolumeFileError: when the file cannot be read.
    """
    source = read_volume(path)
    upright = nib.as_closest_canonical(source)
    image = np.asarray(upright.dataobj, dtype=np.float32)
    affine = np.asarray(upright.affine, dtype=np.float64)
    plane = estimate_plane(torch.from_numpy(image), torch.from_numpy(affine))
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    brain = find_brain(image, spacing)
    volume = brain.sum() * spacing.prod() / 1000
    if not LEAST_ML <= volume <= MOST_ML:
        raise ValueError(f"{path}: expected a brain of {LEAST_ML:g} to {MOST_ML:g} ml, found {volume:.0f} ml")
    to_head = np.linalg.inv(aligned_affine(plane, 1.0, (1, 1, 1)).numpy()) @ affine
    points = moved(np.moveaxis(np.indices(image.shape, dtype=np.float32), 0, -1), to_head)
    standard = brain_to_standard(brain, to_head)
    depth = np.clip(ndimage.distance_transform_edt(brain, spacing) / DEPTH_MM, 0, 1).astype(np.float32)
    own = (points, brain, depth, moved(points.numpy(), standard), *appearance(image, brain, spacing))
    return Head(image, affine, spacing, plane, to_head, *own), source


def moved(points: np.ndarray, affine: np.ndarray) -> Tensor:
    """Points `(..., 3)` after an affine map, float32."""
    return torch.from_numpy((points @ affine[:3, :3].T + affine[:3, 3]).astype(np.float32))


def largest(mask: np.ndarray) -> np.ndarray:
    """The largest connected part of a mask (faces connect)."""
    labels, count = ndimage.label(mask)
    return labels == 1 + np.argmax(np.bincount(labels.ravel(), minlength=2)[1:]) if count else mask


def find_brain(image: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """The brain with its ventricles and sulci, `(X, Y, Z)` bool, in a T1w image with or without the skull."""
    values = image[image > image.min()]
    bright = image > otsu(torch.from_numpy(np.minimum(values, np.quantile(values, 0.98))))
    core = largest(ndimage.distance_transform_edt(bright, spacing) > CORE_MM)
    grown = largest((ndimage.distance_transform_edt(~core, spacing) <= GROWTH_MM) & bright)
    wide = ndimage.distance_transform_edt(~grown, spacing) <= SULCI_MM
    return ndimage.binary_fill_holes(ndimage.distance_transform_edt(wide, spacing) > SULCI_MM)


def appearance(
    image: np.ndarray, brain: np.ndarray, spacing: np.ndarray
) -> tuple[tuple[float, float, float], np.ndarray, float]:
    """The means of fluid, grey and white matter, the shading that multiplies them, and the noise of white matter."""
    values = image[brain]
    low, high = np.quantile(values, [0.01, 0.99])
    sample = values[:: max(1, len(values) // 20_000), None].clip(low, high)
    start = np.quantile(sample, [0.05, 0.4, 0.8])[:, None]
    mixture = GaussianMixture(3, means_init=start, random_state=0).fit(sample)
    order = np.argsort(mixture.means_[:, 0])
    means = mixture.means_[order, 0]
    expected = np.zeros_like(image)
    expected[brain] = mixture.predict_proba(values[:, None])[:, order] @ means
    sigma = SHADING_MM / spacing
    shading = smoothed(np.where(brain, image, 0), sigma) / np.maximum(smoothed(expected, sigma), 1e-3 * means[2])
    shading = np.clip(shading, 0.5, 2)
    white = brain & (image > shading * (0.25 * means[1] + 0.75 * means[2]))
    inner = ndimage.binary_erosion(white)
    rest = (image - ndimage.median_filter(image, 3))[inner if inner.sum() > 200 else white]
    return tuple(float(mean) for mean in means), shading, float(1.4826 * np.median(np.abs(rest)) + 1e-6)


def smoothed(volume: np.ndarray, sigma: np.ndarray | float) -> np.ndarray:
    """A Gaussian filter of `sigma` voxels."""
    return ndimage.gaussian_filter(volume.astype(np.float32), sigma)
