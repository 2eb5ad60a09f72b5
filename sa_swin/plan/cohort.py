"""What a plan must know of a cohort: sizes of voxels, heads and lesions, channels and classes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from monai.data import MetaTensor
from torch import Tensor

from custom.alignment.head import WORK_SPACING, NoHeadError, head_volume
from custom.data.case import Case, CohortError, image_paths, refuse_outside
from custom.data.datalist import class_names, read_lists
from custom.data.prepared import preparation
from custom.support.progress import followed
from custom.volumes.hounsfield import modality_of
from custom.volumes.loading import load_volume

LOOKED_AT = 32
"""Cases that are read, spread over the list."""
TASKS = ("segment", "classify", "pretrain")


@dataclass(frozen=True)
class Sizes:
    """Of one case, in mm.

    Args:
        side: edge of a cube as large as a voxel.
        head: extent of the head from right to left, back to front, and of the searched height; zeros where none is
            found.
        voxels: of the file.
        lesion: diameter of a ball as large as the lesions together, and their longest extent; zeros without.
        classes: largest value of the mask.
    """

    side: float
    head: tuple[float, float, float]
    voxels: int
    lesion: tuple[float, float] = (0.0, 0.0)
    classes: int = 0


@dataclass(frozen=True)
class Fingerprint:
    """What a plan rests on.

    Args:
        training, validation: number of cases.
        largest: entry of the case with the most voxels, of those looked at.
        sizes: of those looked at.
        modality: `MR` or `CT`, by the files' names.
        in_channels: files per case.
        classes: of masks, background included, or labels.
        healthy: whether the entries say who is healthy.
        prepared: spacing and size of a cohort that `sa-swin prepare` made, or None.
    """

    training: int
    validation: int
    largest: Case
    sizes: Sequence[Sizes]
    modality: str
    in_channels: int
    classes: int
    healthy: bool
    prepared: dict[str, Any] | None

    @property
    def side(self) -> float:
        """Median edge of a voxel, mm."""
        return median(size.side for size in self.sizes)

    @property
    def head(self) -> tuple[float, ...]:
        """Largest extent of a head in each direction, mm."""
        return tuple(max(axis) for axis in zip(*(size.head for size in self.sizes), strict=True))

    @property
    def lesions(self) -> tuple[float, float] | None:
        """Diameter of the smallest lesions (a tenth is smaller) and the longest extent of the largest, mm."""
        found = sorted(size.lesion for size in self.sizes if size.lesion[0])
        return (found[len(found) // 10][0], max(extent for _, extent in found)) if found else None


def look_at(datalist: Path, root: Path, task: str, allow_outside: bool = False) -> Fingerprint:
    """Read what a plan needs of a datalist and of some of its cases.

    Args:
        datalist: JSON.
        root: what its paths are relative to.
        task: one of `TASKS`.
        allow_outside: read files outside of `root`, too.

    Raises:
        CohortError: no case to train with, or files that lie outside.
    """
    lists = read_lists(datalist)
    training, validation = lists.get("training", []), lists.get("validation", [])
    if not training:
        raise CohortError(f"{datalist} has no training cases")
    cases = training[:: math.ceil(len(training) / LOOKED_AT)]
    refuse_outside((path for case in cases for path in files_of(case, task)), root, allow_outside)
    found = list(followed((sizes_of(case, root, task) for case in cases), len(cases), "look at"))
    first = image_paths(training[0])
    record = preparation(str(root / first[0]))
    return Fingerprint(
        len(training),
        len(validation),
        max(zip(found, cases, strict=True), key=lambda pair: pair[0].voxels)[1],
        found,
        modality_of(first[0]) or "MR",
        len(first),
        classes_of(task, datalist, training + validation, found),
        all("healthy" in case for case in training),
        record and record["settings"],
    )


def files_of(case: Case, task: str) -> list[str]:
    """Paths of what is read of a case: its first channel and, to segment, its mask."""
    return [*image_paths(case)[:1], *([case["label"]] if task == "segment" else [])]


def classes_of(task: str, datalist: Path, cases: Sequence[Case], found: Sequence[Sizes]) -> int:
    """Number of classes, of the labels or of the masks looked at."""
    if task == "classify":
        named = class_names(datalist)
        return len(named) if named else 1 + max(int(case["label"]) for case in cases)
    return max(2, 1 + max(size.classes for size in found))


def sizes_of(case: Case, root: Path, task: str) -> Sizes:
    """Sizes of a case, of its first channel."""
    image, *masks = (load_volume(str(root / path)) for path in files_of(case, task))
    side = float(image.pixdim.prod()) ** (1 / 3)
    mask = masks[0] if masks else None
    lesion, classes = (lesion_size(mask), int(mask.max())) if mask is not None else ((0.0, 0.0), 0)
    return Sizes(side, head_size(image), image[0].numel(), lesion, classes)


def head_size(image: MetaTensor) -> tuple[float, float, float]:
    """Extent of the head along the world's axes, mm; zeros where there is none."""
    try:
        head = head_volume(image.as_tensor(), image.affine).head > 0.5
    except NoHeadError:
        return 0.0, 0.0, 0.0
    return tuple(WORK_SPACING * extent for extent in extents(head))


def lesion_size(mask: MetaTensor) -> tuple[float, float]:
    """Diameter of a ball of the mask's volume, and the mask's longest extent, mm."""
    inside = mask.as_tensor()[0] > 0
    volume = int(inside.sum()) * float(mask.pixdim.prod())
    longest = max(n * side for n, side in zip(extents(inside), mask.pixdim.tolist(), strict=True))
    return (6 * volume / math.pi) ** (1 / 3), longest


def extents(inside: Tensor) -> tuple[int, int, int]:
    """Voxels between the first and the last that are inside `(X, Y, Z)`, along each axis."""
    places = inside.nonzero()
    if len(places) == 0:
        return 0, 0, 0
    return tuple((places.amax(0) - places.amin(0) + 1).to(torch.int).tolist())
