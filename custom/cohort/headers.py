"""What the headers of a case's files say, without reading a voxel: is the case complete, and do its grids agree?"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np

from custom.cohort.case import Case, image_paths

AFFINE_TOLERANCE = 1e-2  # mm, between the affines of an image and its mask

Grid = tuple[str, tuple[int, ...], np.ndarray]  # path, shape, affine


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with one file.

    Args:
        file: path.
        kind: a word for machines, such as `missing` or `affine`.
        problem: what was expected and found, and what to do, in one sentence.
        severity: `error` (the case cannot be used as it is) or `warning` (somebody should look).
    """

    file: str
    kind: str
    problem: str
    severity: str = "error"

    def __str__(self) -> str:
        return f"{self.file}: {self.problem}"


def case_findings(case: Case, label: str, in_channels: int, num_classes: int | None) -> list[Finding]:
    """What is wrong with a case, as far as its entry and the headers of its files tell.

    Args:
        case: entry with absolute paths.
        label: what it must carry: `none`, `class`, `mask` or `healthy`.
        in_channels: files it must list.
        num_classes: for `class` labels, one more than the largest; None skips that check.
    """
    paths = image_paths(case)
    name = paths[0] if paths else str(case)
    if len(paths) != in_channels:
        problem = f"expected {in_channels} image file(s), one per channel, got {len(paths)}"
        return [Finding(name, "channels", problem)]
    wrong = label_findings(name, case, label, num_classes)
    if label == "mask" and not wrong:
        paths = [*paths, case["label"]]
    return file_findings(paths) + wrong


def case_problems(case: Case, label: str, in_channels: int, num_classes: int | None) -> list[str]:
    """`case_findings` as sentences, each with its file."""
    return [str(finding) for finding in case_findings(case, label, in_channels, num_classes)]


def label_findings(name: str, case: Case, label: str, num_classes: int | None) -> list[Finding]:
    """What is wrong with the label that an entry carries."""
    if label == "class":
        return [Finding(name, "label", problem) for problem in _class_problems(case.get("label"), num_classes)]
    if label == "healthy" and not isinstance(case.get("healthy"), bool):
        return [Finding(name, "label", f"expected 'healthy' true or false, got {case.get('healthy')!r}")]
    if label == "mask" and not isinstance(case.get("label"), str):
        return [Finding(name, "label", f"expected 'label' to be the path of a mask, got {case.get('label')!r}")]
    return []


def _class_problems(label: Any, num_classes: int | None) -> list[str]:
    if not isinstance(label, int) or isinstance(label, bool):
        return [f"expected 'label' to be a class number, got {label!r}"]
    if num_classes is not None and not 0 <= label < num_classes:
        return [f"label {label} is out of range, expected 0 to {num_classes - 1}"]
    return []


def file_findings(paths: Sequence[str]) -> list[Finding]:
    """Files that are missing, unreadable or not 3D, else those that do not share the first one's grid."""
    findings, grids = [], []
    for path in paths:
        try:
            image = nib.load(path)
        except FileNotFoundError:
            findings.append(Finding(path, "missing", "no such file"))
        except Exception as error:  # a damaged header makes nibabel stumble in many ways
            findings.append(Finding(path, "unreadable", f"not a readable image ({reason(error)})"))
        else:
            findings += _shape_findings(path, image)
            grids.append((path, image.shape, image.affine))
    return findings or [finding for grid in grids[1:] for finding in _grid_findings(grids[0], grid)]


def reason(error: Exception) -> str:
    """What an error says, in one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def _shape_findings(path: str, image: Any) -> list[Finding]:
    if len(image.shape) != 3:
        return [Finding(path, "not_3d", f"expected a 3D volume, got shape {image.shape}")]
    if not np.isfinite(image.affine).all() or np.linalg.matrix_rank(image.affine[:3, :3]) < 3:
        return [Finding(path, "affine", "the header's affine cannot be inverted; restore it from the source")]
    return []


def _grid_findings(first: Grid, other: Grid) -> list[Finding]:
    (path, shape, affine), (other_path, other_shape, other_affine) = first, other
    if shape != other_shape:
        problem = f"shape {other_shape} differs from {shape} of {path}; resample it to that grid"
        return [Finding(other_path, "shape", problem)]
    if np.allclose(affine, other_affine, atol=AFFINE_TOLERANCE):
        return []
    axes, other_axes = ("".join(str(code) for code in nib.aff2axcodes(a)) for a in (affine, other_affine))
    swapped = ("L" in axes) != ("L" in other_axes)
    problem = (
        f"same shape but another affine than {path} (axes {other_axes} and {axes}, "
        f"origin {np.round(other_affine[:3, 3], 2).tolist()} and {np.round(affine[:3, 3], 2).tolist()} mm"
        f"{'; left and right are swapped' if swapped else ''}); one of the two headers is wrong"
    )
    return [Finding(other_path, "left_right" if swapped else "affine", problem)]
