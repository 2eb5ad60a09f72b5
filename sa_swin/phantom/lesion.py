"""Lesions of the built-in cohort: of a chosen place and volume, each a change of the tissue fractions.

A lesion is planned in the head (side, centre, size, mass effect) before the image is sampled; then `draw_mask` takes
the voxels nearest to its centre, by a warped distance, until the volume is reached, and `apply_lesion` exchanges their
tissue.
"""

from dataclasses import dataclass
from functools import cache

import nibabel as nib
import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from custom.volumes.nifti import read_volume
from sa_swin.phantom.anatomy import DEPTH_MM, Anatomy, closed, normalized_grid, sample_normalized
from sa_swin.phantom.geometry import Deformation, Field, radial_push, random_field

FINDINGS = ("tumour", "infarct", "atrophy", "haemorrhage")
PLACEMENTS = ("one-sided", "bilateral", "midline")
"""In one hemisphere; there and at the mirrored place; across the plane between them, as much on either side."""
ZONES: dict[str, tuple[tuple[str, float], ...]] = {
    "tumour": (("necrosis", 0.12), ("tumour", 0.45), ("oedema", 1.0)),
    "infarct": (("infarct", 1.0),),
    "atrophy": (("gliosis", 1.0),),
    "haemorrhage": (("blood", 0.7), ("oedema", 1.0)),
}
"""Per finding, from the inside out: what replaces the tissue, up to which share of the volume."""
REPLACED = {"necrosis": 1.0, "tumour": 0.95, "oedema": 0.85, "infarct": 0.9, "gliosis": 0.3, "blood": 1.0}
"""Share of the tissue that a zone replaces."""
MASS_EFFECT = {"tumour": 0.28, "haemorrhage": 0.22}
"""Displacement at the surface as a share of the lesion's radius."""
LOOKS = {"tumour": "tissue", "infarct": "fluid", "haemorrhage": "blood"}
"""On real T1w: between grey and white matter, between fluid and grey matter, above white matter."""
MARGIN_MM = 2.0
"""No lesion comes nearer to the midsagittal plane than this, save one across it."""
VOLUME_ML = (4.0, 60.0)
"""Smallest and largest volume drawn, of any finding; log-uniform between."""
MASK_FACTOR = 4.0
"""A real lesion is scaled to the volume drawn; one whose own is within this factor is taken, if there is one."""
SHRINKAGE_MM = 8.0
"""How far below the skull an atrophied cortex begins."""
STROKES = ("infarct", "haemorrhage")
"""Findings drawn from lesion masks where a folder of them is given."""


@dataclass(frozen=True)
class LesionPlan:
    """A lesion before it is drawn.

    Args:
        finding: one of `FINDINGS`.
        side: 1 for the subject's right, -1 for the left.
        centre: `(3,)` in the head, mm.
        millilitres: the volume aimed at.
        stretch: `(3, 3)`, makes the lesion's distance that of an ellipsoid.
        texture: random field that makes its outline irregular.
        mask: a real lesion, `(X, Y, Z)` in standard space with its affine, in place of the ellipsoid.
        place: one of `PLACEMENTS`.
    """

    finding: str
    side: int
    centre: Tensor
    millilitres: float
    stretch: Tensor
    texture: Field
    mask: tuple[Tensor, np.ndarray] | None = None
    place: str = "one-sided"

    @property
    def margin(self) -> float:
        """Distance from the midsagittal plane that is kept free, mm."""
        return -np.inf if self.place == "midline" else MARGIN_MM

    @property
    def radius(self) -> float:
        """Radius in mm of the ball of this volume, of a bilateral lesion of each part's."""
        parts = 2 if self.place == "bilateral" else 1
        return float((3000 * self.millilitres / parts / (4 * np.pi)) ** (1 / 3))

    @property
    def pushes(self) -> bool:
        """Whether the lesion has a mass effect."""
        return self.finding in MASS_EFFECT

    def displaced(self, points: Tensor, depth: Tensor) -> Tensor:
        """Points of the head before the mass effect, which fades towards the skull: `depth` `(...)` from 0 to 1."""
        shift = min(MASS_EFFECT[self.finding] * self.radius, 6.0)
        near = self.folded(points)
        push = radial_push(near, self.centre, self.radius, shift)
        push[..., 0] *= torch.where(near[..., 0] == points[..., 0], 1.0, -1.0)
        return points + push * depth[..., None]

    def folded(self, points: Tensor) -> Tensor:
        """Points `(..., 3)`, for a lesion of both hemispheres those of the other one reflected onto its side."""
        if self.place == "one-sided":
            return points
        return torch.cat([self.side * points[..., :1].abs(), points[..., 1:]], dim=-1)


