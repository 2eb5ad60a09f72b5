"""Whether a cell has its result: of its split, and of the images and masks as they are now."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from custom.data.case import image_paths
from custom.data.prepared import aligned_contents
from custom.support.files import below
from sa_swin.study.cohort import Cohort, every, of_cell, read_lists
from sa_swin.study.plan import Cell


def split_of(cell: Cell, folder: Path) -> str:
    """Digest of what its settings do not tell of a cell: its datalist, and its cases, where their records tell them.

    That of the cell which it was pretrained by is a part of it.

    A cohort of which no record does (`custom.data.prepared.aligned_contents`) has the digest of the datalist alone.
    """
    digest = hashlib.sha256((of_cell(cell, folder)[1] / list_of(cell)).read_bytes())
    for content in told_of(cell, folder):
        digest.update(content.encode())
    if cell.start:
        digest.update(split_of(cell.start, folder).encode())
    return digest.hexdigest()[:16]


def list_of(cell: Cell) -> str:
    """Name of a cell's datalist."""
    return f"{'classify' if cell.arm.task == 'normative' else cell.arm.task}.json"


def told_of(cell: Cell, folder: Path) -> Iterator[str]:
    """What the records of a cell's aligned cases tell of their files."""
    own = Cohort(cell.cohort["cohort"], folder)
    for entry in every(read_lists(own.lists(True, cell.fold) / list_of(cell))):
        images, label = image_paths(entry), entry.get("label")
        told = aligned_contents(str(own.aligned / images[0]))
        files = (str(below(path, own.aligned)) for path in (*images, *([label] if isinstance(label, str) else [])))
        yield from (told[file] for file in files if file in told)


def is_done(home: Path, split: str) -> bool:
    """Whether a cell has its result, of these cases (which results of before 2026-11-29 do not tell)."""
    path = home / "result.json"
    return path.exists() and json.loads(path.read_text()).get("split", split) == split
