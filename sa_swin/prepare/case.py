"""Align one case of a cohort: its files in, aligned NIfTI files and a record of the plane and the grids out."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from monai.data import MetaTensor
from monai.utils import GridSampleMode

from custom.alignment.grid import aligned_grid, plane_figures, to_grid
from custom.alignment.homologous import homologous_field
from custom.alignment.planes import HandPlane, plane_for
from custom.alignment.trust import distrust_counterpart
from custom.alignment.version import ALIGNMENT_VERSION
from custom.data.case import image_paths
from custom.data.contents import Voxels
from custom.data.headers import case_problems
from custom.data.prepared import LEFT_OUT
from custom.support.files import below, digest_of, json_text, stamp_of, write_whole
from custom.volumes.hounsfield import modality_of, units_problem
from custom.volumes.loading import as_classes, load_volume
from custom.volumes.nifti import write_nifti
from sa_swin.prepare.contact_sheet import save_thumbnail

FAILED = "failed"
TRUSTED = ("estimated", "by hand")
"""A case's status is where its plane came from (`AlignedGrid.source`), or that it is left out, or failed."""
RECORD = {"settings", "status", "reason", "untrusted"}
"""Keys that tell a record of ours from another JSON file."""


@dataclass(frozen=True)
class Grid:
    """The aligned grid of a cohort: mm per voxel and voxels, along the three axes; how its planes are come by.

    Args:
        untrusted: as in `aligned_grid`.
        planes: that a person set.
        modality: `MR` or `CT`; None takes it from each image's name, where that tells.
        counterpart: `mirror` or `homologous`, whose quality is then found and recorded.
    """

    spacing: tuple[float, float, float]
    spatial_size: tuple[int, int, int]
    untrusted: str = "leave_out"
    planes: tuple[HandPlane, ...] = ()
    modality: str | None = None
    counterpart: str = "mirror"


@dataclass(frozen=True)
class CaseFiles:
    """What is aligned together: images (channels of one grid) and, if it has one, a mask; paths relative to `root`."""

    root: str
    images: tuple[str, ...]
    label: str | None


def case_of(entry: dict[str, Any], dataset_dir: Path) -> CaseFiles:
    """The files of a datalist's entry."""
    images = tuple(os.path.normpath(path) for path in image_paths(entry))
    label = entry.get("label")
    return CaseFiles(str(dataset_dir), images, os.path.normpath(label) if isinstance(label, str) else None)


def aligned_path(path: str, root: str) -> str:
    """Where a file's aligned version lies under the output folder: its own relative path, as `.nii`.

    Uncompressed: without a cache, training reads it in every epoch.
    """
    relative = below(path, root)
    name = relative.name
    for suffix in (".gz", ".nii", ".mgz", ".nrrd", ".mha", ".img", ".hdr"):
        name = name.removesuffix(suffix)
    return str(relative.with_name(f"{name}.nii"))


def label_path(case: CaseFiles) -> str:
    """Where a case's aligned label lies: beside its image, as two images with one label lie on different grids."""
    return aligned_path(case.images[0], case.root).removesuffix(".nii") + "_label.nii"


def aligned_paths(case: CaseFiles) -> list[str]:
    """Every NIfTI file that a case is written to."""
    return [aligned_path(path, case.root) for path in case.images] + ([label_path(case)] if case.label else [])


def record_path(case: CaseFiles, output: Path) -> Path:
    """Where a case's plane, quality and grids are kept."""
    path = output / aligned_path(case.images[0], case.root)
    return path.with_name(path.name.removesuffix(".nii") + ".json")