def plan_lesion(
    generator: np.random.Generator,
    finding: str,
    side: int,
    anatomy: Anatomy,
    deformation: Deformation,
    masks: list[str] | None = None,
    size: float = 0.5,
    volume_ml: tuple[float, float] | None = None,
    place: str = "one-sided",
) -> LesionPlan:
    """Choose where in the brain a lesion grows and how large it becomes.

    Args:
        generator: source of randomness.
        finding: one of `FINDINGS`.
        side: 1 for the subject's right, -1 for the left.
        anatomy: the subject's tissue maps.
        deformation: from the head to the anatomy.
        masks: files of real lesions in standard space, used for `STROKES`, but not across the midsagittal plane.
        size: where in the range of volumes the lesion's lies, 0 to 1, on a log scale.
        volume_ml: smallest and largest volume, in place of `VOLUME_ML`.
        place: one of `PLACEMENTS`; the volume of a bilateral lesion is that of both its parts.
    """
    low, high = volume_ml or VOLUME_ML
    millilitres = low * (high / low) ** size
    axis = torch.arange(-100, 101, 4, dtype=torch.float32)
    points = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1)
    centre = points[choose_site(generator, finding, side, place, points, anatomy, deformation)]
    rotation, _ = np.linalg.qr(generator.standard_normal((3, 3)))
    stretch = rotation @ np.diag(np.exp(generator.normal(0, 0.22, 3)))
    texture = random_field(generator, 7.0)
    mask = None
    if masks and finding in STROKES and place != "midline":
        mask = choose_mask(generator, masks, side, millilitres / (2 if place == "bilateral" else 1))
        centre = mask_centre(mask, points, anatomy, deformation)
    stretch = torch.tensor(stretch, dtype=torch.float32)
    return LesionPlan(finding, side, centre, millilitres, stretch, texture, mask, place)


def choose_site(
    generator: np.random.Generator,
    finding: str,
    side: int,
    place: str,
    points: Tensor,
    anatomy: Anatomy,
    deformation: Deformation,
) -> tuple[int, ...]:
    """Index of the point at which a lesion is centred: in the cerebrum, cortical or deep as the finding has it.

    Across the midline it is near the plane, where tissue crosses it: corpus callosum, thalami, midbrain.
    """
    where = deformation(points)
    gm, wm, depth = anatomy.sample(where, ("gm", "wm", "depth"))
    height = where[..., 2] * float(anatomy.to_standard[2, 2]) + float(anatomy.to_standard[2, 3])
    lateral = side * points[..., 0]
    allowed = (gm + wm > 0.8) & (height > -12) & (height < 58)
    if place == "midline":
        allowed &= (lateral >= 0) & (lateral <= 8)
    elif finding == "atrophy":
        allowed &= (depth < 0.9) & (lateral > 28)
    elif finding == "haemorrhage":
        allowed &= (lateral > 16) & (lateral < 48) & (depth >= 1)
    else:
        allowed &= (lateral > 16) & (depth > 0.7)
    indices = torch.nonzero(allowed)
    return tuple(indices[int(generator.integers(len(indices)))].tolist())


@cache
def volume_and_side(path: str) -> tuple[float, int]:
    """A lesion mask's volume in ml and the side, 1 or -1, where nearly all of it lies (0: neither)."""
    image = read_volume(path)
    lateral = nib.affines.apply_affine(image.affine, np.argwhere(np.asarray(image.dataobj) > 0))[:, 0]
    millilitres = len(lateral) * abs(np.linalg.det(image.affine[:3, :3])) / 1000
    side = int(np.sign(lateral.mean())) if len(lateral) else 0
    return float(millilitres), side if np.mean(lateral * side > 0) > 0.97 else 0


def choose_mask(
    generator: np.random.Generator, masks: list[str], side: int, millilitres: float
) -> tuple[Tensor, np.ndarray]:
    """A real one-sided lesion, reflected to `side` where it lies on the other, and scaled about its centre to a volume.

    Raises:
        ValueError: when the folder has none such.
    """
    far = np.inf
    for path in generator.permutation(masks):
        volume, side_of = volume_and_side(str(path))
        factor = abs(np.log(volume / millilitres)) if side_of else np.inf
        if factor < far:
            found, own, own_side, far = str(path), volume, side_of, factor
        if far < np.log(MASK_FACTOR):
            break
    if far == np.inf:
        raise ValueError(f"none of the {len(masks)} lesion masks is one-sided")
    image = read_volume(found)
    array = (np.asarray(image.dataobj) > 0).astype(np.float32)
    centre = nib.affines.apply_affine(image.affine, np.argwhere(array).mean(axis=0))
    scaling = np.diag([*[(millilitres / own) ** (1 / 3)] * 3, 1.0])
    scaling[:3, 3] = centre - scaling[:3, :3] @ centre
    return torch.from_numpy(array), np.diag([float(own_side * side), 1, 1, 1]) @ scaling @ image.affine


def in_standard(where: Tensor, anatomy: Anatomy) -> Tensor:
    """Points of the anatomy in standard space, mm."""
    scale = torch.tensor(np.diag(anatomy.to_standard)[:3], dtype=torch.float32)
    return where * scale + torch.tensor(anatomy.to_standard[:3, 3], dtype=torch.float32)


def sample_mask(mask: tuple[Tensor, np.ndarray], standard: Tensor) -> Tensor:
    """A lesion mask, in 0-1, at points of the standard space."""
    volume, affine = mask
    return sample_normalized(volume[None], normalized_grid(standard, affine, volume.shape))[0]


