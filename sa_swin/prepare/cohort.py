"""Align a whole cohort once: aligned NIfTI images and labels, new datalists, a table of planes and a contact sheet.

`sa-swin prepare --dataset_dir cohort --output aligned --workers 4`

Each case leaves `<image>.json` beside its aligned image: the plane, its quality and the grids before and after, hence
the transform and its inverse. That file is written last, so that an interrupted run goes on where it stopped.
"""

import multiprocessing
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from custom.alignment.grid import UNTRUSTED, pose, remedy
from custom.alignment.planes import HandPlane, plane_for, read_planes
from custom.data.case import refuse_outside
from custom.support.files import WriteError, json_text, write_rows, write_whole
from custom.support.progress import followed
from custom.transforms.contract import COUNTERPARTS, SPATIAL_SIZE
from sa_swin.asymmetry.case import checked_grid
from sa_swin.cohort.sources import case_lists, root_of
from sa_swin.prepare.case import (
    FAILED,
    LEFT_OUT,
    TRUSTED,
    CaseFiles,
    Grid,
    align_case,
    aligned_path,
    case_of,
    label_path,
    record_path,
)
from sa_swin.prepare.contact_sheet import Tile, contact_sheets
from sa_swin.prepare.inputs import distinct_cases, find_datalists, read_datalist, refuse_overwriting

COLUMNS = (
    "image", "status", "yaw_deg", "roll_deg", "offset_mm",
    "similarity", "overlap", "margin", "angle_error", "offset_error", "inner_similarity", "reason",
    "counterpart_mirror_similarity", "counterpart_similarity", "counterpart_trusted", "counterpart_largest_mm",
    "counterpart_smallest_jacobian", "counterpart_reason",
)  # fmt: skip


Result = tuple[CaseFiles, dict[str, Any]]
DOUBTFUL = (LEFT_OUT, "found, not trusted", "as it lies")


def attempt(case: CaseFiles, output: Path, grid: Grid) -> dict[str, Any]:
    """`align_case`, with an error as a record: one bad file never loses the others. A full disk is none of a file's.

    Raises:
        WriteError: when the results cannot be written.
    """
    try:
        return align_case(case, output, grid)
    except WriteError:
        raise
    except Exception as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__
        return {"image": case.images[0], "status": FAILED, "reason": reason[:300]}


def run_all(
    cases: Sequence[CaseFiles], work: Callable[[CaseFiles], dict[str, Any]], workers: int
) -> Iterator[tuple[CaseFiles, dict]]:
    """Do the work on every case, in this process or in several."""
    if workers == 1:
        yield from ((case, work(case)) for case in cases)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        futures = {pool.submit(work, case): case for case in cases}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # where one cannot be written, the others cannot either


def new_datalist(
    content: dict[str, Any], records: dict[CaseFiles, dict[str, Any]], dataset_dir: Path
) -> dict[str, Any]:
    """The datalist with aligned paths, relative to the output folder, without the cases that were left out."""
    usable = {case.images[0]: case for case, record in records.items() if record["status"] not in (LEFT_OUT, FAILED)}
    lists = {}
    for name, entries in case_lists(content).items():
        lists[name] = []
        for entry in entries:
            own = case_of(entry, dataset_dir)
            if (case := usable.get(own.images[0])) is not None:
                paths = [aligned_path(path, own.root) for path in own.images]
                changed = {"image": paths if isinstance(entry["image"], list) else paths[0]}
                lists[name].append(entry | changed | ({"label": label_path(case)} if own.label else {}))
    return content | lists


def write_table(records: Sequence[dict[str, Any]], path: Path) -> None:
    """Write the planes and their quality, the least trusted first."""
    write_rows(
        path,
        COLUMNS,
        ({k: f"{v:.4f}" if isinstance(v, float) else v for k, v in record.items()} for record in records),
    )


def tile(case: CaseFiles, record: dict[str, Any], output: Path) -> Tile:
    """A case's place on the contact sheet."""
    name = "/".join(Path(aligned_path(case.images[0], case.root).removesuffix(".nii")).parts[-2:])
    lines = [name]
    if record["plane"]:
        lines = [f"{name}  similarity {record['similarity']:.2f}", pose(record).removesuffix(": ")]
    suspect = record["status"] not in TRUSTED
    if suspect:
        lines.append(f"{record['status']}: {record['reason'][:60]}")
    return Tile(record_path(case, output).with_suffix(".png"), "\n".join(lines), suspect)


