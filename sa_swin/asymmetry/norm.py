"""The norm: how far each place of a healthy head differs from its counterpart, and the threshold of an alarm.

It rests on medians: a few heads with lesions, in different places, hardly move it.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from custom.support.errors import UserError
from custom.support.files import write_whole
from custom.transforms.asymmetry_map import smooth

FEWEST = 8
"""Heads that a norm needs."""
MOST_MISSING = 0.5
"""Share of the heads whose brain may lack a place that has a norm of its own; elsewhere that of the whole brain."""
SMOOTHING_MM = 6.0
"""Standard deviation of the Gaussian filter on median and spread: heads are aligned by their planes alone."""
FLOOR = 0.25
"""Of the spread of a place, as a share of its median over the brain."""
FOLDS = 5
NAMES = ("median", "spread", "present")


class NormError(UserError):
    """A norm that cannot be made, or read, or does not fit what it is asked about."""


@dataclass(frozen=True)
class Norm:
    """What is usual at each place, and what is not.

    Args:
        median: of the difference of healthy heads, `(X, Y, Z)`.
        spread: 1.4826 x the median absolute deviation from it, the standard deviation were it normal; `(X, Y, Z)`.
        present: share of the heads whose brain has the place, `(X, Y, Z)`.
        threshold: z-score above which the highest peak of a head is an alarm.
        settings: `spacing`, `spatial_size`, `channels`, `sequence`, `heads`, `alarm_rate`.
    """

    median: Tensor
    spread: Tensor
    present: Tensor
    threshold: float
    settings: Mapping[str, Any]

    def z_map(self, difference: Tensor, inside: Tensor) -> Tensor:
        """How many spreads each place's difference lies above the healthy median, `(X, Y, Z)`; 0 outside.

        Args:
            difference: `(X, Y, Z)`, of `custom.transforms.asymmetry_map`.
            inside: bool, the brain.
        """
        return torch.where(inside, (difference - self.median) / self.spread, 0.0)

    def digest(self) -> str:
        """SHA-256 of all of it, its first 12 digits."""
        out = hashlib.sha256(json.dumps([self.threshold, self.settings], sort_keys=True).encode())
        for name in NAMES:
            out.update(getattr(self, name).contiguous().numpy().tobytes())
        return out.hexdigest()[:12]

    def save(self, path: Path) -> None:
        """Write the norm as safetensors, for which nothing is ever unpickled.

        Raises:
            custom.support.files.WriteError: when it cannot be written.
        """
        from safetensors.torch import save

        about = json.dumps({"threshold": self.threshold, **self.settings}, sort_keys=True)
        tensors = {name: getattr(self, name).contiguous() for name in NAMES}
        write_whole(path, save(tensors, metadata={"norm": about}))


def load_norm(path: str | Path) -> Norm:
    """Read a norm.

    Raises:
        NormError: no such file, or no norm.
    """
    from safetensors import safe_open

    if not Path(path).is_file():
        raise NormError(f"no norm at {path}; make one with `sa-swin asymmetry norm`")
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads(file.metadata()["norm"])
            tensors = {name: file.get_tensor(name) for name in NAMES}
    except Exception as error:  # a damaged file makes the reader stumble in many ways
        raise NormError(f"{path} is no norm that `sa-swin asymmetry norm` wrote ({error})") from error
    return Norm(**tensors, threshold=about.pop("threshold"), settings=about)


def make_norm(maps: Sequence[Tensor], settings: Mapping[str, Any], alarm_rate: float = 0.05) -> Norm:
    """The norm of healthy heads; the threshold is set on heads that were held out of the norm they are measured by.

    Args:
        maps: of each head, `(X, Y, Z)`, not a number outside the brain.
        settings: what the maps were made with; `spacing` is needed.
        alarm_rate: share of healthy heads that shall raise an alarm.

    Raises:
        NormError: with fewer than `FEWEST` heads, or another rate than one between 0 and 1.
    """
    if len(maps) < FEWEST:
        raise NormError(f"a norm needs {FEWEST} healthy heads or more, got {len(maps)}")
    if not 0 < alarm_rate < 1:
        raise NormError(f"alarm_rate must lie between 0 and 1, got {alarm_rate}")
    spacing, folds = settings["spacing"], min(FOLDS, len(maps))
    peaks: list[float] = []
    for fold in range(folds):
        rest = _norm([m for i, m in enumerate(maps) if i % folds != fold], spacing, {})
        peaks += [float(rest.z_map(m, ~m.isnan()).max()) for m in maps[fold::folds]]
    settings = {**settings, "heads": len(maps), "alarm_rate": alarm_rate}
    found = _norm(maps, spacing, settings)
    return Norm(found.median, found.spread, found.present, float(np.quantile(peaks, 1 - alarm_rate)), settings)


def _norm(maps: Sequence[Tensor], spacing: Sequence[float], settings: Mapping[str, Any]) -> Norm:
    stacked = torch.stack(list(maps))
    present = 1 - stacked.isnan().float().mean(0)
    median = stacked.nanmedian(0).values
    spread = 1.4826 * (stacked - median).abs().nanmedian(0).values
    usual = (present >= MOST_MISSING) & median.isfinite()
    level = float(median[usual].median()) if usual.any() else float(stacked.nanmedian())
    wide = float(spread[usual].median()) if usual.any() else level
    median, spread = (_spread_out(v, usual, fill, spacing) for v, fill in ((median, level), (spread, wide)))
    return Norm(median, spread + FLOOR * level, present, 0.0, settings)


def _spread_out(values: Tensor, usual: Tensor, fill: float, spacing: Sequence[float]) -> Tensor:
    values = torch.where(usual, values, fill)[None, None]
    return smooth(values, torch.ones_like(values, dtype=torch.bool), SMOOTHING_MM, spacing)[0, 0]
