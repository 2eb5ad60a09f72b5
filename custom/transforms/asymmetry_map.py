"""The asymmetry map of an image itself: each place against the most alike place near its counterpart; no network.

Two healthy halves are no mirror images: gyri, vessels and ventricles lie a few millimetres off, and where an image is
full of edges, that is enough for a large difference. So a patch is compared with the most alike one in a
neighbourhood of its counterpart, and what is left is measured in units of the image's own texture there. A lesion
is a place that fits nothing near its counterpart, although little changes from voxel to voxel.

Volumes are `(B, C, X, Y, Z)` in RAS, aligned, standardised MR (`custom.transforms.intensity`), of about 3 mm voxels.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from monai.networks.layers import GaussianFilter
from scipy import ndimage
from torch import Tensor

from custom.symmetry import mirror

TOLERANCE_MM = 4.5
"""How far from its counterpart a patch is looked for: what alignment and healthy asymmetry leave."""
TEXTURE_MM, SMOOTHING_MM, LEVEL_MM, SIDE_MM = 4.5, 7.5, 9.0, 6.0
"""Standard deviations of the Gaussian filters of texture, difference, intensity and the choice of a side."""
SMOOTHEST = 0.03
"""Texture, as a share of the brain's mean, that any place has at least: noise is no perfect fit."""
BRAIN_LEVEL = 0.55
"""Of the way from background to the head's depth: skull lies below, and scalp is beyond the skull."""
BRIDGE_MM, SULCUS_MM = 6.0, 12.0
"""Half the thickness of bridges, as from brain to scalp, that are cut, and half the width of clefts that are closed."""

HEIGHT_MM = 115.0
"""Below the top of the brain, what counts as brain: further down, necks and cheeks hang on to it."""


@dataclass(frozen=True)
class AsymmetryMap:
    """What `asymmetry_map` finds.

    Args:
        difference: `(B, 1, X, Y, Z)`, to the most alike place near the counterpart, in units of local texture; 0
            outside the brain.
        level: `(B, C, X, Y, Z)`, smoothed intensity: distance from the brain's median in its interquartile ranges.
        inside: `(B, 1, X, Y, Z)` bool, the brain as far as both sides of it are in the field of view.
    """

    difference: Tensor
    level: Tensor
    inside: Tensor


def asymmetry_map(
    image: Tensor, spacing: Sequence[float], counterpart: Tensor | None = None, inside: Tensor | None = None
) -> AsymmetryMap:
    """How far each place of the brain differs from everything near its counterpart, and how bright it is.

    Args:
        image: `(B, C, X, Y, Z)`.
        spacing: mm per voxel.
        counterpart: of each place, `(B, C, X, Y, Z)`; by default the mirror image.
        inside: the brain, `(B, 1, X, Y, Z)` bool, where it is known.
    """
    counterpart = mirror(image) if counterpart is None else counterpart
    inside = brain(image[:, :1], spacing) if inside is None else inside
    level = smooth(in_quartiles(image, inside), inside, LEVEL_MM, spacing)
    return AsymmetryMap(difference(image, counterpart, inside, spacing), level, inside)


def difference(image: Tensor, counterpart: Tensor, inside: Tensor, spacing: Sequence[float]) -> Tensor:
    """To the most alike place near the counterpart, in units of local texture, `(B, 1, X, Y, Z)`; 0 outside.

    Args:
        image: `(B, C, X, Y, Z)`.
        counterpart: of the same shape.
        inside: `(B, 1, X, Y, Z)` bool.
        spacing: mm per voxel.
    """
    textures = texture(image) + texture(counterpart)
    unit = smooth(textures / 2, inside, TEXTURE_MM, spacing)
    unit = (unit + SMOOTHEST * mean_inside(unit, inside)).clamp_min(1e-12)
    near = tolerant_difference(image, counterpart, offsets(TOLERANCE_MM, spacing))
    return smooth(near / unit, inside, SMOOTHING_MM, spacing)


