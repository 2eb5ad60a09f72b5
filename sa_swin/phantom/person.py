"""One subject of a cohort on real heads: a healthy person's image, as it is or with a lesion."""

from functools import lru_cache

import numpy as np
from scipy.spatial.transform import Rotation

from custom.alignment.plane import MidsagittalPlane, aligned_affine
from sa_swin.phantom.anatomy import label_maps
from sa_swin.phantom.config import Config
from sa_swin.phantom.geometry import Pose
from sa_swin.phantom.lesion import MASS_EFFECT, volume_and_side
from sa_swin.phantom.people import chosen
from sa_swin.phantom.plan import QUARTERS, Plan, is_patient, plans
from sa_swin.phantom.real import Head, read_head, smoothed
from sa_swin.phantom.repaint import BLUR, TRIES, Lesion, draw_lesion, finished, like, painted, pushed, treated
from sa_swin.phantom.subject import Subject

VOLUME_ML = (3.0, 40.0)
"""Smallest and largest volume drawn by default, log-uniform between: nearly half are below 10 ml."""


def make_person(config: Config, number: int, healthy: bool = False) -> Subject:
    """Make subject `number` (from 1) of a cohort on real heads.

    Args:
        config: with `images` and `lesions`.
        number: of the subject.
        healthy: leave the lesion away, and nothing else.

    Raises:
        ValueError: when the head or the lesion masks cannot be used.
    """
    plan = plans(config)[number - 1]
    person = chosen(str(config.images), config.subjects, config.seed)[number - 1]
    head, source = read_head(person.path)
    image, mask = smoothed(head.image, BLUR), np.zeros(head.image.shape, bool)
    healthy = healthy or plan.diagnosis == "healthy"
    if not healthy:
        generator = np.random.default_rng([config.seed, number])
        lesion = find_lesion(generator, config, number, plan, head)
        if plan.diagnosis in MASS_EFFECT:
            image = pushed(image, head, lesion, plan.diagnosis)
        image, mask = painted(generator, image, head, lesion, plan.diagnosis), lesion.mask
    image = treated(np.random.default_rng([config.seed, number, 2]), image, head.noise)
    participant = {
        "participant_id": f"sub-{number:03d}",
        "diagnosis": "healthy" if healthy else plan.diagnosis,
        "healthy": healthy,
        "side": "n/a" if healthy else plan.side,
        "lesion_ml": round(float(mask.sum() * head.spacing.prod()) / 1000, 3),
        "site": person.site,
        "source": person.name,
    }
    own_mask = None if healthy else like(mask.astype(np.uint8), source)
    return Subject(number, {"T1w": finished(image, head, source)}, own_mask, pose_of(head.plane), participant)


def find_lesion(generator: np.random.Generator, config: Config, number: int, plan: Plan, head: Head) -> Lesion:
    """A lesion that this brain has room for: of an own shape, unless none of these is one-sided or fits.

    Raises:
        ValueError: when of many lesions none fits.
    """
    own, others = lesion_shapes(config, number), label_maps(str(config.lesions))
    low, high = config.lesion_ml or VOLUME_ML
    tries = ([own] * TRIES if any(volume_and_side(path)[1] for path in own) else []) + [others] * TRIES
    for masks in tries:
        size = (plan.quarter + generator.random()) / QUARTERS
        if lesion := draw_lesion(generator, head, plan, masks, low * (high / low) ** size):
            return lesion
    raise ValueError(f"none of {len(tries)} lesions fits into the brain; check the affines in {config.lesions}")


@lru_cache(maxsize=1024)
def lesion_shapes(config: Config, number: int) -> list[str]:
    """A patient's own lesion masks, apart from those of every other patient."""
    patients = [n for n in range(1, config.subjects + 1) if is_patient(config, n)]
    masks = label_maps(str(config.lesions))
    order = np.random.default_rng([config.seed, 3]).permutation(len(masks))
    place = patients.index(number)
    return [masks[i] for i in (order[place :: len(patients)] if len(masks) >= len(patients) else order)]


def pose_of(plane: MidsagittalPlane) -> Pose:
    """The pose whose plane this is; pitch cannot be seen from it and is 0."""
    affine = aligned_affine(plane, 1.0, (1, 1, 1)).numpy()
    yaw, roll, pitch = Rotation.from_matrix(affine[:3, :3]).as_euler("ZYX", degrees=True)
    return Pose(affine[:3, :3], affine[:3, 3], (float(roll), float(yaw), float(pitch)))
