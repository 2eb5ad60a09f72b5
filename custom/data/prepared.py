"""Images that `sa-swin prepare` made: what they were made from, and whether they are still what a training wants.

`sa-swin prepare` writes a record beside every image: spacing, size, the files it was made from with their size and time
of change, and the version of the alignment. A training with `--align False` asks all of them.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from custom.alignment.version import ALIGNMENT_VERSION
from custom.data.case import Case, image_paths
from custom.data.folders import stem_of
from custom.support.files import stamp_of

LARGEST = 2**24  # bytes of a record
LEFT_OUT = "left out"
"""Status of a case that `sa-swin prepare` has looked at and refused."""


def preparation(path: str) -> dict[str, Any] | None:
    """The record that `sa-swin prepare` wrote beside an image it made, or None."""
    beside = Path(f"{stem_of(path)}.json")
    try:
        record = json.loads(beside.read_text()) if beside.is_file() and beside.stat().st_size < LARGEST else None
    except (OSError, ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and "aligned_affine" in record else None


def prepared_from(path: str) -> list[str]:
    """Content hashes of the images that an aligned image was made from."""
    return (preparation(path) or {}).get("source_contents", [])


def aligned_contents(path: str) -> dict[str, str]:
    """Digest of every file that an aligned image was made with, itself and its mask, by its path below the cohort.

    Records of before 2026-11-29 do not tell it; then it is empty.
    """
    record = Path(f"{stem_of(path)}.json")
    return _contents(path, *stamp_of(record))


@lru_cache(maxsize=2**16)
def _contents(path: str, *stamp: int) -> dict[str, str]:
    return (preparation(path) or {}).get("aligned_contents", {})


def stale_problems(cases: Sequence[Case], grid: Mapping[str, Any], shown: int = 3) -> list[str]:
    """Why prepared images do not fit a training that takes them as they are, one sentence for all alike.

    Args:
        cases: with absolute paths; images that `sa-swin prepare` did not make are passed over.
        grid: `spacing` (mm) and `spatial_size` (voxels) that the training wants.
        shown: files named for each problem.
    """
    found = defaultdict(list)
    for case in cases:
        path = next(iter(image_paths(case)), None)
        record = preparation(path) if path else None
        for problem in _record_problems(record, grid) if record else []:
            found[problem].append(path)
    return [
        f"{', '.join(paths[:shown])}{f' and {len(paths) - shown} more' if len(paths) > shown else ''}: {problem}"
        for problem, paths in found.items()
    ]


def _record_problems(record: Mapping[str, Any], grid: Mapping[str, Any]) -> list[str]:
    settings, problems = record["settings"], []
    if record.get("status") == LEFT_OUT:
        problems.append("sa-swin prepare has left it out since, as its plane cannot be trusted; use the datalist that "
                        "was written then, or prepare anew")  # fmt: skip
    for name, unit in (("spacing", "mm"), ("spatial_size", "voxels")):
        made, wanted = _three(settings[name]), _three(grid[name])
        if made != wanted:
            problems.append(f"prepared with {name} {made} {unit}, but this run wants {wanted}; prepare anew, "
                            f"or give --{name}")  # fmt: skip
    if settings.get("alignment") != ALIGNMENT_VERSION:
        problems.append(f"prepared by version {settings.get('alignment')} of the alignment, now {ALIGNMENT_VERSION}; "
                        "run sa-swin prepare again")  # fmt: skip
    if any(_has_changed(*source) for source in settings["sources"]):
        problems.append("the file it was prepared from has changed since; run sa-swin prepare again")
    return problems


def _three(value: float | Sequence[float]) -> list[float]:
    values = list(value) if isinstance(value, Sequence) else [value] * 3
    return [int(number) if number == int(number) else float(number) for number in values]


def _has_changed(path: str, *stamp: int) -> bool:
    """Whether a source file is there and is not as it was; one that is elsewhere now cannot be asked."""
    return stamp_of(path) not in ([], list(stamp))
