"""DICOM in: each person's folder of series becomes images of a BIDS dataset, through dcm2niix.

The rules by which series are chosen stand in `docs/how-to/cohorts.md`; every series that is left out is named with the
reason in `sourcedata/dicom.tsv`.
"""

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from custom.data.case import CohortError
from custom.support.files import json_text, write_whole
from custom.volumes.nifti import write_nifti
from sa_swin.cohort.bids_facts import matched, subject_facts
from sa_swin.cohort.table import extended, read_table, tsv

LEAST_MM = 80.0
"""Extent of an image of a head, in each direction."""
LOCALIZER = r"locali[sz]er|scout|survey|topogram|smartbrain|(?<![a-z])loc(?![a-z])"
OTHERS = (
    r"(?<![a-z])(dwi|dti|diff|ep2d|adc|trace|swi|bold|fmri|rest(?![a-z])|perf|asl|tof|mra|angio|spectr|stir|mip|mpr(?!a)"
    r"|subtr|tirm(?!.*dark))|map(?![a-z])"
)
"""Words of a description that speak of no plain anatomical image."""
FLAIR, T1, T2 = r"flair|dark.?fluid", r"t1|mp2?rage|bravo|spgr|flash|tfe", r"t2(?!\*|.?star)"
AGENT = r"(?<![a-z])(gd|gad\w*|post|contrast|ce|km|c\+|\+c)(?![a-z])"
COMPUTED = {"MPR", "MIP", "PROJECTION IMAGE", "LOCALIZER", "ADC", "FA", "TRACEW", "PHASE", "REAL", "IMAGINARY"}
COLUMNS = ("participant_id", "folder", "series", "description", "taken_as", "reason")
STOPPED = "the import was stopped at this person"
CORRECTED = r"_(Eq|Tilt)"
"""How dcm2niix names a copy with the slices moved to where they belong."""


@dataclass(frozen=True)
class Series:
    """A series as dcm2niix leaves it.

    Args:
        path: of the NIfTI file.
        facts: of its JSON file.
        shape: voxels.
        sides: mm per voxel.
    """

    path: Path
    facts: Mapping[str, Any]
    shape: tuple[int, ...]
    sides: tuple[float, ...]

    @property
    def number(self) -> int:
        return int(self.facts.get("SeriesNumber", 0))

    @property
    def words(self) -> str:
        """What its description and protocol say, in small letters, with spaces for underscores."""
        names = (str(self.facts.get(name, "")) for name in ("SeriesDescription", "ProtocolName"))
        return " ".join(names).lower().replace("_", " ")

    @property
    def rank(self) -> tuple[Any, ...]:
        """Of several of one kind the first is taken: original, corrected, with the shortest longest voxel, latest."""
        derived = "DERIVED" in self.facts.get("ImageType", ())
        corrected = re.search(CORRECTED, self.path.name) is not None
        return derived, not corrected, round(max(self.sides), 1), -self.number


def kind_of(series: Series) -> tuple[str, str]:
    """The end of the name that a series has in BIDS, such as `ce-gd_T1w`; or nothing, and why.

    Returns:
        Kind and reason, one of which is empty.
    """
    extent = [n * side for n, side in zip(series.shape[:3], series.sides, strict=True)]
    computed = COMPUTED & {str(word).upper() for word in series.facts.get("ImageType", ())}
    if len(series.shape) != 3:
        return "", f"{series.shape[3]} volumes"
    if re.search(LOCALIZER, series.words):
        return "", "a localizer"
    if min(extent) < LEAST_MM:
        return "", f"covers {min(extent):.0f} mm only, less than {LEAST_MM:.0f} mm"
    if computed or re.search(OTHERS, series.words):
        return "", f"not a plain anatomical image: {', '.join(sorted(computed)) or series.words}"
    contrast = "CT" if series.facts.get("Modality") == "CT" else _named(series.words) or _timed(series.facts)
    if not contrast:
        return "", "neither its description nor its times tell whether it is T1w, T2w or FLAIR"
    agent = series.facts.get("ContrastBolusAgent") or re.search(AGENT, series.words)
    enhanced = contrast in ("T1w", "CT") and agent and str(agent).lower() not in ("none", "no")
    return ("ce-gd_" if contrast == "T1w" else "ce-iodine_") * bool(enhanced) + contrast, ""


