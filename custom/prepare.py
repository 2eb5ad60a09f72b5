"""Align a whole cohort once: aligned NIfTI images and labels, a new datalist, a table of planes and a contact sheet.

`python -m custom.prepare --datalist cohort/datalist.json --dataset_dir cohort --output aligned --workers 4`

Each case leaves `<image>.json` beside its aligned image: the plane, its quality and the grids before and after, hence the transform
and its inverse. That file is written last, so that an interrupted run goes on where it stopped.
"""

import csv
import json
import math
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import fire
import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import LoadImage, SpatialResample
from monai.utils import look_up_option
from torch import Tensor
from tqdm import tqdm

from custom.alignment import MidsagittalPlane, aligned_affine, distrust, estimate_plane
from custom.contact_sheet import Tile, contact_sheets, save_thumbnail
from custom.intensity import background_level

UNTRUSTED = ("fail", "warn", "drop")
COLUMNS = (
    "image", "status", "yaw_deg", "roll_deg", "offset_mm", "similarity", "overlap", "margin", "angle_error", "offset_error", "reason"
)  # fmt: skip


@dataclass(frozen=True)
class Grid:
    """The aligned grid of a cohort: mm per voxel and voxels."""

    spacing: float
    spatial_size: tuple[int, int, int]


@dataclass(frozen=True)
class Case:
    """What is aligned together: images (channels of one grid) and, if it has one, a mask; paths relative to `root`."""

    root: str
    images: tuple[str, ...]
    label: str | None


def read_cases(datalist: Path, dataset_dir: Path) -> tuple[dict[str, Any], list[Case]]:
    """Read a datalist; returns its content and its distinct cases.

    Raises:
        ValueError: when the file is missing or is no datalist.
    """
    try:
        content = json.loads(datalist.read_text())
    except FileNotFoundError as error:
        raise ValueError(f"no datalist at {datalist}; give its place with --datalist") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{datalist} is not JSON: {error}") from error
    cases = [case_of(entry, dataset_dir) for entries in _sections(content).values() for entry in entries]
    if not cases:
        raise ValueError(f"{datalist} lists no cases: expected lists of {{'image': path, ...}}, got {type(content).__name__}")
    return content, list(dict.fromkeys(cases))


def _sections(content: Any) -> dict[str, list[dict[str, Any]]]:
    """The lists of a datalist that hold cases."""
    if not isinstance(content, dict):
        return {}
    lists = {name: entries for name, entries in content.items() if isinstance(entries, list)}
    return {n: e for n, e in lists.items() if e and all(isinstance(case, dict) and "image" in case for case in e)}


def case_of(entry: dict[str, Any], dataset_dir: Path) -> Case:
    """The files of a datalist's entry."""
    images = entry["image"] if isinstance(entry["image"], list) else [entry["image"]]
    label = entry.get("label")
    return Case(str(dataset_dir), tuple(images), label if isinstance(label, str) else None)


def aligned_path(path: str, root: str) -> str:
    """Where a file's aligned version lies under the output folder: its own relative path, as `.nii.gz`."""
    full = Path(os.path.abspath(Path(root) / path))
    base = Path(os.path.abspath(root))
    relative = full.relative_to(base) if full.is_relative_to(base) else Path(*full.parts[1:])
    name = relative.name
    for suffix in (".gz", ".nii", ".mgz", ".nrrd", ".mha", ".img", ".hdr"):
        name = name.removesuffix(suffix)
    return str(relative.with_name(f"{name}.nii.gz"))


def record_path(case: Case, output: Path) -> Path:
    """Where a case's plane, quality and grids are kept."""
    path = output / aligned_path(case.images[0], case.root)
    return path.with_name(path.name.removesuffix(".nii.gz") + ".json")


def align_case(case: Case, output: Path, grid: Grid, untrusted: str) -> dict[str, Any]:
    """Align one case and write its files; returns its record.

    The plane is found on the first image; every image and the label are resampled onto the same grid, once.
    """
    sources = [Path(case.root) / path for path in (*case.images, *([case.label] if case.label else []))]
    record = {"image": case.images[0], "settings": settings(grid, sources)}
    path = record_path(case, output)
    if (known := _finished(path, record["settings"], untrusted)) is not None:
        return known
    load = LoadImage(image_only=True, ensure_channel_first=True, dtype=None)
    volumes = [load(source) for source in sources]
    plane = estimate_plane(volumes[0][0].as_tensor(), volumes[0].affine)
    reason = distrust(plane)
    affine = aligned_affine(plane, grid.spacing, grid.spatial_size)
    record |= {"status": "aligned" if reason is None else _STATUS[untrusted], "reason": reason or ""}
    record |= figures(plane, volumes[0]) | {"plane": asdict(plane)}
    if record["status"] == "kept":
        affine = unaligned_affine(volumes[0], grid)
    record |= {"aligned_affine": affine.tolist(), "source_affine": volumes[0].affine.tolist()}
    record |= {"source_size": list(volumes[0].shape[1:])}
    path.parent.mkdir(parents=True, exist_ok=True)
    if record["status"] in ("aligned", "kept"):
        for index, (source, volume) in enumerate(zip((*case.images, case.label), volumes, strict=False)):
            resampled = to_grid(volume, affine, grid, is_label=index == len(case.images))
            write_image(resampled, output / aligned_path(source, case.root))
            if index == 0:
                save_thumbnail(resampled[0].as_tensor().float(), path.with_suffix(".png"))
    _write(path, json.dumps(record, indent=2))
    return record


