"""Parts of heads: the mean, the peak over places, the normed linear layer, and the decoder of inpainting.

Shapes: B batch, C channels, K classes; features are `(B, C, X, Y, Z)`.
"""

import math
from itertools import pairwise

import torch
from monai.networks.layers import Conv
from torch import Tensor, nn

from custom.networks.channels_last import use_channels_last
from custom.support.distributed import gather_batch

SHARPNESS = 30.0
"""Of the peak asymmetry: a place counts by `exp(SHARPNESS x asymmetry)`, so that a few of a thousand decide."""


def pool(features: Tensor) -> Tensor:
    """Mean over space, `(B, C, X, Y, Z)` to `(B, C)`: no single token stands for the whole."""
    return features.mean(dim=(2, 3, 4))


def peak(values: Tensor, sharpness: float = 1.0) -> Tensor:
    """Soft maximum over the last axis, `log(mean(exp(sharpness x values))) / sharpness`; `(..., N)` to `(...)`.

    It lies between the mean and the maximum, and that of equal parts, put together, is that of their own.
    """
    return ((at_least_float(values) * sharpness).logsumexp(-1) - math.log(values.shape[-1])) / sharpness


def asymmetry_of_places(features: Tensor, mirrored: Tensor) -> Tensor:
    """`1 - cos` of the features of each place and of its mirrored counterpart, `(B, C, ...)` to `(B, ...)`, 0 to 2."""
    return 1 - nn.functional.cosine_similarity(at_least_float(features), at_least_float(mirrored), dim=1)


def mean_of_scales(values: Tensor) -> Tensor:
    """Mean over the last axis, scales from fine to coarse, `(..., S)` to `(...)`; each counts half the one before.

    The weights of nnU-Net's deep supervision: coarse features know a training subject by the shape of its head.
    """
    weights = 0.5 ** torch.arange(values.shape[-1], device=values.device, dtype=values.dtype)
    return (values * (weights / weights.sum())).sum(-1)  # not a product: autocast would round it


def at_least_float(values: Tensor) -> Tensor:
    """Half precision as single precision; all else as it is."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


class PooledHead(nn.Sequential):
    """Pooled features `(B, width)` to `(B, out_features)`: batch norm, then a linear layer.

    Pooled features of different brains are nearly parallel. Without the normalisation every cosine starts at 1, where
    its gradient vanishes, and a linear classifier sees mostly what all brains share; with it they learn many times
    faster.
    """

    def __init__(self, width: int, out_features: int) -> None:
        super().__init__(GlobalBatchNorm(width), nn.Linear(width, out_features))


class GlobalBatchNorm(nn.BatchNorm1d):
    """Batch norm of `(B, C, ...)` over the batches of all processes; a single row takes the running statistics.

    Such a batch is the remainder of an epoch. (PyTorch's SyncBatchNorm is for GPUs only.)
    """

    def forward(self, features: Tensor) -> Tensor:
        mean, variance = self.running_mean, self.running_var
        if self.training:
            own_mean, own_variance, count = moments(features)
            if count > 1:
                mean, variance = own_mean, own_variance
                self.track(mean.detach(), variance.detach() * count / (count - 1))
        scale = self.weight * (variance + self.eps).rsqrt()
        shape = (-1, *[1] * (features.ndim - 2))
        return features * scale.view(shape) + (self.bias - mean * scale).view(shape)

    def track(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics towards those of a batch."""
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_(variance.to(self.running_var.dtype), self.momentum)


def moments(features: Tensor) -> tuple[Tensor, Tensor, int]:
    """Mean and variance of each channel of `(B, C, ...)` over the batches of all processes, and the number of rows."""
    rows = at_least_float(features.transpose(0, 1).flatten(1))
    means = gather_batch(rows.mean(1)[None])
    mean = means.mean(0)
    variance = gather_batch((rows - mean[:, None]).square().mean(1)[None]).mean(0)
    return mean, variance, rows.shape[1] * len(means)


class InpaintingDecoder(nn.Sequential):
    """From bottleneck features `(B, width, X/32, ...)` back to the image `(B, C, X, Y, Z)`.

    Five stages of convolution, instance norm, LeakyReLU and trilinear x2, then a 1x1x1 convolution. That convolution
    and the interpolation before it commute; it is done first, on an eighth of the voxels.
    """

    def __init__(self, width: int, out_channels: int) -> None:
        conv = Conv[Conv.CONV, 3]
        widths = [width // 2**i for i in range(6)]  # 768 384 192 96 48 24 in the paper
        stages = [
            nn.Sequential(
                conv(wide, narrow, kernel_size=3, padding=1),
                nn.InstanceNorm3d(narrow),
                nn.LeakyReLU(),
                nn.Upsample(scale_factor=2, mode="trilinear", align_corners=False),
            )
            for wide, narrow in pairwise(widths)
        ]
        super().__init__(*stages, conv(widths[-1], out_channels, kernel_size=1))
        use_channels_last(self)

    def forward(self, features: Tensor) -> Tensor:
        *stages, last, conv = self
        for stage in stages:
            features = stage(features)
        *before, upsample = last
        for layer in before:
            features = layer(features)
        return upsample(conv(features))
