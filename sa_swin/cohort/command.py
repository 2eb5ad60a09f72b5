"""Command line of cohorts: `sa-swin cohort build | check | leakage | dicom --help`."""

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from custom.data.case import CohortError
from custom.support.files import json_text, write_whole
from sa_swin.cohort import leakage
from sa_swin.cohort.bids import LeftOut, Scan, find_scans
from sa_swin.cohort.bids_facts import subject_facts
from sa_swin.cohort.build import Design, build, of_other_builds, reasons, write_datalists
from sa_swin.cohort.checks import as_json, as_text, check_datalist, good_rest
from sa_swin.cohort.recipes import Recipe, read_recipe, recipe_scans
from sa_swin.cohort.sources import datalist_scans, root_of, table_scans
from sa_swin.cohort.summary import summary
from sa_swin.cohort.table import Facts, columns, conditions, words

ALWAYS_KEPT = ("site", "side")  # `check` reads them


def build_command(
    output: str,
    bids: str | None = None,
    table: str | None = None,
    datalist: str | None = None,
    recipe: str | None = None,
    image: str | None = None,
    mask: str | None = None,
    derivative: str | None = None,
    runs: str = "all",
    subject: str = "subject",
    session: str | None = None,
    subject_pattern: str | None = None,
    prefix: str | None = None,
    target: str | None = None,
    classes: str | None = None,
    healthy: str | None = None,
    include: str | None = None,
    keep: str | None = None,
    group: str | None = None,
    stratify: str | None = None,
    split: str | tuple[float, float, float] = (0.6, 0.15, 0.25),
    folds: int = 0,
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """Make the datalists of the three bundles, with one split by subject, from a BIDS folder, a table or a datalist.

    Writes OUTPUT/pretrain.json, with --target classify.json, with --mask segment.json. All scans, sessions and runs of
    a subject are in one part, in all three lists. What is left out, and why, stands in the lists. Examples:

    sa-swin cohort build --output STUDY/datalists --bids STUDY --image T1w,FLAIR --mask label-lesion_mask
    --target diagnosis --classes "healthy=0,tumour|infarct=1" --healthy diagnosis=healthy --include "age>=18"

    sa-swin cohort build --output lists --table scans.csv --image t1_path --subject patient --target group

    Args:
        output: folder of the datalists.
        bids: BIDS folder; participants.tsv and sessions.tsv give the columns.
        table: CSV or TSV, one row per scan; its cells give the paths, relative to --dataset_dir of the bundles.
        datalist: JSON to split anew; `label` is a column, or the mask.
        recipe: layout of a public data set, which --bids names as it was unpacked: arc, atlas2, brats2021, brats2023,
            cq500, isles2022, ixi, oasis1, openmind or soop. It chooses what follows, unless given.
        image: T1w unless given; BIDS suffix, or acq-3d_T1w; several for several channels: T1w,FLAIR. For a table:
            columns.
        mask: BIDS suffix and entities among the derivatives, such as label-lesion_mask. For a table: a column.
        derivative: pipeline below derivatives/, or a folder, that has the masks; by default all pipelines.
        runs: of repeated runs take all, the first or the last.
        subject: for a table: column of the subject.
        session: for a table: column of the session.
        subject_pattern: for a datalist without subjects: regular expression with one group, e.g. "(ADNI_.{10})".
        prefix: put before every subject's id, e.g. IXI-, so that persons of two studies with one id stay apart.
        target: column of the class.
        classes: class of each value, e.g. "healthy=0,tumour|infarct=1"; by default the values are numbered in order.
        healthy: what makes a subject healthy, e.g. diagnosis=healthy.
        include: conditions, all to be met, e.g. "age>=18,sex=F,site=north|south,scanner!=old".
        keep: further columns to copy into the entries; site and side always are.
        group: columns whose equal values keep subjects together, e.g. family or site.
        stratify: columns that the parts share alike, further to the class.
        split: shares of training, validation and testing; or the column of a split that is given: train, val, test.
        folds: so many folds (--fold N of the bundles holds one out), in place of training and validation.
        seed: of the split.
        overwrite: replace datalists that are there and differ.
    """
    settings = {
        key: value for key, value in locals().items() if value is not None and key not in ("output", "overwrite")
    }
    layout = read_recipe(recipe) if recipe else None
    preset = layout.options if layout else {}
    settings = {"image": "T1w", **preset, **settings}
    mask, prefix = settings.get("mask"), settings.get("prefix", "")
    scans, left_out, known = found_scans(settings, layout)
    scans = [replace(scan, subject=f"{prefix}{scan.subject}") for scan in scans]
    kept = [*words(keep), *(name for name in ALWAYS_KEPT if name in columns(scan.facts for scan in scans))]
    given = split if isinstance(split, str) and split in columns(scan.facts for scan in scans) else None
    design = Design(
        target=settings.get("target"),
        classes=classes,
        healthy=conditions(settings.get("healthy")),
        include=conditions(include),
        keep=kept,
        group=words(group),
        stratify=words(stratify),
        given=given,
        folds=folds,
        seed=seed,
        mask=mask,
        **({} if given else {"shares": numbers(split)}),
    )
    built = build(scans, design, str(bids or table or datalist), known)
    built.left_out[:0] = left_out
    if mask and "segment" not in built.datalists:
        raise CohortError(f"no scan has a mask ({mask}), so there is nothing to segment; {reasons(built.left_out)}")
    paths = write_datalists(built, Path(output), settings, overwrite)
    print(*([layout.notes()] if layout else []), summary(built, scans), sep="\n")
    print("wrote", *paths)
    if others := of_other_builds(Path(output), paths):
        names = ", ".join(path.name for path in others)
        print(f"{output} still has {names} of an earlier build; remove what is not meant")


def found_scans(settings: Mapping[str, Any], layout: Recipe | None) -> tuple[list[Scan], list[LeftOut], list[Facts]]:
    """The scans of the one source that the options of `build_command` name, what is left out, and the table's rows.

    Raises:
        CohortError: no source or several, or a recipe without a folder.
    """
    sources = [name for name in ("bids", "table", "datalist") if settings.get(name)]
    if len(sources) != 1:
        raise CohortError(f"give one of --bids, --table and --datalist; got {', '.join(sources) or 'none'}")
    if layout and sources != ["bids"]:
        raise CohortError(f"--recipe {settings['recipe']} needs --bids, the folder of the data set: {layout.folder}")
    path, channels, mask = Path(settings[sources[0]]), words(settings["image"]), settings.get("mask")
    if layout:
        return recipe_scans(path, layout, channels, mask)
    if sources == ["bids"]:
        known = list(subject_facts(path).values())
        return *find_scans(path, channels, mask, settings.get("derivative"), settings["runs"]), known
    if sources == ["table"]:
        return *table_scans(path, channels, mask, settings["subject"], settings.get("session")), []
    return *datalist_scans(path, settings.get("subject_pattern")), []


def check_command(
    datalist: str,
    dataset_dir: str | None = None,
    label: str | None = None,
    in_channels: int | None = None,
    num_classes: int | None = None,
    workers: int = 2,
    json: str | None = None,
    quarantine: str | None = None,
    allow_outside: bool = False,
    modality: str | None = None,
) -> None:
    """Read every file of a datalist once and report all that is wrong, by file; exit code 1 if anything is.

    Files: readable, 3D, finite, not constant, plausible spacing and size, left and right clear, CT in Hounsfield units.
    Cases: channels and
    mask on one grid, mask values, labels, `side` against the mask. The list: the same image under two names, a subject
    on two sides of the split or at two sites, classes that a part lacks.

    Args:
        datalist: JSON.
        dataset_dir: what relative paths are relative to; by default the datalist's folder, or the one above
            `datalists`.
        label: what a case carries: class, mask, healthy or none; by default what most cases carry.
        in_channels: files per case; by default what most cases have.
        num_classes: of class labels and masks.
        workers: processes.
        json: file for the report in JSON.
        quarantine: file for the datalist without the cases that have an error.
        allow_outside: read files outside of dataset_dir, too, where absolute paths, .. and symlinks may lead.
        modality: MR or CT; by default each file's name tells (_T1w, _FLAIR, ..., _CT), and others are not asked.
    """
    path = Path(datalist)
    root = root_of(path, dataset_dir)
    report = check_datalist(path, root, label, in_channels, num_classes, workers, allow_outside, modality)
    print(as_text(report, root))
    if json:
        write_whole(Path(json), json_text(as_json(report)))
    if quarantine:
        write_whole(Path(quarantine), json_text(good_rest(report)))
    if report.errors():
        sys.exit(1)


def leakage_command(
    pretrain: str | None = None,
    classify: str | None = None,
    segment: str | None = None,
    dataset_dir: str | None = None,
    label_free: bool = False,
    images: bool = True,
    workers: int = 4,
    json: str | None = None,
    allow_outside: bool = False,
) -> None:
    """Compare subjects and images of the stages' datalists: is anything measured on that was trained on?

    A copy under another name, or of another subject's id, is found by what the image holds. Exit code 1 if there is a
    leak.

    Args:
        pretrain: datalist of the pretraining.
        classify: datalist of the classification.
        segment: datalist of the segmentation.
        dataset_dir: what relative paths are relative to; by default each datalist's folder, or the one above
            `datalists`.
        label_free: pretraining uses no label (objectives label_free and reconstruction).
        images: compare what the images hold; False compares subjects alone and reads no image.
        workers: threads that read images.
        json: file for the report in JSON.
        allow_outside: read files outside of dataset_dir, too, where absolute paths, .. and symlinks may lead.
    """
    lists = {"pretrain": pretrain, "classify": classify, "segment": segment}
    paths = {stage: Path(path) for stage, path in lists.items() if path}
    if not paths:
        raise CohortError("give the datalists of one or more stages: --pretrain, --classify, --segment")
    placed = {stage: (path, root_of(path, dataset_dir)) for stage, path in paths.items()}
    leaks = leakage.compare_lists(placed, label_free, images, workers, allow_outside)
    print(leakage.as_text(leaks))
    if json:
        write_whole(Path(json), json_text(leakage.as_json(leaks)))
    if any(leak.severity == "error" for leak in leaks):
        sys.exit(1)


def dicom_command(dicom: str, output: str, subject: str | None = None) -> None:
    """Make a BIDS dataset of DICOM: a folder for each person, whose series go through dcm2niix (sa-swin[dicom]).

    Of each kind of image (T1w, T2w, FLAIR, CT, and those with a contrast agent) one series is taken, by the rules of
    docs/how-to/cohorts.md; the others are named, here and in OUTPUT/sourcedata/dicom.tsv. The exit code is 1 if
    somebody has no image.

    Args:
        dicom: folder of the persons' folders.
        output: the BIDS dataset.
        subject: label of the person, where the folder itself is that of one person.
    """
    from sa_swin.cohort.dicom import import_dicom

    rows = import_dicom(Path(dicom), Path(output), subject)
    people = dict.fromkeys(row["participant_id"] for row in rows)
    empty = dict.fromkeys(people)
    for row in rows:
        if kind := row.get("taken_as"):
            print(f"{row['participant_id']}  {kind}  series {row['series']}  {row['description']}")
            empty.pop(row["participant_id"], None)
    left_out = [row for row in rows if "taken_as" not in row]
    for row in left_out:
        series = f"  series {row['series']}" if "series" in row else ""
        print(f"{row['participant_id']}{series}  left out: {row['reason']}")
    print(f"{output}: {len(people) - len(empty)} of {len(people)} persons have an image")
    sys.exit(bool(empty))


def numbers(value: Any) -> list[float]:
    """The numbers of a command line's list."""
    try:
        return [float(word) for word in words(value)]
    except ValueError as error:
        raise CohortError(f"expected numbers such as 0.6,0.15,0.25, or a column that there is, got {value}") from error
