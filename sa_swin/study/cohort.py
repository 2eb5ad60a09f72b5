"""The cohort of a study: made or found, aligned once, and split by subject, the same for every cell."""

import contextlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from custom.data import datalist
from custom.data.splits import Part, split_subjects
from custom.support.files import write_whole
from sa_swin.cohort.command import build_command
from sa_swin.phantom import cohort as phantom
from sa_swin.prepare import cohort as prepare
from sa_swin.study.plan import Cell, Study, StudyError

FACTS = ("healthy", "side", "diagnosis", "lesion_ml", "site")
"""What groups of cases are made from, where the cohort has it."""
KINDS = ("healthy", "one-sided", "bilateral", "midline")
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
        return Path(given).absolute() if given else self.folder / "cohort"

    @property
    def aligned(self) -> Path:
        """Folder of the aligned volumes."""
        return self.raw if (self.raw / "planes.csv").exists() else self.folder / "aligned"

    @property
    def datalists(self) -> Path:
        """Folder of the raw volumes' datalists."""
        return (self.folder if self.built else self.raw) / "datalists"

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
    """Make or find the cohort of a study, its aligned version, and its lists; what is there is not made again."""
    own = Cohort(study.content["cohort"], folder)
    options = {key: tuple(v) if isinstance(v, list) else v for key, v in own.options.items()}
    grid = study.content["grid"]
    with stopping():
        if own.built:
            options.pop("dataset_dir", None)
            build_command(output=str(own.datalists), overwrite=True, **options)
        elif "dataset_dir" not in options:
            phantom.phantom_command(output=str(own.raw), workers=workers, **options)
        if not (own.aligned / "planes.csv").exists():
            prepare.prepare_command(
                output=str(own.aligned), dataset_dir=str(own.raw), datalist=str(own.datalists), workers=workers, **grid,
                untrusted="leave_out",
            )  # fmt: skip
    write_lists(study, folder)


@contextlib.contextmanager
def stopping() -> Iterator[None]:
    """A command line's exit with a message as an error."""
    try:
        yield
    except SystemExit as error:
        raise StudyError(str(error)) from error


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
    entries = {entry["subject"]: entry for lists in aligned.values() for entry in every(lists)}
    parts = {fold: parts_of(study, entries, fold) for fold in study.folds if fold is not None}
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


def parts_of(study: Study, entries: Mapping[str, Mapping[str, Any]], fold: int) -> dict[str, Part]:
    """The part of each subject in a fold, the same for every task, balanced by diagnosis and side.

    The fold's own subjects are tested; of the others a share validates, one of each kind at least.
    """
    number = len(study.folds)
    if len(entries) < number:
        raise StudyError(f"{number} folds need as many subjects, the cohort has {len(entries)}")
    strata = {subject: (str(e.get("diagnosis", e.get("healthy"))), kind(e)) for subject, e in entries.items()}
    groups = together(study, entries)
    tested = split_subjects(strata, dict.fromkeys(study.folds, 1 / number), groups, seed=0)
    rest = {subject: kind(entry) for subject, entry in entries.items() if tested[subject] != fold}
    share = min(0.5, max(VALIDATION, 1 / min(Counter(rest.values()).values())))
    groups = [[subject for subject in group if subject in rest] for group in groups]
    own = split_subjects(rest, {"training": 1 - share, "validation": share}, groups, seed=fold)
    return dict.fromkeys(entries, "testing") | own


def together(study: Study, entries: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Subjects that the cohort's column `group` keeps in one fold, such as one person's two scans."""
    column = study.content["cohort"].get("group")
    if column is None:
        return []
    if missing := [subject for subject, entry in entries.items() if column not in entry]:
        raise StudyError(f"group {column}: no such column in the datalists' entries of {missing[0]}; add it to keep")
    groups: dict[str, list[str]] = {}
    for subject, entry in entries.items():
        groups.setdefault(str(entry[column]), []).append(subject)
    return list(groups.values())


def split(lists: Lists, parts: Mapping[str, Part]) -> Lists:
    """The same entries, each in the part of its subject."""
    result: Lists = {section: [] for section in datalist.SECTIONS}
    for entry in every(lists):
        result[str(parts[entry["subject"]])].append(entry)
    return result


def read_lists(path: Path) -> Lists:
    """A datalist's lists of entries."""
    return {name: entries for name, entries in datalist.read_lists(path).items() if name in datalist.SECTIONS}


def studied(study: Study, folder: Path) -> Iterator[Lists]:
    """The lists of every task and fold."""
    own = Cohort(study.content["cohort"], folder)
    for fold in study.folds:
        for path in sorted(own.lists(True, fold).glob("*.json")):
            yield read_lists(path)


def facts_of(study: Study, folder: Path) -> dict[str, Mapping[str, Any]]:
    """Facts of every test subject, from all lists that name it; who is not said to be healthy is a patient."""
    facts: dict[str, dict[str, Any]] = {}
    for entry in (entry for lists in studied(study, folder) for entry in lists["testing"]):
        facts.setdefault(entry["subject"], {}).update({key: entry[key] for key in FACTS if key in entry})
    return {subject: {"healthy": False, "side": "n/a"} | own for subject, own in facts.items()}


def sizes(study: Study, folder: Path) -> dict[str, dict[str, int]]:
    """Subjects in each part of the split, in every fold where there are folds, by kind; those that there are."""
    counts: dict[str, dict[str, str]] = {section: {} for section in datalist.SECTIONS}
    for lists in studied(study, folder):
        for section, own in counts.items():
            own.update({entry["subject"]: kind(entry) for entry in lists.get(section, [])})
    if study.folds != [None]:
        counts = {f"in turn, in {len(study.folds)} folds": counts["testing"]}
    found = {section: Counter(own.values()) for section, own in counts.items()}
    return {section: {own: number[own] for own in KINDS if number[own]} for section, number in found.items()}


def kind(entry: Mapping[str, Any]) -> str:
    """Which of `KINDS` a subject is."""
    if entry.get("healthy"):
        return "healthy"
    return {"both": "bilateral", "midline": "midline"}.get(str(entry.get("side")), "one-sided")
