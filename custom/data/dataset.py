"""A dataset that passes over bad cases, so that one bad file does not lose the results of the others."""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from monai.data import IterableDataset
from torch.utils.data import get_worker_info

from custom.data.case import Case, image_paths
from custom.data.headers import case_problems
from custom.support.errors import root_cause

logger = logging.getLogger(__name__)


class TolerantDataset(IterableDataset):
    """MONAI's `IterableDataset` that passes over cases it cannot read or transform, each with an error in the log.

    So one bad file does not lose the results of the others; `custom.evaluation.CaseTable` names the missing ones at the
    end.

    Args:
        data: cases.
        transform: preprocessing.
        in_channels: files a case must list.
    """

    def __init__(self, data: Sequence[Case], transform: Callable[[Case], Any], in_channels: int = 1) -> None:
        super().__init__(data, transform)
        self.in_channels = in_channels

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        for case in self.data[first::step]:
            problems = case_problems(case, "none", self.in_channels, None)
            try:
                item = None if problems else self.transform(case)
            except (ValueError, RuntimeError, OSError, MemoryError) as error:
                problems = [f"{image_paths(case)[0]}: {root_cause(error)}"]
            if problems:
                logger.error("left out: %s", "; ".join(problems))
            else:
                yield item
