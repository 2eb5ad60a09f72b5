"""Datalists: read, resolve, and check the cases of a cohort before any training starts.

A datalist is the Decathlon JSON that MONAI reads: lists named `training`, `validation`, `testing` (or a `fold` on every
entry) of `{"image": path or [path per channel], "label": class or mask path, "healthy": bool, "subject": id, ...}`.
"""

import json
import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from custom.data.bids_names import parse_name
from custom.data.case import (
    CASE_KEYS,
    Case,
    CohortError,
    entry_problem,
    image_paths,
    posix_entry,
    refuse_outside,
    sequence_of,
    subject_from,
)
from custom.data.folders import EVERY, EXPECTED, image_files, reasons, stem_of
from custom.data.headers import case_problems
from custom.data.prepared import stale_problems
from custom.data.splits import label_fraction
from custom.support.files import below

LONGEST_NAME = 230  # bytes: file systems take 255, and results append to the name of their image
SECTIONS = ("training", "validation", "testing")
LARGEST = 2**28  # bytes of a datalist
LABELS = ("none", "class", "mask", "healthy")

logger = logging.getLogger(__name__)


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
    label_percent: float = 100,
    seed: int = 0,
    grid: Mapping[str, Any] | None = None,
    allow_outside: bool = False,
    facts: Sequence[str] = (),
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
        label_percent: for `training`, share of the subjects to use: see `custom.data.splits.label_fraction`.
        seed: of that share.
        grid: `spacing`, `spatial_size` and `align` of the run; where it does not align, images from `sa-swin prepare`
            must have been made so, by this version of the code, from files that have not changed since.
        allow_outside: read files outside of `dataset_dir`, too, where absolute paths, `..` and symlinks may lead.
        facts: further keys of the entries that the cases keep, as text.

    Returns:
        Cases with absolute paths, ready for a MONAI dataset.

    Raises:
        CohortError: an unreadable or empty datalist, missing or unreadable files, a wrong number of channels, image and
            mask on different grids, a label that is missing or out of range, stale prepared images, a `fold` beside a
            `validation` list.
    """
    expect(label, LABELS, "label")
    dataset_dir = os.path.abspath(dataset_dir)
    entries = read_section(Path(datalist), section, fold)
    if section == "training":
        entries = label_fraction(entries, label_percent, seed)
    entries = entries[: limit or None]
    with ThreadPoolExecutor(workers) as pool:
        cases = list(pool.map(lambda entry: resolved(entry, Path(dataset_dir), label, facts), entries))
        root = None if allow_outside else Path(dataset_dir)
        problems = list(pool.map(lambda case: case_problems(case, label, in_channels, num_classes, root), cases))
    found = [problem for case in problems for problem in case]
    if grid and not grid["align"]:
        found += stale_problems(cases, grid)
    if found:
        raise CohortError(f"{datalist}, {section}: {len(found)} problem(s)\n  " + "\n  ".join(found))
    return with_shared_keys(cases)


def load_section(cohort: Mapping[str, Any], section: str) -> list[Case]:
    """One section of a cohort whose other arguments of `load_datalist` stand in one mapping, as in the bundles."""
    return load_datalist(section=section, **cohort)


def expect(value: str, allowed: Sequence[str], what: str) -> None:
    """Refuse a word that is none of the allowed ones."""
    if value not in allowed:
        raise CohortError(f"{what} must be one of {', '.join(allowed)}; got {value!r}")


def read_json(path: Path) -> Any:
    """The content of a datalist file, whatever it is.

    Raises:
        CohortError: no such file, one that cannot be read, or no JSON.
    """
    try:
        if path.stat().st_size > LARGEST:
            raise CohortError(f"{path} is larger than {LARGEST / 2**20:.0f} MB, which no datalist is")
        content = json.loads(path.read_bytes())  # with a byte-order mark, or of UTF-16, too
    except FileNotFoundError as error:
        raise CohortError(f"no datalist at {path}; make one, or give its place with --datalist") from error
    except CohortError:
        raise
    except OSError as error:
        raise CohortError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise CohortError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        return content
    return {name: value if not _is_list_of_cases(value) else [posix_entry(entry) for entry in value]
            for name, value in content.items()}  # fmt: skip


def class_names(datalist: str | Path | None) -> list[str] | None:
    """Names of the classes, in their order, where a datalist has them: the Decathlon's `labels`, number to name.

    Args:
        datalist: JSON; None, or a file that is not there, has none.
    """
    if datalist is None or not Path(datalist).is_file():
        return None
    content = read_json(Path(datalist))
    labels = content.get("labels") if isinstance(content, dict) else None
    if not isinstance(labels, dict) or set(labels) != {str(number) for number in range(len(labels))} or not labels:
        return None
    return [str(labels[str(number)]) for number in range(len(labels))]


def read_lists(path: Path) -> dict[str, Any]:
    """A datalist file: lists of entries by section, and whatever else stands in it."""
    lists = read_json(path)
    if not isinstance(lists, dict) or not all(_is_list_of_cases(lists.get(name, [])) for name in SECTIONS):
        raise CohortError(f"{path} must hold lists of cases {{...}} named {', '.join(SECTIONS)}")
    check_entries(path, {name: lists.get(name, []) for name in SECTIONS})
    return lists


def check_entries(path: Path, lists: Mapping[str, Sequence[Case]], shown: int = 10) -> None:
    """Refuse entries of another form than a case has.

    Raises:
        CohortError: with the place of each.
    """
    places = ((f"{name}[{i}]", entry) for name, entries in lists.items() for i, entry in enumerate(entries))
    if found := [f"{place}: {problem}" for place, entry in places if (problem := entry_problem(entry))]:
        raise CohortError("\n  ".join([f"{path}: {len(found)} entries are no cases", *found[:shown]]))


def read_section(path: Path, section: str, fold: int | None = None) -> list[Case]:
    """The entries of one section as they stand in the file.

    Raises:
        CohortError: there are none, or a fold would be held out in place of a `validation` list that is there.
    """
    expect(section, SECTIONS, "section")
    lists = read_lists(path)
    if fold is not None and section != "testing" and lists.get("validation"):
        raise CohortError(
            f"{path} has a validation list of its own, so that --fold {fold} would do nothing; leave out --fold, or "
            "take the validation list out of the file"
        )
    entries = section_entries(lists, section, fold)
    if not entries:
        hint = "; give the held-out one with --fold" if section == "validation" and fold is None else ""
        raise CohortError(f"{path} has no cases in '{section}'{hint}")
    return entries


def section_entries(lists: Mapping[str, Sequence[Case]], section: str, fold: int | None = None) -> Sequence[Case]:
    """Those entries of a datalist's lists that are in a section where a fold is held out."""
    if fold is None or lists.get("validation") or section == "testing":
        return lists.get(section, [])
    held_out = section == "validation"
    return [entry for entry in lists.get("training", []) if (entry.get("fold") == fold) == held_out]


