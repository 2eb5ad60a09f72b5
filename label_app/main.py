"""The MONAI Label app: segmentation and classification by the bundles, training of the segmenter, readable errors.

`label_app.serve` starts it; its only setting, `--conf bundles DIR`, is the folder of the bundles' working copies.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastapi import HTTPException
from lib.tasks import BatchInference, Classification, Segmentation, SegmenterTraining
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.exception import MONAILabelException
from monailabel.interfaces.tasks.infer_v2 import InferTask
from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.interfaces.tasks.train import TrainTask
from monailabel.tasks.activelearning.first import First
from monailabel.tasks.activelearning.random import Random

from custom.support.errors import UserError, report_errors, root_cause

SEGMENT, CLASSIFY = "sa_swin_segment", "sa_swin_classify"

logger = logging.getLogger(__name__)


class SASwinLabel(MONAILabelApp):
    """The bundles found in `conf["bundles"]`: segmentation and its training, classification."""

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        self.bundles = Path(conf["bundles"])
        super().__init__(
            app_dir,
            studies,
            conf,
            name="sa-swin",
            description="Symmetry-aware segmentation and classification of brain MRI and CT. Not for clinical use.",
        )

    def init_infers(self) -> dict[str, InferTask]:
        kinds = {SEGMENT: Segmentation, CLASSIFY: Classification}
        return {name: kind(str(self.bundles / name), self.conf) for name, kind in kinds.items() if self.has(name)}

    def init_trainers(self) -> dict[str, TrainTask]:
        return {SEGMENT: SegmenterTraining(str(self.bundles / SEGMENT), self.conf)} if self.has(SEGMENT) else {}

    def init_strategies(self) -> dict[str, Strategy]:
        return {"random": Random(), "first": First()}

    def init_batch_infer(self) -> BatchInference:
        return BatchInference()

    def has(self, bundle: str) -> bool:
        """Whether there are weights for a bundle."""
        return (self.bundles / bundle).is_dir()

    def infer(self, request: dict[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        with self.readable_errors():
            image = request.get("image")
            if not Path(image).exists() and image not in (datastore or self.datastore()).list_images():
                raise UserError(f"there is no image {image!r} in {self.studies}")
            return super().infer(request, datastore)

    def batch_infer(self, request: dict[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        with self.readable_errors():
            return super().batch_infer(request, datastore)

    def train(self, request: dict[str, Any]) -> dict[str, Any]:
        with self.readable_errors():
            return super().train(request)

    @contextmanager
    def readable_errors(self) -> Iterator[None]:
        """Hand errors on as sentences: over HTTP from the server, at the end of the log from a task's own process."""
        try:
            yield
        except HTTPException:
            raise
        except Exception as error:
            cause = root_cause(error)
            if not self._server_mode:
                report_errors()
                raise
            if not isinstance(cause, UserError | MONAILabelException):
                logger.exception("unexpected error")
            raise HTTPException(*_answer(cause)) from None


def _answer(cause: BaseException) -> tuple[int, str]:
    """HTTP status and sentence for an error."""
    if isinstance(cause, UserError):
        return 422, str(cause)
    if isinstance(cause, MONAILabelException):
        return 404, str(cause.msg)
    return 500, f"{type(cause).__name__}: {cause}"
