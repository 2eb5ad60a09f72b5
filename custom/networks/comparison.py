"""What each place differs by from its mirrored counterpart, for the skip connections of the segmenter."""

from itertools import product

import torch
from monai.networks.layers import Conv
from torch import Tensor, nn
from torch.nn import functional as F

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


class AttendedComparison(Comparison):
    """A comparison with what a place attends to in the neighbourhood of its counterpart, 3 x 3 x 3 places."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels)
        self.width = min(in_channels, 12)
        self.query = nn.Conv3d(in_channels, self.width, 1)
        self.key = nn.Conv3d(in_channels, self.width, 1)
        bias = torch.zeros(27)
        bias[13] = 3.0  # at the start most of it is the counterpart itself
        self.bias = nn.Parameter(bias)

    def forward(self, features: Tensor, mirrored: Tensor) -> Tensor:
        shape = features.shape[2:]
        normed = [F.instance_norm(x) for x in (features, mirrored)]
        query, key = self.query(normed[0]), F.pad(self.key(normed[1]), 6 * [1], mode="replicate")
        places = F.pad(mirrored, 6 * [1], mode="replicate")
        shifts = list(product(range(3), repeat=3))

        def at(x: Tensor, shift: tuple[int, ...]) -> Tensor:
            return x[(..., *(slice(s, s + n) for s, n in zip(shift, shape, strict=True)))]

        scores = torch.stack([(query * at(key, s)).sum(1, keepdim=True) for s in shifts]) * self.width**-0.5
        weights = torch.softmax(scores + self.bias.view(27, 1, 1, 1, 1, 1), 0)
        attended = sum(w * at(places, s) for w, s in zip(weights, shifts, strict=True))
        difference = features - attended
        x = channels_last(torch.cat([difference, difference.abs()], 1))
        for layer in list(self)[:4]:
            x = layer(x)
        return x