def align_case(case: CaseFiles, output: Path, grid: Grid) -> dict[str, Any]:
    """Align one case and write its files; returns its record.

    The plane is found on all images together; every image and the label are resampled onto the same grid, once. The
    files are the same whichever the counterpart; with `homologous` its quality is found beforehand and recorded.

    Args:
        case: its files.
        output: folder of the aligned cohort.
        grid: to resample onto.

    Raises:
        ValueError: when a file is missing or unreadable, its values are not of its modality, a mask's are no classes,
            or the files do not share one grid.
    """
    sources = [Path(case.root).absolute() / path for path in (*case.images, *([case.label] if case.label else []))]
    _check(sources, len(case.images))
    by_hand = plane_for(grid.planes, str(sources[0]))
    record = {"image": case.images[0], "settings": settings(grid, sources, by_hand)}
    path = record_path(case, output)
    files = [output / target for target in aligned_paths(case)]
    if (known := _finished(path, record["settings"], grid.untrusted, files)) is not None:
        return known
    volumes = [load_volume(str(source), dtype=None) for source in sources]
    n, size = len(case.images), grid.spatial_size
    _check_values(volumes[:n], volumes[n:], grid.modality)
    image = MetaTensor(torch.cat([volume.float() for volume in volumes[:n]])).copy_meta_from(volumes[0])
    aligned = aligned_grid(image, grid.spacing, size, grid.untrusted, by_hand)
    plane, affine = aligned.plane, aligned.affine
    record |= {"status": LEFT_OUT if aligned.refused else aligned.source, "reason": aligned.reason or ""}
    record |= plane_figures(plane, volumes[0]) | {"plane": asdict(plane)} if plane else {"plane": None}
    record |= {"aligned_affine": affine.tolist(), "source_affine": volumes[0].affine.tolist()}
    record |= {"source_size": list(volumes[0].shape[1:]), "untrusted": grid.untrusted}
    _forget(path, files)
    shown = to_grid(volumes[0].float(), affine, size, GridSampleMode.BILINEAR)[0].as_tensor()
    save_thumbnail(shown, path.with_suffix(".png"))  # also of what is left out: one must see it
    if not aligned.refused:
        images = [to_grid(volume.float(), affine, size, GridSampleMode.BILINEAR) for volume in volumes[:n]]
        labels = [
            to_grid(as_classes(volume).float(), affine, size, GridSampleMode.NEAREST).to(volume.dtype)
            for volume in volumes[n:]
        ]
        for volume, target in zip(images + labels, aligned_paths(case), strict=True):
            write_nifti(output / target, volume.as_tensor().numpy()[0], volume.affine.numpy())
        record["aligned_contents"] = {target: digest_of(output / target) for target in aligned_paths(case)}
        if grid.counterpart == "homologous":
            record |= counterpart_figures(images, grid)
    read = (Voxels(volume.numpy(), 1.0, 0.0) for volume in volumes[: len(case.images)])
    record["source_contents"] = [value for voxels in read for value in voxels.hashes()]
    write_whole(path, json_text(record))
    return record


def counterpart_figures(images: Sequence[MetaTensor], grid: Grid) -> dict[str, Any]:
    """The quality of the homologous counterpart of aligned channels `(1, X, Y, Z)`, and why the mirror is used."""
    volume = torch.cat([image.as_tensor() for image in images])
    quality = homologous_field(volume[None], grid.spacing)[1][0]
    figures = {f"counterpart_{name}": value for name, value in asdict(quality).items()}
    return figures | {"counterpart_reason": distrust_counterpart(quality) or ""}


def _check(sources: Sequence[Path], num_images: int) -> None:
    files = [str(source) for source in sources]
    images, labels = files[:num_images], files[num_images:]
    case = {"image": images, "label": labels[0]} if labels else {"image": images}
    if problems := case_problems(case, "mask" if labels else "none", num_images, None):
        raise ValueError("; ".join(problems))


def _check_values(images: Sequence[MetaTensor], labels: Sequence[MetaTensor], modality: str | None) -> None:
    for image in images:
        path = str(image.meta["filename_or_obj"])
        if problem := units_problem(image.as_tensor()[0].numpy(), modality or modality_of(path)):
            raise ValueError(f"{path}: {problem}")
    for label in labels:
        try:
            as_classes(label)
        except ValueError as error:
            raise ValueError(f"{label.meta['filename_or_obj']}: {error}") from error


def settings(grid: Grid, sources: Sequence[Path], by_hand: HandPlane | None = None) -> dict[str, Any]:
    """What an aligned file depends on; when it changes, the file is made again."""
    return {
        "spacing": list(grid.spacing),
        "spatial_size": list(grid.spatial_size),
        "counterpart": grid.counterpart,
        "sources": [[str(source), *stamp_of(source)] for source in sources],
        "alignment": ALIGNMENT_VERSION,
        "by_hand": list(by_hand.figures) if by_hand else None,
        "modality": grid.modality,
    }


def _normal(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings with sources that are named in one way: `/a/../b` is `/b`."""
    return settings | {"sources": [[os.path.normpath(path), *stamp] for path, *stamp in settings["sources"]]}


def own_record(path: Path) -> dict[str, Any] | None:
    """A case's record; None where there is none, or another program's file, such as the JSON of BIDS."""
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and record.keys() >= RECORD else None


def _forget(path: Path, files: Sequence[Path]) -> None:
    """Take away what an earlier run made, its record first, so that no record ever stands beside another run's file."""
    if own_record(path) is not None:
        for old in (path, *files):
            old.unlink(missing_ok=True)


def _finished(path: Path, current: dict[str, Any], untrusted: str, files: Sequence[Path]) -> dict[str, Any] | None:
    if (record := own_record(path)) is None:
        return None
    told = {"modality": None} | record["settings"]  # of records from before it was told
    same = _normal(told) == _normal(current) and (not record["reason"] or record["untrusted"] == untrusted)
    there = record["status"] == LEFT_OUT or all(file.is_file() for file in files)
    return record if same and there else None
