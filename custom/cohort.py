"""Datalists: read, resolve, and check the cases of a cohort before any training starts.

A datalist is the Decathlon JSON that MONAI reads: lists named `training`, `validation`, `testing` (or a `fold` on every
entry) of `{"image": path or [path per channel], "label": class or mask path, "healthy": bool, "subject": id, ...}`.
"""

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monai.data import IterableDataset
from monai.utils import look_up_option
from nibabel.filebasedimages import ImageFileError
from torch.utils.data import get_worker_info

from custom.errors import UserError, root_cause

SECTIONS = ("training", "validation", "testing")
LABELS = ("none", "class", "mask", "healthy")
CASE_KEYS = ("image", "label", "healthy", "subject")  # what the bundles use; other facts of an entry may differ in kind
AFFINE_TOLERANCE = 1e-2  # mm, between the affines of an image and its mask

logger = logging.getLogger(__name__)

Case = dict[str, Any]


class CohortError(UserError):
    """What is wrong with a cohort, all of it, one line per problem."""


def load_datalist(
    datalist: str | Path,
    section: str,
    dataset_dir: str | Path = ".",
    label: str = "none",
    in_channels: int = 1,
    num_classes: int | None = None,
    fold: int | None = None,
    limit: int | None = None,
    workers: int = 8,
) -> list[Case]:
    """Read one section of a datalist, resolve its paths and check every case; all problems come in one error.

    Reading is of headers only, so thousands of cases take seconds.

    Args:
        datalist: the JSON file.
        section: `training`, `validation` or `testing`.
        dataset_dir: what relative paths in the file are relative to.
        label: what a case must carry: `none`, `class` (integer), `mask` (path) or `healthy` (true or false).
        in_channels: files a case must list.
        num_classes: for `class` labels, one more than the largest; None skips that check.
        fold: where the file has no `validation` list, the value of `fold` that is held out for validation.
        limit: keep the first so many cases only (to try a configuration out); None or 0 keeps all.
        workers: threads that read headers.

    Returns:
        Cases with absolute paths, ready for a MONAI dataset.

    Raises:
        CohortError: an unreadable or empty datalist, missing or unreadable files, a wrong number of channels, image and
            mask on different grids, a label that is missing or out of range.
    """
    look_up_option(label, LABELS)
    entries = read_section(Path(datalist), section, fold)[: limit or None]
    with ThreadPoolExecutor(workers) as pool:
        cases = list(pool.map(lambda entry: resolved(entry, Path(dataset_dir), label), entries))
        problems = list(pool.map(lambda case: case_problems(case, label, in_channels, num_classes), cases))
    found = [problem for case in problems for problem in case]
    if found:
        raise CohortError(f"{datalist}, {section}: {len(found)} problem(s)\n  " + "\n  ".join(found))
    return with_shared_keys(cases)


def read_json(path: Path) -> Any:
    """The content of a datalist file, whatever it is."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise CohortError(f"no datalist at {path}; make one, or give its place with --datalist") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CohortError(f"{path} is not JSON: {error}") from error


def read_section(path: Path, section: str, fold: int | None = None) -> list[Case]:
    """The entries of one section as they stand in the file."""
    look_up_option(section, SECTIONS)
    lists = read_json(path)
    if not isinstance(lists, dict) or not all(_is_list_of_cases(lists.get(name, [])) for name in SECTIONS):
        raise CohortError(f"{path} must hold lists of cases {{...}} named {', '.join(SECTIONS)}")
    entries = lists.get(section, [])
    if fold is not None and not lists.get("validation") and section != "testing":
        held_out = section == "validation"
        entries = [entry for entry in lists.get("training", []) if (entry.get("fold") == fold) == held_out]
    if not entries:
        hint = "; give the held-out one with --fold" if section == "validation" and fold is None else ""
        raise CohortError(f"{path} has no cases in '{section}'{hint}")
    return entries


def _is_list_of_cases(entries: Any) -> bool:
    return isinstance(entries, list) and all(isinstance(entry, dict) for entry in entries)


def resolved(entry: Case, dataset_dir: Path, label: str) -> Case:
    """The case's `CASE_KEYS`, with absolute paths and a `subject`, which falls back on the image's file name.

    A `label` stays where it is called for (`class`, `mask`).
    """
    case = {key: entry[key] for key in CASE_KEYS if entry.get(key) is not None}
    paths = [str(dataset_dir / path) for path in image_paths(entry)]
    if paths:
        case["image"] = paths if isinstance(entry["image"], list) else paths[0]
        case.setdefault("subject", Path(paths[0]).name.split(".")[0])
    if label == "mask" and isinstance(entry.get("label"), str):
        case["label"] = str(dataset_dir / entry["label"])
    elif label not in ("class", "mask"):
        case.pop("label", None)
    return case


def with_shared_keys(cases: Sequence[Case]) -> list[Case]:
    """The cases with those keys only that all of them have, so that they can be batched."""
    shared = set(cases[0]).intersection(*cases)
    return [{key: value for key, value in case.items() if key in shared} for case in cases]


def image_paths(case: Case) -> list[str]:
    """Paths of a case's channels."""
    image = case.get("image") or []
    return [image] if isinstance(image, str) else list(image)


