"""Cases of a report: which ones to show, and their volumes on the aligned grid."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.utils import GridSampleMode

from custom.alignment.grid import aligned_grid, central_affine, to_grid
from custom.alignment.planes import COLUMNS, HandPlane
from custom.data.datalist import class_names, read_json, section_entries
from custom.data.splits import label_fraction
from custom.support.errors import UserError
from custom.symmetry import mirror
from custom.volumes.loading import load_volume
from custom.volumes.saving import result_path
from sa_swin.cohort.sources import case_lists
from sa_swin.report.privacy import Row

FIELD_MM = (192.0, 224.0, 192.0)
"""Of the pictures: what the networks' aligned volume holds by default."""
SHOWN = 3
"""Cases of each end that an evaluation shows."""
MOST_SHOWN = 20
"""Cases that an inference shows."""


@dataclass(frozen=True)
class Run:
    """A folder of results: its rows, findings, record, and what a record says of the data; `ids` shows whose it is."""

    folder: Path
    rows: list[Row]
    findings: list[Row]
    summary: dict[str, Any]
    records: dict[str, dict[str, Any]]
    ids: bool = False

    @property
    def record(self) -> dict[str, Any]:
        """The record of the run that wrote the table, else of the training."""
        for workflow in ("evaluate", "inference", "train"):
            if workflow in self.records and (workflow == "train" or self.rows):
                return self.records[workflow]
        return {}

    def names(self) -> list[str]:
        """Columns of the rows."""
        return list(self.rows[0]) if self.rows else []

    def has(self, name: str) -> bool:
        """Whether the rows have a column."""
        return name in self.names()

    def numbers(self, name: str) -> np.ndarray:
        """A column as floats; what is empty is NaN."""
        return np.array([float(row[name]) if row[name] != "" else np.nan for row in self.rows])


def chosen(run: Run) -> tuple[str, list[tuple[Row, str]]]:
    """A heading, and the rows to show with a caption each: the worst and the best, else the most remarkable first."""
    if overlaps := [name for name in run.names() if name.startswith("dice")]:
        name, keys = "Dice", np.mean([run.numbers(column) for column in overlaps], axis=0)
    elif run.has("probability_1") and run.has("label"):
        name = "probability of the true class"
        keys = np.array([float(row[f"probability_{int(float(row['label']))}"]) for row in run.rows])
    else:
        return most_remarkable(run)
    order = np.argsort(keys)
    picked = dict.fromkeys([*order[:SHOWN].tolist(), *order[-SHOWN:].tolist()])
    return f"the lowest and the highest {name}", captioned(run, name, keys, picked)


def most_remarkable(run: Run) -> tuple[str, list[tuple[Row, str]]]:
    """As `chosen`, where no truth is known: the largest findings, the likeliest patients, or the least symmetric."""
    if volumes := [name for name in run.names() if name.startswith("volume_ml_class")]:
        name, keys = "volume of findings in ml", np.sum([run.numbers(column) for column in volumes], axis=0)
    elif run.has("probability_0"):
        names = class_labels(run)
        binary = not run.has("probability_2")
        name = f"probability of {names.get(1, 'class 1') if binary else 'not ' + names.get(0, 'class 0')}"
        keys = 1 - run.numbers("probability_0")
    elif run.has("asymmetry"):
        name, keys = "asymmetry", run.numbers("asymmetry")
    else:
        return "", []
    picked = np.argsort(-keys, kind="stable")[:MOST_SHOWN].tolist()
    whole = f"all {len(keys)}" if len(picked) == len(keys) else f"the first {len(picked)} of {len(keys)}"
    return f"{whole}, by {name}, the largest first", captioned(run, name, keys, picked)


def captioned(run: Run, name: str, keys: np.ndarray, picked: Iterable[int]) -> list[tuple[Row, str]]:
    """The picked rows, each with its subject and figure."""
    return [(run.rows[i], f"{run.rows[i]['subject']}, {name} {keys[i]:.3g}") for i in picked]


def pictured(run: Run, row: Row, name: str) -> dict[str, object] | None:
    """A case as `figures.mosaic` takes it, on the aligned grid; None where its image is not there any more."""
    paths = case_files(run, row)
    if not paths["image"].is_file():
        return None
    try:
        volumes = {kind: load_volume(path) for kind, path in paths.items() if path.is_file()}
    except UserError:  # a damaged image must not lose the page
        return None
    affine, size = picture_grid(volumes["image"], row, run.record.get("settings", {}).get("align", True))
    case: dict[str, object] = {"name": name}
    for kind, volume in volumes.items():
        mode = GridSampleMode.BILINEAR if kind in ("image", "asymmetry") else GridSampleMode.NEAREST
        case[kind] = to_grid(volume[:1], affine, size, mode).as_tensor()[0].numpy()
    case["mirrored"] = mirror(torch.from_numpy(case["image"])).numpy()
    return case


