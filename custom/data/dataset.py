"""Datasets for which one bad case is not the end: it is passed over, or named together with all the others.

And how a data loader starts its workers.
"""

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

from monai.data import CacheDataset, IterableDataset, list_data_collate
from torch.utils.data import get_worker_info

from custom.data.case import Case, CohortError, image_paths
from custom.data.headers import case_problems
from custom.support.errors import UserError, root_cause
from custom.support.progress import followed

MOST_NAMED = 20
"""Cases that cannot be taken, after which no further ones are tried."""

logger = logging.getLogger(__name__)


def loader_context(num_workers: int) -> str | None:
    """How a data loader starts its workers, whatever the default is of this Python; None without workers.

    MONAI's inverse transforms know those of a worker by their place in memory, which `forkserver` does not keep.
    """
    if num_workers == 0:
        return None
    return "fork" if sys.platform == "linux" else "spawn"


class CachedDataset(CacheDataset):
    """MONAI's `CacheDataset` that says of all cases which it cannot take, and why.

    When it says so, its threads have ended: those of MONAI's still compute when the process ends, which then aborts.

    Raises:
        CohortError: with the cases that are in memory from the start (`cache_rate`) and cannot be taken.
    """

    def _fill_cache(self, indices: Sequence[int] | None = None) -> list[Any]:
        wanted = list(range(self.cache_num)) if indices is None else list(indices)
        items, errors = dict.fromkeys(wanted), {}
        with ThreadPoolExecutor(self.num_workers or 1) as pool:
            futures = {pool.submit(self._load_cache_item, index): index for index in wanted}
            try:
                done = as_completed(futures)
                for future in followed(done, len(futures), "load") if self.progress else done:
                    try:
                        items[futures[future]] = future.result()
                    except Exception as error:
                        cause = root_cause(error)
                        if not isinstance(cause, UserError):
                            raise
                        errors[futures[future]] = cause
                        if len(errors) == MOST_NAMED:
                            break
            finally:
                for future in futures:
                    future.cancel()
        if errors:
            raise refused([errors[index] for index in sorted(errors)], len(wanted))
        return list(items.values())


def refused(errors: Sequence[UserError], number: int) -> UserError:
    """One error for several of `number` cases, with what helps said once."""
    if len(errors) == 1:
        return errors[0]
    remedies = list(dict.fromkeys(error.remedy for error in errors if error.remedy))
    reasons = [str(error).removesuffix(f"; {error.remedy}") for error in errors]
    more = [f"more were not tried after these {len(errors)}"] if len(errors) == MOST_NAMED < number else []
    return CohortError("\n  ".join([f"{len(errors)} of {number} cases cannot be taken:", *reasons, *more, *remedies]))


class TolerantDataset(IterableDataset):
    """MONAI's `IterableDataset` that gives a `FailedCase` for one it cannot read or transform, with a line in the log.

    So one bad file does not lose the results of the others; `custom.evaluation.InferenceTable` names it at the end.

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
                item = FailedCase(image_paths(case)[0], "; ".join(problems)) if problems else self.transform(case)
            except (ValueError, RuntimeError, OSError, MemoryError) as error:
                item = failed_case(image_paths(case)[0], error)
            if isinstance(item, FailedCase):
                logger.error("left out: %s", item)
            yield item


@dataclass(frozen=True)
class FailedCase:
    """What stands for a case that has no result: its first image, why, and what helps where that is known."""

    image: str
    reason: str
    remedy: str = ""

    def __str__(self) -> str:
        return self.reason if self.image in self.reason else f"{self.image}: {self.reason}"


def failed_case(image: str, error: Exception) -> FailedCase:
    """A case that failed of an error."""
    cause = root_cause(error)
    remedy = getattr(cause, "remedy", "")
    return FailedCase(image, str(cause).removesuffix(f"; {remedy}") or type(cause).__name__, remedy)


def collate_cases(items: Sequence[Any]) -> dict[str, Any]:
    """MONAI's `list_data_collate` of the cases that could be taken; under `failed` the others, by their first image."""
    failed = {item.image: item for item in items if isinstance(item, FailedCase)}
    taken = [item for item in items if not isinstance(item, FailedCase)]
    return (list_data_collate(taken) if taken else {}) | ({"failed": failed} if failed else {})