def case_problems(case: Case, label: str, in_channels: int, num_classes: int | None) -> list[str]:
    """What is wrong with one case: one sentence per problem, with the file and what was expected and found."""
    paths = image_paths(case)
    name = paths[0] if paths else str(case)
    if len(paths) != in_channels:
        return [f"{name}: expected {in_channels} image file(s), one per channel, got {len(paths)}"]
    if label == "class":
        return _file_problems(paths) + _class_problems(name, case.get("label"), num_classes)
    if label == "healthy" and not isinstance(case.get("healthy"), bool):
        return [f"{name}: expected 'healthy' true or false, got {case.get('healthy')!r}"]
    if label == "mask":
        if not isinstance(case.get("label"), str):
            return [f"{name}: expected 'label' to be the path of a mask, got {case.get('label')!r}"]
        paths = [*paths, case["label"]]
    return _file_problems(paths)


def _class_problems(name: str, label: Any, num_classes: int | None) -> list[str]:
    if not isinstance(label, int) or isinstance(label, bool):
        return [f"{name}: expected 'label' to be a class number, got {label!r}"]
    if num_classes is not None and not 0 <= label < num_classes:
        return [f"{name}: label {label} is out of range, expected 0 to {num_classes - 1}"]
    return []


def _file_problems(paths: Sequence[str]) -> list[str]:
    """Unreadable files, and files that do not share the first one's grid."""
    problems, grids = [], []
    for path in paths:
        try:
            image = nib.load(path)
        except FileNotFoundError:
            problems.append(f"{path}: no such file")
        except (ImageFileError, OSError, EOFError, ValueError) as error:
            problems.append(f"{path}: not a readable image ({error})")
        else:
            if len(image.shape) != 3:
                problems.append(f"{path}: expected a 3D volume, got shape {image.shape}")
            grids.append((path, image.shape, image.affine))
    return problems or [problem for grid in grids[1:] for problem in _grid_problems(grids[0], grid)]


def _grid_problems(first: tuple[str, tuple, np.ndarray], other: tuple[str, tuple, np.ndarray]) -> list[str]:
    (path, shape, affine), (other_path, other_shape, other_affine) = first, other
    if shape != other_shape:
        return [f"{other_path}: shape {other_shape} differs from {shape} of {path}; resample it to that grid"]
    if not np.allclose(affine, other_affine, atol=AFFINE_TOLERANCE):
        return [
            f"{other_path}: same shape but another affine than {path} "
            f"(origin {np.round(other_affine[:3, 3], 2).tolist()} and {np.round(affine[:3, 3], 2).tolist()} mm); "
            "one of the two headers is wrong"
        ]
    return []


def find_cases(datalist: str | Path | None, dataset_dir: str | Path, section: str = "testing") -> list[Case]:
    """Cases to run inference on: from a datalist, else every NIfTI file below a folder, outside `derivatives`.

    Args:
        datalist: JSON file, or None to look through `dataset_dir`.
        dataset_dir: folder of the images.
        section: list of the datalist to run on.

    Raises:
        CohortError: when there is no case.
    """
    root = Path(dataset_dir)
    if datalist:
        entries = read_section(Path(datalist), section)
    else:
        files = sorted(path.relative_to(root) for suffix in ("nii", "nii.gz") for path in root.rglob(f"*.{suffix}"))
        entries = [{"image": str(path)} for path in files if "derivatives" not in path.parts]
    if not entries:
        raise CohortError(f"no NIfTI file (*.nii, *.nii.gz) below {root}")
    return [resolved({k: v for k, v in entry.items() if k != "label"}, root, "none") for entry in entries]


class TolerantDataset(IterableDataset):
    """MONAI's `IterableDataset` that passes over cases it cannot read or transform, each with an error in the log.

    So one bad file does not lose the results of the others; `custom.handlers.CaseTable` names the missing ones at the
    end.

    Args:
        data: cases.
        transform: preprocessing.
        in_channels: files a case must list.
    """

    def __init__(self, data: Sequence[Case], transform: Callable[[Case], Any], in_channels: int = 1) -> None:
        super().__init__(data, transform)
        self.in_channels = in_channels

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        for case in self.data[first::step]:
            problems = case_problems(case, "none", self.in_channels, None)
            try:
                item = None if problems else self.transform(case)
            except (ValueError, RuntimeError, OSError) as error:
                problems = [f"{image_paths(case)[0]}: {root_cause(error)}"]
            if problems:
                logger.error("left out: %s", "; ".join(problems))
            else:
                yield item
