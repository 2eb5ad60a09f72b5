"""Intensities as the networks see them: z-scores on the head for MR, a window of Hounsfield units for CT."""

from collections.abc import Sequence

import torch
from torch import Tensor

from custom.volumes.background import BACKGROUND_QUANTILE, fill_amid, quantiles

CT_WINDOW = (-20.0, 100.0)
"""Hounsfield units mapped to 0 and 1: fat and air below, bone above, brain, blood and oedema between."""


SMALLEST_CT_SPAN = 40.0
"""Least difference, in HU, between the darkest and the brightest voxel of a brain on CT, with skull or without."""
Z_RANGE = (-5.0, 5.0)
"""Standard deviations from the head's mean that an MR image is clipped to; a bright lesion keeps its contrast."""


def standardize_mr(image: Tensor) -> Tensor:
    """Z-score each channel on its head, clipped to `Z_RANGE`.

    The head is what lies above the mean of the volume, once that is clipped from its background level to its 99.5th
    percentile, so that a few bright voxels do not set the scale; only the scale, for a small bright lesion is among
    them. The background, whatever its value in the file (0, -3.6, slightly negative, 0 amid the values of a brain that
    was normalised before), becomes one constant below the head's.

    Args:
        image: `(C, X, Y, Z)`.

    Raises:
        ValueError: when a channel is constant.
    """
    return torch.stack([_standardize_channel(channel, index) for index, channel in enumerate(image)])


def _standardize_channel(channel: Tensor, index: int) -> Tensor:
    channel = _with_dark_background(channel)
    low, high = quantiles(channel, (BACKGROUND_QUANTILE, 0.995))
    clipped = channel.clamp(low, high)
    head = clipped.masked_select(clipped > clipped.mean())
    mean, spread = (head.mean(), head.std()) if head.numel() > 1 else (0, 0)
    if not spread > 0:
        raise ValueError(
            f"channel {index} of the image is constant ({channel.flatten()[0].item():g}); nothing to see in it"
        )
    return channel.clamp_min(low).sub_(mean).div_(spread).clamp_(*Z_RANGE)


def _with_dark_background(channel: Tensor) -> Tensor:
    if (fill := fill_amid(channel)) is None:
        return channel
    head = channel[channel != fill]
    return channel.where(channel != fill, head.mean() + Z_RANGE[0] * head.std())


def window_ct(image: Tensor, intensity_range: Sequence[float] = CT_WINDOW) -> Tensor:
    """Map a window of Hounsfield units to 0-1 and clip what lies outside.

    Raises:
        ValueError: when the window is empty, or the image spans too little to be in HU.
    """
    low, high = intensity_range
    if not low < high:
        raise ValueError(f"intensity_range must be (low, high) in HU, got {tuple(intensity_range)}")
    span = (image.max() - image.min()).item()
    if span < SMALLEST_CT_SPAN:
        raise ValueError(
            f"a CT in Hounsfield units spans at least {SMALLEST_CT_SPAN:g} HU, this one {span:g}; "
            "rescale it to HU, or use modality MR"
        )
    return ((image - low) / (high - low)).clamp(0, 1)
