"""The asymmetry map as a channel: a network sees from the start which places fit nothing near their counterparts.

Shapes: volumes are `(B, C, X, Y, Z)`; a pair is `(B, 2C, X, Y, Z)`, and with the map in both halves `(B, 2C + 2, ...)`.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from torch import Tensor

from custom.symmetry import split_pair
from custom.transforms.asymmetry_map import brain, difference
from custom.transforms.intensity import Z_RANGE

COARSE_MM = 3.5
"""The map is found on voxels of up to so many mm a side, whatever the volume's: it is smoother than that."""
USUAL, SPREAD = 0.75, 0.35
"""Of the map inside real brains, rounded: what becomes 0, and 1."""


def with_asymmetry(pair: Tensor, spacing: Sequence[float], inside: Tensor | None = None) -> Tensor:
    """Append to each half of a pair how far its places differ from everything near their counterparts.

    Args:
        pair: `(B, 2C, X, Y, Z)`, aligned, standardised MR.
        spacing: mm per voxel.
        inside: the brain, `(B, 1, X, Y, Z)` bool, where it is known; else it is looked for in the image.

    Returns:
        `(B, 2C + 2, X, Y, Z)`.
    """
    size = pair.shape[2:]
    coarse = [max(1, round(n / max(1, int(COARSE_MM / side)))) for n, side in zip(size, spacing, strict=True)]
    sides = [side * n / m for side, n, m in zip(spacing, size, coarse, strict=True)]
    image, counterpart = split_pair(F.interpolate(pair, coarse, mode="area"))
    known = None if inside is None else F.interpolate(inside.to(pair), coarse, mode="area") > 0.5
    inside = brain(image[:, :1], sides) if known is None else known
    maps = [difference(*halves, inside, sides) for halves in ((image, counterpart), (counterpart, image))]
    maps = [F.interpolate((one - USUAL) / SPREAD, size, mode="trilinear").clamp(*Z_RANGE) for one in maps]
    halves = zip(split_pair(pair), maps, strict=True)
    return torch.cat([part for half in halves for part in half], 1)


class AsymmetryChanneld(MapTransform):
    """`with_asymmetry` for a case, `(2C, X, Y, Z)` to `(2C + 2, X, Y, Z)`.

    Args:
        keys: the symmetric pair.
        spacing: mm per voxel.
    """

    def __init__(self, keys: KeysCollection, spacing: Sequence[float]) -> None:
        super().__init__(keys)
        self.spacing = spacing

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            pair = d[key]
            seen = with_asymmetry(pair.as_subclass(Tensor)[None], self.spacing)[0]
            d[key] = MetaTensor(seen, meta=pair.meta, applied_operations=pair.applied_operations)
        return d
