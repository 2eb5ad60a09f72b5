"""Inference over many cases: what is finished is not done again, and every case is accounted for at the end."""

import errno
import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from ignite.engine import Engine
from monai.data import MetaTensor
from monai.utils import MetaKeys

from custom.data.case import Case, image_paths
from custom.data.dataset import FailedCase
from custom.evaluation.case_table import CaseTable, check_complete, write_csv
from custom.evaluation.conformal import Conformal
from custom.evaluation.metrics import Row
from custom.support.bundle_command import typed
from custom.support.files import append, digest_of, read_rows, stamp_of, unwritable, write_whole
from custom.support.run_record import versions
from custom.weights.settings import paths_of

logger = logging.getLogger(__name__)

APART = ("findings", "embedding")
"""Parts of a row that have a file of their own."""
FAILED = "failed.csv"
"""Table of the cases of a run that have no result: `image`, `reason`, `remedy`."""
PLANE = ("plane", "plane_yaw_deg", "plane_roll_deg", "plane_offset_mm", "plane_reason")
"""Columns of the midsagittal plane in the closing table."""


class FinishedCases:
    """The cases of an inference run, and which of them are finished already, kept in `<output_dir>/finished.jsonl`.

    A case is finished when its row was written with the same weights and settings, its images have not changed since,
    and the files that were written for it are there. With other weights or settings all is done anew.

    Args:
        cases: all cases of the run (`custom.data.find_cases`).
        output_dir: of the run.
        checkpoint: weights of the run, or a list of those that are used together.
        settings: of the run, as far as a result depends on them; ids that were given on the command line come in by
            themselves.
        redo: do everything anew.
    """

    def __init__(
        self,
        cases: Sequence[Case],
        output_dir: str | Path,
        checkpoint: str | Path | Sequence[str | Path],
        settings: Mapping[str, Any],
        redo: bool = False,
    ) -> None:
        self.cases = list(cases)
        self.path = Path(output_dir) / "finished.jsonl"
        self.settings = settings_digest(settings, paths_of(checkpoint))
        self.entries = {} if redo else self._read()
        self.begun = False
        self.found = {case_key(case) for case in self.cases if self._is_finished(case)}

    def missing(self) -> list[Case]:
        """The cases that are still to be done."""
        return [case for case in self.cases if case_key(case) not in self.found]

    def add(self, image: str, row: Row, files: Sequence[str]) -> None:
        """Note that a case is finished.

        Args:
            image: its first image, as in the row.
            row: its results.
            files: written for it.

        Raises:
            custom.support.files.WriteError: when that cannot be written, or the file has gone since the last case.
        """
        case = next(case for case in self.cases if case_key(case) == image)
        entry = {"stamp": stamp(case), "row": row, "files": list(files)}
        self.entries[image] = entry
        if self.begun:
            append(self.path, json.dumps({"image": image, **entry}) + "\n")
            return
        known = [json.dumps({"image": name, **known}) for name, known in self.entries.items()]
        write_whole(self.path, "\n".join([json.dumps({"settings": self.settings}), *known]) + "\n")
        self.begun = True

    def rows(self) -> list[Row]:
        """Results of the finished cases, by subject and file.

        Raises:
            custom.support.files.WriteError: when the file that they are kept in has gone, and the results with it.
        """
        if self.begun and not self.path.is_file():
            raise unwritable(self.path, FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)))
        done = [self.entries[key]["row"] for case in self.cases if (key := case_key(case)) in self.entries]
        return sorted(done, key=lambda row: (row["subject"], row["image"]))

    def _read(self) -> dict[str, dict[str, Any]]:
        settings, entries = finished_entries(self.path)
        if settings != self.settings:
            if self.path.is_file() and self.path.stat().st_size:
                logger.warning("%s is of other weights or settings: all cases are done anew", self.path)
            return {}
        return entries

    def _is_finished(self, case: Case) -> bool:
        entry = self.entries.get(case_key(case))
        if entry is None or entry["stamp"] != stamp(case) or not all(Path(file).is_file() for file in entry["files"]):
            self.entries.pop(case_key(case), None)
            return False
        return True


def finished_entries(path: Path) -> tuple[Any, dict[str, dict[str, Any]]]:
    """The settings of a `finished.jsonl`, and the entry of each image: `stamp`, `row`, `files`; nothing without one."""
    lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
    first, *rest = [_object(line) for line in lines] or [{}]
    # a line is damaged where the run was stopped while it wrote it
    entries = {entry.pop("image"): entry for entry in rest if entry.keys() == {"image", "stamp", "row", "files"}}
    return first.get("settings"), entries


def _object(line: str) -> dict[str, Any]:
    """The JSON object that a line holds; an empty one where it is damaged."""
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def case_key(case: Case) -> str:
    """The first image of a case, which its row names too."""
    return image_paths(case)[0]


def stamp(case: Case) -> list[list[int]]:
    """Size and time of last change (ns) of each image of a case; empty where one cannot be asked."""
    stamps = [stamp_of(path) for path in image_paths(case)]
    return stamps if all(stamps) else []


def settings_digest(settings: Mapping[str, Any], checkpoints: Sequence[str]) -> str:
    """A hash of the weights, of the code's version, of settings, and of the parts of a config that were overridden."""
    given = command.overrides() if (command := typed()) else {}
    parts = {name: value for name, value in given.items() if re.search("#|::", name)}
    content = {"version": versions().get("sa-swin"), "settings": dict(settings), "parts": parts}
    tables = [table for name in ("planes", "conformal") if (table := settings.get(name))]
    content["files"] = [digest_of(path) for path in (*tables, *checkpoints) if Path(path).is_file()]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