def _named(words: str) -> str:
    if re.search(FLAIR, words):
        return "T1w" if re.search(T1, words) else "FLAIR"
    return "T1w" if re.search(T1, words) else "T2w" if re.search(T2, words) else ""


def _timed(facts: Mapping[str, Any]) -> str:
    """By echo, repetition and inversion time, s."""
    echo, repetition, inversion = (facts.get(f"{name}Time") for name in ("Echo", "Repetition", "Inversion"))
    if echo is None or repetition is None:
        return ""
    if inversion and inversion >= 1.5 and echo >= 0.07:
        return "FLAIR"
    if echo < 0.03 and (repetition < 1 or (inversion and 0.5 <= inversion < 1.5)):
        return "T1w"
    return "T2w" if echo >= 0.07 and repetition >= 2 and not inversion else ""


def chosen_series(found: Sequence[Series]) -> tuple[dict[str, Series], list[tuple[Series, str]]]:
    """One series of each kind, and why the others are left out."""
    by_kind, others = defaultdict(list), []
    for series in found:
        kind, reason = kind_of(series)
        by_kind[kind].append(series) if kind else others.append((series, reason))
    taken = {kind: min(own, key=lambda series: series.rank) for kind, own in sorted(by_kind.items())}
    for kind, best in taken.items():
        why = f"{kind} is series {best.number}: original, finer or later"
        others += [(series, why) for series in by_kind[kind] if series is not best]
    return taken, others


def converted(folder: Path, output: Path) -> list[Series]:
    """The series of a folder, converted by dcm2niix without what names the person.

    Raises:
        CohortError: dcm2niix is not there, or finds nothing.
    """
    beside = Path(sys.executable).parent / "dcm2niix"
    program = shutil.which("dcm2niix") or (str(beside) if beside.is_file() else None)
    if program is None:
        raise CohortError("dcm2niix is not installed; pip install dcm2niix, or sa-swin[dicom]")
    words = [program, "-b", "y", "-ba", "y", "-z", "y", "-d", "9", "-f", "%s", "-o", str(output), str(folder)]
    told = subprocess.run(words, capture_output=True, text=True, errors="replace", check=False).stdout.strip()
    series = []
    for path in sorted(output.glob("*.nii.gz")):
        facts = path.with_name(path.name.replace(".nii.gz", ".json"))
        header = nib.load(path).header
        known = json.loads(facts.read_text(errors="replace")) if facts.is_file() else {}
        series.append(Series(path, known, header.get_data_shape(), tuple(map(float, header.get_zooms()[:3]))))
    if not series:
        raise CohortError(
            f"{folder}: dcm2niix made no image of it: {told.splitlines()[-1] if told else 'it said nothing'}"
        )
    return series


def person_folders(root: Path, subject: str | None) -> dict[str, Path]:
    """The folder of each person by their label: those right below a folder, or the folder itself.

    Raises:
        CohortError: there is none, or two have one label.
    """
    if not root.is_dir():
        raise CohortError(f"no folder at {root}")
    folders = [root] if subject else sorted(path for path in root.iterdir() if path.is_dir() and path.name[0] != ".")
    found: dict[str, Path] = {}
    for folder in folders:
        label = re.sub("^sub-?", "", subject or folder.name)
        label = re.sub("[^A-Za-z0-9]", "", label)
        if not label or label in found:
            other = f" of {found[label].name}, too" if label in found else ""
            raise CohortError(f"{folder}: its label would be {label!r}{other}; give its folder a name of its own")
        found[label] = folder
    if not found:
        raise CohortError(
            f"{root} has no folders; expected one for each person, or --subject LABEL for the folder itself"
        )
    return found


