"""Midsagittal alignment: the plane between the hemispheres, how far it can be trusted, and the grid it is central in.

Everything is in world RAS millimetres, so a plane does not depend on a file's axis order, handedness or spacing.
A plane is `{p : normal . p = offset}`. Aligning is a resampling onto `aligned_affine`: world coordinates never change,
hence the inverse is a resampling onto the file's own grid.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from monai.data import MetaTensor
from monai.transforms import Orientation
from torch import Tensor

from custom.alignment.head import WORK_SPACING, HeadVolume, NoHeadError, head_volume
from custom.alignment.search import (
    NUM_CANDIDATES,
    Level,
    block_sums,
    coarse_search,
    compare,
    frame,
    inner_similarity,
    levels,
    moved,
    paired_points,
    refine,
    robust_weights,
    similarity_and_overlap,
)

LEAST_EVIDENCE = 0.5
"""`evidence` below which no plane is trusted."""


@dataclass(frozen=True)
class MidsagittalPlane:
    """A head's midsagittal plane in world RAS mm, with its quality.

    Args:
        normal: unit, towards the patient's right: `normal[0] > 0`.
        offset: mm; the plane is `{p : normal . p = offset}`.
        center: mm, on the plane: the middle of the box that holds the brain.
        similarity: correlation of the two sides' local structure about the plane, -1 to 1.
        overlap: share of the head whose reflection is head inside the field of view, 0 to 1.
        margin: how much better the plane scores than the best plane elsewhere, 0 to 1.
        angle_error: standard error of the normal, degrees.
        offset_error: standard error of the offset at the head's centre, mm.
        inner_similarity: the same where it is best (upper quartile) deep inside the head, where only anatomy matches.
    """

    normal: tuple[float, float, float]
    offset: float
    center: tuple[float, float, float]
    similarity: float
    overlap: float
    margin: float
    angle_error: float
    offset_error: float
    inner_similarity: float


@torch.no_grad()
def estimate_plane(image: Tensor, affine: Tensor) -> MidsagittalPlane:
    """Find the midsagittal plane of a head scan of any modality, orientation and spacing.

    Args:
        image: `(X, Y, Z)` or `(C, X, Y, Z)`: all channels are compared together, in no order.
        affine: 4x4 voxel-to-world, RAS+, mm.

    Raises:
        NoHeadError: when no head is found.
        ValueError: when the volume is not three-dimensional or not finite, or the affine is singular.
    """
    volume = head_volume(*_checked(image, affine))
    pyramid = levels(volume)
    return _with_quality(volume, pyramid, *_search(pyramid))


@torch.no_grad()
def set_plane(image: Tensor, affine: Tensor, yaw_deg: float, roll_deg: float, offset_mm: float) -> MidsagittalPlane:
    """A plane that a person set, with its quality, as far as there is a head to measure it on.

    Args:
        image: as in `estimate_plane`.
        affine: as in `estimate_plane`.
        yaw_deg: the normal is `(1, tan yaw, tan roll)` made a unit.
        roll_deg: see there.
        offset_mm: from the middle of the array, along the normal.
    """
    middle = (torch.tensor(image.shape[-3:], dtype=torch.float64) - 1) / 2
    tangents = [math.tan(math.radians(angle)) for angle in (yaw_deg, roll_deg)]
    normal = torch.nn.functional.normalize(torch.tensor([[1.0, *tangents]], dtype=torch.float64))
    point = affine[:3, :3].double() @ middle + affine[:3, 3].double() + offset_mm * normal
    try:
        volume = head_volume(*_checked(image, affine))
        plane = _with_quality(volume, levels(volume), normal.float(), point.float(), math.nan)
    except NoHeadError:
        unknown = (math.nan,) * 6
        plane = MidsagittalPlane(tuple(normal[0].tolist()), 0.0, tuple(point[0].tolist()), *unknown)
    center = torch.tensor(plane.center, dtype=torch.float64)
    center += ((point[0] - center) @ normal[0]) * normal[0]  # on the plane to the last digit
    exact = {"normal": tuple(normal[0].tolist()), "center": tuple(center.tolist())}
    return replace(plane, offset=(normal[0] @ center).item(), **exact)


def _with_quality(
    volume: HeadVolume, pyramid: dict[int, Level], normal: Tensor, point: Tensor, margin: float
) -> MidsagittalPlane:
    similarity, overlap = similarity_and_overlap(pyramid[2], normal, point)
    angle_error, offset_error = _standard_errors(pyramid[2], normal, point)
    center = _box_center(volume, normal[0], point[0])
    return MidsagittalPlane(
        normal=tuple(normal[0].double().tolist()),
        offset=(normal[0].double() @ center).item(),
        center=tuple(center.tolist()),
        similarity=similarity.item(),
        overlap=overlap.item(),
        margin=margin,
        angle_error=angle_error,
        offset_error=offset_error,
        inner_similarity=inner_similarity(pyramid[4], normal, point).item(),
    )


def _search(pyramid: dict[int, Level]) -> tuple[Tensor, Tensor, float]:
    """The best plane, `(1, 3)` and `(1, 3)`, and its margin over the best one elsewhere."""
    normal, point = coarse_search(pyramid[8])
    normal, point, score = _ranked(pyramid[8], *refine(pyramid[8], normal, point))
    margin = _margin(normal, point, score)
    normal, point = _distinct(normal, point)
    for spacing in (4, 2):
        kept = NUM_CANDIDATES[spacing]
        normal, point, _ = _ranked(pyramid[spacing], *refine(pyramid[spacing], normal[:kept], point[:kept]))
    return normal, point, margin


def _ranked(level: Level, normal: Tensor, point: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Planes `(K, 3)`, `(K, 3)` and their scores `(K,)`, similarity times overlap, best first."""
    similarity, overlap = similarity_and_overlap(level, normal, point)
    score, order = (similarity * overlap).sort(descending=True)
    return normal[order], point[order], score


