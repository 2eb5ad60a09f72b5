"""Align a whole cohort once: aligned NIfTI images and labels, a new datalist, a table of planes and a contact sheet.

`python -m custom.prepare --datalist cohort/datalist.json --dataset_dir cohort --output aligned --workers 4`

Each case leaves `<image>.json` beside its aligned image: the plane, its quality and the grids before and after, hence
the transform and its inverse. That file is written last, so that an interrupted run goes on where it stopped.
"""

import csv
import json
import multiprocessing
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fire
import torch
from tqdm import tqdm

from custom.aligned_case import (
    STATUS,
    Case,
    Grid,
    align_case,
    aligned_path,
    case_of,
    label_path,
    record_path,
    write_text,
)
from custom.cohort import read_json
from custom.contact_sheet import Tile, contact_sheets

COLUMNS = (
    "image", "status", "yaw_deg", "roll_deg", "offset_mm",
    "similarity", "overlap", "margin", "angle_error", "offset_error", "structure", "reason",
)  # fmt: skip


def read_cases(datalist: Path, dataset_dir: Path) -> tuple[dict[str, Any], list[Case]]:
    """Read a datalist; returns its content and its distinct cases.

    Raises:
        ValueError: when the file is missing or is no datalist.
    """
    content = read_json(datalist)
    cases = [case_of(entry, dataset_dir) for entries in _sections(content).values() for entry in entries]
    if not cases:
        raise ValueError(
            f"{datalist} lists no cases: expected lists of {{'image': path, ...}}, got {type(content).__name__}"
        )
    cases = list(dict.fromkeys(cases))
    first = [case.images[0] for case in cases]
    if repeated := sorted({image for image in first if first.count(image) > 1}):
        raise ValueError(
            f"{datalist} lists {repeated[0]} with different labels or channels; align one kind of datalist at a time"
        )
    return content, cases


def _sections(content: Any) -> dict[str, list[dict[str, Any]]]:
    """The lists of a datalist that hold cases."""
    if not isinstance(content, dict):
        return {}
    lists = {name: entries for name, entries in content.items() if isinstance(entries, list)}
    return {n: e for n, e in lists.items() if e and all(isinstance(case, dict) and "image" in case for case in e)}


def attempt(case: Case, output: Path, grid: Grid, untrusted: str) -> dict[str, Any]:
    """`align_case`, with an error as a record: one bad file never loses the others."""
    try:
        return align_case(case, output, grid, untrusted)
    except Exception as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__
        return {"image": case.images[0], "status": "failed", "reason": reason[:300]}


def run_all(cases: Sequence[Case], work: Callable[[Case], dict[str, Any]], workers: int) -> Iterator[tuple[Case, dict]]:
    """Do the work on every case, in this process or in several."""
    if workers == 1:
        yield from ((case, work(case)) for case in cases)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        futures = {pool.submit(work, case): case for case in cases}
        for future in as_completed(futures):
            yield futures[future], future.result()


def new_datalist(content: dict[str, Any], records: dict[Case, dict[str, Any]], dataset_dir: Path) -> dict[str, Any]:
    """The datalist with aligned paths, relative to the output folder, without the cases that were left out."""
    lists = {}
    for name, entries in _sections(content).items():
        lists[name] = []
        for entry in entries:
            case = case_of(entry, dataset_dir)
            if records[case]["status"] in ("aligned", "kept"):
                paths = [aligned_path(path, case.root) for path in case.images]
                changed = {"image": paths if isinstance(entry["image"], list) else paths[0]}
                changed |= {"label": label_path(case)} if case.label else {}
                lists[name].append(entry | changed)
    return content | lists


