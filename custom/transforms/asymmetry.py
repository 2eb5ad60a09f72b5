"""The asymmetry map: how far the encoder's features of each place differ from those of its mirrored counterpart."""

from collections.abc import Hashable, Mapping
from functools import partial
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.networks import eval_mode
from monai.transforms import MapTransform
from torch import Tensor, nn

from custom.networks.encoding import SymmetryAwareEncoding
from custom.networks.heads import asymmetry_of_places
from custom.symmetry import split_pair


def feature_asymmetry(network: SymmetryAwareEncoding, pair: Tensor) -> Tensor:
    """`1 - cos` of the features of each place and of its mirrored counterpart, the mean over the encoder's five scales.

    Each scale is brought to the size of the pair by linear interpolation first. A place and its counterpart have nearly
    the same value: the map says where the halves differ, not which of them is ill.

    Args:
        network: whose encoder to ask.
        pair: `(B, 2C, X, Y, Z)`, a volume or an ROI; X, Y, Z are multiples of 32.

    Returns:
        `(B, 1, X, Y, Z)`, 0 (alike) to 2 (opposite).
    """
    image, mirrored = split_pair(pair)
    both = torch.cat([network.encoder_input(image, mirrored), network.encoder_input(mirrored, image)])
    maps = []
    for features in network.swinViT(both):
        distance = asymmetry_of_places(*features.chunk(2)).unsqueeze(1)
        maps.append(nn.functional.interpolate(distance, size=pair.shape[2:], mode="trilinear"))
    return torch.stack(maps).mean(0)


class FeatureAsymmetryd(MapTransform):
    """Add the asymmetry map of a symmetric pair under a key of its own, with the pair's place in space.

    It is meant for postprocessing, on single cases: `Invertd` then brings the map to the grid of the file.

    Args:
        keys: the symmetric pair, `(2C, X, Y, Z)`.
        network: one of `custom.networks`, trained.
        inferer: MONAI's, e.g. the sliding window of the prediction.
        output_key: of the map, `(1, X, Y, Z)`.
    """

    def __init__(
        self,
        keys: KeysCollection,
        network: SymmetryAwareEncoding,
        inferer: Inferer,
        output_key: str = "asymmetry",
    ) -> None:
        super().__init__(keys)
        self.network = network
        self.inferer = inferer
        self.output_key = output_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            pair = d[key]
            batch = pair.as_subclass(Tensor)[None].to(next(self.network.parameters()).device)
            with eval_mode(self.network):
                difference = self.inferer(batch, partial(feature_asymmetry, self.network))[0]
            d[self.output_key] = MetaTensor(
                difference.to(pair.device), meta=pair.meta, applied_operations=pair.applied_operations
            )
        return d