def strangeness(
    level: Tensor, inside: Tensor, spacing: Sequence[float], usual: Tensor | float = 0.0, spread: Tensor | float = 1.0
) -> Tensor:
    """How much stranger the intensity of a place is than that of its mirrored counterpart; antisymmetric.

    Args:
        level: `(B, C, X, Y, Z)`, of `AsymmetryMap`.
        inside: `(B, 1, X, Y, Z)` bool.
        spacing: mm per voxel.
        usual: level of healthy heads at that place; by default the brain's own median.
        spread: its standard deviation; by default the brain's interquartile range.

    Returns:
        `(B, 1, X, Y, Z)`, in spreads: above 0 this place is the abnormal one, below 0 its counterpart.
    """
    distance = ((level - usual) / spread).abs().mean(1, keepdim=True)
    distance = smooth(distance, inside, SIDE_MM, spacing)
    return distance - mirror(distance)


def tolerant_difference(image: Tensor, counterpart: Tensor, places: Iterable[tuple[int, int, int]]) -> Tensor:
    """Root mean square difference of each 3x3x3 patch to the most alike one of the counterpart's; `(B, 1, X, Y, Z)`.

    Args:
        image: `(B, C, X, Y, Z)`.
        counterpart: of the same shape.
        places: offsets in voxels at which patches are looked for, see `offsets`.
    """
    places = list(places)
    reach = max(abs(step) for place in places for step in place)
    padded = F.pad(counterpart, [reach] * 6, mode="replicate")
    least = None
    for place in places:
        near = padded
        for axis, (step, size) in enumerate(zip(place, image.shape[2:], strict=True), 2):
            near = near.narrow(axis, reach + step, size)
        found = patch_mean((image - near).square().mean(1, keepdim=True))
        least = found if least is None else torch.minimum(least, found)
    return least.clamp_min(0).sqrt()


def offsets(tolerance: float, spacing: Sequence[float]) -> list[tuple[int, int, int]]:
    """Offsets in voxels within a distance.

    Args:
        tolerance: mm.
        spacing: mm per voxel.

    Examples:
        >>> len(offsets(3, (3, 3, 3))), len(offsets(4.5, (3, 3, 3)))
        (7, 19)
    """
    grid = product(*(range(-int(tolerance / side), int(tolerance / side) + 1) for side in spacing))
    return [o for o in grid if sum((k * side) ** 2 for k, side in zip(o, spacing, strict=True)) <= tolerance**2]


def patch_mean(volume: Tensor) -> Tensor:
    """Mean over the 3x3x3 patch of each place, `(B, C, X, Y, Z)`; at the border the edge is repeated.

    By sums along the axes: several times as fast as `avg_pool3d` on a CPU.
    """
    volume = F.pad(volume, [1] * 6, mode="replicate")
    for axis in (2, 3, 4):
        size = volume.shape[axis] - 2
        volume = sum(volume.narrow(axis, start, size) for start in range(3))
    return volume / 27


def texture(volume: Tensor) -> Tensor:
    """Standard deviation within the 3x3x3 patch of each place, over channels in the root mean square."""
    variance = patch_mean(volume.square()) - patch_mean(volume).square()
    return variance.mean(1, keepdim=True).clamp_min(0).sqrt()


def smooth(volume: Tensor, inside: Tensor, sigma: float, spacing: Sequence[float]) -> Tensor:
    """Gaussian mean over what is inside, `(B, C, X, Y, Z)`; 0 outside.

    By SciPy on a CPU, where a convolution with so wide a kernel takes torch many times as long.

    Args:
        volume: `(B, C, X, Y, Z)`.
        inside: bool, `(B, 1, X, Y, Z)`.
        sigma: mm.
        spacing: mm per voxel.
    """
    widths = [sigma / side for side in spacing]

    def gauss(values: Tensor) -> Tensor:
        if values.device.type != "cpu":
            return convolved(values, widths)
        return torch.from_numpy(ndimage.gaussian_filter(values.numpy(), (0, 0, *widths), mode="constant")).to(values)

    return torch.where(inside, gauss(volume * inside) / gauss(inside.to(volume)).clamp_min(1e-6), 0.0)


def convolved(values: Tensor, widths: Sequence[float]) -> Tensor:
    """Gaussian filter of `(B, C, X, Y, Z)` by standard deviations in voxels, as SciPy's; zeros beyond the border."""
    return GaussianFilter(3, widths, truncated=4.0, approx="sampled").to(values.device)(values)