def _checked(image: Tensor, affine: Tensor) -> tuple[Tensor, Tensor]:
    image = torch.as_tensor(image)
    if not torch.isfinite(image).all():
        raise ValueError(f"{(~torch.isfinite(image)).sum()} voxels are not finite; repair or leave out the file")
    if image.ndim not in (3, 4) or min(image.shape[-3:]) < 2 or 0 in image.shape:
        raise ValueError(
            f"a head scan is a volume (X, Y, Z) or (C, X, Y, Z) of at least 2 voxels a side, got {tuple(image.shape)}"
        )
    image = image.float().reshape(-1, *image.shape[-3:])
    # one order of channels, whatever the file's, so that a plane is the same to the last digit
    image = image[image.flatten(1).double().mean(1).argsort()]
    affine = torch.as_tensor(affine).to(image.device, torch.float64)
    if not abs(torch.linalg.det(affine[:3, :3])) > 1e-9:
        raise ValueError(f"the affine must be invertible, got {affine.tolist()}")
    # Thinning and pooling start at an array's first voxel: in one order of axes, a head has one plane, however stored.
    upright = Orientation(axcodes="RAS", labels=None)(MetaTensor(image, affine=affine))
    return upright.as_tensor(), upright.affine.to(affine)


def _separate(normal: Tensor, point: Tensor, others: Tensor, other_points: Tensor) -> Tensor:
    """Which planes `(K, 3)` differ from one by more than 6 degrees or 8 mm."""
    turned = (others @ normal) < math.cos(math.radians(6))
    return turned | (((other_points - point) @ normal).abs() > 8)


def _distinct(normal: Tensor, point: Tensor) -> tuple[Tensor, Tensor]:
    """Drop candidates that converged to a better one."""
    kept = [0]
    for i in range(1, len(normal)):
        if all(_separate(normal[k], point[k], normal[i : i + 1], point[i : i + 1]) for k in kept):
            kept.append(i)
    return normal[kept], point[kept]


def _margin(normal: Tensor, point: Tensor, score: Tensor) -> float:
    apart = _separate(normal[0], point[0], normal, point)
    rival = score[apart].max().item() if apart.any() else 0.0
    return max(0.0, 1 - max(rival, 0.0) / max(score[0].item(), 1e-6))


def _standard_errors(level: Level, normal: Tensor, point: Tensor) -> tuple[float, float]:
    """Standard errors (degrees, mm) that take each block, not each point, as one independent observation.

    The curvature is how the weighted pull itself changes with the plane, weights included: a robust fit is flatter than
    its Gauss-Newton approximation.
    """
    points, block = paired_points(level, normal, point, 15_000)
    delta = torch.tensor([math.radians(0.5), math.radians(0.5), 0.5], device=normal.device)
    steps = torch.cat([torch.zeros(1, 3, device=delta.device), torch.diag(delta), -torch.diag(delta)])
    points, block = points.expand(7, -1, -1), block.expand(7, -1)
    pairs = compare(level, points, block, *moved(normal.expand(7, -1), point.expand(7, -1), steps))
    weight = robust_weights(pairs)
    pull = block_sums(pairs.jacobian * (weight * pairs.residual)[:, None], pairs.block)  # 7 3 B
    total = pull.sum(2)
    inverse = torch.linalg.pinv((total[1:4] - total[4:]) / (2 * delta[:, None]))
    variance = (inverse.T @ (pull[0] @ pull[0].T) @ inverse).diagonal().clamp_min(0)
    return math.degrees((variance[0] + variance[1]).sqrt().item()), variance[2].sqrt().item()


