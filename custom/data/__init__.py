"""Datalists as trainings read them, checks of headers, prepared cohorts, splits by subject, contents."""

from custom.support.rooms import opened

__getattr__, __all__ = opened(
    __name__,
    {
        "case": ["Case", "CohortError", "image_paths"],
        "datalist": ["find_cases", "load_datalist", "read_json"],
        "dataset": ["TolerantDataset"],
        "headers": ["case_problems"],
    },
)
