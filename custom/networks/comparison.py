"""What each place differs by from its mirrored counterpart, for the skip connections of the segmenter."""

import torch
from monai.networks.layers import Conv
from torch import Tensor, nn

from custom.networks.channels_last import channels_last


class Comparison(nn.Sequential):
    """Features, to be added to those of a place, of how it differs from its counterpart; zero at the start.

    A segmenter whose last layers here are zero is the one without comparisons: what they add is learned.

    Args:
        in_channels: of the image or its features.
        out_channels: of what it is added to.
        kernel_size: of both convolutions.

    Shape:
        - features, mirrored: `(B, in_channels, X, Y, Z)`; output: `(B, out_channels, X, Y, Z)`
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 1) -> None:
        convolution, padding = Conv[Conv.CONV, 3], kernel_size // 2
        super().__init__(
            convolution(2 * in_channels, out_channels, kernel_size, padding=padding),
            nn.InstanceNorm3d(out_channels),
            nn.LeakyReLU(0.01),
            convolution(out_channels, out_channels, kernel_size, padding=padding),
        )
        nn.init.zeros_(self[-1].weight)
        nn.init.zeros_(self[-1].bias)

    def forward(self, features: Tensor, mirrored: Tensor) -> Tensor:
        difference = features - mirrored
        return super().forward(channels_last(torch.cat([difference, difference.abs()], 1)))
