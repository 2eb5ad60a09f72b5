"""One case read whole: what is wrong with its files, and what comparing it with the other cases needs."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from custom.data.case import Case, image_paths
from custom.data.contents import Voxels
from custom.data.headers import Finding, case_findings, left_right_findings
from custom.volumes.hounsfield import modality_of, units_problem
from custom.volumes.masks import mask_problem
from custom.volumes.nifti import LARGEST_VALUE, VolumeFileError, read_volume

EXTENT_MM = (60.0, 700.0)  # of one axis: a slab of a head, a whole-body scanner's field of view
MIN_VOXELS = 10  # along an axis
CLEARLY_MM = 15.0  # from the middle of the head, beyond what a tilted head explains
SIDES = {"left": -1, "l": -1, "right": 1, "r": 1}  # sign of x in the world (RAS)
UNUSABLE = ("missing", "outside", "unreadable", "not_3d", "type", "claims", "scale")
BOTH = ("both", "bilateral", "midline", "none", "n/a", "")


@dataclass(frozen=True)
class Expected:
    """What all cases of a datalist are to have, as `custom.data.headers.case_findings` takes it.

    `modality` is `MR` or `CT`; None takes it from each file's name, where that tells.
    """

    label: str
    in_channels: int
    num_classes: int | None
    root: Path | None = None
    modality: str | None = None


@dataclass
class Checked:
    """What was found in a case.

    Args:
        findings: what is wrong.
        contents: content hashes by image file that could be read.
    """

    findings: list[Finding] = field(default_factory=list)
    contents: dict[str, list[str]] = field(default_factory=dict)


def check_case(case: Case, expected: Expected) -> Checked:
    """Read a case's headers and voxels.

    Args:
        case: entry with absolute paths.
        expected: what it is to have.
    """
    checked = Checked(case_findings(case, expected.label, expected.in_channels, expected.num_classes, expected.root))
    named = {finding.file for finding in checked.findings if finding.kind not in ("label", "channels")}
    unusable = {f.file for f in checked.findings if f.kind in UNUSABLE}
    read: dict[str, tuple[Any, Voxels]] = {}
    for path in image_paths(case):
        if path not in unusable and (loaded := _read(path, checked)) is not None:
            checked.findings += [] if path in named else header_findings(path, loaded[0])
            checked.findings += value_findings(path, loaded[1]) or units_findings(path, loaded[1], expected.modality)
            checked.contents[path] = loaded[1].hashes()
            read.setdefault("image", loaded)
    mask = case.get("label")
    readable = expected.label == "mask" and isinstance(mask, str) and mask not in unusable
    if readable and (loaded := _read(mask, checked)) is not None:
        checked.findings += [] if mask in named else _warnings(mask, loaded[0])
        checked.findings += mask_findings(mask, loaded[1].values, expected.num_classes)
        read["mask"] = loaded
    checked.findings += side_findings(case, read, sound=not checked.findings)
    return checked


def _read(path: str, checked: Checked) -> tuple[Any, Voxels] | None:
    try:
        image = read_volume(path)
        return image, Voxels.of(image)
    except VolumeFileError as error:
        checked.findings.append(Finding(path, error.kind, error.problem))
    except OSError as error:
        checked.findings.append(Finding(path, "unreadable", f"{error.strerror or error}; is its file system there?"))
    return None


def value_findings(path: str, voxels: Voxels) -> list[Finding]:
    """Voxel values that are not finite, or beyond what a scan has, or all alike."""
    array = voxels.stored
    largest = (LARGEST_VALUE - abs(voxels.inter)) / (abs(voxels.slope) or 1)
    if not (-largest <= array.min() and array.max() <= largest):  # NaN is neither
        bad = int(array.size - ((array >= -largest) & (array <= largest)).sum())
        problem = (
            f"{bad} of {array.size} voxels are not finite, or beyond {LARGEST_VALUE:g}; repair the file or leave it out"
        )
        return [Finding(path, "not_finite", problem)]
    if array.size and array.min() == array.max():
        return [Finding(path, "constant", f"all voxels are {array.min():g}; there is no image in it, leave it out")]
    return []


def units_findings(path: str, voxels: Voxels, modality: str | None) -> list[Finding]:
    """Values that are not of the modality, which by default the file's name tells."""
    problem = units_problem(voxels.values, modality or modality_of(path))
    return [Finding(path, "units", problem)] if problem else []


def header_findings(path: str, image: Any) -> list[Finding]:
    """A size that no head scan has, a header unsure of left and right."""
    return _size_findings(path, image.shape, nib.affines.voxel_sizes(image.affine)) + _warnings(path, image)


def _warnings(path: str, image: Any) -> list[Finding]:
    """Of `left_right_findings` those that do not hinder; the others are found with the header."""
    return [finding for finding in left_right_findings(path, image) if finding.severity == "warning"]


def _size_findings(path: str, shape: Sequence[int], spacing: np.ndarray) -> list[Finding]:
    extent = spacing * shape
    if min(shape) >= MIN_VOXELS and extent.min() >= EXTENT_MM[0] and extent.max() <= EXTENT_MM[1]:
        return []
    sides = " x ".join(str(round(float(side), 2)) for side in extent)
    problem = (
        f"{' x '.join(map(str, shape))} voxels, {sides} mm, expected at least "
        f"{MIN_VOXELS} voxels and {EXTENT_MM[0]:g} to {EXTENT_MM[1]:g} mm along each axis; is it a whole head?"
    )
    return [Finding(path, "size", problem)]


def mask_findings(path: str, array: np.ndarray, num_classes: int | None) -> list[Finding]:
    """Values of a mask that are no classes, and a mask with nothing in it."""
    values = np.unique(array)
    if problem := mask_problem(values, num_classes):
        return [Finding(path, "mask_values", problem)]
    if np.round(values.max()) == 0:
        return [Finding(path, "empty_mask", "nothing is marked in the mask; is that meant?", "warning")]
    return []


def side_findings(case: Case, read: dict[str, tuple[Any, Voxels]], sound: bool) -> list[Finding]:
    """A declared `side` against the side that the mask lies on, from the middle of the head, in the world.

    Only what is clear is said: half of the mask more than `CLEARLY_MM` on the other side.
    """
    side = str(case.get("side", "")).strip().lower()
    if side in BOTH:
        return []
    if side not in SIDES:
        problem = f"expected 'side' left, right or both, got {case['side']!r}"
        return [Finding(image_paths(case)[0], "side", problem)] if image_paths(case) else []
    if not sound or len(read) < 2 or not (mask := read["mask"][1].values > 0).any():
        return []
    image, head = read["image"][0], read["image"][1].values
    middle = _world_x(image.affine, head > head.mean()).mean()
    lateral = float(np.median(_world_x(image.affine, mask)) - middle)  # on one grid, as nothing else is wrong
    if lateral * SIDES[side] > -CLEARLY_MM:
        return []
    found = "right" if lateral > 0 else "left"
    problem = (
        f"the mask lies {abs(lateral):.0f} mm {found} of the middle of the head, but the side is declared {side}; "
        "the table is wrong, or left and right are swapped in the files"
    )
    return [Finding(str(case["label"]), "side", problem)]


def _world_x(affine: np.ndarray, where: np.ndarray) -> np.ndarray:
    """World x, in mm to the right, of the marked voxels."""
    return np.argwhere(where) @ affine[0, :3] + affine[0, 3]