def picture_grid(image: MetaTensor, row: Row, align: bool) -> tuple[torch.Tensor, tuple[int, ...]]:
    """The grid to show a volume on: that of the plane in its row, if it has one, no finer than the file and 1 mm."""
    spacing = max(1.0, float(image.pixdim.min()))
    size = tuple(int(side / spacing) for side in FIELD_MM)
    if not align or row.get("plane") == "as it lies":
        return central_affine(image, [spacing] * 3, size), size
    figures = [row.get(f"plane_{name}") for name in COLUMNS]
    known = HandPlane(row["image"], *map(float, figures)) if all(figures) else None
    return aligned_grid(image, [spacing] * 3, size, by_hand=known).affine, size


def case_files(run: Run, row: Row) -> dict[str, Path]:
    """Where the volumes of a case should be: image, prediction, asymmetry map and, by the datalist, the truth.

    What the run was not asked for is left out: a file of that name is of an earlier run in the same folder.
    """
    image = Path(row["image"])
    paths, config = run.record.get("paths", {}), run.record.get("config", {})
    root = Path(os.path.abspath(paths.get("dataset_dir", image.parent)))
    files = {"image": image}
    asked = {"pred": config.get("save_masks", True), "asymmetry": config.get("save_asymmetry", False)}
    for kind, postfix in (("prediction", "pred"), ("asymmetry", "asymmetry")):
        if asked[postfix]:
            files[kind] = result_path(str(image), root, run.folder, postfix)
    truth = masks(paths).get(str(image))
    return {**files, "truth": root / truth} if truth else files


def masks(paths: Mapping[str, Any]) -> dict[str, str]:
    """The mask of each image that the datalist of a run gives one, by the image's path as the tables have it."""
    root = Path(os.path.abspath(paths.get("dataset_dir", ".")))
    entries = [entry for entries in datalist(paths).values() for entry in entries]
    first = [(e["image"][0] if isinstance(e["image"], list) else e["image"], e.get("label")) for e in entries]
    return {str(root / image): label for image, label in first if isinstance(label, str)}


def class_labels(run: Run) -> dict[int, str]:
    """Names of the classes by number, as far as the run's datalist, its settings or its tables have them."""
    paths, config = run.record.get("paths", {}), run.record.get("config", {})
    given = config.get("class_names")
    names = dict(enumerate(class_names(paths.get("datalist")) or (given if isinstance(given, list) else [])))
    for column in ("label", "prediction", "class"):
        named = (row for row in (*run.rows, *run.findings) if row.get(f"{column}_name"))
        names |= {int(float(row[column])): row[f"{column}_name"] for row in named}
    return names


def named_column(column: str, names: Mapping[int, str]) -> str:
    """A column's name with that of the class in place of its number: `volume_ml_class1`, `probability_1`."""
    found = re.fullmatch(r"(.*?)(?:[ _]class ?|(?<=probability)_)(\d+)(.*)", column)
    if found is None or int(found[2]) not in names:
        return column
    before, number, after = found.groups()
    return f"{before} {names[int(number)]}{after}".strip()


def datalist(paths: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The lists of cases in the datalist of a run; none where there was no datalist, or it is gone."""
    path = Path(str(paths.get("datalist")))
    return case_lists(read_json(path)) if path.is_file() else {}


def used_lists(run: Run) -> dict[str, Sequence[Mapping[str, Any]]]:
    """The entries that the runs of a folder used, by list: with their fold, share of labels and limit."""
    used: dict[str, Sequence[Mapping[str, Any]]] = {}
    for workflow, record in run.records.items():
        paths, settings = record["paths"], record.get("settings", {})
        lists = datalist(paths)
        for name in ("training", "validation") if workflow == "train" else (paths.get("section", "testing"),):
            entries = section_entries(lists, name, settings.get("fold"))
            if name == "training" and entries:
                entries = label_fraction(entries, settings.get("label_percent") or 100, settings.get("seed") or 0)
            used[name] = entries[: settings.get("limit") or None]
    return {name: entries for name, entries in used.items() if entries}


def cohort_table(lists: Mapping[str, Sequence[Mapping[str, Any]]], largest: int = 6) -> list[Row]:
    """One row per list: cases, subjects, and how often each value of an entry's few-valued facts occurs.

    A fact that is another one for every entry may say whose it is, and is left out.
    """
    table = []
    for name, entries in lists.items():
        row = {"list": name, "cases": str(len(entries))}
        row["subjects"] = str(len({str(entry.get("subject", entry["image"])) for entry in entries}))
        if masks := sum(isinstance(entry.get("label"), str) for entry in entries):
            row["masks"] = str(masks)
        for fact in dict.fromkeys(key for entry in entries for key in entry if key not in ("image", "subject", "fold")):
            values = [str(entry.get(fact)) for entry in entries if not (fact == "label" and masks)]
            if 0 < len(set(values)) <= largest and not len(values) == len(set(values)) > 2:
                counts = {value: values.count(value) for value in sorted(set(values))}
                row[fact] = ", ".join(f"{value}: {count}" for value, count in counts.items())
        table.append(row)
    return table