class InferenceTable(CaseTable):
    """`CaseTable` over this run and the finished cases of earlier ones; a table of all cases in the log at the end.

    A row may hold a list of rows under `findings`: they go into `findings.csv`, each with its case; and a list of
    numbers under `embedding`: they go into `embeddings.npz`.

    Args:
        row: as in `CaseTable`.
        finished: the cases of the run.
        output_dir: where `cases.csv`, and `findings.csv`, `embeddings.npz` or `failed.csv`, are written.
        class_names: as in `CaseTable`.
        conformal: gives further columns: intervals and sets.

    Raises:
        CohortError: at the end, when all is written, if cases are missing; it names them.
    """

    def __init__(
        self,
        row: Callable[[Any], Row],
        finished: FinishedCases,
        output_dir: str | Path,
        class_names: Sequence[str] | None = None,
        conformal: Conformal | None = None,
    ) -> None:
        super().__init__(row, output_dir=output_dir, class_names=class_names)
        self.finished = finished
        self.conformal = conformal

    def collect(self, engine: Engine) -> None:
        before = len(self.rows)
        super().collect(engine)
        for row, output in zip(self.rows[before:], engine.state.output, strict=True):
            row |= self.conformal(row, self.class_names) if self.conformal else {}
            self.finished.add(row["image"], row, written_files(output))

    def finish(self, engine: Engine) -> None:
        rows = self.finished.rows()
        engine.state.cases = rows
        flat = [{name: value for name, value in row.items() if name not in APART} for row in rows]
        write_csv(self.output_dir / f"{self.name}.csv", flat)
        if any("findings" in row for row in rows):
            write_csv(self.output_dir / "findings.csv", findings_of(rows))
        if any("embedding" in row for row in rows):
            write_embeddings(self.output_dir / "embeddings.npz", rows)
        failed = getattr(engine, "failed", {})
        write_failed(self.output_dir / FAILED, failed)
        logger.info("%s", overview(self.finished.cases, flat, self.finished.found, failed))
        check_complete(self.finished.cases, rows, failed)


def write_failed(path: Path, failed: Mapping[str, FailedCase]) -> None:
    """Write why cases have no result, by their first image; where all have one, there is no such table."""
    if failed:
        write_csv(path, [asdict(case) | {"image": image} for image, case in sorted(failed.items())])
    else:
        path.unlink(missing_ok=True)


def failed_reasons(output_dir: Path) -> dict[str, str]:
    """Why cases of the last run have no result, by their first image, from its `failed.csv`; a sentence each."""
    path = output_dir / FAILED
    rows = read_rows(path) if path.is_file() else []
    return {row["image"]: str(FailedCase(row["image"], row["reason"])) for row in rows}


def findings_of(rows: Sequence[Row]) -> list[Row]:
    """The findings of all cases, each with its case's subject and file."""
    return [{"subject": row["subject"], "image": row["image"], **f} for row in rows for f in row.get("findings", [])]


def write_embeddings(path: Path, rows: Sequence[Row]) -> None:
    """Write the embeddings of all cases: `subject` `(n,)`, `image` `(n,)` and `embedding` `(n, size)`, in one order."""
    columns = {name: np.array([row[name] for row in rows], str) for name in ("subject", "image")}
    embedding = np.array([row["embedding"] for row in rows], np.float32)
    write_whole(path, lambda partial: np.savez(partial, **columns, embedding=embedding))


def written_files(output: Mapping[str, Any]) -> list[str]:
    """Files that `custom.volumes.SaveVolumed` wrote for a case."""
    metas = [value.meta for value in output.values() if isinstance(value, MetaTensor)]
    return list(dict.fromkeys(path for meta in metas for path in meta.get(MetaKeys.SAVED_TO, ())))


def overview(
    cases: Sequence[Case], rows: Sequence[Row], found: set[str], failed: Mapping[str, FailedCase] = MappingProxyType({})
) -> str:
    """A text table of all cases: done now, done before, or failed, with the first figures and the plane of each.

    Args:
        cases: of the run.
        rows: of those that are done.
        found: first images of those that were done before.
        failed: the others, by their first image.
    """
    by_image = {row["image"]: row for row in rows}
    known = dict.fromkeys(name for row in rows for name in row)
    figures = [name for name in known if name not in ("subject", "image") and not name.startswith("plane")][:5]
    names = figures + [name for name in PLANE if name in known]
    lines = [["case", "state", *names, *(["why_failed"] if failed else [])]]
    folder = common_folder([case_key(case) for case in cases])
    for case in cases:
        key = case_key(case)
        row = by_image.get(key)
        state = "failed" if row is None else "done before" if key in found else "done"
        why = [failed[key].reason.removeprefix(f"{key}: ") if key in failed else ""] if failed else []
        values = [_short((row or {}).get(name, "")) for name in names]
        lines.append([os.path.relpath(key, folder), state, *values, *why])
    return "\n".join([f"{len(rows)} of {len(cases)} cases done", *in_columns(lines)])


def in_columns(lines: Sequence[Sequence[str]]) -> list[str]:
    """Rows of words as lines of text, the words of a column below each other."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def common_folder(paths: Sequence[str]) -> str:
    """The folder that all paths lie below, relative to which their names tell them apart."""
    return os.path.commonpath([os.path.dirname(path) for path in paths]) if paths else os.curdir


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
