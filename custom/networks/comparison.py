"""What each place differs by from its mirrored counterpart, for the skip connections of the segmenter."""

from itertools import product

import torch
from monai.networks.layers import Conv
from torch import Tensor, nn
from torch.nn import functional as F

from custom.networks.channels_last import channels_last

SHARPNESS = 10.0
"""Of the soft minimum over places, per unit of the mean squared difference."""


class Comparison(nn.Sequential):
    """Features, to be added to those of a place, of how it differs from its counterpart; zero at the start.

    A segmenter whose last layers here are zero is the one without comparisons: what they add is learned.

    Args:
        in_channels: of the image or its features.
        out_channels: of what it is added to.
        kernel_size: of both convolutions.
        tolerant: compare with the most alike place around the counterpart's.

    Shape:
        - features, mirrored: `(B, in_channels, X, Y, Z)`; output: `(B, out_channels, X, Y, Z)`
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 1, tolerant: bool = False) -> None:
        convolution, padding = Conv[Conv.CONV, 3], kernel_size // 2
        super().__init__(
            convolution(2 * in_channels, out_channels, kernel_size, padding=padding),
            nn.InstanceNorm3d(out_channels),
            nn.LeakyReLU(0.01),
            convolution(out_channels, out_channels, kernel_size, padding=padding),
        )
        self.tolerant = tolerant
        nn.init.zeros_(self[-1].weight)
        nn.init.zeros_(self[-1].bias)

    def forward(self, features: Tensor, mirrored: Tensor) -> Tensor:
        difference = features - (most_alike(features, mirrored) if self.tolerant else mirrored)
        return super().forward(channels_last(torch.cat([difference, difference.abs()], 1)))


def most_alike(features: Tensor, mirrored: Tensor, reach: int = 1) -> Tensor:
    """Of each place, what the counterpart has at the most alike place around it: a soft minimum, `(B, C, X, Y, Z)`.

    Places are compared by patches of 3 x 3 x 3, without a gradient: which place it is, is not learned.
    """
    places, shape = F.pad(mirrored, 6 * [reach], mode="replicate"), features.shape[2:]
    shifts = list(product(range(2 * reach + 1), repeat=3))

    def at(shift: tuple[int, ...]) -> Tensor:
        return places[(..., *(slice(s, s + n) for s, n in zip(shift, shape, strict=True)))]

    with torch.no_grad():
        unlike = [F.avg_pool3d((features - at(s)).square().mean(1, keepdim=True), 3, 1, 1) for s in shifts]
        weights = torch.softmax(-SHARPNESS * torch.stack(unlike), 0)
    return sum(w * at(s) for w, s in zip(weights, shifts, strict=True))
