"""What the headers of a case's files say, without reading a voxel: is the case complete, and do its grids agree?"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from custom.data.case import Case, image_paths, path_problem
from custom.volumes.nifti import SAME_GRID, VolumeFileError, affine_problem, open_volume, reason

FORMS_APART_MM = 10.0  # between the places that sform and qform give a corner of the volume

FileGrid = tuple[str, tuple[int, ...], np.ndarray]  # path, shape, affine


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


def case_findings(
    case: Case, label: str, in_channels: int, num_classes: int | None, root: Path | None = None
) -> list[Finding]:
    """What is wrong with a case, as far as its entry and the headers of its files tell.

    Args:
        case: entry with absolute paths.
        label: what it must carry: `none`, `class`, `mask` or `healthy`.
        in_channels: files it must list.
        num_classes: for `class` labels, one more than the largest; None skips that check.
        root: what its files must lie in; None allows any place.
    """
    paths = image_paths(case)
    name = paths[0] if paths else str(case)
    if len(paths) != in_channels:
        problem = f"expected {in_channels} image file(s), one per channel, got {len(paths)}"
        return [Finding(name, "channels", problem)]
    wrong = label_findings(name, case, label, num_classes)
    if label == "mask" and not wrong:
        paths = [*paths, case["label"]]
    outside = {path: problem for path in paths if root and (problem := path_problem(path, root))}
    wrong += [Finding(path, "outside", problem) for path, problem in outside.items()]
    return file_findings([path for path in paths if path not in outside]) + wrong


def case_problems(
    case: Case, label: str, in_channels: int, num_classes: int | None, root: Path | None = None
) -> list[str]:
    """`case_findings` as sentences, each with its file."""
    return [str(finding) for finding in case_findings(case, label, in_channels, num_classes, root)]


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
    """Files that are missing or no plausible volume, else those that do not share the first one's grid."""
    findings, grids = [], []
    for path in paths:
        try:
            image = open_volume(path)
        except FileNotFoundError:
            findings.append(Finding(path, "missing", "no such file"))
        except VolumeFileError as error:
            findings.append(Finding(path, error.kind, error.problem))
        else:
            if wrong := affine_problem(image.affine):
                findings.append(Finding(path, wrong.kind, wrong.problem))
            findings += [finding for finding in left_right_findings(path, image) if finding.severity == "error"]
            grids.append((path, image.shape, image.affine))
    return findings or [finding for grid in grids[1:] for finding in _grid_findings(grids[0], grid)]


def left_right_findings(path: str, image: Any) -> list[Finding]:
    """Left and right as NIfTI's two affines have it: neither says, or they disagree, or else differ."""
    if not isinstance(image, nib.Nifti1Pair):
        return []
    try:
        (sform, s_code), (qform, q_code) = image.get_sform(coded=True), image.get_qform(coded=True)
        said = [affine for affine, code in ((sform, s_code), (qform, q_code)) if code]
        to_the_right = {_axis_to_the_right(affine) for affine in said}
    except ValueError as error:  # LinAlgError is one, too
        problem = f"sform or qform is no affine ({reason(error)}); set both from the source"
        return [Finding(path, "left_right", problem)]
    if not s_code and not q_code:
        problem = "neither sform nor qform is set, so that left and right are a guess; look at it, and set them"
        return [Finding(path, "left_right", problem, "warning")]
    if len(to_the_right) > 1:
        axes = ["".join(map(str, nib.aff2axcodes(affine))) for affine in (sform, qform)]
        problem = f"sform ({axes[0]}) and qform ({axes[1]}) disagree on left and right; find out which is true"
        return [Finding(path, "left_right", problem)]
    return _form_findings(path, image.shape, said) if len(said) > 1 else []


def _axis_to_the_right(affine: np.ndarray) -> tuple[int, float]:
    """The array axis that runs closest along left-right, and its sign."""
    axes, signs = nib.io_orientation(affine).T
    if 0 not in axes:
        raise ValueError("no axis runs from left to right")
    axis = int(np.argmax(axes == 0))
    return axis, float(signs[axis])


def _form_findings(path: str, shape: Sequence[int], forms: Sequence[np.ndarray]) -> list[Finding]:
    """Whether sform and qform put a volume at places far from one another."""
    corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(shape) - 1)
    first, second = (corners @ affine[:3, :3].T + affine[:3, 3] for affine in forms)
    apart = float(np.linalg.norm(first - second, axis=1).max())
    if not apart > FORMS_APART_MM:
        return []
    problem = f"sform and qform put the volume up to {apart:.0f} mm apart; the sform is taken, is it the true one?"
    return [Finding(path, "forms", problem, "warning")]


def _grid_findings(first: FileGrid, other: FileGrid) -> list[Finding]:
    (path, shape, affine), (other_path, other_shape, other_affine) = first, other
    if shape != other_shape:
        problem = f"shape {other_shape} differs from {shape} of {path}; resample it to that grid"
        return [Finding(other_path, "shape", problem)]
    if np.allclose(affine, other_affine, atol=SAME_GRID):
        return []
    axes, other_axes = ("".join(str(code) for code in nib.aff2axcodes(a)) for a in (affine, other_affine))
    swapped = ("L" in axes) != ("L" in other_axes)
    problem = (
        f"same shape but another affine than {path} (axes {other_axes} and {axes}, "
        f"origin {np.round(other_affine[:3, 3], 2).tolist()} and {np.round(affine[:3, 3], 2).tolist()} mm"
        f"{'; left and right are swapped' if swapped else ''}); one of the two headers is wrong"
    )
    return [Finding(other_path, "left_right" if swapped else "affine", problem)]
