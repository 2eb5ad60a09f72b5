"""A case of a datalist: a dictionary of `image`, `label`, `healthy`, `subject` and further facts."""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from custom.data.bids_names import parse_name
from custom.support.errors import UserError
from custom.volumes.hounsfield import modality_of
from custom.volumes.nifti import reason

Case = dict[str, Any]

_SUBJECT = re.compile(r"(?<![A-Za-z0-9])(sub-.+?)(?:_[A-Za-z][^_]*)*$")
CASE_KEYS = ("image", "label", "healthy", "subject")  # what the bundles use; other facts of an entry may differ in kind


class CohortError(UserError):
    """What is wrong with a cohort, all of it, one line per problem."""


def image_paths(case: Case) -> list[str]:
    """Paths of a case's channels."""
    image = case.get("image") or []
    return [image] if isinstance(image, str) else list(image)


def sequence_of(path: str) -> str | None:
    """What a name of BIDS says that its image is, such as `T1w` or `CT`; None where it says nothing of the kind."""
    file = parse_name(path)
    if file is None or modality_of(path) is None:
        return None
    return "CT" if file.suffix.lower() == "ct" else file.suffix


def sequences_of(cases: Iterable[Case]) -> list[str | None]:
    """What the names of all cases say of each channel; None where they do not, or not the same."""
    told = [tuple(map(sequence_of, image_paths(case))) for case in cases]
    return [next(iter(one)) if len(one := set(own)) == 1 else None for own in zip(*told, strict=False)]


def posix_path(path: str) -> str:
    r"""A relative path that was written on Windows as this system has it: `sub-1\anat\a.nii` is `sub-1/anat/a.nii`.

    A name with a backslash in it stays: a path that has slashes, too, is none of Windows.
    """
    return path.replace("\\", "/") if "\\" in path and "/" not in path else path


def posix_entry(entry: Case) -> Case:
    """An entry with `posix_path` of its image and mask."""
    changed: Case = {}
    for key in ("image", "label"):
        value = entry.get(key)
        if isinstance(value, str):
            changed[key] = posix_path(value)
        elif isinstance(value, list) and all(isinstance(path, str) for path in value):
            changed[key] = [posix_path(path) for path in value]
    return entry | changed


def path_problem(path: str, root: str | Path) -> str | None:
    """Why a path of a datalist must not be read: it is none, or leads out of the dataset, by `..` or by a symlink."""
    try:
        real, base = os.path.realpath(Path(root) / path), os.path.realpath(root)
    except (ValueError, OSError) as error:
        return f"not the path of a file ({reason(error)})"
    if Path(real).is_relative_to(base):
        return None
    return f"lies outside of {root}, at {real}; give --allow_outside True if it shall be read all the same"


def refuse_outside(paths: Iterable[str], root: str | Path, allow_outside: bool, shown: int = 10) -> None:
    """Refuse files that lead out of a dataset, unless that is allowed.

    Raises:
        CohortError: with the first so many.
    """
    found = [f"{p}: {why}" for p in dict.fromkeys(paths) if not allow_outside and (why := path_problem(p, root))]
    if found:
        more = [f"and {len(found) - shown} more"] if len(found) > shown else []
        raise CohortError("\n  ".join([f"{len(found)} file(s) are not of the dataset", *found[:shown], *more]))


def entry_problem(entry: Case) -> str | None:
    """What is wrong with the form of a datalist's entry, if anything is."""
    image = entry.get("image") or []
    if not isinstance(image, str) and not (isinstance(image, list) and all(isinstance(p, str) for p in image)):
        return f"expected 'image' to be a path or a list of paths, got {image!r:.80}"
    if drives := [path for path in image_paths(entry) if re.match(r"[A-Za-z]:[\\/]|//|\\\\", path)]:
        return (
            f"{drives[0]!r:.80} is a path of Windows; give paths relative to --dataset_dir, such as sub-1/anat/a.nii.gz"
        )
    if nameless := [path for path in image_paths(entry) if "\0" in path or Path(path).name in ("", "..")]:
        return f"{nameless[0]!r:.80} in 'image' names no file"
    single = ("subject", "healthy", "label", "fold", "side", "site")
    wrong = next((key for key in single if isinstance(entry.get(key), list | dict)), None)
    return wrong and f"expected one value in '{wrong}', got {entry[wrong]!r:.80}"


def subject_from(path: str) -> str:
    """The subject that an image's path tells of: the last `sub-<label>` in it, else the path without its extension.

    A label ends with the name of its file or folder, or where BIDS goes on, by `_<key>-<value>` or `_<suffix>`, which
    start with a letter; what starts with a digit is a part of it. Without one, the file's name alone will not do: in
    `case_1/flair.nii.gz`, `case_2/flair.nii.gz` it is the same for everybody.
    """
    whole = Path(path).parent / Path(path).name.split(".")[0]
    labels = [found[1] for part in whole.parts if (found := _SUBJECT.search(part))]
    return labels[-1] if labels else str(whole)


def subject_of(case: Case) -> str:
    """The case's subject, which falls back on the path of its first image; `sub-01` and `01` are the same."""
    subject = case.get("subject")
    if subject is None:
        paths = image_paths(case)
        subject = subject_from(paths[0]) if paths else "?"
    return str(subject).removeprefix("sub-")