def _is_list_of_cases(entries: Any) -> bool:
    return isinstance(entries, list) and all(isinstance(entry, dict) for entry in entries)


def resolved(entry: Case, dataset_dir: Path, label: str, facts: Sequence[str] = ()) -> Case:
    """The case's `CASE_KEYS`, with absolute paths and a `subject`, which falls back on the image's path.

    A `label` stays where it is called for (`class`, `mask`). Further `facts` are text, empty where
    there are none.
    """
    case = {key: entry[key] for key in CASE_KEYS if entry.get(key) is not None}
    paths = [str(dataset_dir / path) for path in image_paths(entry)]
    if paths:
        case["image"] = paths if isinstance(entry["image"], list) else paths[0]
        subject = case.get("subject")
        case["subject"] = subject_from(image_paths(entry)[0]) if subject is None else str(subject)
    if label == "mask" and isinstance(entry.get("label"), str):
        case["label"] = str(dataset_dir / entry["label"])
    elif label not in ("class", "mask"):
        case.pop("label", None)
    return {fact: str(entry.get(fact, "")) for fact in facts if fact not in ("healthy", "subject")} | case


def with_shared_keys(cases: Sequence[Case]) -> list[Case]:
    """The cases with those keys only that all of them have, so that they can be batched."""
    shared = set(cases[0]).intersection(*cases)
    return [{key: value for key, value in case.items() if key in shared} for case in cases]


