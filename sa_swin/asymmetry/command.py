"""`sa-swin asymmetry norm | map`: asymmetry maps for a reader, with no network and no training."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

COLUMNS = (
    "subject", "image", "status", "peak", "alarm", "side", "margin", "x_mm", "y_mm", "z_mm",
    "voxel_i", "voxel_j", "voxel_k", "threshold", "norm", "norm_sequence", "map", "reason",
)  # fmt: skip
SPACING, SPATIAL_SIZE = 3.0, (64, 80, 64)


def norm_command(
    dataset_dir: str,
    output: str,
    datalist: str | None = None,
    section: str = "testing",
    images: str = "*",
    sequence: str = "",
    spacing: float | Sequence[float] = SPACING,
    spatial_size: int | Sequence[int] = SPATIAL_SIZE,
    align: bool = True,
    untrusted: str = "leave_out",
    alarm_rate: float = 0.05,
    workers: int = 1,
    allow_outside: bool = False,
) -> None:
    """Make the norm from a folder of healthy heads: one file with median and spread of each place, and a threshold.

    All heads must be of one sequence, that of the heads that will be measured by it. Where no healthy ones are at hand,
    patients with lesions in different places will do: medians hardly see them. A head that cannot be read is named
    and left out; the exit code is 1 then.

    Args:
        dataset_dir: folder with NIfTI files.
        output: the norm, norm.safetensors.
        datalist: JSON with lists of {"image": path or paths, ...}, relative to dataset_dir; by default the images
            there, by the rules of BIDS.
        section: list of the datalist.
        images: without a datalist, which names, such as *_T1w.nii.gz.
        sequence: of the heads, such as T1w or FLAIR; the norm, and the tables that it is used for, tell it, and
            heads whose names are of BIDS and of another sequence are left out, or told of in the log.
        spacing: mm per voxel of the aligned volumes, one number or three.
        spatial_size: voxels of the aligned volumes.
        align: find the midsagittal plane; False for heads prepared with `prepare`.
        untrusted: a head whose plane cannot be trusted is left out by name (leave_out), aligned to the plane that was
            found all the same (found), or taken as it lies (as_it_lies).
        alarm_rate: share of healthy heads that raise an alarm, at most; 0.05 needs 19 heads.
        workers: processes.
        allow_outside: read files outside of dataset_dir, too, where absolute paths, .. and symlinks may lead.
    """
    from custom.data.case import image_paths, subject_of
    from custom.data.datalist import find_cases
    from sa_swin.asymmetry.case import HealthyMap, Reading, checked_grid
    from sa_swin.asymmetry.norm import make_norm

    sides, size = checked_grid(spacing, spatial_size)
    cases = find_cases(datalist, dataset_dir, section, allow_outside, images)
    found = dict(done(cases, HealthyMap(Reading(sides, size, align, untrusted)), workers))
    maps = {i: found[i] for i in sorted(found) if not isinstance(found[i], str)}
    failures = {image_paths(cases[i])[0]: found[i] for i in sorted(found) if isinstance(found[i], str)}
    name_failures(failures)
    settings = {"spacing": sides, "spatial_size": size, "sequence": str(sequence)}
    norm = make_norm(list(maps.values()), settings, alarm_rate, [subject_of(cases[i]) for i in maps])
    norm.save(Path(output))
    print(f"{output}: norm {norm.digest()} of {len(maps)} heads; an alarm is a peak above {norm.threshold:.2f}")
    sys.exit(bool(failures))


def map_command(
    dataset_dir: str,
    output: str,
    norm: str | None = None,
    datalist: str | None = None,
    section: str = "testing",
    images: str = "*",
    spacing: float | Sequence[float] = SPACING,
    spatial_size: int | Sequence[int] = SPATIAL_SIZE,
    align: bool = True,
    untrusted: str = "leave_out",
    workers: int = 1,
    allow_outside: bool = False,
) -> None:
    """Map the asymmetry of every head: <image>_asymmetry.nii.gz on its grid, and asymmetry.csv with the peaks.

    A map is positive where a place is the stranger of the two, or neither can be told, and negative where its
    counterpart is. With a norm its values are z-scores, and a peak above the threshold of the norm is an alarm; without
    one they are differences in units of the brain's texture, and the side is a guess. A head that cannot be read is
    named, and the exit code is 1 then. For research, not for clinical use.

    Args:
        dataset_dir: folder with NIfTI files.
        output: folder of the maps and of asymmetry.csv.
        norm: file that `norm` made; it brings its own spacing, spatial_size and sequence.
        datalist: JSON with lists of {"image": path or paths, ...}, relative to dataset_dir; by default the images
            there, by the rules of BIDS.
        section: list of the datalist.
        images: without a datalist, which names, such as *_T1w.nii.gz.
        spacing: mm per voxel of the aligned volumes, where there is no norm.
        spatial_size: voxels of the aligned volumes, where there is no norm.
        align: find the midsagittal plane; False for heads prepared with `prepare`.
        untrusted: as in `norm`.
        workers: processes.
        allow_outside: read files outside of dataset_dir, too, where absolute paths, .. and symlinks may lead.
    """
    from custom.data.case import sequence_of
    from custom.data.datalist import find_cases
    from custom.support.files import write_rows
    from sa_swin.asymmetry.case import ReadCase, Reading, checked_grid
    from sa_swin.asymmetry.norm import load_norm

    healthy = load_norm(norm) if norm else None
    about = healthy.settings if healthy else {"spacing": spacing, "spatial_size": spatial_size}
    sides, size = checked_grid(about["spacing"], about["spatial_size"])
    sequences = [sequence_of(f"sub-norm_{about.get('sequence')}.nii")]  # None of a word that no name of BIDS tells
    cases = find_cases(datalist, dataset_dir, section, allow_outside, images, output, sequences)
    work = ReadCase(Reading(sides, size, align, untrusted), healthy, Path(dataset_dir), Path(output))
    rows = [row for _, row in sorted(done(cases, work, workers), key=lambda item: item[0])]
    if healthy:
        told = {"norm": healthy.digest(), "threshold": healthy.threshold, "norm_sequence": about.get("sequence")}
        rows = [row | told for row in rows]
    rows.sort(key=lambda row: -row.get("peak", -1))
    figures = ({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    write_rows(Path(output) / "asymmetry.csv", COLUMNS, figures)
    failures = {row["image"]: row["reason"] for row in rows if row["status"] == "failed"}
    alarms = f", {sum(row.get('alarm', 0) for row in rows)} with an alarm" if healthy else ""
    print(f"{Path(output) / 'asymmetry.csv'}: {len(rows) - len(failures)} of {len(rows)} heads mapped{alarms}")
    name_failures(failures)
    sys.exit(bool(failures))


def done(cases: Sequence[Any], work: Callable[[Any], Any], workers: int) -> Iterator[tuple[int, Any]]:
    """The number of each case, and what the work made of it, in this process or in several; with a bar of progress."""
    from tqdm import tqdm

    from sa_swin.prepare.cohort import run_all

    numbers = {id(case): number for number, case in enumerate(cases)}
    for case, result in tqdm(run_all(cases, work, workers), "map", len(cases), unit="head", disable=None):
        yield numbers[id(case)], result


def name_failures(failures: Mapping[str, str]) -> None:
    """List on stderr what went wrong."""
    if failures:
        lines = [f"  {why}" if image in why else f"  {image}: {why}" for image, why in failures.items()]
        print(f"{len(failures)} failed:", *lines, sep="\n", file=sys.stderr)
