"""Which grid, ROI and batch: pure functions from what a cohort and a device have to what a training takes."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from custom.support.errors import UserError
from custom.transforms.contract import SPATIAL_SIZE
from sa_swin.plan.cohort import Fingerprint
from sa_swin.plan.trial import Need

MULTIPLE = 32
"""Voxels that every side is a multiple of."""
FINEST = 1.0
"""mm; the grid that the bundles are made for."""
LESION_VOXELS = 3
"""Voxels that a small lesion shall be wide."""
AROUND_HEAD = 16.0
"""mm, of both sides together, for a head that is turned."""
USUAL_ROI = 96
LEAST_LONG = 64
"""Voxels that the networks need along one axis, and pretraining along the two that it turns about the first."""
LADDER = (
    (4, 2, False),
    (2, 2, False),
    (2, 1, False),
    (1, 1, False),
    (2, 1, True),
    (1, 1, True),
)
"""Volumes, ROIs per volume, and whether activations are computed twice: what is tried, the dearest first."""


class NothingFitsError(UserError):
    """No training is small enough for the memory."""


@dataclass(frozen=True)
class Choice:
    """What fits.

    Args:
        roi_size: voxels.
        batch_size, num_samples: volumes, and ROIs of each.
        recomputed: whether activations are computed again in the backward pass.
        bytes: that the training takes.
    """

    roi_size: tuple[int, ...]
    batch_size: int
    num_samples: int
    recomputed: bool
    bytes: float


def spacing_of(cohort: Fingerprint) -> float:
    """Side of the grid's voxels in mm: that of the files', less where lesions are small, never below `FINEST`."""
    lesions = cohort.lesions
    wanted = min(cohort.side, lesions[0] / LESION_VOXELS) if lesions else cohort.side
    return max(FINEST, math.floor(wanted * 10 + 1e-3) / 10)


def spatial_size_of(cohort: Fingerprint, spacing: float) -> tuple[int, ...]:
    """Voxels that hold every head, no more than the default grid's mm; all of these where no head was found."""
    found = zip(cohort.head, SPATIAL_SIZE, strict=True)
    sides = (min(head + AROUND_HEAD, most * FINEST) if head else most * FINEST for head, most in found)
    size = [_up(side / spacing) for side in sides]
    size[2] = _up(SPATIAL_SIZE[2] * FINEST / spacing)  # of a head's height only the top is searched
    return size[0], max(size[1], LEAST_LONG), max(size[2], LEAST_LONG)


def roi_of(task: str, cohort: Fingerprint, spacing: float, size: Sequence[int]) -> tuple[int, ...]:
    """Voxels that the network shall see: the usual ROI, more where a lesion is larger; of classes, the volume."""
    if task == "classify":
        return tuple(size)
    lesions = cohort.lesions
    side = max(USUAL_ROI, _up(lesions[1] / spacing)) if lesions else USUAL_ROI
    turned = size[1:] if task == "pretrain" else ()  # Y = Z there
    return min(side, size[0]), min(side, size[1], *turned), min(side, size[2], *turned)


def smaller(task: str, roi: Sequence[int]) -> tuple[int, ...] | None:
    """The next smaller ROI; None where there is none."""
    if task == "classify" or max(roi) <= LEAST_LONG:
        return None
    if task == "pretrain":
        return tuple(n - MULTIPLE * (n > LEAST_LONG) for n in roi)
    axis = max(range(3), key=lambda i: (roi[i], i))
    return tuple(n - MULTIPLE * (i == axis) for i, n in enumerate(roi))


def chosen(task: str, roi: tuple[int, ...], training: int, need_of: Callable[[bool], Need], memory: float) -> Choice:
    """The first of `LADDER` that fits with the whole ROI, else the largest ROI with the cheapest.

    Args:
        task: bundle's short name.
        roi: voxels that the network shall see.
        training: cases.
        need_of: what a training needs, with activations computed again or not; asked for when it matters.
        memory: bytes.

    Raises:
        NothingFitsError: nothing fits.
    """
    steps = [(batch, 1 if task == "classify" else samples, twice) for batch, samples, twice in LADDER]
    for batch, samples, twice in dict.fromkeys(steps):
        needed = need_of(twice).of(batch * samples * math.prod(roi))
        if batch <= training and needed <= memory:
            return Choice(roi, batch, samples, twice, needed)
    while (less := smaller(task, roi)) is not None:
        roi = less
        needed = need_of(True).of(math.prod(roi))
        if needed <= memory:
            return Choice(roi, 1, 1, True, needed)
    least = need_of(True).of(math.prod(roi)) / 2**30
    raise NothingFitsError(
        f"the smallest training takes {least:.1f} GB, more than {memory / 2**30:.1f} GB; give a coarser --spacing, "
        "a smaller --feature_size or more --memory"
    )


def _up(voxels: float) -> int:
    return MULTIPLE * math.ceil(voxels / MULTIPLE - 1e-6)
