"""Scans from other places than a BIDS folder: a table with columns of paths, or a datalist to split anew."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from custom.data.case import Case, CohortError, image_paths, posix_path, subject_from
from custom.data.datalist import SECTIONS, read_lists
from sa_swin.cohort.bids import LeftOut, Scan
from sa_swin.cohort.table import read_table, require_columns


def root_of(datalist: Path, dataset_dir: str | None) -> Path:
    """What a datalist's paths are relative to: the cohort's folder, else its own, or the one above its `datalists`."""
    if dataset_dir:
        return Path(str(dataset_dir)).absolute()
    folder = datalist.absolute().parent
    return folder.parent if folder.name == "datalists" else folder


def case_lists(content: Any) -> dict[str, list[Case]]:
    """The lists that hold cases, whatever their names, of a datalist's content; none of any other JSON."""
    entries = content.items() if isinstance(content, dict) else ()
    lists = {name: own for name, own in entries if isinstance(own, list) and own}
    return {n: own for n, own in lists.items() if all(isinstance(case, dict) and "image" in case for case in own)}


def table_scans(
    path: Path, channels: Sequence[str], mask: str | None, subject: str, session: str | None
) -> tuple[list[Scan], list[LeftOut]]:
    """The rows of a table as scans.

    Args:
        path: CSV or TSV.
        channels: columns of the images' paths.
        mask: column of the mask's path, or None.
        subject: column of the subject.
        session: column of the session, or None.

    Raises:
        CohortError: a column that is not there.
    """
    rows = read_table(path)
    wanted = [*channels, subject, *([mask] if mask else []), *([session] if session else [])]
    require_columns(wanted, rows, str(path))
    scans, left_out = [], []
    for line, row in enumerate(rows, 2):
        if not row:
            continue
        name = row.get(subject, f"line {line}")
        if absent := [column for column in (subject, *channels) if column not in row]:
            left_out.append({"subject": name, "reason": f"no {absent[0]}"})
            continue
        images = tuple(posix_path(row[column]) for column in channels)
        mask_path = posix_path(row[mask]) if mask in row else None
        scan = Scan(name, images, row.get(session or ""), None, mask_path, row)
        scans.append(scan)
        if mask and not scan.mask:
            left_out.append({"subject": scan.name, "reason": f"no {mask}"})
    return scans, left_out


def datalist_scans(path: Path, pattern: str | None) -> tuple[list[Scan], list[LeftOut]]:
    """The entries of a datalist as scans, each once; `label` is a column, or the mask where it is a path.

    Args:
        path: JSON of the Decathlon's or the reference's kind.
        pattern: regular expression with one group that finds the subject in the image's path; by default the entry's
            `subject`, else `sub-<label>` in the path, else the path itself.

    Raises:
        CohortError: no datalist, or a pattern that does not fit an image's path.
    """
    lists = read_lists(path)
    entries = [entry for section in SECTIONS for entry in lists.get(section, [])]
    scans: dict[tuple[str, ...], Scan] = {}
    for entry in entries:
        images = tuple(image_paths(entry))
        label = entry.get("label")
        mask = label if isinstance(label, str) else None
        facts = {key: _text(value) for key, value in entry.items() if isinstance(value, str | int | float)}
        scans.setdefault(images, Scan(_subject(entry, pattern), images, entry.get("session"), None, mask, facts))
    return list(scans.values()), []


def _subject(entry: Case, pattern: str | None) -> str:
    paths = image_paths(entry)
    if not paths:
        raise CohortError(f"an entry without an image: {entry}")
    if pattern is None and "subject" in entry:
        return str(entry["subject"])
    if pattern is None:
        return subject_from(paths[0])
    match = re.search(pattern, paths[0])
    if not match or not match.groups():
        raise CohortError(f"subject_pattern {pattern!r} finds no subject, as a group in brackets, in {paths[0]}")
    return match[1]


def _text(value: str | int | float) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
