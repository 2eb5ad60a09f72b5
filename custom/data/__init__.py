"""Datalists as trainings read them, checks of headers, prepared cohorts, splits by subject, contents."""

from custom.support.rooms import opened

__getattr__, __all__ = opened(
    __name__,
    {
        "case": ["Case", "CohortError", "image_paths", "sequences_of"],
        "datalist": ["class_names", "find_cases", "load_datalist", "load_section", "read_json"],
        "dataset": ["CachedDataset", "FailedCase", "TolerantDataset", "collate_cases", "loader_context"],
        "headers": ["case_problems"],
    },
)
