"""One subject of the built-in cohort: from configuration and number to images, lesion mask and midsagittal plane."""

import zlib
from dataclasses import dataclass, replace

import nibabel as nib
import numpy as np
from torch import Tensor

from sa_swin.phantom.anatomy import TISSUES, Anatomy, label_anatomy, label_maps
from sa_swin.phantom.config import Config
from sa_swin.phantom.contrast import CONTRASTS, paint
from sa_swin.phantom.geometry import Deformation, Pose, head_points, random_deformation, random_pose
from sa_swin.phantom.head import icbm_anatomy
from sa_swin.phantom.lesion import apply_lesion, draw_mask, in_standard, plan_lesion, widen_sulci
from sa_swin.phantom.plan import QUARTERS, SIDES, SITES, Plan, plans

FIELD_OF_VIEW = (208.0, 240.0, 208.0)
"""Extent of every image, mm."""
CENTRE_MM = (0.0, -18.0, 2.0)
"""The point of the ICBM152 space about which heads are tilted."""
ASYMMETRY = 0.2
"""Share of the deformation's one-sided part that is kept: natural left-right variation."""
SMALLEST_ML = 3.0
"""A lesion mask that ends up smaller in this subject's brain is drawn again."""


@dataclass(frozen=True)
class Subject:
    """A subject's data, as `sa-swin phantom` writes it.

    Args:
        number: from 1.
        images: int16 images by modality, on one grid in the site's storage orientation.
        mask: the lesion, uint8, on the same grid; None in the healthy.
        pose: of the head in the world.
        participant: the row of participants.tsv.
    """

    number: int
    images: dict[str, nib.Nifti1Image]
    mask: nib.Nifti1Image | None
    pose: Pose
    participant: dict[str, object]


def subject_anatomy(config: Config, plan: Plan) -> tuple[Anatomy, np.ndarray]:
    """A subject's source anatomy, and the point about which it is tilted."""
    if config.anatomies is None:
        return icbm_anatomy(config.factor), np.array(CENTRE_MM)
    anatomy = label_anatomy(label_maps(config.anatomies)[plan.anatomy], config.factor)
    reflection = np.diag([-1.0 if plan.reflected else 1.0, 1, 1, 1])
    return replace(anatomy, affine=reflection @ anatomy.affine), np.zeros(3)


def lesion_masks(config: Config, number: int) -> list[str] | None:
    """The lesion masks for an anatomy, apart from those of every other anatomy; None where none are given."""
    if config.lesions is None:
        return None
    anatomies = len(label_maps(config.anatomies)) if config.anatomies else 1
    return label_maps(config.lesions)[number::anatomies]


def grid(spacing: float) -> tuple[tuple[int, ...], np.ndarray]:
    """Shape and affine of the images in RAS: a box about the world's origin."""
    shape = tuple(round(extent / spacing) for extent in FIELD_OF_VIEW)
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = [-spacing * (n - 1) / 2 for n in shape]
    return shape, affine


def make_subject(config: Config, number: int) -> Subject:
    """Make subject `number` (from 1), which does not depend on how many the cohort has.

    Raises:
        ValueError: when an anatomy or a lesion file cannot be used.
    """
    generator = np.random.default_rng([config.seed, number])
    plan = plans(config)[number - 1]
    anatomy, centre = subject_anatomy(config, plan)
    amount = 1.0 if config.anatomies is None else 0.6
    deformation = random_deformation(generator, centre, amount, ASYMMETRY)
    pose = random_pose(generator, config.tilt)
    shape, affine = grid(config.spacing)
    points = head_points(shape, affine, pose)
    healthy = plan.diagnosis == "healthy"
    if healthy:
        fractions, brain = sample_tissues(anatomy, deformation(points))
        mask = np.zeros(shape, bool)
    else:
        fractions, brain, mask = with_lesion(generator, config, plan, anatomy, deformation, points)
    keep = brain > (0.5 if plan.bare else -1)
    axes, gain = SITES[plan.site]
    images = {}
    for modality in config.modality:
        own = np.random.default_rng([config.seed, number, zlib.crc32(modality.encode())])
        image = paint(fractions, modality, points, own, config.noise, gain)
        images[modality] = stored(np.where(keep, image, np.int16(CONTRASTS[modality]["air"])), affine, axes)
    participant = {
        "participant_id": f"sub-{number:03d}",
        "diagnosis": plan.diagnosis,
        "healthy": healthy,
        "side": plan.side,
        "lesion_ml": round(float(mask.sum()) * config.spacing**3 / 1000, 3),
        "site": plan.site,
        "skull": not plan.bare,
        "anatomy": plan.anatomy,
    }
    return Subject(number, images, None if healthy else stored(mask.astype(np.uint8), affine, axes), pose, participant)


def sample_tissues(anatomy: Anatomy, where: Tensor) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Tissue fractions and the brain, 0-1, at points of the anatomy: the only interpolation an image goes through."""
    *volumes, brain = anatomy.sample(where, (*TISSUES, "brain")).numpy()
    return dict(zip(TISSUES, volumes, strict=True)), brain


def with_lesion(
    generator: np.random.Generator,
    config: Config,
    plan: Plan,
    anatomy: Anatomy,
    deformation: Deformation,
    points: Tensor,
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Tissue fractions with a lesion, the brain, and the lesion's mask, `(X, Y, Z)` each.

    Raises:
        ValueError: when of twenty lesions in a row less than 3 ml falls into this brain.
    """
    masks = lesion_masks(config, plan.anatomy)
    side = SIDES.get(plan.side, int(generator.choice([-1, 1])))
    where = deformation(points)
    (depth,) = anatomy.sample(where, ("depth",))
    for _ in range(20):
        size = (plan.quarter + generator.random()) / QUARTERS
        lesion = plan_lesion(
            generator, plan.diagnosis, side, anatomy, deformation, masks, size, config.lesion_ml, plan.place
        )
        pushed = deformation(lesion.displaced(points, depth)) if lesion.pushes else where
        fractions, brain = sample_tissues(anatomy, pushed)
        tissue = fractions["gm"] + fractions["wm"] > 0.5
        half = (brain > 0.5) & (side * lesion.folded(points)[..., 0].numpy() > lesion.margin)
        mask, rank = draw_mask(lesion, points, tissue, half, in_standard(where, anatomy), config.spacing)
        if mask.sum() * config.spacing**3 >= SMALLEST_ML * 1000:
            if plan.diagnosis == "atrophy":
                widen_sulci(fractions, mask, lesion.texture(points)[0].numpy(), depth.numpy(), config.spacing)
            apply_lesion(fractions, plan.diagnosis, mask, rank, config.spacing)
            return fractions, brain, mask
    source = config.lesions or config.anatomies
    raise ValueError(
        f"less than {SMALLEST_ML:g} ml of any of 20 lesions fell into the brain; check affines in {source}"
    )


def stored(volume: np.ndarray, affine: np.ndarray, axes: str) -> nib.Nifti1Image:
    """A RAS volume as a NIfTI image stored in another orientation; the world does not change."""
    turn = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(axes))
    image = nib.Nifti1Image(volume, affine).as_reoriented(turn)
    image.set_qform(image.affine, code=1)
    image.set_sform(image.affine, code=1)
    return image
