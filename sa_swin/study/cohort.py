"""The cohort of a study: made or found, aligned once, and split by subject, the same for every cell."""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from custom.data import datalist
from custom.data.case import image_paths, subject_of
from custom.data.prepared import preparation
from custom.data.splits import Part, split_subjects, with_some_of_each
from custom.support.files import write_whole
from sa_swin.cohort.command import build_command
from sa_swin.cohort.table import words
from sa_swin.phantom import cohort as phantom
from sa_swin.prepare import cohort as prepare
from sa_swin.study.plan import Cell, Study, StudyError

SIDES = {"left": "one-sided", "right": "one-sided", "both": "bilateral", "midline": "midline"}
VALIDATION = 0.1
"""Share of the training subjects of a fold that validate; test subjects are seen by nothing before the end."""

Lists = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class Cohort:
    """Where a study's volumes are: as they lie in their files, and aligned.

    Args:
        options: of the study: those of `sa-swin phantom`, or of `sa-swin cohort build`, or a `dataset_dir` with
            datalists, which may be one that `sa-swin prepare` wrote.
        folder: of the study's work.
    """

    options: Mapping[str, Any]
    folder: Path

    @property
    def built(self) -> bool:
        """Whether its datalists are made from a BIDS folder, a table or a datalist."""
        return any(key in self.options for key in ("bids", "table", "datalist"))

    @property
    def raw(self) -> Path:
        """Folder of the volumes as they are."""
        given = self.options.get("dataset_dir") or self.options.get("bids")
        return Path(os.path.abspath(given)) if given else self.folder / "cohort"

    @property
    def aligned(self) -> Path:
        """Folder of the aligned volumes."""
        return self.raw if self.is_prepared else self.folder / "aligned"

    @property
    def is_prepared(self) -> bool:
        """Whether the volumes are aligned already: `sa-swin prepare` has left its record beside the first."""
        lists = (read_lists(path) for path in sorted(self.datalists.glob("*.json")))
        first = next((image_paths(entry)[0] for own in lists for entry in every(own)), None)
        return first is not None and preparation(str(self.raw / first)) is not None

    @property
    def datalists(self) -> Path:
        """Folder of the raw volumes' datalists."""
        return (self.folder if self.built else self.raw) / "datalists"

    @property
    def group(self) -> list[str]:
        """Columns that keep subjects together: the study's own, or those that the datalists were split by."""
        if "group" in self.options or self.options.get("anatomies"):
            return words(self.options.get("group", "anatomy"))
        contents = [datalist.read_json(path) for path in sorted(self.datalists.glob("*.json"))]
        records = [content.get("built") for content in contents if isinstance(content, Mapping)]
        return next((words(built["group"]) for built in records if built and built.get("group")), [])

    def dataset_dir(self, align: bool) -> Path:
        """Folder of the volumes of a cell."""
        return self.aligned if align else self.raw

    def lists(self, align: bool, fold: int | None = None) -> Path:
        """Folder of the study's own datalists, with the same subjects in both kinds, and of one fold."""
        folder = self.folder / "lists" / ("aligned" if align else "raw")
        return folder if fold is None else folder / f"fold_{fold}"


def of_cell(cell: Cell, folder: Path) -> tuple[Path, Path]:
    """Folders of a cell's volumes and of its datalists."""
    own = Cohort(cell.cohort["cohort"], folder)
    return own.dataset_dir(cell.align), own.lists(cell.align, cell.fold)