def write_table(records: Sequence[dict[str, Any]], path: Path) -> None:
    """Write the planes and their quality, the least trusted first."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore", restval="")
        writer.writeheader()
        for record in records:
            writer.writerow({k: f"{v:.4f}" if isinstance(v, float) else v for k, v in record.items()})


def tile(case: Case, record: dict[str, Any], output: Path) -> Tile:
    """A case's place on the contact sheet."""
    name = "/".join(Path(aligned_path(case.images[0], case.root).removesuffix(".nii.gz")).parts[-2:])
    turned = f"yaw {record['yaw_deg']:+.1f}  roll {record['roll_deg']:+.1f}  offset {record['offset_mm']:+.1f} mm"
    caption = f"{name}  similarity {record['similarity']:.2f}\n{turned}"
    return Tile(record_path(case, output).with_suffix(".png"), caption, record["status"] != "aligned")


def main(
    datalist: str,
    output: str,
    dataset_dir: str | None = None,
    workers: int = 1,
    spacing: float = 1.0,
    spatial_size: Sequence[int] = (192, 224, 192),
    untrusted: str = "fail",
) -> None:
    """Align every volume of a datalist to its midsagittal plane, once, and write a cohort that needs no aligning.

    The output folder gets the aligned images and labels, datalist.json, planes.csv and contact_sheet_*.png, the least
    trusted cases first. Run the same command again to go on after an interruption.

    Args:
        datalist: JSON with lists of {"image": path or paths, "label": class or mask path, ...}.
        output: folder of the aligned cohort.
        dataset_dir: what relative paths are relative to; by default the datalist's folder.
        workers: processes.
        spacing: mm per voxel of the aligned volumes.
        spatial_size: voxels of the aligned volumes, e.g. 192,224,192.
        untrusted: a volume whose plane cannot be trusted is an error (fail), kept as it lies (warn), left out (drop).
    """
    try:
        if untrusted not in STATUS:
            raise ValueError(f"untrusted must be one of {', '.join(STATUS)}; got {untrusted}")
        size = tuple(int(n) for n in spatial_size)
        if len(size) != 3 or min(size) < 1 or spacing <= 0 or workers < 1:
            raise ValueError("expected three positive numbers of voxels, a positive spacing and at least one worker, "
                             f"got {size}, {spacing} mm and {workers}")  # fmt: skip
        content, cases = read_cases(Path(datalist), root := Path(dataset_dir or Path(datalist).parent))
    except ValueError as error:
        sys.exit(f"custom.prepare: {error}")
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    work = Work(folder, Grid(float(spacing), size), untrusted)
    records = dict(tqdm(run_all(cases, work, workers), "align", len(cases), unit="case", disable=None))
    report(folder, content, records, root)


@dataclass(frozen=True)
class Work:
    """`attempt` with everything but the case, in a form that other processes can receive."""

    output: Path
    grid: Grid
    untrusted: str

    def __call__(self, case: Case) -> dict[str, Any]:
        return attempt(case, self.output, self.grid, self.untrusted)


def report(folder: Path, content: dict[str, Any], records: dict[Case, dict[str, Any]], root: Path) -> None:
    """Write what describes the cohort as a whole, list what went wrong, and exit with 1 when a case failed."""
    ranked = sorted(records.items(), key=lambda item: (item[1]["status"] == "aligned", item[1].get("similarity", -1)))
    write_text(folder / "datalist.json", json.dumps(new_datalist(content, records, root), indent=2))
    write_table([record for _, record in ranked], folder / "planes.csv")
    seen = [(case, record) for case, record in ranked if record["status"] in ("aligned", "kept")]
    sheets = contact_sheets([tile(case, record, folder) for case, record in seen], folder)
    look = sheets[0] if sheets else folder / "planes.csv"
    print(f"{folder}: {len(seen)} of {len(records)} cases aligned or kept; look at {look}")
    for status in ("kept", "dropped", "failed"):
        lines = [f"  {record['image']}: {record['reason']}" for _, record in ranked if record["status"] == status]
        if lines:
            print(f"{len(lines)} {status}:", *lines, sep="\n", file=sys.stderr)
    if any(record["status"] == "failed" for record in records.values()):
        sys.exit(1)


if __name__ == "__main__":
    fire.Fire(main, name="python -m custom.prepare")
