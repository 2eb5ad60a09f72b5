"""The left-right axis, named once, and the symmetric pair.

Volumes are `(..., X, Y, Z)` in RAS orientation, so the lateral axis is the first of the three spatial ones. The
midsagittal plane is the central plane of that axis: voxel `i` of `n` mirrors to voxel `n - 1 - i`, whatever the parity
of `n`. A symmetric pair is one tensor with `2C` channels: `C` of the volume, then `C` of its mirror image.
"""

import torch
from torch import Tensor

LATERAL_AXIS = 0
"""The left-right axis among the spatial axes X, Y, Z of a RAS volume."""


def mirror(image: Tensor) -> Tensor:
    """Reflect a volume, or a batch of them, across the midsagittal plane.

    Args:
        image: `(..., X, Y, Z)` in RAS, aligned: the midsagittal plane is the central plane of X.

    Examples:
        >>> mirror(torch.arange(3).reshape(3, 1, 1)).flatten().tolist()
        [2, 1, 0]
    """
    return image.flip(LATERAL_AXIS - 3)


def symmetric_pair(image: Tensor) -> Tensor:
    """Append the mirror image as channels: `(..., C, X, Y, Z)` to `(..., 2C, X, Y, Z)`."""
    return torch.cat([image, mirror(image)], dim=-4)


def split_pair(pair: Tensor) -> tuple[Tensor, Tensor]:
    """Split a pair `(..., 2C, X, Y, Z)` into the image and its mirrored counterpart, `(..., C, X, Y, Z)` each.

    Raises:
        ValueError: when the number of channels is odd, so that it cannot be a symmetric pair.
    """
    if pair.shape[-4] % 2:
        raise ValueError(f"a symmetric pair has an even number of channels (C and C mirrored), got {pair.shape[-4]}")
    image, mirrored = pair.chunk(2, dim=-4)
    return image, mirrored
