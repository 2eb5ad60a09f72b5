"""Where a volume's aligned grid lies, and the one resampling onto it.

What `MidsagittalAlignd` and `sa-swin prepare` share, so that a cohort prepared beforehand is what the bundles would
have made themselves. Volumes are MetaTensors `(C, X, Y, Z)`; affines are voxel-to-world, `(4, 4)` float64, RAS mm.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from monai.data.utils import AFFINE_TOL
from monai.transforms import SpatialResample
from monai.utils import GridSampleMode, TraceKeys
from torch import Tensor

from custom.alignment.head import WORK_SPACING, NoHeadError, head_volume
from custom.alignment.plane import MidsagittalPlane, aligned_affine, distrust, estimate_plane, grid_affine, set_plane
from custom.alignment.planes import COLUMNS, HandPlane
from custom.volumes.background import background_level

ALIGNED_DEGREES, ALIGNED_MM = 0.5, 0.5
"""A volume whose plane is this near to the central plane of its array is taken as aligned already."""
UNTRUSTED = ("leave_out", "found", "as_it_lies")
"""What becomes of a head whose plane cannot be trusted: it is left out, the plane that was found is taken all the same,
or the array's own central plane, as the head lies in the file."""
_BY_HAND = "look at them; give them a plane by hand (--planes TABLE.csv with image,yaw_deg,roll_deg,offset_mm)"
_OTHERWISE = {
    "leave_out": "leave them out (--untrusted leave_out)",
    "found": "take the planes that were found (--untrusted found)",
    "as_it_lies": "take the heads as they lie (--untrusted as_it_lies)",
}


def remedy(untrusted: str = "leave_out") -> str:
    """What a user can do about planes that cannot be trusted, other than what was chosen."""
    first, second = (what for name, what in _OTHERWISE.items() if name != untrusted)
    return f"{_BY_HAND}, {first}, or {second}"


REMEDY = remedy()
QUALITY = ("similarity", "overlap", "margin", "angle_error", "offset_error", "inner_similarity")
MOST_CUT_OFF = 0.02
"""Share of the head, in the height that the alignment looks at, beyond which it is told that a grid cuts it off."""
MOST_LABELS = 512
"""Distinct values beyond which a volume is no label map."""
RESAMPLE = SpatialResample(padding_mode="zeros", align_corners=True, dtype=np.float32)


@dataclass(frozen=True)
class AlignedGrid:
    """Where a volume is resampled to.

    Args:
        affine: of the grid.
        plane: that it rests on; None where that is the array's own central plane.
        source: `estimated`, `by hand`, `found, not trusted`, `as it lies`.
        reason: why the plane that was found cannot be trusted, or None; and what of a head as it lies is cut off.
        refused: whether the user's choice leaves such a volume out.
    """

    affine: Tensor
    plane: MidsagittalPlane | None
    source: str
    reason: str | None = None
    refused: bool = False


def aligned_grid(
    image: MetaTensor,
    spacing: Sequence[float],
    spatial_size: Sequence[int],
    untrusted: str = "leave_out",
    by_hand: HandPlane | None = None,
) -> AlignedGrid:
    """The grid in whose middle the midsagittal plane of a volume lies, found on all its channels together.

    A volume that lies straight on such a grid already keeps its own, so that nothing is interpolated.

    Args:
        image: `(C, X, Y, Z)`.
        spacing: of the grid, mm.
        spatial_size: of the grid, voxels.
        untrusted: one of `UNTRUSTED`; where no head is found at all, there is no plane to take.
        by_hand: the plane that a person set for this image, which is trusted.

    Raises:
        ValueError: when the volume is not three-dimensional or not finite, or the affine is singular.
    """
    reason = None
    if by_hand is not None:
        plane: MidsagittalPlane | None = set_plane(image.as_tensor(), image.affine, *by_hand.figures)
    else:
        try:
            plane = estimate_plane(image.as_tensor(), image.affine)
            reason = distrust(plane)
        except NoHeadError as error:
            plane, reason = None, str(error)
    if reason is not None and untrusted == "as_it_lies":
        affine = central_affine(image, spacing, spatial_size)
        reasons = filter(None, (reason, cut_off(image, affine, spatial_size)))
        return AlignedGrid(affine, plane, "as it lies", "; ".join(reasons))
    if plane is None:
        return AlignedGrid(central_affine(image, spacing, spatial_size), None, "as it lies", reason, refused=True)
    straight = is_aligned(image, plane, spacing, spatial_size)
    affine = image.affine if straight else aligned_affine(plane, spacing, spatial_size)
    if reason is not None:
        return AlignedGrid(affine, plane, "found, not trusted", reason, refused=untrusted == "leave_out")
    return AlignedGrid(affine, plane, "estimated" if by_hand is None else "by hand")


