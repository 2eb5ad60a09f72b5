"""Points and values of a head volume in world mm, and its values freed of contrast and bias field."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def local_normalisation(image: Tensor, known: Tensor, window: float, epsilon: Tensor | float) -> Tensor:
    """`(I - mean) / sqrt(variance + epsilon^2)` in windows of `window` voxels: free of contrast and bias field."""
    size = int(window) // 2 * 2 + 1
    count = _box(known, size).clamp_min(1e-6)
    mean = _box(image * known, size) / count
    variance = (_box(image**2 * known, size) / count - mean**2).clamp_min(0)
    return (image - mean) / (variance + epsilon**2).sqrt() * known


def _box(x: Tensor, size: int) -> Tensor:
    """The mean over a cube of `size` voxels of `(C, X, Y, Z)`, zeros outside."""
    for axis in (1, 2, 3):
        moved = x.movedim(axis, -1)
        x = F.avg_pool1d(moved.flatten(0, 2), size, 1, size // 2).unflatten(0, moved.shape[:3]).movedim(-1, axis)
    return x


def sample(volume: Tensor, center: Tensor, spacing: float, points: Tensor) -> Tensor:
    """Interpolate `(C, Z, Y, X)`, centred at `center`, at world points `(..., 3, N)`: `(C, ..., N)`, zero outside."""
    half = (torch.tensor(volume.shape[:0:-1], device=points.device) - 1) * spacing / 2
    grid = ((points - center[:, None]) / half[:, None]).flatten(0, -3).mT
    values = F.grid_sample(volume[None], grid[None, :, None], align_corners=True)
    return values.reshape(len(volume), *points.shape[:-2], points.shape[-1])


def lattice(shape: Sequence[int], spacing: float, device: torch.device) -> Tensor:
    """Points `(3, N)` of a grid centred at the origin, mm."""
    axes = [(torch.arange(n, device=device) - (n - 1) / 2) * spacing for n in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)