def import_person(label: str, folder: Path, output: Path) -> list[dict[str, Any]]:
    """Write the chosen series of a person into a BIDS dataset; a row for each series of theirs.

    Raises:
        WriteError: when they cannot be written.
    """
    row = {"participant_id": f"sub-{label}", "folder": folder.name}
    with tempfile.TemporaryDirectory() as place:
        try:
            taken, others = chosen_series(converted(folder, Path(place)))
        except (CohortError, OSError, ValueError, nib.filebasedimages.ImageFileError) as error:
            return [row | {"reason": str(error)}]
        for kind, series in taken.items():
            target = output / f"sub-{label}" / "anat" / f"sub-{label}_{kind}.nii.gz"
            kept = {k: v for k, v in series.facts.items() if k not in ("SeriesDescription", "ProtocolName")}
            write_whole(target.with_name(target.name.replace(".nii.gz", ".json")), json_text(kept))
            write_image(series.path, target)
        rows = [(series, {"taken_as": kind}) for kind, series in taken.items()]
        rows += [(series, {"reason": why}) for series, why in others]
    rows.sort(key=lambda item: item[0].number)
    return [
        row | {"series": s.number, "description": s.facts.get("SeriesDescription", ""), **facts} for s, facts in rows
    ]


def write_image(source: Path, target: Path) -> None:
    """Copy a volume without its header's texts, in which dcm2niix leaves the time of the scan."""
    image = nib.load(source)
    values = np.asanyarray(image.dataobj)
    write_nifti(target, values.astype(np.float32) if values.dtype == np.float64 else values, image.affine)


def import_dicom(root: Path, output: Path, subject: str | None = None) -> list[dict[str, Any]]:
    """Make a BIDS dataset of folders of DICOM series, or add to one that is there; a row for each series.

    The tables are written after each person, so that an import that was stopped can be begun again.

    Raises:
        CohortError: no folder of a person, no dcm2niix, or a participants.tsv without `participant_id`.
    """
    folders = person_folders(root, subject)
    subject_facts(output)  # tables that cannot be added to are refused before anything is converted
    table, rows = output / "sourcedata" / "dicom.tsv", []
    earlier = imported_before(table)
    for label, folder in folders.items():
        person = {"participant_id": f"sub-{label}", "folder": folder.name}
        if f"sub-{label}" not in earlier and any((output / f"sub-{label}").rglob("*.nii*")):
            reason = "there are images of that label that no import made; give this person another label"
            rows.append(person | {"reason": reason})
        else:
            write_whole(table, told(table, [*rows, person | {"reason": STOPPED}]))
            rows += import_person(label, folder, output)
        write_whole(table, told(table, rows))
        add_participants(output, rows)
    description = {"Name": "Imported from DICOM", "BIDSVersion": "1.10.0", "DatasetType": "raw"}
    for name, text in ((".bidsignore", "*_CT.*\n"), ("dataset_description.json", json_text(description))):
        if not (output / name).exists():
            write_whole(output / name, text)
    return rows


def imported_before(table: Path) -> set[str]:
    """The persons whose images are of an import, also of one that was stopped."""
    rows = read_table(table) if table.exists() else []
    return {row["participant_id"] for row in rows if "taken_as" in row or row.get("reason") == STOPPED}


def told(path: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    """The table of all series: those of the persons of these rows anew, those of others as they are."""
    people = {row["participant_id"] for row in rows}
    lines = path.read_text("utf-8").splitlines(keepends=True)[1:] if path.exists() else []
    return tsv(rows, COLUMNS) + "".join(line for line in lines if line.split("\t")[0] not in people)


def add_participants(output: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add who has an image and no row to `participants.tsv`, whose columns and rows stay as they are, or make one."""
    people = dict.fromkeys(row["participant_id"].removeprefix("sub-") for row in rows if "taken_as" in row)
    folders = (path.name.removeprefix("sub-") for path in output.glob("sub-*"))
    # a row may be of another who is there
    there = matched(subject_facts(output), list(dict.fromkeys([*folders, *people])))
    if new := [{"participant_id": f"sub-{label}"} for label in people if label not in there]:
        path = output / "participants.tsv"
        known = path.exists() and path.read_bytes().strip()
        write_whole(path, extended(path, new) if known else tsv(new, ["participant_id"]))
