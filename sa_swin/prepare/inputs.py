"""What a cohort's preparation reads: its datalists and cases; and that nothing of it would be written over."""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from custom.data.datalist import check_entries, read_json
from sa_swin.cohort.sources import case_lists
from sa_swin.prepare.case import CaseFiles, aligned_paths, case_of, record_path


def find_datalists(datalist: str | Sequence[str] | None, dataset_dir: str | None) -> list[Path]:
    """The datalist files that are meant: one, several separated by commas, or a folder's.

    Args:
        datalist: as the command line has it; None means the folder `datalists` of `dataset_dir`.
        dataset_dir: folder of the cohort, or None.

    Raises:
        ValueError: when there is none, or two have the same name.
    """
    if datalist is None and dataset_dir is None:
        raise ValueError("nothing to align; give --dataset_dir, a folder with datalists/*.json, or --datalist")
    named = [str(Path(str(dataset_dir)) / "datalists")] if datalist is None else datalist
    if isinstance(named, str):
        named = [named] if os.path.exists(named) else named.split(",")
    files = []
    for path in map(Path, named):
        files += sorted(path.glob("*.json")) if path.is_dir() else [path]
    if not files:
        raise ValueError(f"no datalist (*.json) in {', '.join(named)}")
    names = [file.name for file in files]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise ValueError(
            f"two datalists are named {repeated[0]}; each is written out under its own name, so rename one"
        )
    return files


def read_datalist(path: Path) -> dict[str, Any]:
    """A datalist's content.

    Raises:
        ValueError: when the file is missing or names no cases.
    """
    content = read_json(path)
    if not (lists := case_lists(content)):
        raise ValueError(
            f"{path} lists no cases: expected lists of {{'image': path, ...}}, got {type(content).__name__}"
        )
    check_entries(path, lists)
    return content


def distinct_cases(contents: Sequence[dict[str, Any]], dataset_dir: Path) -> dict[str, CaseFiles]:
    """The cases of all datalists by their first image: each with every channel and the mask that any list gives it.

    Raises:
        ValueError: when an image has two masks, or a file would be written twice.
    """
    cases: dict[str, CaseFiles] = {}
    for entry in [entry for content in contents for entries in case_lists(content).values() for entry in entries]:
        new = case_of(entry, dataset_dir)
        if not new.images:
            raise ValueError(f"an entry without an image: {entry}")
        old = cases.get(new.images[0], new)
        if old.label and new.label and old.label != new.label:
            raise ValueError(f"{new.images[0]} has two masks, {old.label} and {new.label}; prepare one list at a time")
        images = tuple(dict.fromkeys(old.images + new.images))
        cases[images[0]] = CaseFiles(new.root, images, old.label or new.label)
    written: dict[str, str] = {}
    for first, case in cases.items():
        for path in aligned_paths(case):
            if written.setdefault(path, first) != first:
                raise ValueError(
                    f"{path} would be written with {written[path]} and again with {first}, on different grids; "
                    "name channels in one order, or prepare one list at a time"
                )
    return cases


def refuse_overwriting(cases: Sequence[CaseFiles], datalists: Iterable[Path], root: Path, output: Path) -> None:
    """Refuse an output folder in which a file of the cohort itself would be written over.

    Args:
        cases: with their images and masks.
        datalists: that are read.
        root: what the cases' paths are relative to.
        output: folder of the aligned cohort.

    Raises:
        ValueError: with the folder, or the first such file.
    """
    advice = "give the aligned cohort a folder of its own with --output"
    if output.resolve() == root.resolve():
        raise ValueError(f"{output} is the cohort itself, whose images would be written over; {advice}")
    datalists = list(datalists)
    read = [root / path for case in cases for path in (*case.images, *filter(None, [case.label]))]
    inputs = {place for path in (*read, *datalists) for place in (_place(path), Path(os.path.realpath(path)))}
    for path in (*written(cases, output), *(output / "datalists" / file.name for file in datalists)):
        if _place(path) in inputs:
            raise ValueError(f"{path} is a file of the cohort, and would be written over; {advice}")


def written(cases: Iterable[CaseFiles], output: Path) -> Iterator[Path]:
    """Every file that is written for each case: aligned images and mask, record and thumbnail."""
    for case in cases:
        record = record_path(case, output)
        yield from (*(output / path for path in aligned_paths(case)), record, record.with_suffix(".png"))


def _place(path: Path) -> Path:
    """Where a file of this name is, whatever links lead to its folder; the name itself may be a link."""
    return Path(os.path.realpath(path.parent)) / path.name
