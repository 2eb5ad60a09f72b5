"""Cohorts: BIDS folders and tables to datalists, subject-level splits, checks of the files, the leakage guard.

`python -m custom.cohort build | check | leakage --help`
"""

from typing import Any

from custom.cohort.case import Case, CohortError, image_paths
from custom.cohort.datalist import find_cases, load_datalist, read_json
from custom.cohort.headers import case_problems

__all__ = [
    "Case",
    "CohortError",
    "TolerantDataset",
    "case_problems",
    "find_cases",
    "image_paths",
    "load_datalist",
    "read_json",
]


def __getattr__(name: str) -> Any:
    # MONAI takes seconds to import, and building a datalist or checking one needs none of it.
    if name == "TolerantDataset":
        from custom.cohort.dataset import TolerantDataset

        return TolerantDataset
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
