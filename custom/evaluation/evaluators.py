"""Inference that a case which fails in the network, in postprocessing or in saving does not stop."""

import errno
import logging
from collections.abc import Mapping
from typing import Any

import torch
from ignite.engine import Engine
from monai.engines import SupervisedEvaluator

from custom.support.errors import root_cause
from custom.support.files import WriteError

OF_THE_PLACE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENOENT, errno.ENODEV, errno.EIO, errno.ESTALE)
"""Reasons for which nothing can be saved any more: no room, or the place of the results is gone."""

logger = logging.getLogger(__name__)


class TolerantEvaluator(SupervisedEvaluator):
    """MONAI's `SupervisedEvaluator` that leaves out a batch in which something fails, with an error in the log.

    So the other cases get their results. For handlers such a batch is one without cases: `engine.state.batch` and
    `engine.state.output` are empty lists. `custom.evaluation.InferenceTable` names the missing cases at the end.
    The traceback is in the log at the level `DEBUG`.

    Raises:
        WriteError: at once, when the place of the results is full or gone; the next case could not be saved either.
    """

    def _iteration(self, engine: Engine, batchdata: Mapping[str, Any]) -> Any:
        try:
            return super()._iteration(engine, batchdata)
        except Exception as error:
            cause = root_cause(error)
            if isinstance(cause, WriteError) and cause.errno in OF_THE_PLACE:
                raise
            files, reason = ", ".join(_files(batchdata)), str(cause) or type(cause).__name__
            logger.error("left out: %s", reason if files in reason else f"{files}: {reason}")
            logger.debug("its traceback", exc_info=error)
        if torch.cuda.is_available():  # what did not fit must not stay in the way of the next case
            torch.cuda.empty_cache()
        engine.state.batch, engine.state.output = [], []
        return engine.state.output


def _files(batchdata: Mapping[str, Any]) -> list[str]:
    """The files a batch was read from."""
    names = batchdata["image"].meta["filename_or_obj"]
    return [names] if isinstance(names, str) else [str(name) for name in names]
