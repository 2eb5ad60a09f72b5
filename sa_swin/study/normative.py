"""Normative asymmetry: how unusual the asymmetry of each place is, against healthy subjects; no network, no training.

Healthy brains are not quite symmetric, and not equally so everywhere. What stands out is a place that differs from its
mirrored counterpart more than it does in the healthy. Volumes are `(X, Y, Z)`, or `(C, X, Y, Z)` with channels.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from monai.networks.layers import GaussianFilter
from torch import Tensor

from custom.symmetry import split_pair

SMOOTHING_MM = 5.0
"""Standard deviation of the Gaussian filter on image and asymmetry: noise, and what alignment leaves, average out."""
FLOOR = 0.05
"""Added to the standard deviation of each place, in units of the image, so that the still background counts nothing."""
PEAK = 0.99
"""The score is this quantile of a case's z-scores: a small lesion is not diluted, one voxel decides nothing."""


def smoothed_difference(pair: Tensor, spacing: tuple[float, float, float]) -> Tensor:
    """How far each place of an image differs from its mirrored counterpart, after smoothing; `(X, Y, Z)`.

    Args:
        pair: symmetric pair `(2C, X, Y, Z)`, standardised; the channels' differences are averaged.
        spacing: mm per voxel.
    """
    smooth = GaussianFilter(3, [SMOOTHING_MM / side for side in spacing])
    image, mirrored = split_pair(smooth(pair[None].float()))
    return smooth((image - mirrored).abs())[0].mean(dim=0)


@dataclass(frozen=True)
class NormativeAsymmetry:
    """Mean and standard deviation of the asymmetry of each place in the healthy.

    Args:
        mean: `(X, Y, Z)`.
        deviation: `(X, Y, Z)`.
        spacing: mm per voxel.
        healthy: how many subjects it rests on.
    """

    mean: Tensor
    deviation: Tensor
    spacing: tuple[float, float, float]
    healthy: int

    @classmethod
    def of(cls, pairs: Iterable[Tensor], spacing: tuple[float, float, float]) -> "NormativeAsymmetry":
        """From the symmetric pairs of healthy subjects.

        Raises:
            ValueError: with fewer than two.
        """
        maps = [smoothed_difference(pair, spacing) for pair in pairs]
        if len(maps) < 2:
            raise ValueError(f"a norm needs two healthy subjects or more, got {len(maps)}")
        stacked = torch.stack(maps)
        return cls(stacked.mean(dim=0), stacked.std(dim=0), spacing, len(maps))

    def z_map(self, pair: Tensor) -> Tensor:
        """How many standard deviations each place's asymmetry lies above the healthy mean, `(X, Y, Z)`."""
        return (smoothed_difference(pair, self.spacing) - self.mean) / (self.deviation + FLOOR)

    def score(self, pair: Tensor) -> float:
        """The `PEAK` quantile of the z-map: how unusual the most unusual places of a case are."""
        values = self.z_map(pair).flatten()
        return float(values.kthvalue(max(1, int(PEAK * len(values)))).values)
