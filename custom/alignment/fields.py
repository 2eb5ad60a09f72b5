"""Displacement fields `(B, 3, X, Y, Z)` in mm between the sides of a volume, and sums along its axes."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from custom.symmetry import mirror


def displaced_mirror(volume: Tensor, field: Tensor, spacing: Sequence[float], mode: str = "bilinear") -> Tensor:
    """The mirror image of `(B, C, X, Y, Z)` at places displaced by `(B, 3, X, Y, Z)` mm; `nearest` for labels.

    Examples:
        >>> volume = torch.arange(3.0).reshape(1, 1, 3, 1, 1)
        >>> displaced_mirror(volume, torch.tensor([2.0, 0, 0]).reshape(1, 3, 1, 1, 1).expand(1, 3, 3, 1, 1), (2, 2, 2))
        ... # doctest: +NORMALIZE_WHITESPACE
        tensor([[[[[1.]], [[0.]], [[0.]]]]])
    """
    voxels = field.to(volume.dtype) / field.new_tensor(spacing).to(volume.dtype).reshape(3, 1, 1, 1)
    return displaced(mirror(volume), voxels, mode)


def exponential(velocity: Tensor, spacing: Tensor, squarings: int = 6) -> Tensor:
    """Displacement (mm) of the flow of a stationary velocity `(B, 3, X, Y, Z)`, by scaling and squaring."""
    voxels = velocity / spacing.reshape(3, 1, 1, 1) / 2**squarings
    for _ in range(squarings):
        voxels = voxels + displaced(voxels, voxels)
    return voxels * spacing.reshape(3, 1, 1, 1)


def jacobian_determinants(field: Tensor, spacing: Tensor) -> Tensor:
    """Local change of volume `(B, X, Y, Z)` of the map `x + field(x)`, by central differences."""
    slopes = [torch.stack(torch.gradient(field[:, i], dim=(1, 2, 3)), -1) for i in range(3)]
    return torch.linalg.det(torch.stack(slopes, -2) / spacing + torch.eye(3, device=field.device))


def resized(x: Tensor, size: Sequence[int]) -> Tensor:
    """Linear interpolation of `(B, C, X, Y, Z)` onto as many voxels, antialiased, about the same centre."""
    return along_axes(x, [interpolation(a, b, x) for a, b in zip(x.shape[2:], size, strict=True)])


def round_trip(field: Tensor, spacing: Tensor) -> Tensor:
    """How far from itself, `(B, 3, X, Y, Z)` in mm, the counterpart of each place's counterpart lies."""
    mirrored = mirror(field) * field.new_tensor([-1.0, 1.0, 1.0]).reshape(3, 1, 1, 1)
    return field + displaced(mirrored, field / spacing.reshape(3, 1, 1, 1))


def displaced(x: Tensor, voxels: Tensor, mode: str = "bilinear") -> Tensor:
    """`(B, C, X, Y, Z)` at its own voxels displaced by `(B, 3, X, Y, Z)`; its border goes on outside."""
    shape = x.shape[2:]
    identity = torch.eye(3, 4, dtype=x.dtype, device=x.device).expand(len(x), 3, 4)
    grid = F.affine_grid(identity, [len(x), 1, *shape], align_corners=False)
    scale = x.new_tensor([2 / n for n in shape[::-1]])
    grid = torch.addcmul(grid, voxels.flip(1).movedim(1, -1), scale)
    return F.grid_sample(x, grid, mode=mode, padding_mode="border", align_corners=False)


def along_axes(x: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """Apply a matrix `(out, in)` along each of the last three axes."""
    for matrix in matrices:  # each product moves the next axis to the end; after three they are in order again
        x = x.movedim(-3, -1) @ matrix.mT
    return x


def interpolation(n: int, m: int, like: Tensor) -> Tensor:
    """Matrix `(m, n)` of a linear interpolation of n voxels onto m, antialiased, about the same centre."""
    eye = torch.eye(n, device=like.device)[None, None]
    return F.interpolate(eye, (m, n), mode="bilinear", antialias=m < n, align_corners=False)[0, 0]


def gaussian(n: int, sigma: float, like: Tensor) -> Tensor:
    """Matrix `(n, n)` of a Gaussian of `sigma` voxels, normed at the borders, too."""
    place = torch.arange(n, device=like.device, dtype=torch.float32)
    kernel = torch.exp(-(((place[:, None] - place) / sigma) ** 2) / 2)
    return kernel / kernel.sum(1, keepdim=True)


def box(n: int, window: int, like: Tensor) -> Tensor:
    """Matrix `(n, n)` of the mean over `window` voxels, fewer at the borders."""
    place = torch.arange(n, device=like.device)
    kernel = ((place[:, None] - place).abs() <= window // 2).float()
    return kernel / kernel.sum(1, keepdim=True)
