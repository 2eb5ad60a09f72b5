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
from monai.utils import MAX_SEED


class DeepAugmentationd(MapTransform, Randomizable):
    """Turn, scale, blur and disturb a symmetric pair and its mask; for segmentation.

    Rotation (up to 30 degrees) and scaling (0.7 to 1.4), noise, blur, brightness, contrast, low resolution, gamma: the
    transforms, ranges and probabilities of nnU-Net's default, without its mirroring, which the bundle does for the
    left-right axis. The two halves of a pair go through the same rotation: about the left-right axis it remains a
    symmetric pair, about the others only the homology of the two voxels, which the network compares, remains. An
    asymmetry map goes through rotation and scaling alone: it is in units of its own.

    Args:
        keys: the image, then its mask.
        asymmetry_map: whether the last channel of each half of the pair is the map.

    References:
        Isensee et al., nnU-Net, Nature Methods 18 (2021) 203-211, supplementary note 4.
    """

    def __init__(self, keys: KeysCollection, asymmetry_map: bool = False) -> None:
        super().__init__(keys)
        self.asymmetry_map = asymmetry_map
        image = self.keys[0]
        angle = np.deg2rad(30)
        modes = ["bilinear", "nearest"][: len(self.keys)]
        affine = {"keys": self.keys, "mode": modes, "padding_mode": "border"}
        self.poses = Compose(
            [
                RandAffined(prob=0.2, rotate_range=(angle,) * 3, **affine),
                RandAffined(prob=0.2, scale_range=((-0.3, 0.4),) * 3, **affine),
            ]
        )
        self.intensities = Compose(
            [
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
        for steps in (self.poses, self.intensities):  # of one seed, a case would be turned whenever it is given noise
            steps.set_random_state(int(self.R.randint(MAX_SEED, dtype="uint32")))
        return self

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        posed = self.poses(data)
        image = self.keys[0]
        if not self.asymmetry_map:
            return self.intensities(posed)
        pair, channels = posed[image], posed[image].shape[0] // 2
        maps = [channels - 1, 2 * channels - 1]
        images = [channel for channel in range(2 * channels) if channel not in maps]
        changed = self.intensities({**posed, image: pair[images]})
        seen = pair.clone()
        seen[images] = changed[image]
        return {**changed, image: seen}