def find_cases(
    datalist: str | Path | None,
    dataset_dir: str | Path,
    section: str = "testing",
    allow_outside: bool = False,
    images: str = EVERY,
    output_dir: str | Path | None = None,
    sequences: Sequence[str | None] | None = None,
) -> list[Case]:
    """Cases to run inference on: from a datalist, else the images below a folder (`custom.data.folders.image_files`).

    What of a folder is left out is told in the log, with the reason.

    Args:
        datalist: JSON file, or None to look through `dataset_dir`.
        dataset_dir: folder of the images.
        section: list of the datalist to run on.
        allow_outside: read files outside of `dataset_dir`, too, where absolute paths, `..` and symlinks may lead.
        images: without a datalist, pattern of the names to take, such as `*_FLAIR.nii.gz`.
        output_dir: of the run; its results are no images, where it lies in the folder.
        sequences: of the weights' training or the norm, by channel (`custom.data.case.sequences_of`); of a folder
            without a pattern other ones are left out, elsewhere the log tells of them.

    Raises:
        CohortError: when there is no case, one has no image, files lie outside, or two cases would have one result.
    """
    root = Path(os.path.abspath(dataset_dir))
    entries = read_section(Path(datalist), section) if datalist else _entries_below(root, images, output_dir, sequences)
    _tell_of_other_sequences(entries, sequences or [])
    refuse_outside((path for entry in entries for path in image_paths(entry)), root, allow_outside)
    _check_names(entries, root)
    return [resolved({k: v for k, v in entry.items() if k != "label"}, root, "none") for entry in entries]


def _tell_of_other_sequences(entries: Sequence[Case], trained: Sequence[str | None]) -> None:
    for number, expected in enumerate(trained):
        names = (sequence_of(paths[number]) for entry in entries if len(paths := image_paths(entry)) > number)
        others = Counter(own for own in names if expected and own and own.lower() != expected.lower())
        for own, count in others.items():
            told = (count, len(entries), number + 1, own, expected)
            logger.warning("%d of %d images of channel %d are %s; the weights or the norm are of %s", *told)


def _entries_below(
    root: Path, images: str, output_dir: str | Path | None, sequences: Sequence[str | None] | None
) -> list[Case]:
    sequence = sequences[0] if sequences and len(sequences) == 1 else None
    taken, left_out = image_files(root, images, output_dir, sequence)
    if not taken:
        why = f"; left out are {reasons(left_out)}" if left_out else ""
        raise CohortError(f"no NIfTI file (*.nii, *.nii.gz) below {root}{why}")
    if told := {path: reason for path, reason in left_out.items() if reason not in EXPECTED}:
        logger.warning("%d file(s) below %s are left out: %s", len(told), root, reasons(told))
    kinds = Counter(file.suffix for path in taken if (file := parse_name(path)))
    if len(kinds) > 1:
        listed = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        logger.warning("%s: each is a case of its own; choose with --images '*_%s.nii.gz'", listed, next(iter(kinds)))
    return [{"image": path} for path in taken]


def _check_names(entries: Sequence[Case], root: Path) -> None:
    """Refuse images whose results would have one name, or one too long for a file."""
    named: dict[str, str] = {}
    for entry in entries:
        if not (paths := image_paths(entry)):
            raise CohortError(f"an entry without an image: {entry}")
        name = stem_of(str(below(paths[0], root)))
        if len(os.fsencode(Path(name).name)) > LONGEST_NAME:
            raise CohortError(f"{paths[0]}: its name is longer than {LONGEST_NAME} bytes, too long for its results'")
        if named.setdefault(name, paths[0]) != paths[0]:
            raise CohortError(f"{named[name]} and {paths[0]} would have results of one name; rename one of them")