def is_aligned(
    image: MetaTensor, plane: MidsagittalPlane, spacing: Sequence[float], spatial_size: Sequence[int]
) -> bool:
    """Whether a volume lies straight on a grid of this spacing and size, so that no interpolation is needed."""
    own = central_affine(image, spacing, spatial_size)
    if not lies_on(image, own, spatial_size):
        return False
    lateral = own[:3, 0] / own[:3, 0].norm()
    normal = torch.tensor(plane.normal, dtype=own.dtype)
    angle = torch.rad2deg(torch.acos((lateral @ normal).clamp(-1, 1)))
    distance = (normal @ array_center(image) - plane.offset).abs()
    return bool(angle < ALIGNED_DEGREES and distance < ALIGNED_MM)


def lies_on(volume: MetaTensor, affine: Tensor, spatial_size: Sequence[int]) -> bool:
    """Whether a volume has this grid already, as MONAI's resampling sees it."""
    same_size = tuple(volume.shape[1:]) == tuple(spatial_size)
    return same_size and torch.allclose(affine.to(volume.affine), volume.affine, atol=AFFINE_TOL)


def central_affine(image: MetaTensor, spacing: Sequence[float], spatial_size: Sequence[int]) -> Tensor:
    """Grid in RAS order along the array's own axes about the array's centre: the plane is where the array has it.

    The file's axes may be sheared, as by a gantry tilt; the grid's are not: axis 0 is normal to the array's central
    plane, axis 1 is the array's own.
    """
    directions = image.affine[:3, :3].to(torch.float64)
    order, signs = _closest_ras(directions / directions.norm(dim=0))
    _, anterior, superior = (directions[:, order] * signs).T
    lateral = torch.linalg.cross(anterior, superior)
    axes = torch.stack([lateral, anterior, torch.linalg.cross(lateral, anterior)], 1)
    return grid_affine(axes / axes.norm(dim=0), array_center(image), spacing, spatial_size)


def cut_off(image: MetaTensor, affine: Tensor, spatial_size: Sequence[int]) -> str | None:
    """What of a head lies outside of a grid, in a sentence; None where it is next to nothing, or there is no head.

    Args:
        image: `(C, X, Y, Z)`; one that lies on the grid already is not looked at.
        affine: of the grid.
        spatial_size: of the grid, voxels.
    """
    if lies_on(image, affine, spatial_size):
        return None
    try:
        volume = head_volume(image.as_tensor().cpu().float(), image.affine.cpu().double())
    except NoHeadError:
        return None
    half = (torch.tensor(volume.head.shape) - 1) / 2
    world = volume.center + ((volume.head > 0.5).nonzero() - half) * WORK_SPACING
    index = (world - affine[:3, 3]) @ torch.linalg.inv(affine[:3, :3]).T
    share = ((index < -0.5) | (index > torch.tensor(spatial_size) - 0.5)).any(1).double().mean().item()
    if share <= MOST_CUT_OFF:
        return None
    return f"{share:.0%} of the head lies outside of the grid about the middle of the array; a larger one would hold it"


def array_center(image: MetaTensor) -> Tensor:
    """World mm of the middle of the array, `(3,)` float64."""
    affine = image.affine.to(torch.float64)
    return affine[:3, :3] @ ((torch.tensor(image.shape[1:], dtype=torch.float64) - 1) / 2) + affine[:3, 3]


def _closest_ras(directions: Tensor) -> tuple[Tensor, Tensor]:
    """For world x, y, z: the array axis that runs closest along it, and its sign."""
    orientation = nib.io_orientation(np.pad(directions.numpy(), (0, 1)))
    order = torch.from_numpy(np.argsort(orientation[:, 0]).astype(np.int64))
    return order, torch.from_numpy(orientation[:, 1])[order]


