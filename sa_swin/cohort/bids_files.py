"""Files of a BIDS folder, and which of them a choice such as `acq-3d_T1w` means."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from custom.data.bids_names import NOT_RAW, BidsFile, parse_name
from custom.data.case import CohortError
from custom.data.folders import files_below

Session = tuple[str, str | None]


def parse_choice(text: str) -> tuple[str, dict[str, str]]:
    """Suffix and entities of a choice such as `T1w`, `acq-3d_T1w` or `label-lesion_mask`.

    Raises:
        CohortError: when it is none.
    """
    *pairs, suffix = text.split("_")
    if not re.fullmatch(r"[A-Za-z0-9]+", suffix) or not all("-" in pair for pair in pairs):
        raise CohortError(f"expected a BIDS suffix, with entities if need be, such as T1w or acq-3d_T1w; got {text!r}")
    return suffix, dict(pair.split("-", 1) for pair in pairs)


def nifti_files(root: Path, folder: Path) -> Iterator[BidsFile]:
    """Files with names of BIDS below a folder, outside of hidden folders and of those that hold no raw images.

    Their paths are relative to `root` where the folder is inside it, by whatever name, else absolute.
    """
    place = relative_to(folder, root)
    found = files_below(folder, lambda name: name not in NOT_RAW and name[0] != ".")
    for path in sorted(found, key=_files_first):
        file = parse_name(os.path.normpath(os.path.join(place, path)))
        if file is not None and not os.path.basename(path).startswith("."):
            yield file


def _files_first(path: str) -> list[tuple[bool, str]]:
    """Order in which a folder's own files stand before those of its folders."""
    *folders, name = path.split("/")
    return [*((True, folder) for folder in folders), (False, name)]


def relative_to(folder: Path, root: Path) -> str:
    """A folder's path from a root that it is in, by its own name or where links lead; else its absolute path."""
    for named in (os.path.abspath, os.path.realpath):
        if Path(named(folder)).is_relative_to(named(root)):
            return os.path.relpath(named(folder), named(root))
    return os.path.abspath(folder)
