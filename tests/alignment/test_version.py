"""Prepared cohorts are stamped with `ALIGNMENT_VERSION`: these numbers change with it, and only with it."""

import pytest
import torch
from monai.data import MetaTensor

from custom.alignment.grid import aligned_grid, to_grid
from custom.alignment.version import ALIGNMENT_VERSION


def turned_head() -> MetaTensor:
    """A head of two ellipsoids, 6 degrees turned in the axial plane and 5 mm off the middle, in 3 mm voxels."""
    x, y, z = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) * 3 for n in (64, 72, 64)), indexing="ij")
    x, y, z = x - 100, y - 106, z - 95
    angle = torch.deg2rad(torch.tensor(6.0, dtype=torch.float64))
    across, along = x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin()
    head = ((across / 70) ** 2 + (along / 88) ** 2 + (z / 75) ** 2 < 1).double()
    inner = (((across.abs() - 20) / 9) ** 2 + (along / 30) ** 2 + (z / 12) ** 2 < 1).double()
    texture = 0.1 * torch.cos(across / 9) * torch.sin(along / 11) * torch.cos(z / 8)
    affine = torch.diag(torch.tensor([3.0, 3.0, 3.0, 1.0], dtype=torch.float64))
    return MetaTensor((100 * head * (1 - 0.6 * inner + texture)).float()[None], affine=affine)


def test_the_numbers_of_this_version():
    placed = aligned_grid(turned_head(), (3.0,) * 3, (64, 64, 64))
    grid, plane, reason = placed.affine, placed.plane, placed.reason
    aligned = to_grid(turned_head(), grid, (64, 64, 64), "bilinear")
    found = [*plane.normal, *grid[:3, 3], aligned.mean(), aligned.std(), aligned[0, 20, 30, 25]]
    assert reason is None
    normal, corner = [0.99453, 0.10452, 0.0], [15.874, 2.325, 0.001]  # cos and sin of 6 degrees; mm
    expected = pytest.approx([*normal, *corner, 27.1025, 43.8268, 97.676], abs=5e-3)
    assert (ALIGNMENT_VERSION, [float(number) for number in found]) == (1, expected)
