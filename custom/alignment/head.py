"""The work volume of the alignment: any head scan as an isotropic box around the head in world RAS millimetres.

Volumes are `(X, Y, Z)` tensors, affines 4x4 voxel-to-world matrices (RAS+, mm), masks floats in [0, 1]. Outside the
scan's field of view a voxel is *unknown* (`known` 0), which is not the same as empty.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

WORK_SPACING = 2.0
WORK_SIZE = (96, 120, 96)
"""Voxels of the work volume: 192 x 240 x 192 mm."""
OVERVIEW_SPACING = 8.0
HEAD_HEIGHT = 160.0
"""Millimetres below the vertex that are searched; neck, shoulders and couch fall away."""
SOFT_TISSUE_WINDOW = (-150.0, 250.0)
"""Hounsfield units that air and dense bone of a CT are clipped to."""
SMALLEST_HEAD = 150.0
"""Millilitres of foreground below which there is no head; a newborn's is three times as large."""


LARGEST_HEAD = 5000.0
"""Millilitres, in the searched height, beyond which it is no head: a large adult's takes less than 4.3 l there."""
LARGEST_OUTSIDE = 0.2
"""Share of the foreground, in the searched height, that may lie outside the work volume: a torso has more."""


class NoHeadError(ValueError):
    """There is nothing like a head in a volume."""


@dataclass(frozen=True)
class HeadVolume:
    """A head in a box of `WORK_SPACING` mm voxels; C channels, those of the scan that show a head.

    Args:
        image: `(C, X, Y, Z)` intensities, clipped to what matters.
        known: `(X, Y, Z)`, 1 inside the scan's field of view.
        head: `(X, Y, Z)`, 1 inside the head.
        center: `(3,)` world mm of the box's centre.
        contrast: `(C,)` spread of the head's intensities, the unit of `image`.
    """

    image: Tensor
    known: Tensor
    head: Tensor
    center: Tensor
    contrast: Tensor


@dataclass(frozen=True)
class _Channel:
    """One channel at about `WORK_SPACING` mm, its head on the overview, and what 90 % of the head's voxels span."""

    image: Tensor
    affine: Tensor
    mask: Tensor
    corner: Tensor
    low: float
    high: float


def head_volume(image: Tensor, affine: Tensor) -> HeadVolume:
    """Resample the top of the head into the work box, antialiased, through the affine.

    The head is what is head in any channel; a channel that shows none, as a map of lesions, is left out.

    Args:
        image: `(C, X, Y, Z)` any modality, any orientation.
        affine: 4x4 voxel-to-world.

    Raises:
        NoHeadError: when every channel is constant, or its foreground is too small or too large for a head.
    """
    channels = _channels(image, affine)
    corner, mask = channels[0].corner, torch.stack([channel.mask for channel in channels]).amax(0)
    center = _head_center(mask, corner)
    half = torch.tensor(WORK_SIZE, device=image.device) - 1
    grid = _grid_affine(center - half * WORK_SPACING / 2, WORK_SPACING)
    head, _ = resample(mask, _grid_affine(corner, OVERVIEW_SPACING), grid, WORK_SIZE, padding_mode="zeros")
    work = []
    for channel in channels:
        within = channel.image.clamp(2 * channel.low - channel.high, 2 * channel.high - channel.low)
        values, known = resample(within, channel.affine, grid, WORK_SIZE)
        work.append(values * known)
    contrast = torch.tensor([channel.high - channel.low for channel in channels], device=image.device)
    return HeadVolume(torch.stack(work), known, head * known, center, contrast)


def _channels(image: Tensor, affine: Tensor) -> list[_Channel]:
    """The channels that show a head.

    Raises:
        NoHeadError: of the first channel, when there is none.
    """
    found, refusals = [], []
    for channel in image:
        try:
            found.append(_channel(channel, affine))
        except NoHeadError as error:
            refusals.append(error)
    if not found:
        raise refusals[0]
    return found


def _channel(image: Tensor, affine: Tensor) -> _Channel:
    image, affine = pooled(clipped(image), affine, WORK_SPACING)
    coarse, coarse_affine = pooled(image, affine, OVERVIEW_SPACING)
    corner, shape = _bounding_grid(coarse.shape, coarse_affine)
    overview, known = resample(coarse, coarse_affine, _grid_affine(corner, OVERVIEW_SPACING), shape)
    mask = _head_mask(overview, known)
    _check_size(mask, corner, _head_center(mask, corner))
    low, high = torch.quantile(overview[mask > 0.5], torch.tensor([0.05, 0.95], device=image.device)).tolist()
    if not high > low:
        raise NoHeadError(f"no head found: the foreground is uniform, every voxel is {low:.6g}")
    return _Channel(image, affine, mask, corner, low, high)