def _box_center(volume: HeadVolume, normal: Tensor, point: Tensor) -> Tensor:
    """The middle of the head along the plane's own axes, on the plane: world mm."""
    axes = frame(normal.double())
    voxels = (volume.head > 0.5).nonzero().double()
    half = (torch.tensor(volume.head.shape, device=voxels.device) - 1) / 2
    world = volume.center + (voxels - half) * WORK_SPACING
    local = (world - point.double()) @ axes
    tails = torch.tensor([0.002, 0.998], dtype=local.dtype, device=local.device)
    ends = torch.quantile(local[:: len(local) // 100_000 + 1], tails, dim=0)
    middle = ends.mean(0)
    middle[0] = 0
    return point.double() + axes @ middle


def evidence(plane: MidsagittalPlane) -> float:
    """How much speaks for a plane, 0 to 1: both sides match deep inside the head, and no other plane does as well.

    Either can be low in a good head (mass effect, a round head), but not both.
    """
    return (5 * plane.inner_similarity + 4 * plane.margin) / 9


def distrust(plane: MidsagittalPlane) -> str | None:
    """Why a plane cannot be trusted, in one sentence with the figure, or None.

    The limits are calibrated on real heads and on planes that are known to be wrong: `benchmarks/refusals.py`.
    """
    tilt = math.degrees(math.acos(min(1.0, plane.normal[0])))
    least = 0.15 if plane.inner_similarity >= 0.7 else 0.25  # brains without their skull, of unlike halves: 0.22
    rules = [
        (
            plane.overlap < 0.5,
            f"only {plane.overlap:.0%} of the head has a counterpart across the plane (at least 50% needed)",
        ),
        (
            plane.similarity < least,
            f"the two sides hardly resemble each other (similarity {plane.similarity:.2f}, at least {least} needed)",
        ),
        (
            plane.inner_similarity < 0.4,
            f"inside, the two sides do not match (similarity {plane.inner_similarity:.2f} where they match best, "
            "at least 0.4 needed): not a head, or one changed beyond recognition",
        ),
        (tilt > 40, f"it is turned by {tilt:.0f} degrees from the file's left-right axis (at most 40 allowed)"),
        (plane.margin < 0.1, f"another plane fits almost as well (margin {plane.margin:.2f}, at least 0.1 needed)"),
        (
            evidence(plane) < LEAST_EVIDENCE,
            "too little speaks for it: inside, the two sides hardly match (similarity "
            f"{plane.inner_similarity:.2f} where they match best), and another plane fits nearly as well (margin "
            f"{plane.margin:.2f})",
        ),
        (plane.angle_error > 2, f"its direction is uncertain by {plane.angle_error:.1f} degrees (at most 2 allowed)"),
        (plane.offset_error > 1.5, f"its position is uncertain by {plane.offset_error:.1f} mm (at most 1.5 allowed)"),
    ]
    return next((reason for broken, reason in rules if broken), None)


def aligned_affine(plane: MidsagittalPlane, spacing: float | Sequence[float], spatial_size: Sequence[int]) -> Tensor:
    """Voxel-to-world matrix of the aligned grid: the midsagittal plane is the central plane of axis 0.

    Axis 0 runs along the plane's normal; axes 1 and 2 are the world's y and z after the smallest rotation that takes x
    to the normal, so pitch is kept. The plane is at index `(n - 1) / 2` of axis 0: between two voxels when `n` is even.

    Args:
        plane: from `estimate_plane`.
        spacing: mm per voxel, one number or three.
        spatial_size: voxels along the three axes.

    Returns:
        4x4, float64.
    """
    axes = frame(torch.tensor(plane.normal, dtype=torch.float64))
    return grid_affine(axes, torch.tensor(plane.center, dtype=torch.float64), spacing, spatial_size)


def grid_affine(
    directions: Tensor, center: Tensor, spacing: float | Sequence[float], spatial_size: Sequence[int]
) -> Tensor:
    """Voxel-to-world affine `(4, 4)`, float64, of a grid with these axes (columns), centre and spacing (mm), size."""
    affine = torch.eye(4, dtype=torch.float64)
    affine[:3, :3] = directions * torch.as_tensor(spacing, dtype=torch.float64)
    affine[:3, 3] = center - affine[:3, :3] @ ((torch.as_tensor(spatial_size, dtype=torch.float64) - 1) / 2)
    return affine
