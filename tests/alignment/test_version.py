"""Prepared cohorts are stamped with `ALIGNMENT_VERSION`: these numbers change with it, and only with it."""

import pytest
import torch
import torch.nn.functional as F
from monai.data import MetaTensor

from custom.alignment.grid import aligned_grid, central_affine, to_grid
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


SIZE, VOXEL = (64, 64, 64), (20, 30, 25)


def figures(channel: torch.Tensor) -> list[float]:
    """Mean, standard deviation, and one voxel."""
    return [channel.mean().item(), channel.std().item(), channel[VOXEL].item()]


def test_the_numbers_of_a_ct_whose_air_and_bone_are_clipped():
    head = turned_head()
    inside = (head > 0).float().as_tensor()
    skull = inside * F.max_pool3d(1 - inside, 3, 1, 1)
    values = torch.where(skull > 0, 1000.0, 0.3 * head.as_tensor() + 10).where(inside > 0, torch.tensor(-1000.0))
    ct = MetaTensor(values, affine=head.affine)
    placed = aligned_grid(ct, (3.0,) * 3, SIZE)
    aligned = to_grid(ct, placed.affine, SIZE, "bilinear")[0]
    found = [*placed.plane.normal, *placed.affine[:3, 3].tolist(), *figures(aligned)]
    assert placed.reason is None
    assert found == pytest.approx(
        [0.9945, 0.1047, -0.0005, 15.8643, 2.0263, 2.0436, -672.0089, 535.0724, 39.4315], abs=5e-3
    )


def test_the_numbers_of_two_channels():
    head = turned_head()
    two = MetaTensor(torch.cat([head, head.square() / 100 + 20]), affine=head.affine)
    placed = aligned_grid(two, (3.0,) * 3, SIZE)
    aligned = to_grid(two, placed.affine, SIZE, "bilinear")
    found = [*placed.plane.normal, *placed.affine[:3, 3].tolist(), *figures(aligned[0]), *figures(aligned[1])]
    first, second = [27.1024, 43.8273, 97.8237], [47.0434, 43.9714, 115.6982]
    assert found == pytest.approx([0.9945, 0.1045, 0, 15.8422, 2.6244, 0.0004, *first, *second], abs=5e-3)
    assert aligned[1, 0, 0, 0] == 20  # outside the field of view, the background


def test_the_numbers_of_a_label_whose_voxels_are_voted_for():
    head = turned_head()
    label = MetaTensor((head > 95).float() + (head > 60).float(), affine=head.affine)
    aligned = to_grid(label, aligned_grid(head, (3.0,) * 3, SIZE).affine, SIZE, "nearest")[0]
    middles = [(aligned == value).nonzero().double().mean(0).tolist() for value in (1, 2)]
    assert torch.bincount(aligned.flatten().int()).tolist() == [191535, 6041, 64568]  # nearest neighbour: 191486, ...
    assert middles[0] == pytest.approx([31.6721, 32.2779, 31.6808], abs=5e-3)
    assert middles[1] == pytest.approx([31.4989, 31.3628, 31.6701], abs=5e-3)


def test_the_numbers_of_a_head_as_it_lies():
    turn = torch.eye(4, dtype=torch.float64)
    turn[1:3, 1:3] = torch.tensor([[0.8, -0.6], [0.6, 0.8]])
    head = turned_head()
    oblique = MetaTensor(head.as_tensor()[:, :, :60], affine=turn @ head.affine)
    grid = central_affine(oblique, (2.0, 3.0, 4.0), SIZE)
    aligned = to_grid(oblique, grid, SIZE, "bilinear")[0]
    assert grid[:3, :3].T.flatten().tolist() == pytest.approx([2, 0, 0, 0, 2.4, 1.8, 0, -2.4, 3.2])
    assert [*grid[:3, 3].tolist(), *figures(aligned)] == pytest.approx(
        [31.5, 14.1, -28.8, 29.2141, 44.8155, 90.7488], abs=5e-3
    )
