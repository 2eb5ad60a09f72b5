"""Align one case of a cohort: its files in, aligned NIfTI files and a record of the plane and the grids out."""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import LoadImage, SpatialResample
from torch import Tensor

from custom.alignment import MidsagittalPlane, aligned_affine, distrust, estimate_plane
from custom.contact_sheet import save_thumbnail
from custom.intensity import background_level

STATUS = {"fail": "failed", "warn": "kept", "drop": "dropped"}
"""What becomes of a case whose plane cannot be trusted, by the user's choice."""


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


def label_path(case: Case) -> str:
    """Where a case's aligned label lies: beside its image, as two images with one label lie on different grids."""
    return aligned_path(case.images[0], case.root).removesuffix(".nii.gz") + "_label.nii.gz"


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
    record |= {"status": "aligned" if reason is None else STATUS[untrusted], "reason": reason or ""}
    record |= figures(plane, volumes[0]) | {"plane": asdict(plane)}
    if record["status"] == "kept":
        affine = unaligned_affine(volumes[0], grid)
    record |= {"aligned_affine": affine.tolist(), "source_affine": volumes[0].affine.tolist()}
    record |= {"source_size": list(volumes[0].shape[1:])}
    path.parent.mkdir(parents=True, exist_ok=True)
    if record["status"] in ("aligned", "kept"):
        images = [to_grid(volume, affine, grid, is_label=False) for volume in volumes[: len(case.images)]]
        for source, image in zip(case.images, images, strict=True):
            write_image(image, output / aligned_path(source, case.root))
        if case.label:
            write_image(to_grid(volumes[-1], affine, grid, is_label=True), output / label_path(case))
        save_thumbnail(images[0][0].as_tensor(), path.with_suffix(".png"))
    write_text(path, json.dumps(record, indent=2))
    return record


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
    same = record["settings"] == current and record["status"] in ("aligned", STATUS[untrusted])
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
    } | {
        name: getattr(plane, name)
        for name in ("similarity", "overlap", "margin", "angle_error", "offset_error", "structure")
    }


def unaligned_affine(volume: MetaTensor, grid: Grid) -> Tensor:
    """The grid along the world's axes about the array's centre, for a case that is kept as it lies."""
    middle = (torch.tensor(volume.shape[1:], dtype=torch.float64) - 1) / 2
    affine = torch.eye(4, dtype=torch.float64)
    affine[:3, :3] *= grid.spacing
    center = volume.affine[:3, :3].double() @ middle + volume.affine[:3, 3]
    affine[:3, 3] = center - affine[:3, :3] @ ((torch.tensor(grid.spatial_size) - 1) / 2).double()
    return affine


def to_grid(volume: MetaTensor, affine: Tensor, grid: Grid, is_label: bool) -> MetaTensor:
    """Resample once onto the aligned grid, images linearly, labels to the nearest; outside the scan is background."""
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


def write_text(path: Path, text: str) -> None:
    """Write a file under another name first, so that no half of one is ever left."""
    partial = path.with_name(f".partial_{path.name}")
    partial.write_text(text + "\n")
    os.replace(partial, path)
