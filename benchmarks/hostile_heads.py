"""What no plane should be trusted on, or only where it is right: for the refusal part of the alignment benchmark.

Heads of known pose are spoilt (a hemisphere missing, motion during the acquisition, a cropped field of view, a wrong
orientation in the header), and volumes are made that are no heads at all. Sizes are voxels of 1 mm where nothing else
is said.
"""

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from posed_heads import Base, Case, anatomy_bases, make_case, rotation, template_base
from scipy import ndimage
from torch import Tensor

from custom.alignment.head import resample

NO_TRUTH = torch.full((3,), torch.nan, dtype=torch.float64)


def side_of(case: Case) -> Tensor:
    """Signed distance `(X, Y, Z)` of every voxel from the true plane, mm; positive on the right."""
    index = torch.stack(
        torch.meshgrid(*[torch.arange(n, dtype=torch.float64) for n in case.image.shape], indexing="ij")
    )
    world = torch.einsum("ij,jxyz->ixyz", case.affine[:3, :3], index) + case.affine[:3, 3, None, None, None]
    return torch.einsum("i,ixyz->xyz", case.normal, world - case.center[:, None, None, None])


def cropped(case: Case, low: list[int], high: list[int]) -> Case:
    """Cut so many voxels off at the low and the high end of each axis."""
    slices = tuple(slice(a, n - b) for a, b, n in zip(low, high, case.image.shape, strict=True))
    shift = torch.eye(4, dtype=torch.float64)
    shift[:3, 3] = torch.tensor(low, dtype=torch.float64)
    return replace(case, image=case.image[slices].contiguous(), affine=case.affine @ shift)


def one_hemisphere(case: Case, rng: np.random.Generator) -> Case:
    """Only one side, up to 15 mm past the plane: emptied beyond it, or the field of view ends there."""
    sign, reach = rng.choice([-1, 1]), rng.uniform(-5, 15)
    gone = sign * side_of(case) > reach
    if rng.random() < 0.5:
        return replace(case, image=torch.where(gone, case.image.min(), case.image))
    lost = int(gone.double().mean((1, 2)).gt(0.5).sum())
    return cropped(case, [lost if sign < 0 else 0, 0, 0], [lost if sign > 0 else 0, 0, 0])


def cropped_view(case: Case, rng: np.random.Generator) -> Case:
    """A field of view that ends inside the head: on one side, in front, behind, or a slab of 30 to 80 mm."""
    head = (case.image > case.image.min() + 0.1 * (case.image.max() - case.image.min())).nonzero()
    first, last = head.amin(0).tolist(), head.amax(0).tolist()
    low, high = [0, 0, 0], [0, 0, 0]
    kind = rng.integers(4)
    if kind == 3:
        thickness = int(rng.uniform(30, 80))
        low[2] = int(rng.uniform(first[2], last[2] - thickness))
        high[2] = case.image.shape[2] - low[2] - thickness
    else:
        axis, end = (0, 1, 1)[kind], (rng.choice([0, 1]), 0, 1)[kind]
        depth = int(rng.uniform(10, 60))
        (low, high)[end][axis] = first[axis] + depth if end == 0 else case.image.shape[axis] - 1 - last[axis] + depth
    return cropped(case, low, high)


def wrong_orientation(case: Case, rng: np.random.Generator) -> Case:
    """A header that has the nose or the crown to one side, or a head turned by 45 to 90 degrees about any axis."""
    axis = int(rng.choice([1, 2]))
    turn = torch.eye(4, dtype=torch.float64)
    turn[:3, :3] = torch.from_numpy(rotation(math.radians(rng.choice([-1, 1]) * rng.uniform(45, 90)), axis))
    return replace(
        case,
        affine=turn @ case.affine,
        normal=turn[:3, :3] @ case.normal,
        center=turn[:3, :3] @ case.center,
    )


