"""The norm: how far each place of a healthy head differs from its counterpart, how bright it is, and what is alarming.

It rests on medians: a few heads with lesions, in different places, hardly move it.
"""

import hashlib
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from scipy import ndimage
from torch import Tensor

from custom.support.errors import UserError
from custom.support.files import write_whole
from custom.symmetry import mirror
from custom.transforms.asymmetry_map import AsymmetryMap, smooth, strangeness

FEWEST = 8
"""Subjects that a norm needs."""
MOST_MISSING = 0.5
"""Share of the heads whose brain may lack a place that has a norm of its own; elsewhere that of the whole brain."""
SMOOTHING_MM = 6.0
"""Standard deviation of the Gaussian filter on median and spread: heads are aligned by their planes alone."""
FLOOR, LEVEL_FLOOR = 0.25, 0.05
"""Of the spread of a place: a share of the median difference over the brain, and interquartile ranges."""
FOLDS = 5
NAMES = ("median", "spread", "level", "level_spread")

logger = logging.getLogger(__name__)


class NormError(UserError):
    """A norm that cannot be made, or read, or does not fit what it is asked about."""


@dataclass(frozen=True)
class Norm:
    """What is usual at each place, and what is not. Spreads are standard deviations, by median absolute deviations.

    Args:
        median: of the difference, `(1, X, Y, Z)`.
        spread: of the difference.
        level: median of the intensity's level, `(C, X, Y, Z)`, the same on both sides.
        level_spread: of the level.
        threshold: z-score above which the highest peak of a head is an alarm.
        settings: `spacing`, `spatial_size`, `sequence`, `heads`, `subjects`, `alarm_rate`.
    """

    median: Tensor
    spread: Tensor
    level: Tensor
    level_spread: Tensor
    threshold: float
    settings: Mapping[str, Any]

    def z_map(self, found: AsymmetryMap) -> Tensor:
        """How many spreads each place's difference lies above the healthy median, `(B, 1, X, Y, Z)`; 0 outside."""
        return torch.where(found.inside, (found.difference - self.median) / self.spread, 0.0)

    def strangeness(self, found: AsymmetryMap) -> Tensor:
        """`custom.transforms.asymmetry_map.strangeness`, against healthy heads."""
        return strangeness(found.level, found.inside, self.settings["spacing"], self.level, self.level_spread)

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


def make_norm(
    heads: Sequence[AsymmetryMap],
    settings: Mapping[str, Any],
    alarm_rate: float = 0.05,
    subjects: Sequence[str] | None = None,
) -> Norm:
    """The norm of healthy heads; the threshold is set on subjects that were held out of what they are measured by.

    Args:
        heads: the maps.
        settings: what the maps were made with; `spacing` is needed.
        alarm_rate: share of further healthy heads that raise an alarm, at most; see `threshold_of`.
        subjects: whose heads they are; None takes each for a subject's own.

    Raises:
        NormError: with fewer than `FEWEST` subjects, or another rate than one between 0 and 1.
    """
    subjects = range(len(heads)) if subjects is None else subjects
    number = {subject: i for i, subject in enumerate(dict.fromkeys(subjects))}
    if len(number) < FEWEST:
        raise NormError(f"a norm needs healthy heads of {FEWEST} subjects or more, got {len(number)}")
    if not 0 < alarm_rate < 1:
        raise NormError(f"alarm_rate must lie between 0 and 1, got {alarm_rate}")
    settings = {**settings, "heads": len(heads), "subjects": len(number), "alarm_rate": alarm_rate}
    folds = [number[subject] % FOLDS for subject in subjects]
    peaks: list[float] = []
    for fold in range(FOLDS):
        rest = _norm([head for head, own in zip(heads, folds, strict=True) if own != fold], settings)
        peaks += [float(rest.z_map(head).max()) for head, own in zip(heads, folds, strict=True) if own == fold]
    return replace(_norm(heads, settings), threshold=threshold_of(peaks, alarm_rate))


def threshold_of(peaks: Sequence[float], alarm_rate: float) -> float:
    """The peak of `n` healthy heads that a further one passes with a probability of `alarm_rate` at most.

    That is the `(n + 1)(1 - alarm_rate)`-th smallest, rounded up. With too few heads for that, it is the largest, and
    the log tells so.
    """
    rank = math.ceil((len(peaks) + 1) * (1 - alarm_rate) - 1e-9)  # what should be whole may be a last digit above
    if rank > len(peaks):
        least = 1 / (len(peaks) + 1)
        told = (len(peaks), least, alarm_rate)
        logger.warning("%d healthy heads can hold no alarm rate below %.3f, and so not %g; give more heads", *told)
    return sorted(peaks)[min(rank, len(peaks)) - 1]


def _norm(heads: Sequence[AsymmetryMap], settings: Mapping[str, Any]) -> Norm:
    spacing = settings["spacing"]
    inside = torch.cat([head.inside for head in heads])
    median, spread = _usual(torch.cat([head.difference for head in heads]), inside, spacing)
    level, level_spread = _usual(torch.cat([head.level for head in heads]), inside, spacing)
    level, level_spread = (v + mirror(v) for v in (level / 2, level_spread / 2))
    floor = FLOOR * float(median.median())
    return Norm(median, spread + floor, level, level_spread + LEVEL_FLOOR, 0.0, settings)


def _usual(values: Tensor, inside: Tensor, spacing: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Median and spread of each place, `(N, C, X, Y, Z)` to twice `(C, X, Y, Z)`, smoothed.

    Where too few heads have brain, those of the nearest place that enough have.
    """
    values = values.where(inside, torch.nan)
    median = values.nanmedian(0).values
    spread = 1.4826 * (values - median).abs().nanmedian(0).values
    common = inside.float().mean(0)[0] >= 1 - MOST_MISSING
    if not common.any():
        raise NormError("the brains of these heads have no place in common; are they of one sequence, and aligned?")
    nearest = ndimage.distance_transform_edt(~common.numpy(), spacing, return_distances=False, return_indices=True)
    everywhere = torch.ones_like(median[None, :1], dtype=torch.bool)
    places = (slice(None), *torch.from_numpy(nearest))
    return tuple(smooth(found[places][None], everywhere, SMOOTHING_MM, spacing)[0] for found in (median, spread))
