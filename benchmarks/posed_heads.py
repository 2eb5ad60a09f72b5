"""Heads of known pose, for the alignment benchmark.

Bases are made exactly symmetric (one half mirrored): the ICBM template, and the label maps of
`SA_SWIN_SHARED_DATA/anatomies` painted as T1, T2, FLAIR or CT, with or without skull. Then natural asymmetry, a
one-sided lesion with or without mass effect, bias field, noise and a pose are added, in one interpolation. The true
plane is that of the base before it was deformed.
"""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F
from nilearn.datasets import load_mni152_template
from scipy import ndimage
from torch import Tensor

from custom.alignment.head import resample
from custom.alignment.plane import aligned_affine, estimate_plane

SHARED_DATA = Path(os.environ.get("SA_SWIN_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
SIZE = (182, 218, 182)
"""Voxels of 1 mm of every case."""
BASE_SIZE = (208, 256, 240)
# intensities of: background, white matter, grey matter, fluid, deep grey, bone, soft tissue, skin and fat
CONTRASTS = {
    "T1": (0, 1.0, 0.7, 0.25, 0.8, 0.1, 0.6, 1.2),
    "T2": (0, 0.4, 0.6, 1.2, 0.45, 0.1, 0.4, 0.8),
    "FLAIR": (0, 0.6, 0.8, 0.15, 0.7, 0.1, 0.5, 0.9),
    "CT": (-1000, 28, 37, 8, 35, 900, 50, -60),
}
WHITE, FLUID = (2, 7, 41, 46, 16, 28, 60, 85), (4, 5, 14, 15, 24, 43, 44, 72)
SETS = ("clean", "asymmetric", "lesion", "mass effect", "mass effect")
DEEP, BONE, FAT = (10, 11, 12, 13, 49, 50, 51, 52), (515,), (511, 516)


@dataclass(frozen=True)
class Base:
    """A symmetric head, `(X, Y, Z)` at 1 mm, its plane central on X; `depth` is mm inside the brain; CT in HU."""

    name: str
    image: Tensor
    depth: Tensor
    ct: bool


@dataclass(frozen=True)
class Case:
    """A head of known pose: image, affine, true normal `(3,)` and true centre `(3,)` on the plane, mm."""

    name: str
    image: Tensor
    affine: Tensor
    normal: Tensor
    center: Tensor
    group: str = ""


def symmetric(half: Tensor) -> Tensor:
    """The whole of a left half `(X / 2, Y, Z)`: with its mirror image on the right."""
    return torch.cat([half, half.flip(0)])


def template_base() -> Base:
    """The ICBM 2009a template, without skull, made symmetric about world x = 0."""
    template = load_mni152_template(resolution=1)
    image = torch.from_numpy(template.get_fdata(dtype=np.float32))
    affine = torch.from_numpy(template.affine)
    grid = torch.eye(4, dtype=torch.float64)
    grid[:3, 3] = torch.tensor([-99.5, -134, -72])
    image = symmetric(resample(image, affine, grid, (100, 233, 189))[0])
    return Base("icbm T1 brain", image, _depth(image > 0.1), ct=False)


def anatomy_bases(seed: int) -> Iterator[Base]:
    """Every label map of the shared anatomies, aligned by its own brain, mirrored, painted with two contrasts."""
    rng = np.random.default_rng(seed)
    for path in sorted(SHARED_DATA.glob("anatomies/*.nii.gz")):
        file = nib.load(path)
        labels = torch.from_numpy(np.asarray(file.dataobj).astype(np.int16))
        affine = torch.from_numpy(file.affine)
        plane = estimate_plane(painted(labels, "T1", skull=True), affine)
        place = torch.linalg.inv(affine) @ aligned_affine(plane, 1.0, BASE_SIZE)
        half = (BASE_SIZE[0] // 2, *BASE_SIZE[1:])
        labels = ndimage.affine_transform(labels.numpy(), place[:3, :3].numpy(), place[:3, 3].numpy(), half, order=0)
        labels = symmetric(torch.from_numpy(labels))
        depth = _depth((labels > 0) & (labels < 500))
        for contrast in rng.permutation(list(CONTRASTS))[:2]:
            skull = bool(rng.random() < 0.6)
            name = f"{path.name[-9:-7]} {contrast} {'head' if skull else 'brain'}"
            yield Base(name, painted(labels, contrast, skull), depth, ct=contrast == "CT")


def painted(labels: Tensor, contrast: str, skull: bool) -> Tensor:
    """FreeSurfer labels (500 and above outside the brain) as intensities; without skull the latter are 0."""
    air, white, grey, fluid, deep, bone, soft, fat = CONTRASTS[contrast]
    table = torch.full((2100,), float(grey))
    table[500:] = soft
    for group, value in ((WHITE, white), (FLUID, fluid), (DEEP, deep), (BONE, bone), (FAT, fat)):
        table[list(group)] = value
    table[0] = air
    if not skull:
        table[500:] = air
    return table[labels.int()]


def _homogeneous_indices(shape: tuple[int, ...]) -> Tensor:
    index = torch.stack(torch.meshgrid(*[torch.arange(n, dtype=torch.float64) for n in shape], indexing="ij"))
    return torch.cat([index.flatten(1), torch.ones(1, math.prod(shape), dtype=torch.float64)])


def _depth(brain: Tensor) -> Tensor:
    """Millimetres inside the brain, 0 outside, computed within the box around it."""
    index = brain.nonzero()
    low, high = (index.amin(0) - 4).clamp_min(0).tolist(), (index.amax(0) + 5).tolist()
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    closed = ndimage.binary_closing(np.pad(brain[box].numpy(), 1), iterations=3)
    depth = torch.zeros(brain.shape)
    depth[box] = torch.from_numpy(ndimage.distance_transform_edt(closed)[1:-1, 1:-1, 1:-1].astype(np.float32))
    return depth


def make_case(
    base: Base, rng: np.random.Generator, lesion: Tensor | None, mass_effect: float, asymmetry: float, noise: float
) -> Case:
    """Deform, mark and pose a base: every change in one interpolation.

    Args:
        base: the symmetric head.
        rng: the source of pose, asymmetry, bias field and noise.
        lesion: `(X, Y, Z)` mask on the base's grid, or None.
        mass_effect: mm by which tissue beside the lesion is pushed away.
        asymmetry: mm, root mean square along each axis, by which each side departs from symmetry.
        noise: standard deviation as a share of the tissue's range.
    """
    roll, yaw = np.radians(rng.uniform(-20, 20, 2))
    pitch = np.radians(rng.uniform(-10, 10))
    turn = torch.tensor(rotation(yaw, 2) @ rotation(roll, 1) @ rotation(pitch, 0))
    shift = torch.tensor(rng.uniform(-20, 20, 3))
    affine = torch.eye(4, dtype=torch.float64)
    affine[:3, 3] = torch.tensor(rng.uniform(-150, 50, 3))
    middle = (torch.tensor(SIZE, dtype=torch.float64) - 1) / 2
    brain = (base.depth > 0).nonzero().double().mean(0)
    brain[0] = (base.image.shape[0] - 1) / 2

    image = marked(base, lesion, rng)
    index = _homogeneous_indices(SIZE)[:3].T
    source = ((index - middle - shift) @ turn + brain).float()
    source = source + _asymmetry(base, source, rng, asymmetry)
    if mass_effect and lesion is not None:
        source = source - _push(base, lesion, source, mass_effect)
    posed = _interpolate(image, source).reshape(SIZE)
    posed = _scanned(posed, base, rng, noise)
    return Case(base.name, posed, affine, turn[:, 0], affine[:3, 3] + middle + shift)


def rotation(angle: float, axis: int) -> np.ndarray:
    """Turn by radians about an axis, `(3, 3)`."""
    c, s = math.cos(angle), math.sin(angle)
    a, b = [i for i in range(3) if i != axis]
    matrix = np.eye(3)
    matrix[[a, a, b, b], [a, b, a, b]] = c, -s, s, c
    return matrix


def _interpolate(image: Tensor, voxels: Tensor) -> Tensor:
    grid = (2 * voxels / (torch.tensor(image.shape) - 1) - 1).flip(-1)
    low = image.min()
    return F.grid_sample((image - low)[None, None], grid[None, None, None], align_corners=True).flatten() + low


def marked(base: Base, lesion: Tensor | None, rng: np.random.Generator) -> Tensor:
    """Paint a soft-edged lesion, brighter or darker than the tissue."""
    if lesion is None:
        return base.image
    soft = torch.from_numpy(ndimage.gaussian_filter(lesion.numpy().astype(np.float32), 1.0)) * (base.depth > 0)
    tissue = base.image[base.depth > 0]
    value = rng.choice([10.0, 70.0]) if base.ct else float(tissue.median()) * rng.choice([0.3, 1.6])
    return base.image + soft * (value - base.image)


def _asymmetry(base: Base, source: Tensor, rng: np.random.Generator, size: float) -> Tensor:
    """A smooth random displacement of `size` mm that, over the head, neither turns nor shifts the plane."""
    # between its nodes a linear interpolation keeps two thirds of the variance along each axis
    nodes = rng.normal(0, size * 1.5**1.5, (1, 3, 8, 9, 8))
    field = torch.from_numpy(nodes.astype(np.float32))
    grid = (2 * source / (torch.tensor(base.image.shape) - 1) - 1).flip(-1)
    moved = F.grid_sample(field, grid[None, None, None], align_corners=True, padding_mode="border")[0, :, 0, 0].T
    tissue = (_interpolate(base.depth, source) > 0).nonzero().flatten()[::50]
    design = torch.cat([torch.ones(len(tissue), 1), (source[tissue, 1:] - 100) / 100], 1)
    rigid = torch.linalg.lstsq(design, moved[tissue, :1]).solution
    moved[:, :1] -= torch.cat([torch.ones(len(source), 1), (source[:, 1:] - 100) / 100], 1) @ rigid
    return moved


def _push(base: Base, lesion: Tensor, source: Tensor, size: float) -> Tensor:
    """Displacement away from the lesion, largest at its edge, fading over 40 mm and towards the skull."""
    away = source - lesion.nonzero().float().mean(0)
    distance = away.norm(dim=1, keepdim=True).clamp_min(1)
    radius = (float(lesion.sum()) * 3 / (4 * math.pi)) ** (1 / 3)
    fade = torch.where(distance < radius, distance / radius, torch.exp(-(((distance - radius) / 40) ** 2)))
    inside = (_interpolate(base.depth, source)[:, None] / 20).clamp_max(1)
    return away / distance * fade * inside * size


def _scanned(image: Tensor, base: Base, rng: np.random.Generator, noise: float) -> Tensor:
    """Add a bias field (MR only) and noise; a stripped or padded background stays empty."""
    low = base.image.min()
    spread = 60.0 if base.ct else float(base.image[base.depth > 0].median())
    if not base.ct:
        field = torch.from_numpy(rng.normal(0, 0.2, (1, 1, 4, 4, 4)).astype(np.float32))
        image = image * F.interpolate(field, SIZE, mode="trilinear", align_corners=True)[0, 0].exp()
    hiss = torch.from_numpy(rng.standard_normal(SIZE, dtype=np.float32)) * noise * spread
    return torch.where(image > low, image + hiss, image)


def random_lesion(base: Base, rng: np.random.Generator, smallest: float) -> Tensor | None:
    """One of the shared stroke masks of at least `smallest` ml, in its place in the brain, on a random side."""
    paths = sorted(SHARED_DATA.glob("lesions/*.nii.gz"))
    for path in rng.permutation(paths)[:40]:
        mask = np.asarray(nib.load(path).dataobj) > 0
        if mask.sum() >= 1000 * smallest:
            break
    else:
        return None
    if rng.random() < 0.5:
        mask = mask[::-1]
    inside = (base.depth > 0).nonzero()
    start = ((inside.amin(0) + inside.amax(0) - torch.tensor(mask.shape)) / 2).round().long().tolist()
    placed = torch.zeros(base.image.shape, dtype=torch.bool)
    placed[tuple(slice(s, s + n) for s, n in zip(start, mask.shape, strict=True))] = torch.from_numpy(mask.copy())
    return placed


def random_cases(num_cases: int, seed: int) -> Iterator[Case]:
    """Heads of every set in `SETS` by turns, over every base."""
    rng = np.random.default_rng(seed)
    bases = [template_base(), *anatomy_bases(seed)]
    for index in range(num_cases):
        base = bases[index % len(bases)]
        group = SETS[(index // len(bases) + index) % len(SETS)]
        lesion = random_lesion(base, rng, rng.uniform(5, 20)) if group in ("lesion", "mass effect") else None
        mass_effect = rng.uniform(4, 12) if group == "mass effect" else 0.0
        case = make_case(base, rng, lesion, mass_effect, 0.6 if group != "clean" else 0.0, rng.uniform(0.01, 0.06))
        yield replace(case, group=group)