def make_cohort(study: Study, folder: Path, workers: int) -> None:
    """Make or find the cohort of a study, its aligned version, and its lists; what is there is not made again.

    Raises:
        StudyError: where the folder holds another cohort's work, an unaligned arm has no unaligned volumes, or cases
            cannot be read.
    """
    own = Cohort(study.content["cohort"], folder)
    options = {key: tuple(v) if isinstance(v, list) else v for key, v in own.options.items()}
    grid = study.content["grid"]
    refuse_others(study, folder)
    if own.raw == own.aligned and any(not cell.align for cell in study.cells()):
        raise StudyError(f"{own.raw} is aligned already, so that an arm with align: false would be no other")
    with stopping("the cohort could not be made whole"):
        if own.built:
            options.pop("dataset_dir", None)
            build_command(output=str(own.datalists), overwrite=True, **options)
        elif "dataset_dir" not in options:
            phantom.phantom_command(output=str(own.raw), workers=workers, **options)
        if own.aligned != own.raw:  # what is aligned stays, and what has changed since is done
            prepare.prepare_command(
                output=str(own.aligned), dataset_dir=str(own.raw), datalist=str(own.datalists), workers=workers, **grid,
                untrusted="leave_out", allow_outside=study.content.get("settings", {}).get("allow_outside", False),
            )  # fmt: skip
    write_lists(study, folder)


def refuse_others(study: Study, folder: Path) -> None:
    """Refuse a folder with the work of another cohort, grid or folds; studies that differ elsewhere may share one."""
    path = folder / "cohort_of_study.json"
    own = {"cohort": study.content["cohort"], "grid": study.content["grid"], "folds": len(study.folds)}
    found = json.loads(path.read_text()) if path.exists() else {}
    if any(json.loads(json.dumps(own))[key] != value for key, value in found.items()):
        raise StudyError(
            f"{folder} holds the work on another cohort or other folds, {found}; take another one for {own}"
        )
    write_if_new(path, json.dumps(own, indent=2) + "\n")


@contextlib.contextmanager
def stopping(otherwise: str) -> Iterator[None]:
    """A command line's exit as an error, with its message, or what to say where it has printed its own."""
    try:
        yield
    except SystemExit as error:
        raise StudyError(error.code if isinstance(error.code, str) else f"{otherwise}; see above") from error


def write_lists(study: Study, folder: Path) -> None:
    """Write the study's lists: the subjects that could be aligned, of each fold where there are folds.

    Raises:
        StudyError: with fewer subjects than folds, or entries that lack the column that keeps subjects together.
    """
    own = Cohort(study.content["cohort"], folder)
    paths = sorted((own.aligned / "datalists").glob("*.json"))
    aligned = {path.name: read_lists(path) for path in paths}
    kept = {name: {entry["subject"] for entry in every(lists)} for name, lists in aligned.items()}
    raw = {name: chosen(read_lists(own.datalists / name), kept[name]) for name in aligned}
    entries = merged(aligned)
    parts = {fold: parts_of(study, entries, own.group, fold) for fold in study.folds if fold is not None}
    for fold in study.folds:
        for align, own_lists in ((True, aligned), (False, raw)):
            for name, lists in own_lists.items():
                content = lists if fold is None else split(lists, parts[fold])
                write_if_new(own.lists(align, fold) / name, json.dumps(content, indent=2) + "\n")


def write_if_new(path: Path, text: str) -> None:
    """Write a file unless it holds this already: another study may be reading it."""
    if not path.exists() or path.read_text() != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)


def chosen(lists: Lists, subjects: set[str]) -> Lists:
    """The entries of some subjects."""
    return {name: [entry for entry in entries if entry["subject"] in subjects] for name, entries in lists.items()}


def every(lists: Lists) -> list[dict[str, Any]]:
    """The entries of all parts."""
    return [entry for entries in lists.values() for entry in entries]


def merged(lists: Mapping[str, Lists]) -> dict[str, dict[str, Any]]:
    """What the lists of all tasks say of each subject, and which of them name it.

    Raises:
        StudyError: a subject of two classes.
    """
    entries: dict[str, dict[str, Any]] = {}
    for name, own in sorted(lists.items()):
        for entry in every(own):
            found = entries.setdefault(entry["subject"], {"lists": []})
            refuse_two_classes(name, found, entry)
            found |= {key: value for key, value in entry.items() if key != "label" or isinstance(value, int)}
            found["lists"] = sorted({*found["lists"], name})
    return entries