def in_quartiles(image: Tensor, inside: Tensor) -> Tensor:
    """Each volume's distance from its median inside, in interquartile ranges; 0 where nothing is inside."""
    out = torch.zeros_like(image)
    for volume, mask, target in zip(image, inside, out, strict=True):
        for channel, place in zip(volume, target, strict=True):
            values = channel[mask[0]].cpu().numpy()
            low, median, high = np.percentile(values, (25, 50, 75)) if len(values) else (0, 0, 0)
            place += (channel - median) / (high - low) if high > low else 0
    return out


def mean_inside(volume: Tensor, inside: Tensor) -> Tensor:
    """Mean of each volume of a batch over what is inside, `(B, 1, 1, 1, 1)`; 0 where nothing is."""
    axes = (1, 2, 3, 4)
    return (volume * inside).sum(axes, keepdim=True) / inside.sum(axes, keepdim=True).clamp_min(1)


def brain(image: Tensor, spacing: Sequence[float]) -> Tensor:
    """The brain, without skull and scalp, as far as both sides of it are in the field of view; mirror-symmetric bool.

    What is bright in the middle of the head and not connected to the scalp: the skull is dark in MR. Where one side
    has no brain there, for a cyst say, the other side's place counts.

    Args:
        image: `(B, 1, X, Y, Z)`, one channel.
        spacing: mm per voxel.
    """
    found = torch.stack([torch.from_numpy(_brain(volume.cpu().numpy(), spacing)) for volume in image[:, 0]])
    found = found[:, None].to(image.device)
    background = image.amin((1, 2, 3, 4), keepdim=True)
    known = patch_mean((image > background).to(image)) > 0.5
    return (found | mirror(found)) & known & mirror(known)


def _brain(volume: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    head = head_mask(volume, spacing)
    depth = ndimage.distance_transform_edt(np.pad(head, 1), spacing)[1:-1, 1:-1, 1:-1]
    if not head.any():
        return head
    low, inner = volume.min(), np.median(volume[depth > 0.6 * depth.max()])
    bright = head & (volume > low + BRAIN_LEVEL * (inner - low))
    core, count = ndimage.label(_thinner(bright, BRIDGE_MM, spacing))
    if count == 0:
        return head & False
    weight = np.bincount(core.ravel(), depth.ravel())
    core = core == weight[1:].argmax() + 1
    found = ndimage.binary_fill_holes(_closed(_thicker(core, BRIDGE_MM, spacing) & head, SULCUS_MM, spacing))
    top = found.any((0, 1)).nonzero()[0].max()
    found[..., : max(0, top - int(HEIGHT_MM / spacing[2]))] = False
    return found


def head_mask(volume: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """The largest piece brighter than the mean of a volume `(X, Y, Z)`, closed and filled; bool.

    Filled slice by slice, too, as the view may end in the neck.
    """
    bright = _closed(volume > volume.mean(), SULCUS_MM, spacing)
    labelled, count = ndimage.label(_thicker(_thinner(bright, BRIDGE_MM, spacing), BRIDGE_MM, spacing))
    if count == 0:
        return bright & False
    body = ndimage.binary_fill_holes(labelled == np.bincount(labelled.ravel())[1:].argmax() + 1)
    return np.stack([ndimage.binary_fill_holes(part) for part in np.moveaxis(body, 2, 0)], 2)


def _thinner(mask: np.ndarray, by: float, spacing: Sequence[float]) -> np.ndarray:
    return ndimage.distance_transform_edt(mask, spacing) > by


def _thicker(mask: np.ndarray, by: float, spacing: Sequence[float]) -> np.ndarray:
    return ~_thinner(~mask, by, spacing) if mask.any() else mask


def _closed(mask: np.ndarray, by: float, spacing: Sequence[float]) -> np.ndarray:
    pad = int(by / min(spacing)) + 2
    inner = (slice(pad, -pad),) * 3
    return _thinner(_thicker(np.pad(mask, pad), by, spacing), by, spacing)[inner]
