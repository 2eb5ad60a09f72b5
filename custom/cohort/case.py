"""A case of a datalist: a dictionary of `image`, `label`, `healthy`, `subject` and further facts."""

import re
from pathlib import Path
from typing import Any

from custom.errors import UserError

Case = dict[str, Any]

CASE_KEYS = ("image", "label", "healthy", "subject")  # what the bundles use; other facts of an entry may differ in kind


class CohortError(UserError):
    """What is wrong with a cohort, all of it, one line per problem."""


def image_paths(case: Case) -> list[str]:
    """Paths of a case's channels."""
    image = case.get("image") or []
    return [image] if isinstance(image, str) else list(image)


def subject_from(path: str) -> str:
    """The subject that an image's path tells of: the last `sub-<label>` in it, else the path without its extension.

    Not the file's name alone: in `case_1/flair.nii.gz`, `case_2/flair.nii.gz` it is the same for everybody.
    """
    labels = re.findall(r"sub-[A-Za-z0-9]+", path)
    return labels[-1] if labels else str(Path(path).with_name(Path(path).name.split(".")[0]))


def subject_of(case: Case) -> str:
    """The case's subject, which falls back on the path of its first image; `sub-01` and `01` are the same."""
    subject = case.get("subject")
    if subject is None:
        paths = image_paths(case)
        subject = subject_from(paths[0]) if paths else "?"
    return str(subject).removeprefix("sub-")