def moving(case: Case, rng: np.random.Generator, degrees: float, mm: float) -> Case:
    """Motion during the acquisition: lines of k-space are those of a head that turned and shifted, which ghosts.

    The true pose is that at the centre of k-space.

    Args:
        case: a head at rest.
        rng: the source of the motion.
        degrees: standard deviation of the rotation about each axis between two of two to six poses.
        mm: the same of the shift.
    """
    low = case.image.min()
    phase = int(rng.integers(3))
    moves = np.sort(rng.integers(0, case.image.shape[phase], rng.integers(1, 6)))
    pose = np.searchsorted(moves, np.arange(case.image.shape[phase]), side="right")
    lines = torch.zeros(case.image.shape, dtype=torch.complex64)
    for number in range(len(moves) + 1):
        at_rest = number == pose[len(pose) // 2]
        head = case.image - low if at_rest else _turned(case.image - low, rng, degrees, mm)
        mask = torch.from_numpy(np.fft.ifftshift(pose == number)).reshape([-1 if i == phase else 1 for i in range(3)])
        lines += torch.fft.fft(head, dim=phase) * mask
    return replace(case, image=torch.fft.ifft(lines, dim=phase).abs() + low)


def _turned(image: Tensor, rng: np.random.Generator, degrees: float, mm: float) -> Tensor:
    motion, middle = torch.eye(4, dtype=torch.float64), (torch.tensor(image.shape, dtype=torch.float64) - 1) / 2
    for axis in range(3):
        motion[:3, :3] = torch.from_numpy(rotation(math.radians(rng.normal(0, degrees)), axis)) @ motion[:3, :3]
    motion[:3, 3] = middle - motion[:3, :3] @ middle + torch.from_numpy(rng.normal(0, mm, 3))
    return resample(image, motion, torch.eye(4, dtype=torch.float64), tuple(image.shape), padding_mode="zeros")[0]


def _coordinates(rng: np.random.Generator, shape: tuple[int, int, int]) -> Tensor:
    """Millimetres `(3, X, Y, Z)` of a turned and shifted frame about the middle."""
    axes = [torch.arange(n, dtype=torch.float64) - (n - 1) / 2 for n in shape]
    index = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    turn = torch.eye(3, dtype=torch.float64)
    for axis in range(3):
        turn = torch.from_numpy(rotation(math.radians(rng.uniform(-20, 20)), axis)) @ turn
    moved = torch.einsum("ij,jxyz->ixyz", turn, index)
    return (moved + torch.from_numpy(rng.uniform(-15, 15, 3))[:, None, None, None]).float()


def bottle(rng: np.random.Generator) -> Tensor:
    """A phantom: a cylinder along any axis or a sphere, of one fluid, with an air bubble or not, with rods or not."""
    place = _coordinates(rng, (200, 220, 200))
    along = int(rng.integers(4))
    radius = rng.uniform(60, 95)
    if along == 3:
        inside = place.norm(dim=0) < radius
    else:
        across = [axis for axis in range(3) if axis != along]
        inside = (place[across].norm(dim=0) < radius) & (place[along].abs() < rng.uniform(50, 95))
    image = inside.float()
    if rng.random() < 0.5:
        image[place[2] > rng.uniform(30, 60)] = 0
    for _ in range(int(rng.choice([0, 0, 8, 20]))):
        at = rng.uniform(-50, 50, 2)
        rod = ((place[0] - at[0]) ** 2 + (place[1] - at[1]) ** 2) ** 0.5 < rng.uniform(3, 9)
        image[rod & inside] = rng.uniform(0.1, 0.8)
    return image


def torso(rng: np.random.Generator) -> Tensor:
    """A slab of an abdomen: fat around muscle, a spine, organs of random place and size; arms beside it or not."""
    x, y, z = _coordinates(rng, (340, 260, 200))
    width, depth = rng.uniform(120, 165), rng.uniform(85, 115)
    distance = ((x / width) ** 2 + (y / depth) ** 2).sqrt()
    image = torch.where(distance < 1, 1.0, 0.0)
    image[distance < 0.88] = 0.5
    image[(x / (width * 0.75)) ** 2 + ((y - 8) / (depth * 0.72)) ** 2 < 1] = 0.3
    for _ in range(int(rng.integers(6, 16))):
        size = rng.uniform(12, 60, 3)
        at = rng.uniform(-0.6, 0.6, 3) * (width, depth, 100)
        organ = ((x - at[0]) / size[0]) ** 2 + ((y - at[1]) / size[1]) ** 2 + ((z - at[2]) / size[2]) ** 2 < 1
        image[organ & (distance < 0.85)] = rng.uniform(0.2, 0.9)
    image[(x**2 + (y + 0.6 * depth) ** 2) ** 0.5 < 20] = 0.7
    if rng.random() < 0.3:
        image[((x.abs() - width - 45) ** 2 + y**2) ** 0.5 < 38] = 0.6
    return image


def texture(rng: np.random.Generator) -> Tensor:
    """Noise: white everywhere, or smooth, or smooth and inside an ellipsoid of a head's size."""
    shape = (190, 220, 190)
    image = torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))
    kind = int(rng.integers(3))
    if kind:
        smooth = ndimage.gaussian_filter(image.numpy(), rng.uniform(2, 8))
        image = torch.from_numpy(smooth / smooth.std())
    if kind == 2:
        x, y, z = _coordinates(rng, shape)
        ellipsoid = (x / rng.uniform(65, 80)) ** 2 + (y / rng.uniform(80, 100)) ** 2 + (z / rng.uniform(60, 80)) ** 2
        image = torch.where(ellipsoid < 1, image * 0.25 + 1, 0.0)
    return image


def not_a_head(rng: np.random.Generator, kind: str) -> Case:
    """One of `NO_HEADS`, with a coil's shading and noise."""
    image = NO_HEADS[kind](rng)
    field = torch.from_numpy(rng.normal(0, 0.25, (1, 1, 3, 3, 3)).astype(np.float32))
    image = image * F.interpolate(field, image.shape, mode="trilinear", align_corners=True)[0, 0].exp()
    image = image + torch.from_numpy(rng.standard_normal(tuple(image.shape), dtype=np.float32)) * rng.uniform(
        0.005, 0.05
    )
    return Case(kind, image * 1000, torch.eye(4, dtype=torch.float64), NO_TRUTH, NO_TRUTH, f"no head: {kind}")


SPOILT = {
    "one hemisphere": one_hemisphere,
    "cropped view": cropped_view,
    "wrong orientation": wrong_orientation,
    "motion 1-2 degrees": lambda case, rng: moving(case, rng, 1.5, 1.5),
    "motion 5-15 degrees": lambda case, rng: moving(case, rng, rng.uniform(5, 15), 8),
}
NO_HEADS = {"bottle": bottle, "torso": torso, "texture": texture}
HOSTILE = (*SPOILT, *(f"no head: {kind}" for kind in NO_HEADS))
"""The groups that `hostile_cases` makes."""


def hostile_cases(num_cases: int, seed: int) -> Iterator[Case]:
    """`num_cases` of each way to spoil a head, over every base by turns, and of each kind that is no head."""
    rng = np.random.default_rng(seed)
    bases: list[Base] = [template_base(), *anatomy_bases(seed)]
    for index in range(num_cases):
        for offset, (group, spoil) in enumerate(SPOILT.items()):
            base = bases[(index + 4 * offset) % len(bases)]
            case = make_case(base, rng, None, 0.0, 0.6, rng.uniform(0.01, 0.06))
            yield replace(spoil(case, rng), group=group)
        for kind in NO_HEADS:
            yield not_a_head(rng, kind)
