import json
from pathlib import Path

import pytest

from custom.alignment.version import ALIGNMENT_VERSION


@pytest.fixture(scope="session")
def said_prepared():
    """A function that leaves beside the first image of a cohort the record that `sa-swin prepare` would."""

    def record(folder: Path, first: str, spacing: float = 6.0, size: tuple[int, ...] = (32, 64, 64)) -> None:
        settings = {"spacing": spacing, "spatial_size": size, "alignment": ALIGNMENT_VERSION, "sources": []}
        path = folder / first.replace(".nii", ".json").replace(".gz", "")
        path.write_text(json.dumps({"aligned_affine": [], "settings": settings}))

    return record
