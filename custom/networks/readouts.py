"""What is said of a whole brain: what stands out at any of its places, or the mean over all of them (the paper).

A readout is one class, chosen once by its name. Each gets, at its `scales`, the features of the image and of its
mirrored counterpart, pairs of `(B, C, X, Y, Z)`; the counterpart's are None in the variants that have none.
"""

from collections.abc import Sequence

import torch
from monai.networks.layers import Conv
from torch import Tensor, nn

from custom.networks.encoding import BOTTLENECK, EncoderOptions
from custom.networks.heads import (
    SHARPNESS,
    GlobalBatchNorm,
    PooledHead,
    asymmetry_of_places,
    mean_of_scales,
    peak,
    pool,
)

Scales = Sequence[tuple[Tensor, Tensor | None]]

SCALES = (1, 2, 3, 4)
"""Whose places are read: features of X/4 to X/32."""


MAP_SHARPNESS = (1.0, 3.0)
"""Of the asymmetry map's peaks: broad, and narrow."""


class PlaceEvidence(nn.ModuleList):
    """Class evidence of each place, by a normed linear layer per scale; a scale's logit is the peak over its places.

    A mean over the brain dilutes what is in one place, and tells brains apart by their shape; a place cannot. What is
    read of a place are its features, at the bottleneck the joined ones, and with a cross-attention how far they differ
    from those of its counterpart. Of the asymmetry map, where there is one, the peaks are evidence of their own: the
    finest scale.

    Shape:
        - scales, joined: features, and those of the bottleneck after the cross-attention
        - image: `(B, C, X, Y, Z)` with the asymmetry map as its last channel; not needed where there is none
        - output: `(B, K, 4 or 5)` logits of each scale
    """

    scales = SCALES

    def __init__(self, options: EncoderOptions, num_classes: int) -> None:
        self.compares = options.symmetry == "saca"
        widths = [options.feature_size * 2**scale * (2 if self.compares else 1) for scale in self.scales]
        super().__init__(
            nn.Sequential(GlobalBatchNorm(width), Conv[Conv.CONV, 3](width, num_classes, kernel_size=1))
            for width in widths
        )
        if options.asymmetry_map:
            self.append(PooledHead(len(MAP_SHARPNESS), num_classes))
            nn.init.zeros_(self[-1][-1].weight)  # few weights: a wrong sign would take long to unlearn
            nn.init.zeros_(self[-1][-1].bias)

    def forward(self, scales: Scales, joined: Tensor, image: Tensor | None = None) -> Tensor:
        read = self.compared(scales, joined)
        logits = [peak(layer(x).flatten(2)) for layer, x in zip([*self][: len(self.scales)], read, strict=True)]
        if len(self) > len(read):
            places = image[:, -1].flatten(1)
            peaks = torch.stack([peak(places, sharpness) for sharpness in MAP_SHARPNESS], -1)
            logits.insert(0, self[-1](peaks))
        return torch.stack(logits, -1)

    def compared(self, scales: Scales, joined: Tensor) -> list[Tensor]:
        """What is read of each place, at each scale."""
        features = [*(image for image, _ in scales[:-1]), joined]
        if not self.compares:
            return features
        return [
            torch.cat([f, (image - mirrored).abs()], 1) for f, (image, mirrored) in zip(features, scales, strict=True)
        ]


class PooledEvidence(PooledHead):
    """The paper's: class evidence of the mean over all places of the joined features; one scale, `(B, K, 1)`."""

    scales = (BOTTLENECK,)

    def __init__(self, options: EncoderOptions, num_classes: int) -> None:
        super().__init__(options.width, num_classes)

    def forward(self, scales: Scales, joined: Tensor, image: Tensor | None = None) -> Tensor:
        return super().forward(pool(joined))[..., None]


class PlaceAsymmetry(nn.Module):
    """Peak over all places of `1 - cos` of their features and their counterparts'; the finer scales count more, `(B,)`.

    It has no parameters.
    """

    scales = SCALES

    def __init__(self, options: EncoderOptions, embedding_size: int) -> None:
        super().__init__()

    def forward(self, scales: Scales) -> Tensor:
        peaks = [peak(asymmetry_of_places(*halves).flatten(1), SHARPNESS) for halves in scales]
        return mean_of_scales(torch.stack(peaks, -1))


class SymmetryAwareHead(PooledHead):
    """The paper's (SAH): `1 - cos` of the two halves' embeddings of pooled features, `(B,)`; it dilutes small lesions.

    References:
        Ma et al., MICCAI 2024, section 2.
    """

    scales = (BOTTLENECK,)

    def __init__(self, options: EncoderOptions, embedding_size: int) -> None:
        super().__init__(options.width, embedding_size)

    def forward(self, scales: Scales) -> Tensor:
        # Both halves at once, so that their normalisation is theirs together.
        embedding, mirrored = super().forward(torch.cat([pool(half) for half in scales[-1]])).chunk(2)
        return asymmetry_of_places(embedding, mirrored)


EVIDENCE = {"places": PlaceEvidence, "paper": PooledEvidence}
ASYMMETRY = {"places": PlaceAsymmetry, "paper": SymmetryAwareHead}
"""Readouts of classifier and pretrainer by name."""