_STATUS = {"fail": "failed", "warn": "kept", "drop": "dropped"}


def settings(grid: Grid, sources: Sequence[Path]) -> dict[str, Any]:
    """What an aligned file depends on; when it changes, the file is made again."""
    stats = [source.stat() for source in sources]
    return {
        "spacing": grid.spacing,
        "spatial_size": list(grid.spatial_size),
        "sources": [[str(source), stat.st_size, stat.st_mtime_ns] for source, stat in zip(sources, stats, strict=True)],
    }


def _finished(path: Path, current: dict[str, Any], untrusted: str) -> dict[str, Any] | None:
    if not path.exists():
        return None
    record = json.loads(path.read_text())
    same = record["settings"] == current and record["status"] in ("aligned", _STATUS[untrusted])
    return record if same else None


def figures(plane: MidsagittalPlane, volume: MetaTensor) -> dict[str, float]:
    """Yaw and roll (degrees), distance of the plane from the array's centre (mm), and the quality."""
    middle = (torch.tensor(volume.shape[1:], dtype=torch.float64) - 1) / 2
    affine = volume.affine.double()
    center = affine[:3, :3] @ middle + affine[:3, 3]
    x, y, z = plane.normal
    return {
        "yaw_deg": math.degrees(math.atan2(y, x)),
        "roll_deg": math.degrees(math.atan2(z, x)),
        "offset_mm": plane.offset - sum(n * c for n, c in zip(plane.normal, center.tolist(), strict=True)),
    } | {name: getattr(plane, name) for name in ("similarity", "overlap", "margin", "angle_error", "offset_error")}


def unaligned_affine(volume: MetaTensor, grid: Grid) -> Tensor:
    """The grid along the world's axes about the array's centre, for a case that is kept as it lies."""
    middle = (torch.tensor(volume.shape[1:], dtype=torch.float64) - 1) / 2
    affine = torch.eye(4, dtype=torch.float64)
    affine[:3, :3] *= grid.spacing
    center = volume.affine[:3, :3].double() @ middle + volume.affine[:3, 3]
    affine[:3, 3] = center - affine[:3, :3] @ ((torch.tensor(grid.spatial_size) - 1) / 2).double()
    return affine


def to_grid(volume: MetaTensor, affine: Tensor, grid: Grid, is_label: bool) -> MetaTensor:
    """Resample once onto the aligned grid: linear for images, nearest for labels; outside the field of view is background."""
    resample = SpatialResample(mode="nearest" if is_label else "bilinear", padding_mode="zeros", align_corners=True)
    if is_label:
        return resample(volume.float(), dst_affine=affine, spatial_size=grid.spatial_size).to(volume.dtype)
    floor = background_level(volume)
    return resample(volume.float() - floor, dst_affine=affine, spatial_size=grid.spatial_size) + floor


def write_image(volume: MetaTensor, path: Path) -> None:
    """Write `(C, X, Y, Z)` as NIfTI; integer labels keep their type."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = volume.as_tensor().numpy()
    array = array[0] if len(array) == 1 else np.moveaxis(array, 0, -1)
    array = array.astype(np.int32) if array.dtype == np.int64 else array
    image = nib.Nifti1Image(array, volume.affine.numpy())
    partial = path.with_name(f".partial_{path.name}")
    nib.save(image, partial)
    os.replace(partial, path)


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f".partial_{path.name}")
    partial.write_text(text + "\n")
    os.replace(partial, path)


def attempt(case: Case, output: Path, grid: Grid, untrusted: str) -> dict[str, Any]:
    """`align_case`, with an error as a record: one bad file never loses the others."""
    try:
        return align_case(case, output, grid, untrusted)
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
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
                changed |= {"label": aligned_path(case.label, case.root)} if case.label else {}
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
    name = Path(aligned_path(case.images[0], case.root)).name.removesuffix(".nii.gz")
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

    The output folder gets the aligned images and labels, datalist.json, planes.csv and contact_sheet_*.png, the least trusted cases
    first. Run the same command again to go on after an interruption.

    Args:
        datalist: JSON with lists of {"image": path or paths, "label": class or mask path, ...}.
        output: folder of the aligned cohort.
        dataset_dir: what relative paths are relative to; by default the datalist's folder.
        workers: processes.
        spacing: mm per voxel of the aligned volumes.
        spatial_size: voxels of the aligned volumes, e.g. 192,224,192.
        untrusted: a volume whose plane cannot be trusted is an error (fail), kept as it lies (warn), or left out (drop).
    """
    try:
        look_up_option(untrusted, UNTRUSTED)
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
    _write(folder / "datalist.json", json.dumps(new_datalist(content, records, root), indent=2))
    write_table([record for _, record in ranked], folder / "planes.csv")
    seen = [(case, record) for case, record in ranked if record["status"] in ("aligned", "kept")]
    sheets = contact_sheets([tile(case, record, folder) for case, record in seen], folder)
    print(f"{folder}: {len(seen)} of {len(records)} cases aligned or kept; look at {sheets[0] if sheets else 'planes.csv'}")
    for status in ("kept", "dropped", "failed"):
        lines = [f"  {record['image']}: {record['reason']}" for _, record in ranked if record["status"] == status]
        if lines:
            print(f"{len(lines)} {status}:", *lines, sep="\n", file=sys.stderr)
    if any(record["status"] == "failed" for record in records.values()):
        sys.exit(1)


if __name__ == "__main__":
    fire.Fire(main, name="python -m custom.prepare")