def mask_centre(mask: tuple[Tensor, np.ndarray], points: Tensor, anatomy: Anatomy, deformation: Deformation) -> Tensor:
    """Centre in the head of a lesion given in standard space."""
    weight = sample_mask(mask, in_standard(deformation(points), anatomy))[..., None]
    return (weight * points).sum((0, 1, 2)) / weight.sum().clamp(min=1e-3)


def draw_mask(
    plan: LesionPlan, points: Tensor, tissue: np.ndarray, half: np.ndarray, standard: Tensor, spacing: float
) -> tuple[np.ndarray, np.ndarray]:
    """The lesion's mask, `(X, Y, Z)` bool, and each voxel's rank in it, 0 at its core to 1 at its edge.

    Sulci narrower than 4 mm between its parts belong to it.

    Args:
        plan: the lesion.
        points: `(X, Y, Z, 3)` in the head, mm.
        tissue: `(X, Y, Z)` bool, grey and white matter.
        half: `(X, Y, Z)` bool, the brain where the lesion may be: on its side, or on both.
        standard: the points in standard space, for a real lesion's mask.
        spacing: mm.
    """
    allowed = tissue & half
    right = points[..., 0].numpy() > 0
    points, standard = plan.folded(points), plan.folded(standard)
    if plan.mask is not None:
        mask = (sample_mask(plan.mask, standard).numpy() > 0.5) & allowed
        distance = -spacing * ndimage.distance_transform_edt(mask)
    else:
        distance = ((points - plan.centre) @ plan.stretch).norm(dim=-1) + 0.2 * plan.radius * plan.texture(points)[0]
        distance = distance.numpy()
        count = min(max(1, round(1000 * plan.millilitres / spacing**3)), int(allowed.sum()) // 2)
        limit = np.partition(distance[allowed], count - 1)[count - 1]
        mask = allowed & (distance <= limit)
    parts = (mask & right, mask & ~right) if plan.place == "bilateral" else (mask,)
    mask = np.any([largest_component(part) for part in parts], axis=0)
    if mask.any():
        mask |= closed(mask, 2.0, spacing) & half
    rank = np.ones(mask.shape, np.float32)
    distance = distance + 0.22 * plan.radius * plan.texture(points + 30)[0].numpy()
    order = np.argsort(np.argsort(distance[mask], kind="stable"), kind="stable")
    rank[mask] = (order + 0.5) / max(1, len(order))
    return mask, rank


def largest_component(mask: np.ndarray) -> np.ndarray:
    """The largest connected part of a mask (faces, edges and corners connect)."""
    labels, count = ndimage.label(mask, np.ones((3, 3, 3)))
    return mask if count < 2 else labels == 1 + np.argmax(np.bincount(labels[mask])[1:])


def apply_lesion(
    fractions: dict[str, np.ndarray], finding: str, mask: np.ndarray, rank: np.ndarray, spacing: float
) -> None:
    """Exchange tissue for the lesion's, in place.

    Args:
        fractions: volume fractions `(X, Y, Z)` by tissue; the lesion's are added.
        finding: one of `FINDINGS`.
        mask: the lesion, `(X, Y, Z)` bool.
        rank: from `draw_mask`.
        spacing: mm.
    """
    fills_sulci = finding != "atrophy"
    for tissue, share in reversed(ZONES[finding]):
        zone = (mask & (rank <= share)).astype(np.float32)
        cover = ndimage.gaussian_filter(zone, 0.5 / spacing) * REPLACED[tissue]
        cover *= np.where(mask & fills_sulci, 1, fractions["gm"] + fractions["wm"])
        for volume in fractions.values():
            volume *= 1 - cover
        fractions[tissue] = fractions.get(tissue, 0) + cover


def widen_sulci(
    fractions: dict[str, np.ndarray], mask: np.ndarray, texture: np.ndarray, depth: np.ndarray, spacing: float
) -> None:
    """Give fluid the room that a shrunken cortex leaves within the mask, in place.

    Args:
        fractions: volume fractions `(X, Y, Z)` by tissue.
        mask: the atrophy, `(X, Y, Z)` bool.
        texture: `(X, Y, Z)`, random field whose zero crossings, near the surface, open as sulci.
        depth: `(X, Y, Z)`, below the skull's inner surface, 0 to 1 (`DEPTH_MM`).
        spacing: mm.
    """
    nearby = ndimage.gaussian_filter(fractions["csf"], 4.0 / spacing)
    weight = np.clip(1.5 * ndimage.gaussian_filter(mask.astype(np.float32), 2.0 / spacing), 0, 1)
    sulci = np.exp(-((texture / 0.4) ** 2)) * np.clip(4 - 4 * depth, 0, 1)
    surface = np.clip(0.5 + (SHRINKAGE_MM - depth * DEPTH_MM) / 2, 0, 1)
    gain = weight * np.clip(np.maximum(np.maximum(sulci, surface), 5 * nearby - 0.3), 0, 0.95)
    for tissue in ("gm", "wm"):
        fractions["csf"] += fractions[tissue] * gain
        fractions[tissue] *= 1 - gain