def prepare_command(
    output: str,
    dataset_dir: str | None = None,
    datalist: str | Sequence[str] | None = None,
    workers: int = 1,
    spacing: float | Sequence[float] = 1.0,
    spatial_size: int | Sequence[int] = SPATIAL_SIZE,
    untrusted: str = "leave_out",
    planes: str | None = None,
    counterpart: str = "mirror",
    allow_outside: bool = False,
    modality: str | None = None,
) -> None:
    """Align every volume of a cohort to its midsagittal plane, once, and write a cohort that needs no aligning.

    The output folder gets the aligned images and masks, every datalist under its own name in datalists/, planes.csv,
    and contact_sheet_*.png with the least trusted cases first; use it as --dataset_dir with --align False. An image
    that several datalists name is aligned once. Run the same command again to go on after an interruption.

    Args:
        output: folder of the aligned cohort.
        dataset_dir: folder of the cohort, to which the datalists' paths are relative; by default that of the datalist.
        datalist: JSON with lists of {"image": path or paths, "label": class or mask path, ...}; several with commas
            between; or a folder of them. By default all of DATASET_DIR/datalists.
        workers: processes.
        spacing: mm per voxel of the aligned volumes, one number or three.
        spatial_size: voxels of the aligned volumes, e.g. 192,224,192.
        untrusted: a head whose plane cannot be trusted is left out (leave_out), aligned to the plane that was found all
            the same (found), or taken as it lies in the file (as_it_lies). It is on the contact sheet in red.
        planes: CSV with planes set by hand, which are trusted: image,yaw_deg,roll_deg,offset_mm as in planes.csv.
        counterpart: homologous finds each case's homologous counterpart, too, and puts its quality in planes.csv; the
            aligned files are the same, and the bundles' knob of this name decides which they use.
        allow_outside: read files outside of dataset_dir, too, where absolute paths, .. and symlinks may lead.
        modality: MR or CT, whose Hounsfield units are checked; by default each file's name tells (_T1w, ..., _CT), and
            others are not checked.
    """
    try:
        choices = {"untrusted": untrusted, "modality": modality, "counterpart": counterpart}
        grid = Grid(*checked_grid(spacing, spatial_size), planes=tuple(read_planes(planes)), **choices)
        work = Work(Path(output), grid)
        if untrusted not in UNTRUSTED or workers < 1:
            raise ValueError(f"untrusted must be one of {', '.join(UNTRUSTED)}, and workers 1 or more; "
                             f"got {untrusted} and {workers}")  # fmt: skip
        if modality not in (None, "MR", "CT"):
            raise ValueError(f"modality must be MR or CT; got {modality}")
        if counterpart not in COUNTERPARTS:
            raise ValueError(f"counterpart must be one of {', '.join(COUNTERPARTS)}; got {counterpart}")
        files = find_datalists(datalist, dataset_dir)
        root = root_of(files[0], dataset_dir)
        contents = {file.name: read_datalist(file) for file in files}
        cases = list(distinct_cases(list(contents.values()), root).values())
        files_read = (path for case in cases for path in (*case.images, *filter(None, [case.label])))
        refuse_outside(files_read, root, allow_outside)
        refuse_overwriting(cases, files, root, work.output)
        _all_used(work.grid.planes, [str(Path(case.root).absolute() / case.images[0]) for case in cases], planes)
    except ValueError as error:
        sys.exit(f"sa-swin prepare: {error}")
    try:
        records = dict(followed(run_all(cases, work, workers), len(cases), "align"))
        for name, content in contents.items():
            new = new_datalist(content, records, root)
            write_whole(work.output / "datalists" / name, json_text(new))
        report(work.output, records, untrusted)
    except WriteError as error:
        sys.exit(f"sa-swin prepare: {error}")


def _all_used(planes: Sequence[HandPlane], images: Sequence[str], path: str | None) -> None:
    used = {plane for image in images if (plane := plane_for(planes, image))}
    if unused := [plane.image for plane in planes if plane not in used]:
        raise ValueError(f"{path} has planes for what is no first image of a case: {', '.join(unused[:5])}")


@dataclass(frozen=True)
class Work:
    """`attempt` with everything but the case, in a form that other processes can receive."""

    output: Path
    grid: Grid

    def __call__(self, case: CaseFiles) -> dict[str, Any]:
        return attempt(case, self.output, self.grid)


def report(folder: Path, records: dict[CaseFiles, dict[str, Any]], untrusted: str = "leave_out") -> None:
    """Write the table and the contact sheets, list what went wrong, and exit with 1 when a case failed."""
    order = lambda record: (record["status"] in TRUSTED, record.get("similarity", -1))  # noqa: E731
    ranked = sorted(records.items(), key=lambda item: order(item[1]))
    write_table([record for _, record in ranked], folder / "planes.csv")
    shown = [(case, record) for case, record in ranked if record["status"] != FAILED]
    sheets = contact_sheets([tile(case, record, folder) for case, record in shown], folder)
    look = sheets[0] if sheets else folder / "planes.csv"
    taken = sum(record["status"] != LEFT_OUT for _, record in shown)
    print(f"{folder}: {taken} of {len(records)} cases taken; look at {look}")
    by_status = {status: [r for _, r in ranked if r["status"] == status] for status in (*DOUBTFUL, FAILED)}
    for status, those in by_status.items():
        lines = [f"  {record['image']}: {pose(record)}{record['reason']}" for record in those]
        if lines:
            print(f"{len(lines)} {status}:", *lines, sep="\n", file=sys.stderr)
    if any(by_status[status] for status in DOUBTFUL):
        print(f"the first in red on {look}: {remedy(untrusted)}", file=sys.stderr)
    if any(record["status"] == FAILED for record in records.values()):
        sys.exit(1)
