"""Deep augmentation of a symmetric pair and its mask, after nnU-Net's recipe, from MONAI's transforms."""

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
from monai.config import KeysCollection
from monai.transforms import (
    Compose,
    MapTransform,
    RandAdjustContrastd,
    RandAffined,
    RandGaussianNoised,
    RandGaussianSmoothd,
    Randomizable,
    RandScaleIntensityd,
    RandScaleIntensityFixedMeand,
    RandSimulateLowResolutiond,
)


class DeepAugmentationd(MapTransform, Randomizable):
    """Turn, scale, blur and disturb a symmetric pair and its mask; for segmentation.

    Rotation (up to 30 degrees) and scaling (0.7 to 1.4), noise, blur, brightness, contrast, low resolution, gamma: the
    transforms, ranges and probabilities of nnU-Net's default, without its mirroring, which the bundle does for the
    left-right axis. The two halves of a pair go through the same rotation: about the left-right axis it remains a
    symmetric pair, about the others only the homology of the two voxels, which the network compares, remains.

    Args:
        keys: the image, then its mask.

    References:
        Isensee et al., nnU-Net, Nature Methods 18 (2021) 203-211, supplementary note 4.
    """

    def __init__(self, keys: KeysCollection) -> None:
        super().__init__(keys)
        image = self.keys[0]
        angle = np.deg2rad(30)
        modes = ["bilinear", "nearest"][: len(self.keys)]
        affine = {"keys": self.keys, "mode": modes, "padding_mode": "border"}
        self.steps = Compose(
            [
                RandAffined(prob=0.2, rotate_range=(angle,) * 3, **affine),
                RandAffined(prob=0.2, scale_range=((-0.3, 0.4),) * 3, **affine),
                RandGaussianNoised(image, prob=0.1, std=0.3),
                RandGaussianSmoothd(image, (0.5, 1.0), (0.5, 1.0), (0.5, 1.0), prob=0.2),
                RandScaleIntensityd(image, factors=0.25, prob=0.15),
                RandScaleIntensityFixedMeand(image, factors=0.25, prob=0.15),
                RandSimulateLowResolutiond(image, prob=0.25, zoom_range=(0.5, 1.0)),
                RandAdjustContrastd(image, prob=0.1, gamma=(0.7, 1.5), retain_stats=True, invert_image=True),
                RandAdjustContrastd(image, prob=0.3, gamma=(0.7, 1.5), retain_stats=True),
            ]
        )

    def set_random_state(
        self, seed: int | None = None, state: np.random.RandomState | None = None
    ) -> "DeepAugmentationd":
        super().set_random_state(seed, state)
        self.steps.set_random_state(seed, state)
        return self

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        return self.steps(data)