def to_grid(volume: MetaTensor, affine: Tensor, spatial_size: Sequence[int], mode: str) -> MetaTensor:
    """Resample onto a grid, once; outside the field of view an image takes its background level, a label 0.

    With mode `nearest` a volume of labels takes at each voxel the label with the largest share in a linear
    interpolation: there and back it overlaps itself better than by the nearest neighbour. A volume that lies on the
    grid already keeps its values.
    """
    if lies_on(volume, affine, spatial_size):
        return RESAMPLE(volume, affine, spatial_size, mode=mode)
    if mode == GridSampleMode.NEAREST:
        return _voted(volume, RESAMPLE(volume, affine, spatial_size, mode=mode))
    levels = [background_level(channel) for channel in volume.as_tensor()]
    floor = torch.tensor(levels, device=volume.device).reshape(-1, 1, 1, 1)
    return RESAMPLE(volume - floor, affine, spatial_size, mode=mode) + floor


def from_grid(volume: MetaTensor) -> MetaTensor:
    """Undo `to_grid`: back onto the grid that the volume, or the one it was predicted from, had before."""
    mode = volume.applied_operations[-1][TraceKeys.EXTRA_INFO]["mode"]
    back = RESAMPLE.inverse(volume)
    return _voted(volume, back) if mode == GridSampleMode.NEAREST else back


def _voted(source: MetaTensor, nearest: MetaTensor) -> MetaTensor:
    """Replace labels resampled to the nearest by those with the largest share; what is no label map stays."""
    labels = [value for value in source.unique().tolist() if value != 0]
    if len(labels) > MOST_LABELS or any(value != round(value) for value in labels):
        return nearest
    winner = torch.zeros_like(nearest.as_tensor())
    most, total = torch.zeros_like(winner), torch.zeros_like(winner)
    for value in labels:
        for channel, box in _boxes(nearest.as_tensor() == value):
            corner = torch.eye(4, dtype=torch.float64)
            corner[:3, 3] = torch.tensor([part.start for part in box], dtype=torch.float64)
            one = MetaTensor((source.as_tensor()[channel : channel + 1] == value).float(), affine=source.affine)
            size = [part.stop - part.start for part in box]
            share = RESAMPLE(one, nearest.affine.double() @ corner, size, mode=GridSampleMode.BILINEAR).as_tensor()[0]
            place = (channel, *box)
            total[place] += share
            winner[place] = torch.where(share > most[place], value, winner[place])
            most[place] = torch.maximum(share, most[place])
    winner[most < 1 - total] = 0
    nearest.set_array(winner)
    return nearest


def _boxes(mask: Tensor) -> Iterator[tuple[int, tuple[slice, ...]]]:
    """The channels `(C, X, Y, Z)` that hold anything, with the box around it, a voxel wider on each side."""
    for channel, part in enumerate(mask):
        index = part.nonzero()
        if len(index):
            low, high = (index.amin(0) - 1).clamp_min(0), index.amax(0) + 2
            ends = high.minimum(torch.tensor(part.shape, device=high.device))
            yield channel, tuple(slice(a, b) for a, b in zip(low.tolist(), ends.tolist(), strict=True))


def pose(figures: Mapping[str, Any]) -> str:
    """Angles and place of a plane from `plane_figures`, for the front of a sentence; empty where no plane was found."""
    if "yaw_deg" not in figures:
        return ""
    return "yaw {yaw_deg:+.1f}, roll {roll_deg:+.1f} degrees, offset {offset_mm:+.1f} mm: ".format(**figures)


def plane_figures(plane: MidsagittalPlane | None, image: MetaTensor) -> dict[str, float]:
    """A plane as plain numbers, for metadata, tables and reports; without a plane all of them are NaN.

    Yaw and roll (degrees), the distance of the plane from the array's centre (mm), and the quality.
    """
    if plane is None:
        return dict.fromkeys((*COLUMNS, *QUALITY), math.nan)
    x, y, z = plane.normal
    place = (
        math.degrees(math.atan2(y, x)),
        math.degrees(math.atan2(z, x)),
        plane.offset - (torch.tensor(plane.normal, dtype=torch.float64) @ array_center(image)).item(),
    )
    quality = {name: float(getattr(plane, name)) for name in QUALITY}
    return dict(zip(COLUMNS, place, strict=True)) | quality
