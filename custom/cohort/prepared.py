"""Images that `custom.prepare` made: what they were made from, and whether they are still what a training wants.

`custom.prepare` writes a record beside every image: spacing, size, the files it was made from with their size and time
of change, and a hash of the code that aligned it. A training with `--align False` asks all of them.
"""

import ast
import hashlib
import importlib.util
import json
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from custom.cohort.case import Case, image_paths

LARGEST = 2**24  # bytes of a record
MAKES_IMAGES = "custom.aligned_case"
# imported there, but they change no voxel
NO_PART_OF_IT = ("custom.cohort", "custom.contact_sheet", "custom.errors", "custom.files")


def preparation(path: str) -> dict[str, Any] | None:
    """The record that `custom.prepare` wrote beside an image it made, or None."""
    name = Path(path).name.removesuffix(".gz").removesuffix(".nii")
    beside = Path(path).with_name(f"{name}.json")
    try:
        record = json.loads(beside.read_text()) if beside.is_file() and beside.stat().st_size < LARGEST else None
    except (OSError, ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and "aligned_affine" in record else None


def prepared_from(path: str) -> list[str]:
    """Content hashes of the images that an aligned image was made from."""
    return (preparation(path) or {}).get("source_contents", [])


def aligning_code() -> dict[str, str]:
    """Source of the modules that make aligned images: `custom.aligned_case` and all it imports of this project."""
    sources: dict[str, str] = {}
    waiting = [MAKES_IMAGES]
    while waiting:
        name = waiting.pop()
        if name not in sources and not name.startswith(NO_PART_OF_IT):
            sources[name] = Path(importlib.util.find_spec(name).origin).read_text()
            waiting += [module for module in _imports(sources[name]) if module.startswith("custom.")]
    return sources


@cache
def code_version() -> str:
    """Hash of the code that makes aligned images."""
    return hashlib.sha256("".join(text for _, text in sorted(aligning_code().items())).encode()).hexdigest()[:12]


def _imports(source: str) -> list[str]:
    nodes = list(ast.walk(ast.parse(source)))
    modules = [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
    return modules + [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]


def stale_problems(cases: Sequence[Case], grid: Mapping[str, Any], shown: int = 3) -> list[str]:
    """Why prepared images do not fit a training that takes them as they are, one sentence for all alike.

    Args:
        cases: with absolute paths; images that `custom.prepare` did not make are passed over.
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
    for name, unit in (("spacing", "mm"), ("spatial_size", "voxels")):
        made, wanted = _three(settings[name]), _three(grid[name])
        if made != wanted:
            problems.append(f"prepared with {name} {made} {unit}, but this run wants {wanted}; prepare anew, "
                            f"or give --{name}")  # fmt: skip
    if settings.get("code") != code_version():
        problems.append(f"prepared by another version of the alignment (code {settings.get('code')}, "
                        f"now {code_version()}); run custom.prepare again")  # fmt: skip
    if any(_has_changed(*source) for source in settings["sources"]):
        problems.append("the file it was prepared from has changed since; run custom.prepare again")
    return problems


def _three(value: float | Sequence[float]) -> list[float]:
    values = list(value) if isinstance(value, Sequence) else [value] * 3
    return [int(number) if number == int(number) else float(number) for number in values]


def _has_changed(path: str, size: int, mtime_ns: int) -> bool:
    """Whether a source file is there and is not as it was; one that is elsewhere now cannot be asked."""
    try:
        stat = os.stat(path)
    except OSError:
        return False
    return (stat.st_size, stat.st_mtime_ns) != (size, mtime_ns)
