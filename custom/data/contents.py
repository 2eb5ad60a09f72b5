"""What an image holds, as a hash that no renaming, compression, header or reorientation changes.

What is hashed is which values occur and how often, so that the order of storage does not matter. Stored values are
hashed (no scale in the header hides a copy) and, where the header scales them, the scaled values, too (a copy written
as floating point does not hide either). Images with a hash in common are the same image.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from custom.data.case import CohortError
from custom.data.prepared import prepared_from
from custom.support.files import stamp_of, write_whole
from custom.volumes.nifti import VolumeFileError, read_volume

CACHE = ".contents.cache"  # JSON beside the datalists of a folder, which share it; not to be taken for one of them

logger = logging.getLogger(__name__)


class Voxels(NamedTuple):
    """Voxels of a file as they are stored, and the scale that its header gives them."""

    stored: np.ndarray
    slope: float
    inter: float

    @classmethod
    def of(cls, image: Any) -> "Voxels":
        """The voxels of a nibabel image."""
        proxy = image.dataobj
        stored = np.asarray(proxy.get_unscaled() if hasattr(proxy, "get_unscaled") else proxy)
        return cls(stored, float(getattr(proxy, "slope", 1)), float(getattr(proxy, "inter", 0)))

    @property
    def values(self) -> np.ndarray:
        """The voxels' values."""
        scaled = (self.slope, self.inter) != (1, 0)
        return self.stored * self.slope + self.inter if scaled else self.stored

    def hashes(self) -> list[str]:
        """Hash of the stored values, and of the scaled ones where they are not the same."""
        values, counts = _histogram(self.stored)
        hashes = [_hash(values, counts)]
        if (self.slope, self.inter) != (1, 0):
            scaled = (values.astype(float) * self.slope + self.inter).astype(np.float32)
            merged, place = np.unique(scaled, return_inverse=True)
            hashes.append(_hash(merged, np.bincount(place.ravel(), counts).astype(np.int64)))
        return hashes


def _histogram(array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The values that occur, in rising order, and how often each does."""
    if array.dtype.kind in "iu" and array.dtype.itemsize <= 2 and array.size:
        lowest = int(array.min())
        counts = np.bincount(array.ravel().astype(np.intp) - lowest)  # several times faster than sorting
        there = np.flatnonzero(counts)
        return there + lowest, counts[there]
    return np.unique(array.astype(np.float32, copy=False), return_counts=True)


def _hash(values: np.ndarray, counts: np.ndarray) -> str:
    digest = hashlib.sha256((values.astype("<f4") + np.float32(0)).tobytes())  # the sum makes -0 a 0
    digest.update(counts.astype("<i8").tobytes())
    return digest.hexdigest()[:32]


def file_hashes(path: str | Path) -> list[str]:
    """Hashes of an image file's content.

    Raises:
        CohortError: when it cannot be read.
    """
    try:
        return Voxels.of(read_volume(path)).hashes()
    except (VolumeFileError, OSError) as error:
        raise CohortError(f"{path}: its voxels cannot be read ({error}); run sa-swin cohort check") from error


class ContentCache:
    """Hashes of files whose size and time of change are as they were, kept in a JSON file.

    Args:
        folder: where the file lies, or None to keep nothing. Where it cannot be written, a warning says so.
    """

    def __init__(self, folder: Path | None) -> None:
        self.file = folder / CACHE if folder else None
        self.known: dict[str, list] = {}
        if self.file and self.file.is_file():
            try:
                known = json.loads(self.file.read_text())
            except (OSError, ValueError, RecursionError):  # a damaged cache is no cache
                known = None
            if isinstance(known, dict):
                self.known = {key: value for key, value in known.items() if isinstance(value, list) and len(value) == 2}

    def _key(self, path: str) -> str:
        return os.path.relpath(path, self.file.parent) if self.file else path

    def get(self, path: str) -> list[str] | None:
        """A file's hashes, if it has not changed since they were put."""
        stamp, hashes = self.known.get(self._key(path), (None, None))
        return hashes if stamp and stamp == stamp_of(path) else None

    def put(self, path: str, hashes: list[str]) -> None:
        """Remember a file's hashes."""
        self.known[self._key(path)] = [stamp_of(path), hashes]

    def save(self) -> None:
        """Write the file."""
        if not self.file:
            return
        try:
            write_whole(self.file, json.dumps(self.known))
        except OSError as error:
            logger.warning("hashes of the images are not kept: %s", error)


def contents_of(paths: Iterable[str], folder: Path | None = None, workers: int = 4) -> dict[str, frozenset[str]]:
    """Content hashes by path, with those of the files that `sa-swin prepare` made an image from.

    Args:
        paths: image files.
        folder: of the datalist, where the hashes are kept for the next time.
        workers: threads that read.

    Raises:
        CohortError: files that cannot be read.
    """
    paths = list(dict.fromkeys(paths))
    cache = ContentCache(folder if folder and folder.is_dir() else None)
    found = {path: cache.get(path) for path in paths}
    missing = [path for path, hashes in found.items() if hashes is None]
    if missing:
        for path, hashes in zip(missing, _hash_all(missing, workers), strict=True):
            found[path] = hashes
            cache.put(path, hashes)
        cache.save()
    return {path: frozenset([*hashes, *prepared_from(path)]) for path, hashes in found.items()}


def _hash_all(paths: Sequence[str], workers: int) -> list[list[str]]:
    with ThreadPoolExecutor(workers) as pool:
        return list(tqdm(pool.map(file_hashes, paths), "hash images", len(paths), unit="file", disable=None))
