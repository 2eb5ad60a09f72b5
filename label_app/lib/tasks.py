"""What the app does for its clients: MONAI Label's tasks for bundles, with what these bundles need beside them."""

import logging
import math
import os
import warnings
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from fastapi import HTTPException
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.batch_infer import BatchInferTask
from monailabel.tasks.infer.bundle import BundleInferTask
from monailabel.tasks.train.bundle import BundleTrainTask

from custom.data.case import CohortError
from custom.data.headers import case_problems
from custom.support.errors import UserError, root_cause
from custom.transforms.findings import segmented_row
from lib.partition import Pairs, partition

Request = dict[str, Any]

LARGEST = 20  # findings of a case that are told one by one
DEFAULT_EPOCHS = 50  # of a training, as in MONAI Label

logger = logging.getLogger(__name__)


class BundleTask(BundleInferTask):
    """A bundle's inference that says what is wrong with an image, and what the midsagittal plane rests on.

    Args:
        path: the bundle.
        conf: of the app.
        options: of MONAI Label's task.
    """

    def __init__(self, path: str, conf: dict[str, str], **options: Any) -> None:
        super().__init__(path, conf, load_strict=True, **options)
        # Of the files in models/, the others hold the state of a training.
        self._config["model_filename"] = [self.const.model_pytorch()]

    def run_pre_transforms(self, data: Request, transforms: Sequence[Callable[..., Any]]) -> Request:
        path = str(data["image"])
        if problems := case_problems({"image": path}, "none", self.bundle_config["in_channels"], None):
            raise CohortError("; ".join(problems))
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                out = super().run_pre_transforms(data, transforms)
        except (ValueError, RuntimeError, OSError, EOFError, zlib.error) as error:
            cause = root_cause(error)
            raise (cause if isinstance(cause, UserError) else UserError(f"{path}: {cause}")) from None
        out["warnings"] = [str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)]
        return out

    def writer(self, data: Request, extension: str | None = None, dtype: str | None = None) -> tuple[Any, Request]:
        file, answer = super().writer(data, extension, dtype)
        return file, answer | self.facts(data)

    def facts(self, data: Request) -> Request:
        """What is told of a case beside its mask or its probabilities."""
        plane = _without_nan(data["image"].meta.get("midsagittal", {}))  # nulls where the plane could not be trusted
        return {"midsagittal": plane, "warnings": data["warnings"], "notice": "Research only. Not for clinical use."}


class Segmentation(BundleTask):
    """Segmentation, with the volume and the side of the findings."""

    def __init__(self, path: str, conf: dict[str, str]) -> None:
        super().__init__(path, conf, type="segmentation")

    def facts(self, data: Request) -> Request:
        row = segmented_row({"pred": data["pred"][None], "image": data["image"]}, num_classes=len(self.labels) + 1)
        largest = [_without_nan(finding) for finding in row.pop("findings")[:LARGEST]]
        return super().facts(data) | {"sides": _without_nan(row), "findings": largest}


class Classification(BundleTask):
    """Classification: the probability of each class, as JSON."""

    def __init__(self, path: str, conf: dict[str, str]) -> None:
        super().__init__(path, conf, type="classification", add_post_restore=False)


def _without_nan(row: Request) -> Request:
    """A row for JSON, which has no NaN."""
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in row.items()}


class SegmenterTraining(BundleTrainTask):
    """Training of the segmenter from the labels that were saved as final."""

    def _fetch_datalist(self, request: Request, datastore: Datastore) -> Pairs:
        pairs = super()._fetch_datalist(request, datastore)
        if not pairs:
            raise UserError("there is no final label to train on; submit a corrected label first")
        return pairs

    def _partition_datalist(self, datalist: Pairs, request: Request, shuffle: bool = False) -> tuple[Pairs, Pairs]:
        return partition(datalist, float(request.get("val_split", 0.2)))

    def _update_overrides(self, overrides: Request) -> Request:
        """The bundle's knobs that follow from the request, and what the weights to go on from have seen."""
        epochs = int(overrides[self.const.key_train_trainer_max_epochs()])
        validated = bool(overrides[self.const.key_validate_dataset_data()])
        model = Path(self.bundle_path) / "models" / self.const.model_pytorch()
        overrides |= {
            "max_epochs": epochs,
            "warmup_epochs": epochs // 10,
            "patience": epochs,
            "val_interval": 1 if validated else epochs + 1,
            "num_workers": min(4, os.cpu_count() or 1),
            "datalist": str(Path(self.bundle_path) / "labels.json"),
            "train#provenance#source": str(model),
            "allow_leakage": True,  # labels are corrected also where the weights have seen the image; it is logged
        }
        return overrides

    def __call__(self, request: Request, datastore: Datastore) -> Request:
        given = {name: value for name, value in request.items() if value != ""}  # Slicer sends empty fields, too
        return super().__call__({"max_epochs": DEFAULT_EPOCHS, **given}, datastore)


class BatchInference(BatchInferTask):
    """Inference over many images: one that fails does not stop the rest; the failed ones are named at the end."""

    def __call__(self, request: Request, datastore: Datastore, infer: Callable[..., Request]) -> dict[str, Any]:
        failed: dict[str, str] = {}

        def tolerant(one: Request, store: Datastore) -> Request:
            try:
                return infer(one, store)
            except Exception as error:
                failed[one["image"]] = _sentence(error)
                logger.error("left out %s: %s", one["image"], failed[one["image"]])
                return {}

        multi_gpu = bool(request.get("multi_gpu", True)) and torch.cuda.is_available()
        result = super().__call__({**request, "multi_gpu": multi_gpu}, datastore, tolerant)
        if failed:
            sentences = "; ".join(f"{image}: {reason}" for image, reason in failed.items())
            raise UserError(f"{len(failed)} of {len(result)} images failed, the others are done: {sentences}")
        return result


def _sentence(error: Exception) -> str:
    return str(error.detail) if isinstance(error, HTTPException) else str(root_cause(error))
