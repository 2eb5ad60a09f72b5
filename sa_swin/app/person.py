"""What an app does with one scan: its maps and masks, its page, and its summary, which is written last of all."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from custom.evaluation.batch_inference import stamp
from custom.support.errors import UserError
from custom.support.files import WriteError, json_text, write_whole
from custom.volumes.loading import load_volume
from sa_swin.app.derivatives import (
    LESIONS,
    class_figures,
    lesion_figures,
    plain,
    plane_summary,
    unit_of,
    write_asymmetry,
    write_lesions,
)
from sa_swin.app.models import Model, ScanPrediction
from sa_swin.app.page import person_page
from sa_swin.app.pictures import head_of
from sa_swin.app.scans import AppScan
from sa_swin.asymmetry.case import Reading, mapped_head, reason_of
from sa_swin.asymmetry.norm import Norm

SUMMARY = "_desc-summary.json"


@dataclass(frozen=True)
class ScanWork:
    """The work on a scan, in a form that other processes can receive.

    Args:
        dataset: absolute path of the BIDS folder.
        output: the derivatives dataset.
        reading: how heads are aligned.
        mapped: whether asymmetry is mapped.
        norm: of healthy heads, or None.
        settings: digest of all that a result depends on but its images.
        models: weights by task.
        predictions: of each task, by scan.
    """

    dataset: Path
    output: Path
    reading: Reading
    mapped: bool
    norm: Norm | None
    settings: str
    models: Mapping[str, Model]
    predictions: Mapping[str, Mapping[str, ScanPrediction]] = field(default_factory=dict)

    def finished(self, scan: AppScan) -> dict[str, Any] | None:
        """The summary of a scan that was done with these settings and images, if its files are still there."""
        known = self.known(scan)
        same = known.get("settings") == self.settings and known.get("stamp") == stamp(self.case(scan))
        there = all((self.output / file).is_file() for file in known.get("files", ()))
        return known if same and there and known.get("status") == "done" else None

    def known(self, scan: AppScan) -> dict[str, Any]:
        """The summary there is, of whatever settings; empty where there is none."""
        path = scan.place(self.output, SUMMARY)
        try:
            return json.loads(path.read_text()) if path.is_file() else {}
        except ValueError:
            return {}

    def case(self, scan: AppScan) -> dict[str, Any]:
        return {"image": scan.paths(self.dataset), "subject": scan.name}

    def __call__(self, scan: AppScan) -> dict[str, Any]:
        """All of a scan's files, and its summary, with `status` `done`, or `failed` and a reason.

        Raises:
            WriteError: when results cannot be written; then the others cannot either.
        """
        before = self.known(scan).get("files", [])
        facts = {"name": scan.name, "subject": scan.subject, "session": scan.session, "sources": list(scan.images)}
        facts |= {"settings": self.settings, "stamp": stamp(self.case(scan))}
        try:
            summary = {"status": "done", **facts, **self.work(scan)}
        except WriteError:
            raise
        except (ValueError, RuntimeError, OSError, MemoryError) as error:
            summary = {"status": "failed", **facts, "reason": reason_of(error), "files": []}
        write_whole(scan.place(self.output, SUMMARY), json_text(summary))
        for file in set(before) - set(summary["files"]):
            (self.output / file).unlink(missing_ok=True)
        return summary

    def work(self, scan: AppScan) -> dict[str, Any]:
        """A scan's figures, once its maps, masks and page are written.

        Raises:
            ValueError: its images, its plane or a prediction cannot be used.
        """
        case, files, figures, values = self.case(scan), [], {}, None
        if self.mapped:
            head = mapped_head(case, self.reading, self.norm)
            pair, values = head.pair, head.values
            files += write_asymmetry(scan, self.output, head.on_file, self.norm)
            norms = {"norm": self.norm.digest(), "threshold": self.norm.threshold} if self.norm else {}
            figures["asymmetry"] = {**head.row, "unit": unit_of(self.norm), **norms}
        else:
            pair = self.reading.pair(case)
        figures["plane"] = plane_summary(pair.meta)
        lesion = None
        if (row := self.prediction("segment", scan)) is not None:
            files += write_lesions(scan, self.output, row, self.models["segment"])
            figures |= lesion_figures(row, self.models["segment"])
            lesion = load_volume(str(scan.place(self.output, f"{LESIONS}.nii.gz")))
        if (row := self.prediction("classify", scan)) is not None:
            figures |= class_figures(row, self.models["classify"])
        figures = plain(figures | {"weights": [model.about() for model in self.models.values()]})
        image = load_volume(case["image"][:1])
        peak = [found[axis] for axis in ("x_mm", "y_mm", "z_mm")] if (found := figures.get("asymmetry")) else None
        page = person_page(scan.name, scan.images, figures, head_of(image, pair, values, lesion, peak))
        files.append(self.output / f"{scan.name}.html")
        write_whole(files[-1], page)
        return figures | {"files": sorted(file.relative_to(self.output).as_posix() for file in files)}

    def prediction(self, task: str, scan: AppScan) -> dict[str, Any] | None:
        """What the weights of a task say of a scan; None without such weights.

        Raises:
            UserError: they say nothing of it.
        """
        found = self.predictions.get(task, {}).get(scan.name)
        if isinstance(found, str):
            raise UserError(found)
        return found
