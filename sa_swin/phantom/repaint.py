"""A lesion in a healthy person's image; a healthy one is treated likewise, but for the lesion.

Every image is smoothed a little and gets noise, so that pushed tissue, which is interpolated, is no smoother than the
rest. A lesion has the shape of a real one, its volume, place and side as drawn, and values from that very image.
"""

from dataclasses import dataclass

import nibabel as nib
import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from sa_swin.phantom.anatomy import closed, normalized_grid, sample_normalized
from sa_swin.phantom.geometry import radial_push, random_field
from sa_swin.phantom.lesion import LOOKS, MARGIN_MM, MASS_EFFECT, choose_mask, largest_component
from sa_swin.phantom.plan import SIDES, Plan
from sa_swin.phantom.real import Head, smoothed

REPLACED = 0.92
"""Share of the tissue that a lesion replaces; the rest shows through."""
BLUR = 0.55
"""Standard deviation in voxels of the smoothing that every image gets: of what is left, splines lose nothing."""
LEFT = 0.47
"""Share of the standard deviation of white noise that is left by that smoothing."""
EDGE = 0.6
"""Standard deviation in voxels of the lesion's edge."""
TRIES = 20
NEAREST_MM = 0.02
"""A displacement below this is none."""


@dataclass(frozen=True)
class Lesion:
    """A lesion in a head.

    Args:
        mask: `(X, Y, Z)` bool.
        centre: `(3,)` mm in the head, of the part on one side.
        side: 1 right, -1 left.
        radius: of the ball of its volume, mm; of one part of a bilateral one.
        folded: whether both hemispheres have it.
    """

    mask: np.ndarray
    centre: Tensor
    side: int
    radius: float
    folded: bool


def fold(points: Tensor, side: int) -> Tensor:
    """Points of the other hemisphere reflected onto a side."""
    return torch.cat([side * points[..., :1].abs(), points[..., 1:]], dim=-1)


def draw_lesion(
    generator: np.random.Generator, head: Head, plan: Plan, masks: list[str], millilitres: float
) -> Lesion | None:
    """A lesion of exactly this volume, or None where the brain has no room for it at the place drawn.

    The voxels deepest inside the real lesion's outline are taken until the volume is reached.
    """
    side = SIDES.get(plan.side, int(generator.choice([-1, 1])))
    parts = 2 if plan.place != "one-sided" else 1
    volume, affine = choose_mask(generator, masks, side, millilitres / (2 if plan.place == "bilateral" else 1))
    if plan.place == "midline":
        affine = to_midline(generator, head, volume, affine)
    points = head.standard if parts == 1 else fold(head.standard, side)
    distance = outline_distance(volume, affine, points)
    lateral = head.points[..., 0].numpy()
    half = head.brain & ((side * lateral > MARGIN_MM) if parts == 1 else (np.abs(lateral) > MARGIN_MM))
    if plan.place == "midline":
        half = head.brain
    allowed = head.tissue & half
    count = round(1000 * millilitres / head.spacing.prod())
    if count * 2 > allowed.sum():
        return None
    limit = np.partition(distance[allowed], count - 1)[count - 1]
    mask = allowed & (distance <= limit)
    halves = (mask & (lateral > 0), mask & (lateral <= 0)) if plan.place == "bilateral" else (mask,)
    mask = np.any([largest_component(part) for part in halves], axis=0)
    mask |= closed(mask, 2.0, float(head.spacing.mean())) & half
    own = mask & (side * lateral > 0)
    if not own.any() or abs(np.log(mask.sum() / count)) > 0.25:
        return None
    centre = head.points[torch.from_numpy(own)].mean(dim=0)
    radius = (3000 * millilitres / (4 * np.pi * parts)) ** (1 / 3)
    return Lesion(mask, centre, side, float(radius), parts == 2)


def to_midline(generator: np.random.Generator, head: Head, volume: Tensor, affine: np.ndarray) -> np.ndarray:
    """The affine that centres a lesion on the plane, where tissue crosses it."""
    x, _, z = (head.standard[..., axis].numpy() for axis in range(3))
    places = np.argwhere(head.tissue & (np.abs(x) < 3) & (z > -12) & (z < 58))
    target = head.standard[tuple(places[int(generator.integers(len(places)))])].numpy() * [0, 1, 1]
    centre = nib.affines.apply_affine(affine, np.argwhere(volume.numpy()).mean(axis=0))
    shift = np.eye(4)
    shift[:3, 3] = target - centre
    return shift @ affine


