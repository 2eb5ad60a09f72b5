"""Inference that a case which fails in the network, in postprocessing or in saving does not stop."""

import errno
import logging
from collections.abc import Mapping
from typing import Any

import torch
from ignite.engine import Engine
from monai.engines import SupervisedEvaluator

from custom.data.dataset import FailedCase, failed_case
from custom.support.errors import root_cause
from custom.support.files import WriteError

OF_THE_PLACE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENOENT, errno.ENODEV, errno.EIO, errno.ESTALE)
"""Reasons for which nothing can be saved any more: no room, or the place of the results is gone."""

logger = logging.getLogger(__name__)


class TolerantEvaluator(SupervisedEvaluator):
    """MONAI's `SupervisedEvaluator` that leaves out a batch in which something fails, with an error in the log.

    So the other cases get their results. For handlers such a batch is one without cases: `engine.state.batch` and
    `engine.state.output` are empty lists; so is one of cases that the data loader could not take. `failed` has them,
    by their first image, for `custom.evaluation.InferenceTable`. The traceback is in the log at the level
    `DEBUG`.

    Raises:
        WriteError: at once, when the place of the results is full or gone; the next case could not be saved either.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.failed: dict[str, FailedCase] = {}

    def _iteration(self, engine: Engine, batchdata: dict[str, Any]) -> Any:
        self.failed |= batchdata.pop("failed", {})
        if not batchdata:
            return self._without_cases(engine)
        try:
            return super()._iteration(engine, batchdata)
        except Exception as error:
            cause = root_cause(error)
            if isinstance(cause, WriteError) and cause.errno in OF_THE_PLACE:
                raise
            files = _files(batchdata)
            self.failed |= {file: failed_case(file, error) for file in files}
            logger.error("left out: %s", failed_case(", ".join(files), error))
            logger.debug("its traceback", exc_info=error)
        if torch.cuda.is_available():  # what did not fit must not stay in the way of the next case
            torch.cuda.empty_cache()
        return self._without_cases(engine)

    @staticmethod
    def _without_cases(engine: Engine) -> list[Any]:
        engine.state.batch, engine.state.output = [], []
        return engine.state.output


def _files(batchdata: Mapping[str, Any]) -> list[str]:
    """The files a batch was read from."""
    names = batchdata["image"].meta["filename_or_obj"]
    return [names] if isinstance(names, str) else [str(name) for name in names]