def clipped(image: Tensor) -> Tensor:
    """Remove what would hide the head: padding far below the darkest tissue, and air and dense bone of a CT in HU."""
    sample = image[::3, ::3, ::3] if min(image.shape) > 24 else image
    lowest = sample.min()
    rest = sample[sample > lowest]
    if rest.numel() == 0:
        raise NoHeadError(f"no head found: the volume is constant, every voxel is {lowest.item():.6g}")
    dark, quarter, bright = _quantiles(rest, 0.01, 0.25, 0.99)
    if lowest < -500 and -300 < _quantiles(rest[rest > -300], 0.5)[0] < 300 < bright - dark:
        return image.clamp(*SOFT_TISSUE_WINDOW)
    if dark - lowest > 0.5 * (bright - dark) > 0:
        air = quarter - dark < 0.1 * (bright - dark)  # what is left has its own empty background
        return image.clamp_min(dark if air else 2 * dark - bright)
    return image


def _quantiles(values: Tensor, *q: float) -> list[float]:
    if values.numel() == 0:
        return [float("nan")] * len(q)
    values = values[:: values.numel() // 200_000 + 1]
    return torch.quantile(values, torch.tensor(q, device=values.device)).tolist()


def pooled(image: Tensor, affine: Tensor, spacing: float) -> tuple[Tensor, Tensor]:
    """Average whole voxels along each axis until `spacing` mm would be passed: the antialiasing before a resampling."""
    sizes = affine[:3, :3].norm(dim=0)
    factors = [max(1, min(int(spacing / size + 0.1), n)) for size, n in zip(sizes.tolist(), image.shape, strict=True)]
    step = torch.diag(torch.tensor([*factors, 1.0], dtype=affine.dtype, device=affine.device))
    step[:3, 3] = (step.diagonal()[:3] - 1) / 2
    return F.avg_pool3d(image[None, None], factors)[0, 0], affine @ step


def resample(
    image: Tensor, affine: Tensor, grid_affine: Tensor, shape: tuple[int, ...], padding_mode: str = "border"
) -> tuple[Tensor, Tensor]:
    """Interpolate a volume linearly onto another grid; returns the values and which of them the field of view knows."""
    size = torch.tensor(image.shape, dtype=affine.dtype, device=affine.device).clamp_min(2)
    out = torch.tensor(shape, dtype=affine.dtype, device=affine.device)
    to_voxel = torch.linalg.inv(affine) @ grid_affine
    # align_corners: normalised -1..1 spans the centres of the first and last voxel, in the order Z Y X
    scale = (out - 1)[None] / (size - 1)[:, None]
    linear = to_voxel[:3, :3] * scale
    shift = 2 * (to_voxel[:3, :3] @ ((out - 1) / 2) + to_voxel[:3, 3]) / (size - 1) - 1
    theta = torch.cat([linear.flip(0, 1), shift.flip(0)[:, None]], dim=1)
    grid = F.affine_grid(theta[None].to(image.dtype), [1, 1, *shape], align_corners=True)
    values = F.grid_sample(image[None, None], grid, padding_mode=padding_mode, align_corners=True)[0, 0]
    reach = (1 + 1 / (size - 1)).flip(0).to(image.dtype)
    return values, (grid[0].abs() <= reach).all(-1).to(image.dtype)


def otsu(values: Tensor, bins: int = 256) -> float:
    """Otsu's threshold of a set of values."""
    low, high = values.min().item(), values.max().item()
    counts = torch.histc(values, bins, low, high)
    centers = low + (torch.arange(bins, device=values.device) + 0.5) * (high - low) / bins
    below = counts.cumsum(0)
    total = (counts * centers).cumsum(0)
    above = below[-1] - below
    gap = total / below.clamp_min(1) - (total[-1] - total) / above.clamp_min(1)
    best = (below * above * gap**2).argmax().item()
    return low + (best + 1) * (high - low) / bins


def _head_mask(overview: Tensor, known: Tensor) -> Tensor:
    values = overview[known > 0.5]
    bright = values[values > otsu(values)] if values.numel() else values
    if bright.numel() == 0:
        raise NoHeadError("no head found: the field of view is too small, or uniform")
    # fat and vessels far brighter than the brain would lift the threshold above the brain
    threshold = otsu(values.clamp_max(bright.median()))
    mask = _without_holes(((overview > threshold) & (known > 0.5)).float())
    core = _grow(_deepest(mask), _open(mask))
    head = _dilate(core) * mask
    volume = _millilitres(head)
    if volume < SMALLEST_HEAD:
        raise NoHeadError(
            f"no head found: the largest bright body is {volume:.0f} ml, expected at least {SMALLEST_HEAD:.0f} ml"
        )
    return _top(head)


def _top(head: Tensor) -> Tensor:
    """Keep `HEAD_HEIGHT` mm below the vertex; a slice counts from 5 square centimetres on."""
    area = head.sum((0, 1)) * (OVERVIEW_SPACING / 10) ** 2
    vertex = (area > 5).nonzero().max().item() if (area > 5).any() else head.shape[2] - 1
    kept = torch.arange(head.shape[2], device=head.device)
    return head * ((kept <= vertex) & (kept > vertex - HEAD_HEIGHT / OVERVIEW_SPACING))


def _head_center(head: Tensor, corner: Tensor) -> Tensor:
    ends = []
    for axis in range(3):
        others = [other for other in range(3) if other != axis]
        places = (head.sum(others) > 3).nonzero().flatten()
        ends.append((places.min() + places.max()) / 2 if places.numel() else torch.tensor((head.shape[axis] - 1) / 2))
    return corner + torch.stack(ends).to(corner) * OVERVIEW_SPACING


def _check_size(head: Tensor, corner: Tensor, center: Tensor) -> None:
    volume = _millilitres(head)
    if volume > LARGEST_HEAD:
        raise NoHeadError(
            f"no head found: the largest bright body is {volume:.0f} ml in its upper {HEAD_HEIGHT:.0f} mm, "
            f"expected at most {LARGEST_HEAD:.0f} ml"
        )
    reach = torch.tensor(WORK_SIZE, device=head.device) * WORK_SPACING / 2
    place = corner + head.nonzero() * OVERVIEW_SPACING
    outside = ((place - center).abs() > reach).any(1).double().mean().item()
    if outside > LARGEST_OUTSIDE:
        size = " x ".join(f"{2 * side:.0f}" for side in reach.tolist())
        raise NoHeadError(
            f"no head found: {outside:.0%} of the largest bright body lies outside {size} mm about its middle "
            f"(at most {LARGEST_OUTSIDE:.0%} allowed)"
        )


def _millilitres(mask: Tensor) -> float:
    return mask.sum().item() * (OVERVIEW_SPACING / 10) ** 3


def _bounding_grid(shape: torch.Size, affine: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """The world grid of `OVERVIEW_SPACING` mm that holds a volume: its first voxel's centre, mm, and its shape."""
    corners = torch.cartesian_prod(*[torch.tensor([-0.5, n - 0.5], dtype=affine.dtype) for n in shape]).to(
        affine.device
    )
    world = corners @ affine[:3, :3].T + affine[:3, 3]
    low, high = world.amin(0), world.amax(0)
    count = ((high - low) / OVERVIEW_SPACING).ceil() + 2
    if count.prod() > 2e7:
        extent = ", ".join(f"{x:.0f}" for x in (high - low).tolist())
        raise NoHeadError(f"no head found: the field of view is {extent} mm; check the affine's units (millimetres)")
    corner = (low + high) / 2 - (count - 1) / 2 * OVERVIEW_SPACING
    return corner, tuple(int(n) for n in count)


def _grid_affine(corner: Tensor, spacing: float) -> Tensor:
    affine = torch.eye(4, dtype=corner.dtype, device=corner.device)
    affine[:3, :3] *= spacing
    affine[:3, 3] = corner
    return affine


def _dilate(mask: Tensor) -> Tensor:
    return F.max_pool3d(mask[None, None], 3, 1, 1)[0, 0]


def _erode(mask: Tensor) -> Tensor:
    # the field of view's edge is no edge of the head: max_pool3d pads with minus infinity
    return -_dilate(-mask)


def _open(mask: Tensor) -> Tensor:
    return _dilate(_erode(mask))


def _grow(seed: Tensor, mask: Tensor) -> Tensor:
    """What of the mask is connected to the seed."""
    grown = seed * mask
    while True:
        larger = _dilate(grown) * mask
        if torch.equal(larger, grown):
            return grown
        grown = larger


def _without_holes(mask: Tensor) -> Tensor:
    outside = 1 - mask
    border = torch.ones_like(mask)
    border[1:-1, 1:-1, 1:-1] = 0
    return 1 - _grow(border, outside)


def _deepest(mask: Tensor) -> Tensor:
    """What is left of a mask just before erosion removes it."""
    while True:
        smaller = _erode(mask)
        if not smaller.any() or torch.equal(smaller, mask):
            return mask
        mask = smaller