def outline_distance(volume: Tensor, affine: np.ndarray, points: Tensor) -> np.ndarray:
    """Distance in mm of points in standard space to the outline of a lesion, negative inside."""
    coarse = volume[::2, ::2, ::2].numpy() > 0
    step = affine @ np.diag([2.0, 2, 2, 1])
    size = float(np.cbrt(abs(np.linalg.det(step[:3, :3]))))
    if not coarse.any():
        coarse, step, size = volume.numpy() > 0, affine, size / 2
    signed = ndimage.distance_transform_edt(~coarse) - ndimage.distance_transform_edt(coarse)
    grid = normalized_grid(points, step, coarse.shape)
    beyond = (grid.abs() - 1).clamp(min=0).norm(dim=-1) * max(coarse.shape) / 2
    inside = sample_normalized(torch.from_numpy(signed.astype(np.float32))[None], grid.clamp(-1, 1))[0]
    return (size * (inside + beyond)).numpy()


def pushed(image: np.ndarray, head: Head, lesion: Lesion, finding: str) -> np.ndarray:
    """The image after the mass effect: tissue moves outward, less near the brain's surface, and not at all far away."""
    shift = min(MASS_EFFECT[finding] * lesion.radius, 6.0)
    points = fold(head.points, lesion.side) if lesion.folded else head.points
    push = radial_push(points, lesion.centre, lesion.radius, shift) * torch.from_numpy(head.depth)[..., None]
    if lesion.folded:
        push[..., 0] *= torch.where(points[..., 0] == head.points[..., 0], 1.0, -1.0)
    near = push.norm(dim=-1).numpy() > NEAREST_MM
    steps = push[torch.from_numpy(near)].numpy() @ np.linalg.inv(head.to_head[:3, :3]).T
    coordinates = np.argwhere(near) + steps
    moved = image.copy()
    moved[near] = ndimage.map_coordinates(image, coordinates.T, order=3, mode="nearest")
    return moved


def mean_value(generator: np.random.Generator, head: Head, look: str) -> float:
    """The mean value of a lesion, from the tissues of this image."""
    fluid, grey, white = head.means
    share = float(generator.uniform(0, 1))
    return {
        "tissue": grey + (0.4 * share - 0.1) * (white - grey),
        "fluid": fluid + 0.5 * share * (grey - fluid),
        "blood": white + (0.15 + 0.25 * share) * (white - fluid),
    }[look]


def painted(generator: np.random.Generator, image: np.ndarray, head: Head, lesion: Lesion, finding: str) -> np.ndarray:
    """The image with the lesion: its value shaded and uneven as the surroundings are, its edge soft."""
    cover = smoothed(lesion.mask, EDGE) * REPLACED
    cover[cover < 0.01] = 0
    grain = smoothed(generator.standard_normal(image.shape, dtype=np.float32), BLUR)
    texture = random_field(generator, 5.0)(head.points)[0].numpy()
    _, grey, white = head.means
    look = head.shading * mean_value(generator, head, LOOKS[finding]) + 0.12 * (white - grey) * texture
    return image + cover * (look + head.noise * LEFT * grain / grain.std() - image)


def treated(generator: np.random.Generator, image: np.ndarray, noise: float) -> np.ndarray:
    """Noise that brings a smoothed image back to the level of its source: Rician, as magnitudes are."""
    sigma = noise * np.sqrt(1 - LEFT**2)
    real, imaginary = (generator.standard_normal(image.shape, dtype=np.float32) for _ in range(2))
    return np.hypot(np.maximum(image, 0) + sigma * real, sigma * imaginary)


def finished(image: np.ndarray, head: Head, source: nib.Nifti1Image) -> nib.Nifti1Image:
    """A RAS volume in the grid, orientation and kind of numbers of the source; what was empty there stays so."""
    low, high = float(head.image.min()), float(head.image.max())
    image = np.where(head.image > low, np.maximum(image, low), low)
    whole = np.array_equal(head.image, np.rint(head.image)) and high < 2**14 and low >= -(2**14)
    return like(np.rint(image).astype(np.int16) if whole else image.astype(np.float32), source)


def like(volume: np.ndarray, source: nib.Nifti1Image) -> nib.Nifti1Image:
    """A RAS volume stored as the source is."""
    turn = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.io_orientation(source.affine)
    )
    upright = nib.as_closest_canonical(source).affine
    image = nib.Nifti1Image(nib.Nifti1Image(volume, upright).as_reoriented(turn).dataobj, source.affine)
    image.set_qform(source.affine, code=1)
    image.set_sform(source.affine, code=1)
    return image