def refuse_two_classes(name: str, known: Mapping[str, Any], entry: Mapping[str, Any]) -> None:
    """Refuse a subject whose scans are of two classes: it is measured once, by the mean of its scans.

    Raises:
        StudyError: with the subject and the classes.
    """
    classes = [own["label"] for own in (known, entry) if isinstance(own.get("label"), int)]
    if len(set(classes)) > 1:
        raise StudyError(
            f"{name}: {entry['subject']} has scans of classes {classes[0]} and {classes[1]}, but every subject is "
            "measured once; keep the scans of one class"
        )


def parts_of(
    study: Study, entries: Mapping[str, Mapping[str, Any]], columns: Sequence[str], fold: int
) -> dict[str, Part]:
    """The part of each subject in a fold, the same for every task, balanced by what is known of the subjects.

    The fold's own subjects are tested; of the others a share validates, some of each class and with each kind of label.

    Raises:
        StudyError: with fewer subjects than folds.
    """
    number = len(study.folds)
    if len(entries) < number:
        raise StudyError(f"{number} folds need as many subjects, the cohort has {len(entries)}")
    strata = {subject: (*needed(e), str(e.get("diagnosis")), kind(e)) for subject, e in entries.items()}
    groups = together(columns, entries)
    tested = split_subjects(strata, dict.fromkeys(study.folds, 1 / number), groups, seed=0)
    rest = {subject: needed(entry) for subject, entry in entries.items() if tested[subject] != fold}
    groups = [[subject for subject in group if subject in rest] for group in groups]
    own = split_subjects(rest, {"training": 1 - VALIDATION, "validation": VALIDATION}, groups, seed=fold)
    return dict.fromkeys(entries, "testing") | with_some_of_each(own, rest, groups)


def needed(entry: Mapping[str, Any]) -> tuple[str, ...]:
    """What every part needs some of: each class, the healthy and the others, those with a mask."""
    return str(entry.get("label")), str(entry.get("healthy")), *entry["lists"]


def together(columns: Sequence[str], entries: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Subjects that columns keep in one fold, such as one person's two scans, or heads of one label map.

    Who has no value of a column is kept together with nobody by it.

    Raises:
        StudyError: a column that no entry has.
    """
    groups: dict[tuple[str, str], list[str]] = {}
    for column in columns:
        known = {subject: entry for subject, entry in entries.items() if column in entry}
        if not known:
            raise StudyError(f"group {column}: no such column in the datalists' entries; add it to keep")
        for subject, entry in known.items():
            groups.setdefault((column, str(entry[column])), []).append(subject)
    return list(groups.values())


def split(lists: Lists, parts: Mapping[str, Part]) -> Lists:
    """The same entries, each in the part of its subject."""
    result: Lists = {section: [] for section in datalist.SECTIONS}
    for entry in every(lists):
        result[str(parts[entry["subject"]])].append(entry)
    return result


def read_lists(path: Path) -> Lists:
    """A datalist's lists of entries, each with a subject."""
    lists = {name: entries for name, entries in datalist.read_lists(path).items() if name in datalist.SECTIONS}
    for entry in every(lists):
        entry.setdefault("subject", subject_of(entry))
    return lists


def studied(study: Study, folder: Path) -> Iterator[Lists]:
    """The lists of every task and fold."""
    own = Cohort(study.content["cohort"], folder)
    for fold in study.folds:
        for path in sorted(own.lists(True, fold).glob("*.json")):
            yield read_lists(path)


def kind(entry: Mapping[str, Any]) -> str:
    """What a subject counts as: healthy, by the side of the disease, else by its class, or a patient."""
    if entry.get("healthy"):
        return "healthy"
    label = entry.get("label")
    return SIDES.get(str(entry.get("side")), f"class {label}" if isinstance(label, int) else "patients")


def order(kind: str) -> tuple[int, str]:
    """Where a kind stands among others."""
    known = ["healthy", *dict.fromkeys(SIDES.values())]
    return (known.index(kind) if kind in known else len(known), kind)
