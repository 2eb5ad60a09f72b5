"""Where the places of a painted head lie in its anatomy: pose, size, a smooth deformation, and a lesion's mass effect.

Points are `(B, X, Y, Z, 3)` in mm; the head's midsagittal plane is x = 0.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from custom.support.draws import Draws
from custom.symmetry import mirror

LARGEST_TILT = (0.035, 0.26)
"""Radians: of roll and yaw, what an aligned head has left; of pitch, which no alignment undoes."""
LARGEST_SHIFT = (1.0, 8.0, 8.0)
"""mm, along x (what an aligned head has left), y and z."""
SCALES = ((60.0, 5.0), (24.0, 2.0))
"""Smooth deformations: mm between the points of its lattice, and mm of displacement, one standard deviation."""
ONE_SIDED = 0.3
"""Share of a deformation that the two halves do not have in common."""


def grid_points(size: Sequence[int], spacing: Sequence[float], device: torch.device) -> Tensor:
    """Places of a volume's voxels, its centre at the origin: `(X, Y, Z, 3)` mm."""
    axes = [(torch.arange(n, device=device) - (n - 1) / 2) * step for n, step in zip(size, spacing, strict=True)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)


def lattice(draws: Draws, channels: int, step: float, size: Sequence[int], spacing: Sequence[float]) -> Tensor:
    """A smooth random field of about unit variance, `(B, channels, X, Y, Z)`.

    Args:
        draws: of the batch.
        channels: of the field.
        step: mm between the random values.
        size: X, Y, Z in voxels.
        spacing: of them, mm.
    """
    points = [max(2, round(n * mm / step) + 1) for n, mm in zip(size, spacing, strict=True)]
    field = F.interpolate(draws.noise(channels, *points), tuple(size), mode="trilinear", align_corners=True)
    return field / 0.6  # what the interpolation leaves of the deviation


def deformation(draws: Draws, size: Sequence[int], spacing: Sequence[float]) -> Tensor:
    """A smooth displacement in mm, `(B, X, Y, Z, 3)`, mostly the mirror image of itself."""
    out = 0
    for step, amount in SCALES:
        field = lattice(draws, 3, step, size, spacing)
        across = mirror(field) * torch.tensor([-1.0, 1, 1], device=field.device).view(3, 1, 1, 1)
        both, single = (field + across) / 2, (field - across) / 2
        out = out + amount * (both + ONE_SIDED * single)
    return out.movedim(1, -1)


def rotations(draws: Draws) -> Tensor:
    """Small rotations about y (roll), z (yaw) and x (pitch), `(B, 3, 3)`."""
    straight, pitch = LARGEST_TILT
    roll, yaw = draws.uniform(-straight, straight, 2).unbind(1)
    out = torch.eye(3, device=roll.device).expand(len(roll), 3, 3)
    for (i, j), angle in (((0, 2), roll), ((0, 1), yaw), ((1, 2), draws.uniform(-pitch, pitch))):
        turn = torch.eye(3, device=roll.device).repeat(len(roll), 1, 1)
        turn[:, i, i], turn[:, j, j] = angle.cos(), angle.cos()
        turn[:, i, j], turn[:, j, i] = -angle.sin(), angle.sin()
        out = out @ turn
    return out


def places(draws: Draws, size: Sequence[int], spacing: Sequence[float]) -> Tensor:
    """Where each voxel of a batch of heads lies in its anatomy, `(B, X, Y, Z, 3)` mm."""
    points = grid_points(size, spacing, draws.generator.device)
    turn, scale = rotations(draws), draws.uniform(0.88, 1.12, 3)
    shift = draws.uniform(-1, 1, 3) * torch.tensor(LARGEST_SHIFT, device=points.device)
    moved = torch.einsum("bij,xyzj->bxyzi", turn, points) / scale.view(-1, 1, 1, 1, 3)
    return moved + shift.view(-1, 1, 1, 1, 3) + deformation(draws, size, spacing)
